"""Quantized bytes by their reference implementations, and two checkpoints quantized by them.

    python make_quants.py

writes quants/*.safetensors and quants/{nf4,nf4-double,int4,int4-asymmetric}/ (from archs/llama and archs/llama3, which
have to be there).
"""

import json
import shutil
from pathlib import Path

import bitsandbytes.functional as bnb
import gguf
import numpy as np
import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import versions

HERE = Path(__file__).parent / "quants"
ARCHS = Path(__file__).parent / "archs"
SEED = 11


def inputs() -> dict[str, torch.Tensor]:
    """Matrices f32 [rows, 256] that quantizers stumble over."""
    rng = torch.Generator().manual_seed(SEED)

    def normal(rows: int, scale: float = 0.05) -> torch.Tensor:
        return scale * torch.randn(rows, 256, generator=rng)

    outliers = normal(4)
    outliers[torch.rand(outliers.shape, generator=rng) < 0.01] *= 60
    zeros = normal(3)
    zeros[1] = 0.0
    zeros[2, 64:160] = 0.0
    zeros[0, ::2] = -0.0
    signs = torch.ones(2, 256)
    signs[:, 1::2] = -1
    signs[1] *= torch.linspace(0.1, 2.0, 256)
    # Halves of a step for the symmetric formats, whose scale here is a power of two; the largest value both signs.
    ties = (torch.arange(256).remainder(33) - 16).float().repeat(4, 1) / 2
    ties[1] *= -1
    ties[2] *= 2.0**-20
    ties[3] = ties[3].flip(0)
    return {
        "normal": normal(8),
        "outliers": outliers,
        "zeros": zeros,
        "constant": torch.tensor([[0.3], [-0.3]]).repeat(1, 256),
        "huge": normal(2, 1e4) * torch.tensor([[1.0], [1e3]]),
        "tiny": normal(3) * torch.tensor([[1e-5], [1e-8], [1e-38]]),
        "signs": signs,
        "ties": ties,
        "one": torch.nn.functional.one_hot(torch.tensor([0, 255]), 256).float() * torch.tensor([[1.0], [-1.0]]),
    }


def save(name: str, tensors: dict[str, torch.Tensor], *packages: str) -> None:
    made_with = {"made_with": json.dumps(versions.of(*packages))}  # one key: the order of more is left to chance
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / name, metadata=made_with)


def write_ggml(matrices: dict[str, torch.Tensor]) -> None:
    """NAME.TYPE: u8 [rows, bytes of a row]; NAME.TYPE.values: what they stand for, f32."""
    types = [getattr(gguf.GGMLQuantizationType, t) for t in ("Q8_0", "Q5_0", "Q4_0", "F16", "BF16")]
    out = {}
    for name, m in matrices.items():
        for t in types:
            with np.errstate(over="ignore", invalid="ignore"):
                packed = gguf.quants.quantize(m.numpy(), t)
                values = gguf.quants.dequantize(packed, t)
            out[f"{name}.{t.name}"] = torch.from_numpy(np.ascontiguousarray(packed).view(np.uint8).reshape(len(m), -1).copy())
            if t.name[0] == "Q" and name in ("normal", "outliers"):
                out[f"{name}.{t.name}.values"] = torch.from_numpy(values.astype(np.float32))
    save("ggml.safetensors", out, "gguf", "numpy")


def nf4_values(packed: torch.Tensor, state: bnb.QuantState) -> torch.Tensor:
    """bitsandbytes' generic dequantization, which is also its GPU one.

    The native one for CPUs (0.50.2) starts a new block with each row when a row is no multiple of 64, against its own
    quantizer, whose blocks run on through the rows.
    """
    scales = state.absmax
    if state.nested:
        scales = bnb.dequantize_blockwise(scales, state.state2).float() + state.offset
    return _dequantize_4bit_compute(packed.reshape(-1), scales, state.code, state.blocksize, state.shape, state.dtype)


def write_nf4(matrices: dict[str, torch.Tensor]) -> None:
    """As a checkpoint stores them, once plain (`single.`) and once with nested scales (`double.`)."""
    cases = {k: m for k, m in matrices.items() if torch.isfinite(m.half()).all() or k == "huge"}
    # neither a multiple of a block of weights, nor of an even number of them
    cases["ragged"] = matrices["normal"].flatten()[: 3 * 51].reshape(3, 51).clone()
    # enough blocks for a second block of scales (256), as bf16, which real checkpoints are
    rng = torch.Generator().manual_seed(SEED + 1)
    spread = torch.rand(300, 1, generator=rng) * 0.1 + 0.01
    cases["large"] = (spread * torch.randn(300, 64, generator=rng)).bfloat16()
    out = {f"{k}.input": m for k, m in cases.items() if k not in matrices}
    for name, m in cases.items():
        for label, nested in (("single", False), ("double", True)):
            packed, state = bnb.quantize_4bit(m, blocksize=64, quant_type="nf4", compress_statistics=nested)
            out[f"{label}.{name}"] = packed
            for key, value in state.as_dict(packed=True).items():
                out[f"{label}.{name}.{key}"] = value
            out[f"{label}.{name}.values"] = nf4_values(packed, state)  # in the type of the input
    save("nf4.safetensors", out, "bitsandbytes", "torch")


def int4(m: torch.Tensor, group: int, symmetric: bool, scale_dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """compressed-tensors' own scales, codes and packing of a matrix, group by group."""
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy="group", group_size=group)
    groups = m.reshape(m.shape[0], -1, group)
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
    scale = scale.to(scale_dtype).float()
    codes = quantize(m, scale, zero, args, dtype=torch.int8)
    packed = pack_to_int32(codes, 4)
    assert torch.equal(unpack_from_int32(packed, 4, codes.shape), codes)
    made = {
        "weight_packed": packed,
        "weight_scale": scale.to(scale_dtype),
        "weight_shape": torch.tensor(m.shape),
        "codes": codes,
        "values": dequantize(codes, scale, zero, args),
    }
    if not symmetric:
        made["weight_zero_point"] = pack_to_int32(zero.to(torch.int8), 4, packed_dim=0)
        made["zero_points"] = zero.to(torch.int8)
    return made


