"""All logits of a GPTQ or AWQ folder in GPTQModel, on the CPU: MODEL OUT ID,ID,..."""

import json
import sys
from pathlib import Path

import torch
from gptqmodel import BACKEND, GPTQModel

model, out, ids = sys.argv[1:4]
method = json.loads(Path(model, "config.json").read_text())["quantization_config"]["quant_method"]
backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
# Its torch kernels have no f32.
network = GPTQModel.load(model, backend=backend, device="cpu", dtype=torch.float16)
with torch.no_grad():
    logits = network.model(torch.tensor([[int(i) for i in ids.split(",")]])).logits[0]
logits.float().numpy().tofile(out)
