"""What transformers' logits processors leave of fixed logits.

    python make_sampling.py

writes sampling/cases.json: chains of settings, the tokens they keep, and the probabilities of those.
"""

import json
from pathlib import Path

import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import versions

HERE = Path(__file__).parent / "sampling"
VOCABULARY = 48
HISTORY = [3, 7, 7, 11, 40, 3]


def logits() -> dict[str, torch.Tensor]:
    """Rounded to sixteenths, so that JSON holds them exactly; `ties` has many equal ones."""
    rng = torch.Generator().manual_seed(5)
    spread = (3 * torch.randn(VOCABULARY, generator=rng) * 16).round() / 16
    flat = (0.2 * torch.randn(VOCABULARY, generator=rng) * 16).round() / 16
    return {
        "spread": spread,
        "flat": flat,
        "ties": spread.div(2).round(),
        "sharp": torch.where(torch.arange(VOCABULARY) == 17, 20.0, spread),
        "negative": spread - 40,
    }


# In the order that transformers' generate applies them: penalty, temperature, top-k, top-p, min-p.
SETTINGS = [
    {},
    {"temperature": 0.5}, {"temperature": 2.0},
    {"top_k": 1}, {"top_k": 5}, {"top_k": 200},
    {"top_p": 0.1}, {"top_p": 0.5}, {"top_p": 0.9}, {"top_p": 0.999}, {"top_p": 0.0},
    {"min_p": 0.05}, {"min_p": 0.3}, {"min_p": 1.0},
    {"repetition_penalty": 1.3}, {"repetition_penalty": 0.8},
    {"temperature": 0.7, "top_k": 10, "top_p": 0.8},
    {"temperature": 1.5, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.1},
]


def processors(s: dict) -> LogitsProcessorList:
    made = LogitsProcessorList()
    if "repetition_penalty" in s:
        made.append(RepetitionPenaltyLogitsProcessor(s["repetition_penalty"]))
    if "temperature" in s:
        made.append(TemperatureLogitsWarper(s["temperature"]))
    if "top_k" in s:
        made.append(TopKLogitsWarper(s["top_k"]))
    if "top_p" in s:
        made.append(TopPLogitsWarper(s["top_p"]))
    if "min_p" in s:
        made.append(MinPLogitsWarper(s["min_p"]))
    return made


def main() -> None:
    HERE.mkdir(exist_ok=True)
    given = logits()
    cases = []
    for name, row in given.items():
        for s in SETTINGS:
            left = processors(s)(torch.tensor([HISTORY]), row[None].clone())[0]
            kept = torch.isfinite(left).nonzero().flatten()
            probabilities = left.softmax(-1)[kept]
            cases.append({"logits": name, "settings": s, "kept": kept.tolist(),
                          "probabilities": [round(p, 9) for p in probabilities.tolist()]})
    head = {"made_with": versions.of("transformers", "torch"), "history": HISTORY,
            "logits": {k: v.tolist() for k, v in given.items()}}
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "cases.json").write_text(json.dumps(head)[:-1] + ', "cases": [\n' + lines + "\n]}\n")
    print(f"{len(cases)} cases")


if __name__ == "__main__":
    main()
