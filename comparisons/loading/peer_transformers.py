"""All logits of a folder in transformers, on the CPU: MODEL OUT ID,ID,...

In f32 unless the loader decodes weights to another type itself (FP8 in blocks, NVFP4 and MXFP4: bfloat16).
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
with torch.no_grad():
    logits = network(torch.tensor([[int(i) for i in ids.split(",")]])).logits[0]
logits.float().numpy().tofile(out)
