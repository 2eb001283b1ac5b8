"""Quantization by bitsandbytes through transformers, on the CPU: MODEL OUT nf4|nf4_dq|fp4|int8"""

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

model, out, kind = sys.argv[1:4]
config = {
    "nf4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    ),
    "fp4": lambda: BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32
    ),
    "nf4_dq": lambda: BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    ),
    "int8": lambda: BitsAndBytesConfig(load_in_8bit=True),
}[kind]()
network = AutoModelForCausalLM.from_pretrained(
    model, quantization_config=config, device_map="cpu", dtype="auto"
)
network.save_pretrained(out)
AutoTokenizer.from_pretrained(model).save_pretrained(out)
