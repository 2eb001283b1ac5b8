"""A model with random weights in the shape of a real one: for speed and memory, never for quality.

    python3 comparisons/random_model.py mistral-7b OUT --tokenizer crates/demo/model

Writes a Hugging Face folder in bf16, one file for every few layers; needs numpy. The tokenizer is
another model's and may be smaller than the vocabulary.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy

SHAPES = {
    "tinyllama-1.1b": dict(layers=22, width=2048, feed_forward=5632, heads=32, kv=4),
    "mistral-7b": dict(layers=32, width=4096, feed_forward=14336, heads=32, kv=8),
}
VOCABULARY = 32000
LAYERS_PER_FILE = 4


def bf16(values):
    """The upper halves of f32 numbers, rounded to nearest."""
    bits = values.view(numpy.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(numpy.uint16)


def layer(shape, index):
    """Names and shapes of a layer's tensors."""
    width, feed_forward = shape["width"], shape["feed_forward"]
    kv = width // shape["heads"] * shape["kv"]
    rows = dict(q_proj=width, k_proj=kv, v_proj=kv, o_proj=width)
    tensors = {f"self_attn.{name}": (n, width) for name, n in rows.items()}
    tensors |= {"mlp.gate_proj": (feed_forward, width), "mlp.up_proj": (feed_forward, width)}
    tensors |= {"mlp.down_proj": (width, feed_forward)}
    tensors |= {"input_layernorm": (width,), "post_attention_layernorm": (width,)}
    return {f"model.layers.{index}.{name}.weight": dims for name, dims in tensors.items()}


def write(path, tensors, generator):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, dims in tensors.items():
        size = 2 * int(numpy.prod(dims))
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for dims in tensors.values():
            if len(dims) == 1:
                values = numpy.ones(dims, numpy.float32)
            else:
                # As wide as trained weights are, so that activations stay in range.
                values = generator.standard_normal(dims, numpy.float32) / dims[1] ** 0.5
            file.write(bf16(values).tobytes())
    return at


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out", type=Path)
    parser.add_argument("--tokenizer", type=Path, help="folder to take tokenizer files from")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    shape, out = SHAPES[args.shape], args.out
    out.mkdir(parents=True)
    generator = numpy.random.default_rng(args.seed)
    outer = (VOCABULARY, shape["width"])
    parts = [{"model.embed_tokens.weight": outer}, {"lm_head.weight": outer}]
    parts[1]["model.norm.weight"] = (shape["width"],)
    for start in range(0, shape["layers"], LAYERS_PER_FILE):
        part = {}
        for index in range(start, min(start + LAYERS_PER_FILE, shape["layers"])):
            part |= layer(shape, index)
        parts.append(part)
    places, total = {}, 0
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        total += write(out / name, part, generator)
        places |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY, "hidden_size": shape["width"],
        "intermediate_size": shape["feed_forward"], "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"], "num_key_value_heads": shape["kv"],
        "hidden_act": "silu", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2,
    }
    (out / "config.json").write_text(json.dumps(config, indent=1))
    if args.tokenizer:
        for file in args.tokenizer.glob("token*"):
            shutil.copy(file, out)


if __name__ == "__main__":
    main()
