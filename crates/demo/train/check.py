"""Checks an exported model with transformers: loading, the tokenizer, samples, perplexity, choices.

    python check.py --model ../model --text ../text
"""

import argparse
import collections
import json
import math
import pathlib
import warnings

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

REQUESTS = [
    "Tell me a story about a dog and a ball.",
    "Write a short story about a dragon who is afraid of the dark.",
    "Tell me a story about a girl named Mia and a boat.",
    "Hello!",
    "Write a story that starts with: It was raining, and Ben could not find his boots.",
    "Write a story with the words moon, cat and ladder.",
]
START = "Once upon a time, there was a small owl who"
ODD = ["", "a", "12.345", "naïve café", "日本語 🙂\n\n\tx", "  spaces  ", "\x00\x7f", "<|im_end|"]


def generate(model, tok, ids, **how):
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **how)
    return tok.decode(out[0, ids.shape[1] :], skip_special_tokens=True).strip()


@torch.no_grad()
def nats(model, ids, given):
    """Negative log-likelihood of ids[given:] in nats, one value a token."""
    logits = model(torch.tensor([ids])).logits[0, :-1].float().log_softmax(-1)
    return -logits.gather(1, torch.tensor(ids[1:])[:, None])[given - 1 :, 0]


def perplexity(model, tok, stories):
    total = tokens = size = 0
    for s in stories:
        each = nats(model, tok(s["text"])["input_ids"], 1)
        total, tokens, size = total + each.sum().item(), tokens + len(each), size + len(s["text"].encode())
    return math.exp(total / tokens), total / size / math.log(2), tokens


def choices(model, tok, items):
    right, count = collections.Counter(), collections.Counter()
    for item in items:
        given = tok(item["context"])["input_ids"]
        scores = []
        for ending in item["choices"]:
            ids = tok(item["context"] + " " + ending)["input_ids"]
            same = next((i for i, (a, b) in enumerate(zip(given, ids)) if a != b), len(given))
            scores.append((nats(model, ids, same).sum().item(), len(ending.encode())))
        for kind, score in (("sum", lambda v: v[0]), ("by byte", lambda v: v[0] / v[1])):
            best = min(range(len(scores)), key=lambda i: score(scores[i]))
            for name in (item["kind"], "all"):
                right[name, kind] += best == item["answer"]
        count[item["kind"]] += 1
        count["all"] += 1
    for name in count:
        print(f"choices {name}: {count[name]} items, right by sum {right[name, 'sum'] / count[name]:.3f}, by byte {right[name, 'by byte'] / count[name]:.3f}")


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--model", default="../model")
    p.add_argument("--text", type=pathlib.Path, default=pathlib.Path("../text"))
    p.add_argument("--dtype", default="float32")
    a = p.parse_args()
    warnings.simplefilter("error")
    tok = AutoTokenizer.from_pretrained(a.model)
    model = AutoModelForCausalLM.from_pretrained(a.model, dtype=getattr(torch, a.dtype)).eval()
    print(f"{sum(p.numel() for p in model.parameters())} parameters, {len(tok)} tokens")
    for text in ODD:
        ids = tok(text, add_special_tokens=False)["input_ids"]
        assert tok.decode(ids) == text, (text, ids)
        assert tok(text)["input_ids"] == [0] + ids
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "max_new_tokens": 300}
    torch.manual_seed(1)
    for request in REQUESTS:
        chat = [{"role": "user", "content": request}]
        ids = tok.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
        print(f"\n## {request}\n[greedy] {generate(model, tok, ids, **greedy)}")
        print(f"[sampled] {generate(model, tok, ids)}")
    ids = tok(START, return_tensors="pt")["input_ids"]
    print(f"\n## (no template) {START}\n[greedy] {generate(model, tok, ids, **greedy)}\n")
    if (a.text / "stories.jsonl").exists():
        each, bits, tokens = perplexity(model, tok, lines(a.text / "stories.jsonl"))
        print(f"stories: perplexity {each:.3f} a token over {tokens} tokens, {bits:.4f} bits a byte")
    if (a.text / "choices.jsonl").exists():
        choices(model, tok, lines(a.text / "choices.jsonl"))


if __name__ == "__main__":
    main()
