"""All logits of a folder in transformers, on the CPU in f32: MODEL OUT ID,ID,..."""

import sys

import torch
from transformers import AutoModelForCausalLM

model, out, ids = sys.argv[1:4]
network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, device_map="cpu")
with torch.no_grad():
    logits = network(torch.tensor([[int(i) for i in ids.split(",")]])).logits[0]
logits.float().numpy().tofile(out)
