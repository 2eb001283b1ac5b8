"""Quantization by llm-compressor on the CPU: MODEL OUT METHOD SCHEME CALIBRATION SAMPLES LENGTH

METHOD is rtn, gptq, awq or smoothquant; SCHEME one of compressed-tensors' presets, such as W4A16.
"""

import json
import sys
import time

from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

model, out, method, scheme, calibration, samples, length = sys.argv[1:8]
tokenizer = AutoTokenizer.from_pretrained(model)
network = AutoModelForCausalLM.from_pretrained(model, dtype="auto")
with open(calibration) as lines:
    texts = [json.loads(line)["text"] for line in lines][: int(samples)]
rows = [tokenizer(text, truncation=True, max_length=int(length))["input_ids"] for text in texts]
where = {"targets": "Linear", "ignore": ["lm_head"], "scheme": scheme}
recipe = {
    "rtn": lambda: [QuantizationModifier(**where)],
    "gptq": lambda: [GPTQModifier(**where)],
    "awq": lambda: [AWQModifier(), QuantizationModifier(**where)],
    "smoothquant": lambda: [SmoothQuantModifier(smoothing_strength=0.8), GPTQModifier(**where)],
}[method]()
start = time.monotonic()
oneshot(
    model=network,
    dataset=Dataset.from_list([{"input_ids": row} for row in rows]),
    recipe=recipe,
    max_seq_length=int(length),
    num_calibration_samples=int(samples),
)
print(f"\nquantized in {time.monotonic() - start:.2f} s")
network.save_pretrained(out, save_compressed=True)
tokenizer.save_pretrained(out)
