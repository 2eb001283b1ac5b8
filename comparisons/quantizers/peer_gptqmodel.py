"""GPTQ by GPTQModel on the CPU: MODEL OUT BITS GROUP SYMMETRIC CALIBRATION SAMPLES"""

import json
import sys
import time

from gptqmodel import GPTQModel, QuantizeConfig

model, out, bits, group, symmetric, calibration, samples = sys.argv[1:8]
with open(calibration) as lines:
    texts = [json.loads(line)["text"] for line in lines][: int(samples)]
config = QuantizeConfig(
    bits=int(bits), group_size=int(group), desc_act=False, sym=symmetric == "yes", device="cpu"
)
quantized = GPTQModel.load(model, config)
start = time.monotonic()
quantized.quantize(texts, batch_size=1)
print(f"\nquantized in {time.monotonic() - start:.2f} s")
quantized.save(out)
