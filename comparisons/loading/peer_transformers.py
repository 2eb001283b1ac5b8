"""All logits of a folder in transformers, on the CPU: MODEL OUT ID,ID,...

In f32 unless the loader decodes weights to another type itself (FP8 in blocks, NVFP4 and MXFP4: bfloat16). In f32, OUT
also gets the logits of four runs in which what enters the first layer is disturbed by about one rounding; and those of
everything in bfloat16, where the loader allows it.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

model, out, ids = sys.argv[1:4]
config = json.loads(Path(model, "config.json").read_text()).get("quantization_config", {})
to_bf16 = config.get("quant_method") == "fp8" or "fp4" in config.get("format", "")
dtype = torch.bfloat16 if to_bf16 else torch.float32
network = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, device_map="cpu")
if dtype == torch.float32:
    # The loader of bitsandbytes files leaves the rest in bf16 all the same.
    for rest in [*network.parameters(), *network.buffers()]:
        rest.data = rest.data.float() if rest.dtype == torch.bfloat16 else rest.data
ids = torch.tensor([[int(i) for i in ids.split(",")]])
rng = torch.Generator().manual_seed(0)
disturbed = False


def disturb(module, inputs, embedded):
    return embedded * (1 + 1e-7 * torch.randn(embedded.shape, generator=rng)) if disturbed else embedded


network.get_input_embeddings().register_forward_hook(disturb)
with torch.no_grad():
    rows = [network(ids).logits[0].float()]
    disturbed = True
    rows += [network(ids).logits[0].float() for _ in range(0 if to_bf16 else 4)]
    disturbed = False
    if not to_bf16 and config.get("quant_method") != "bitsandbytes":
        rows.append(network.to(torch.bfloat16)(ids).logits[0].float())
torch.cat(rows).numpy().tofile(out)
