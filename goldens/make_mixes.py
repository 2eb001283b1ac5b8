"""Ask llama-quantize which type each tensor of a model gets: `mixes/types.json`.

The choice depends on the architecture, the number of layers, how heads are grouped, whether the head is a tensor
of its own, the widths, and whether there is an importance matrix; never on the weights. So models are headers
with zeros for tensors, and llama-quantize is asked with --dry-run.

    python make_mixes.py --llama-quantize PATH
"""

import argparse
import json
import re
import subprocess
import tempfile
from itertools import groupby
from pathlib import Path

import numpy
from gguf import GGUFWriter

import versions

MIXES = (
    "Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q2_K_S Q3_K_S Q3_K_M Q3_K_L Q4_K_S Q4_K_M Q5_K_S Q5_K_M Q6_K IQ4_NL IQ4_XS "
    "IQ1_S IQ1_M IQ2_XXS IQ2_XS IQ2_S IQ2_M IQ3_XXS IQ3_XS IQ3_S IQ3_M"
).split()

# name: architecture, layers, width, feed-forward, heads, KV heads, width of a head, whether the head is a tensor
SHAPES = {
    "one layer": ("llama", 1, 256, 512, 4, 4, 64, True),
    "four layers, tied": ("llama", 4, 256, 768, 8, 4, 32, False),
    "nine layers, four heads a group": ("llama", 9, 256, 512, 8, 2, 32, True),
    "32 layers": ("llama", 32, 256, 512, 8, 8, 32, True),
    "seventeen layers, tied": ("llama", 17, 512, 768, 8, 2, 64, False),
    "80 layers, grouped": ("llama", 80, 256, 512, 8, 1, 32, True),
    "80 layers, ungrouped": ("llama", 80, 256, 512, 8, 8, 32, True),
    "qwen2 of 80 layers": ("qwen2", 80, 256, 512, 8, 2, 32, True),
    "qwen3, narrow heads": ("qwen3", 28, 256, 512, 4, 2, 32, False),
    "gemma2": ("gemma2", 26, 256, 1024, 4, 2, 64, False),
    "gemma3, four heads a group": ("gemma3", 18, 256, 512, 4, 1, 64, False),
    "phi3, fused": ("phi3", 32, 256, 512, 8, 8, 32, True),
    "rows of 128, tied": ("llama", 12, 128, 384, 8, 4, 16, False),
    "rows of 128 and a head": ("llama", 12, 128, 768, 8, 2, 16, True),
    "feed-forward of 1056": ("llama", 8, 256, 1056, 8, 4, 32, True),
    "rows of 80": ("llama", 6, 80, 256, 4, 4, 20, True),
    "rows of 80, tied": ("llama", 6, 80, 172, 4, 2, 20, False),
    "mixtral": ("llama", 32, 256, 512, 8, 2, 32, True, 8),
    "llama with four experts": ("llama", 16, 256, 512, 8, 8, 32, True, 4),
    "qwen3moe": ("qwen3moe", 24, 256, 512, 8, 4, 32, True, 32),
    "qwen3moe of eight": ("qwen3moe", 9, 256, 256, 4, 2, 32, True, 8),
    "olmoe, rows of 128": ("olmoe", 16, 128, 256, 4, 4, 32, True, 64),
}
VOCABULARY = 32


def tensors(arch, layers, width, feed, heads, kv, head, untied, experts=0):
    """Names and shapes (rows, columns) of the matrices, as in a GGUF of this architecture."""
    yield "token_embd.weight", (VOCABULARY, width)
    if untied:
        yield "output.weight", (VOCABULARY, width)
    q, k = heads * head, kv * head
    for i in range(layers):
        if arch == "phi3":
            yield f"blk.{i}.attn_qkv.weight", (q + 2 * k, width)
            yield f"blk.{i}.ffn_up.weight", (2 * feed, width)
        else:
            yield f"blk.{i}.attn_q.weight", (q, width)
            yield f"blk.{i}.attn_k.weight", (k, width)
            yield f"blk.{i}.attn_v.weight", (k, width)
            for name in ("gate", "up") if not experts else ():
                yield f"blk.{i}.ffn_{name}.weight", (feed, width)
        yield f"blk.{i}.attn_output.weight", (width, q)
        if experts:
            yield f"blk.{i}.ffn_gate_exps.weight", (experts, feed, width)
            yield f"blk.{i}.ffn_up_exps.weight", (experts, feed, width)
            yield f"blk.{i}.ffn_down_exps.weight", (experts, width, feed)
        else:
            yield f"blk.{i}.ffn_down.weight", (width, feed)


def write_model(path, shape):
    arch, layers, width, feed, heads, kv, head, untied, *experts = shape
    writer = GGUFWriter(path, arch)
    writer.add_block_count(layers)
    writer.add_context_length(512)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_sliding_window(128)
    for count in experts:
        writer.add_expert_count(count)
        writer.add_expert_used_count(2)
        writer.add_expert_feed_forward_length(feed)
    writer.add_rope_dimension_count(head)
    for name, dims in tensors(*shape):
        writer.add_tensor(name, numpy.zeros(dims, numpy.float16))
    writer.add_tensor("output_norm.weight", numpy.ones(width, numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_importance(path):
    """An importance matrix of one entry: that there is one is all that the choice of types looks at."""
    writer = GGUFWriter(path, "")
    writer.add_type("imatrix")
    writer.add_array("imatrix.datasets", ["none"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    writer.add_tensor("token_embd.weight.in_sum2", numpy.ones((1, 256), numpy.float32))
    writer.add_tensor("token_embd.weight.counts", numpy.ones((1, 1), numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LINE = re.compile(r"\] +(\S+) +- \[.*?\], type = +f16, size = .*?(?:\((\w+)\))?$", re.M)


def types(quantize, model, mix, importance):
    """The types of all matrices: by kind of tensor, in the order of the layers, runs counted.

    Such as `attn_v q6_k*2 q4_k*3; token_embd q6_k*1`.
    """
    command = [quantize, "--dry-run", *(["--imatrix", importance] if importance else []), model, mix]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{command}\n{done.stdout}{done.stderr}")
    found = {}
    for name, kind in LINE.findall(done.stdout + done.stderr):
        found.setdefault(re.sub(r"^blk\.\d+\.|\.weight$", "", name), []).append(kind or "f16")
    runs = lambda kinds: " ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds))
    return "; ".join(f"{name} {runs(kinds)}" for name, kinds in sorted(found.items())).lower()


def main():
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--llama-quantize", required=True)
    quantize = options.parse_args().llama_quantize
    models = []
    with tempfile.TemporaryDirectory() as folder:
        model, importance = f"{folder}/model.gguf", f"{folder}/imatrix.gguf"
        write_importance(importance)
        for name, shape in SHAPES.items():
            write_model(model, shape)
            plain = {mix: types(quantize, model, mix, None) for mix in MIXES}
            weighted = {mix: types(quantize, model, mix, importance) for mix in MIXES}
            fields = ("arch", "layers", "width", "feed_forward", "heads", "kv_heads", "head_dim", "untied", "experts")
            models.append({
                "name": name,
                **dict(zip(fields, shape)),
                "types": plain,
                # Only where an importance matrix changes something.
                "with_imatrix": {mix: weighted[mix] for mix in MIXES if weighted[mix] != plain[mix]},
            })
    golden = {"made_by": {"llama.cpp": versions.LLAMA_CPP, **versions.of("gguf")}, "models": models}
    out = Path(__file__).parent / "mixes" / "types.json"
    out.write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