def write_int4(matrices: dict[str, torch.Tensor]) -> None:
    out = {}
    for name in ("normal", "outliers", "zeros", "constant", "ties"):
        for group in (32, 64, 128):
            for symmetric in (True, False):
                label = "sym" if symmetric else "asym"
                for key, value in int4(matrices[name], group, symmetric).items():
                    if key == "values" and group != 32:
                        continue
                    out[f"{name}.{label}{group}.{key}"] = value
    # packing alone: all codes, a width that is no multiple of 8
    rng = torch.Generator().manual_seed(SEED + 2)
    codes = torch.randint(-8, 8, (5, 37), generator=rng, dtype=torch.int8)
    out["packing.codes"] = codes
    out["packing.along_columns"] = pack_to_int32(codes, 4)
    out["packing.along_rows"] = pack_to_int32(codes, 4, packed_dim=0)
    save("int4.safetensors", out, "compressed-tensors", "torch")


def write_int8(matrices: dict[str, torch.Tensor]) -> None:
    """Symmetric, one scale a row: largest absolute value / 127, halves to even. A row of zeros has scale 0."""
    out = {}
    for name, m in matrices.items():
        scale = m.abs().amax(1) / 127
        codes = torch.where(scale[:, None] > 0, m / scale[:, None], torch.zeros_like(m)).round().clamp(-127, 127)
        out[f"{name}.scale"] = scale
        out[f"{name}.codes"] = codes.to(torch.int8)
    save("int8.safetensors", out, "torch")


def checkpoint(name: str, model, source: Path, ids: torch.Tensor, made_with: dict[str, str], note: str) -> None:
    """Logits and golden.json beside a checkpoint that is already written."""
    folder = HERE / name
    with torch.inference_mode():
        logits = model.eval()(ids[None]).logits[0].float().contiguous()
    save_file({"input_ids": ids, "logits": logits}, folder / "logits.safetensors")
    for file in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        if (source / file).exists():
            shutil.copy(source / file, folder / file)
    about = {"made_with": made_with, "source": source.name, "note": note,
             "cases": [{"model": ".", "logits": "logits.safetensors"}]}
    (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
    dense = load_file(source / "logits.safetensors")["logits"]
    kl = torch.nn.functional.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="none")
    print(f"{name:16} KL to the source {kl.sum(-1).mean():.3f}")


def write_bitsandbytes_checkpoints() -> None:
    source = ARCHS / "llama"
    ids = load_file(source / "logits.safetensors")["input_ids"]
    for name, nested in (("nf4", False), ("nf4-double", True)):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=nested,
                                    bnb_4bit_compute_dtype=torch.float32)
        model = AutoModelForCausalLM.from_pretrained(
            source, quantization_config=config, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
        model.save_pretrained(folder)
        (folder / "generation_config.json").unlink(missing_ok=True)
        # its own product on a CPU wants multiples of 32 rows: the dequantized weights in a dense model instead
        again = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
        dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        for layer, linear in again.named_modules():
            if (state := getattr(getattr(linear, "weight", None), "quant_state", None)) is not None:
                values = nf4_values(linear.weight.data, state)
                dense.get_submodule(layer).weight.data.copy_(values)
        checkpoint(name, dense, source, ids, versions.of("transformers", "bitsandbytes", "torch"),
                   "every linear layer but lm_head in NF4")


def write_compressed_checkpoints() -> None:
    source = ARCHS / "llama3"
    ids = load_file(source / "logits.safetensors")["input_ids"]
    for name, symmetric in (("int4", True), ("int4-asymmetric", False)):
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        weights = {}
        for key, w in load_file(source / "model.safetensors").items():
            if key.endswith("proj.weight"):
                stem = key.removesuffix("weight")
                made = int4(w.float(), 32, symmetric, torch.bfloat16)
                weights |= {stem + k: v for k, v in made.items() if k.startswith("weight_")}
                dense.get_parameter(key).data.copy_(made["values"])
            else:
                weights[key] = w
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((source / "config.json").read_text())
        config["quantization_config"] = {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": {
                "targets": ["Linear"],
                "weights": {"num_bits": 4, "type": "int", "symmetric": symmetric, "strategy": "group",
                            "group_size": 32},
                "input_activations": None,
                "output_activations": None,
            }},
        }
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        checkpoint(name, dense, source, ids, versions.of("transformers", "compressed-tensors", "torch"),
                   "every linear layer but the tied head in 4 bits, groups of 32, scales stored in bf16; "
                   "weights of the logits are code x scale in f32")
        if symmetric:  # transformers' own loader, which rounds the weights to bf16; it refuses packed zero points
            loaded = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
            with torch.inference_mode():
                apart = loaded(ids[None]).logits[0] - load_file(folder / "logits.safetensors")["logits"]
            print(f"{'':16} as transformers loads it: logits {apart.abs().max():.4f} apart")


def main() -> None:
    torch.set_num_threads(1)
    HERE.mkdir(exist_ok=True)
    matrices = inputs()
    save("inputs.safetensors", matrices, "torch")
    write_ggml(matrices)
    write_nf4(matrices)
    write_int4(matrices)
    write_int8(matrices)
    write_bitsandbytes_checkpoints()
    write_compressed_checkpoints()


if __name__ == "__main__":
    main()
