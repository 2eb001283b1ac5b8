"""What GPTQModel makes of one layer of the demo model, and how much error it leaves.

    python make_gptq_losses.py

writes gptq/layer.safetensors (the weights [96, 256] of some rows of a gate projection, and the mean of x·xᵀ over its
inputs on the demo model's texts) and gptq/losses.json: for each setting the error tr(ΔW·H·ΔWᵀ) that is left. Needs
gptqmodel beside transformers (pip install gptqmodel==7.7.0); runs on the processor.
"""

import json
from pathlib import Path

import torch
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.gptq import GPTQ
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import versions

HERE = Path(__file__).parent / "gptq"
DEMO = Path(__file__).parent.parent / "crates" / "demo"
LAYER = "model.layers.2.mlp.gate_proj"
ROWS = 96
DAMPING = 0.01


def layer() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights [ROWS, 256] and inputs [T, 256] of the layer."""
    model = AutoModelForCausalLM.from_pretrained(DEMO / "model", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(DEMO / "model")
    seen = []
    module = model.get_submodule(LAYER)
    module.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, -2)))
    with torch.no_grad():
        for line in (DEMO / "text" / "stories.jsonl").read_text().splitlines():
            model(**tokenizer(json.loads(line)["text"], return_tensors="pt", truncation=True, max_length=512))
    return module.weight.detach()[:ROWS].clone(), torch.cat(seen)


def settings() -> list[dict]:
    every = []
    for bits in (2, 3, 4, 8):
        for group in (32, 64, 128, -1):
            for sym in (True, False):
                plain = {"bits": bits, "group_size": group, "sym": sym, "desc_act": False, "act_group_aware": False}
                every.append({**plain, "variant": "plain"})
                every.append({**plain, "variant": "mse", "mse": 2.4})
                if group != -1:
                    every.append({**plain, "variant": "group-aware", "act_group_aware": True})
                    every.append({**plain, "variant": "act-order", "desc_act": True, "static_groups": True})
    return every


def loss(error: torch.Tensor, hessian: torch.Tensor) -> float:
    error = error.double()
    return float(((error @ hessian.double()) * error).sum())


def peer(weights: torch.Tensor, inputs: torch.Tensor, setting: dict) -> torch.Tensor:
    """GPTQModel's dequantized weights."""
    module = torch.nn.Linear(weights.shape[1], weights.shape[0], bias=False)
    module.weight.data = weights.clone()
    chosen = {key: value for key, value in setting.items() if key != "variant"}
    config = QuantizeConfig(**chosen, damp_percent=DAMPING, device="cpu")
    gptq = GPTQ(module, config)
    gptq.quantizer.configure(perchannel=True)
    gptq.add_batch(inputs.unsqueeze(0), torch.empty(0))
    return gptq.quantize()[0].detach().float()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    weights, inputs = layer()
    hessian = (inputs.double().T @ inputs.double() / len(inputs)).float()
    HERE.mkdir(exist_ok=True)
    save_file({"weights": weights, "hessian": hessian}, HERE / "layer.safetensors", metadata={"layer": LAYER})
    cases = []
    for setting in settings():
        left = loss(weights - peer(weights, inputs, setting), hessian)
        cases.append({"bits": setting["bits"], "group": max(setting["group_size"], 0), "symmetric": setting["sym"],
                      "variant": setting["variant"], "loss": float(f"{left:.6g}")})
    about = {"versions": versions.of("gptqmodel", "torch", "transformers"), "layer": LAYER, "damping": DAMPING,
             "tokens": len(inputs), "cases": cases}
    text = json.dumps(about, indent=1).replace("\n   ", " ").replace("\n  }", " }")
    (HERE / "losses.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
