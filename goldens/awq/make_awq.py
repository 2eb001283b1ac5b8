"""What llm-compressor's AWQ loses on the demo model: the bar for ours.

    python make_awq.py

writes demo.json: the token ids of the calibration and, for every layer and stage, the mean square that 4-bit rounding
(symmetric, groups of 128) adds to the outputs of the stage's linears, without and with AWQ. Both are measured on the
same tokens, against the same model in f32, with every other linear unrounded.
"""

import copy
import json
from importlib.metadata import version
from pathlib import Path

import torch
from compressed_tensors.quantization import QuantizationArgs, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
DEMO = HERE.parent.parent / "crates" / "demo"
TOKENS = 128
GROUP = 128
STAGES = {
    "attention input": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attention output": ["self_attn.o_proj"],
    "mlp input": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp down": ["mlp.down_proj"],
}


def texts() -> list[list[int]]:
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    lines = (DEMO / "text" / "stories.jsonl").read_text().splitlines()
    ids = [tokenizer(json.loads(line)["text"])["input_ids"][:TOKENS] for line in lines]
    return [i for i in ids if len(i) == TOKENS][:8]


def rounded(weight: torch.Tensor) -> torch.Tensor:
    args = QuantizationArgs(num_bits=4, symmetric=True, strategy="group", group_size=GROUP)
    groups = weight.reshape(weight.shape[0], -1, GROUP)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.bfloat16().float()
    return fake_quantize(weight, scale, zero, args)


def inputs(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """What every linear of the layers is fed."""
    seen, hooks = {}, []
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            hooks.append(module.register_forward_pre_hook(lambda _, x, name=name: seen.__setitem__(name, x[0].detach())))
    with torch.no_grad():
        model(ids)
    for hook in hooks:
        hook.remove()
    return {name: x.reshape(-1, x.shape[-1]) for name, x in seen.items()}


def errors(base: torch.nn.Module, folded: torch.nn.Module, ids: torch.Tensor) -> list[dict[str, float]]:
    """Mean squares added to the outputs of each stage when the folded model's weights are rounded."""
    before, after = inputs(base, ids), inputs(folded, ids)
    weights = {name: module.weight.detach() for name, module in folded.model.layers.named_modules() if hasattr(module, "weight")}

    def of(name: str) -> float:
        exact = after[name] @ weights[name].T
        delta = after[name] @ rounded(weights[name]).T - exact
        # Rows of values and of the gated branch may be scaled by what is folded into them: back to the model's own.
        own = before[name] @ dict(base.model.layers.named_modules())[name].weight.detach().T
        unit = (own * exact).sum(0) / (exact * exact).sum(0)
        return float(((delta * unit) ** 2).sum(-1).mean())

    layers = range(len(base.model.layers))
    return [{stage: sum(of(f"{layer}.{name}") for name in names) for stage, names in STAGES.items()} for layer in layers]


def main() -> None:
    ids = texts()
    base = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    model = copy.deepcopy(base)
    scheme = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "symmetric": True, "strategy": "group", "group_size": GROUP}}}
    oneshot(
        model=model,
        dataset=Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * TOKENS] * len(ids)}),
        recipe=[AWQModifier(duo_scaling=True), QuantizationModifier(config_groups=scheme, ignore=["lm_head"])],
        num_calibration_samples=len(ids),
        max_seq_length=TOKENS,
    )
    folded = copy.deepcopy(base)
    own = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in folded.named_parameters():
            parameter.copy_(own[name])
    tokens = torch.tensor(ids)
    golden = {
        "versions": {name: version(name) for name in ["llmcompressor", "compressed-tensors", "torch", "transformers"]},
        "tokens": ids,
        "rounded": errors(base, base, tokens),
        "awq": errors(base, folded, tokens),
    }
    (HERE / "demo.json").write_text(json.dumps(golden) + "\n")


main()
