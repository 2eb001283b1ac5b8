"""Codes and scales of small numbers by their reference implementations.

    python make_grids.py

writes quants/{fp4,ints,floats}.safetensors; with --gptq, in an environment that has GPTQModel, quants/gptq-grids.safetensors
instead. The matrices are those of quants/inputs.safetensors (make_quants.py), which has to be there.
"""

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import versions

HERE = Path(__file__).parent / "quants"
SEED = 31
NAMES = ("normal", "outliers", "zeros", "constant", "ties")


def save(name: str, tensors: dict[str, torch.Tensor], *packages: str) -> None:
    made_with = {"made_with": json.dumps(versions.of(*packages))}
    save_file({k: v.contiguous() for k, v in tensors.items()}, HERE / name, metadata=made_with)


def write_fp4(matrices: dict[str, torch.Tensor]) -> None:
    """bitsandbytes' FP4 as a checkpoint stores it, plain (`single.`) and with nested scales (`double.`)."""
    import bitsandbytes.functional as bnb
    from make_quants import nf4_values

    cases = {k: m for k, m in matrices.items() if torch.isfinite(m.half()).all() or k == "huge"}
    rng = torch.Generator().manual_seed(SEED)
    spread = torch.rand(300, 1, generator=rng) * 0.1 + 0.01
    cases["large"] = spread * torch.randn(300, 64, generator=rng)
    out = {"large.input": cases["large"]}
    for name, m in cases.items():
        for label, nested in (("single", False), ("double", True)):
            packed, state = bnb.quantize_4bit(m, blocksize=64, quant_type="fp4", compress_statistics=nested)
            out[f"{label}.{name}"] = packed
            for key, value in state.as_dict(packed=True).items():
                out[f"{label}.{name}.{key}"] = value
            if name in ("normal", "zeros"):
                out[f"{label}.{name}.values"] = nf4_values(packed, state)
    save("fp4.safetensors", out, "bitsandbytes", "torch")


def write_ints(matrices: dict[str, torch.Tensor]) -> None:
    """compressed-tensors' integers: MATRIX.BITS.{sym,asym}.GROUP.{scale,zero,codes}; group 0 is a row, scales as bf16."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    out = {}
    for name in NAMES:
        m = matrices[name]
        for bits in (2, 3, 8):
            for symmetric in (True, False):
                for group in (32, 128, 0):
                    how = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
                    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, **how)
                    groups = m.reshape(m.shape[0], -1, group) if group else m[:, None]
                    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
                    scale = scale.bfloat16()
                    label = f"{name}.{bits}.{'sym' if symmetric else 'asym'}.{group}"
                    out[f"{label}.scale"] = scale
                    out[f"{label}.zero"] = zero.to(torch.int8)
                    out[f"{label}.codes"] = quantize(m, scale.float(), zero, args, dtype=torch.int8)
        args = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="tensor")
        scale, zero = calculate_qparams(m.min(), m.max(), args)
        out[f"{name}.tensor.scale"] = scale
        out[f"{name}.tensor.codes"] = quantize(m, scale, zero, args, dtype=torch.int8)
    save("ints.safetensors", out, "compressed-tensors", "torch")


def write_floats(matrices: dict[str, torch.Tensor]) -> None:
    """FP8, MXFP4 and NVFP4 by compressed-tensors; casts by torch."""
    from compressed_tensors.compressors.mx_utils import compress_mx_scale
    from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize, quantize
    from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

    out = {}
    # all numbers, all midpoints, their neighbours, and what saturates
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = codes[codes.isfinite()].sort().values
    middles = (numbers[1:] + numbers[:-1]) / 2
    x = torch.cat([numbers, middles, middles.nextafter(torch.tensor(9e9)), middles.nextafter(torch.tensor(-9e9))])
    out["casts.input"] = x
    out["casts.codes"] = x.to(torch.float8_e4m3fn).view(torch.uint8)

    rng = torch.Generator().manual_seed(SEED + 1)
    tiled = (torch.randn(160, 136, generator=rng) * torch.rand(160, 1, generator=rng)).bfloat16().float()
    out["tiled.input"] = tiled.bfloat16()
    for name in (*NAMES, "tiny", "huge", "tiled"):
        m = tiled if name == "tiled" else matrices[name]
        for strategy, low, high in (
            ("tensor", m.min(), m.max()),
            ("channel", m.amin(1, keepdim=True), m.amax(1, keepdim=True)),
        ):
            args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=strategy)
            scale, zero = calculate_qparams(low, high, args)
            out[f"{name}.{strategy}.scale"] = scale
            out[f"{name}.{strategy}.codes"] = quantize(m, scale, zero, args, dtype=torch.float8_e4m3fn).view(torch.uint8)
        if name == "tiled":  # the arithmetic of a tile is that of a tensor
            args = QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy="tensor")
            scales, codes = torch.empty(2, 2), torch.empty(m.shape, dtype=torch.uint8)
            for i in range(2):
                for j in range(2):
                    at = (slice(128 * i, 128 * i + 128), slice(128 * j, 128 * j + 128))
                    scale, zero = calculate_qparams(m[at].min(), m[at].max(), args)
                    scales[i, j] = scale
                    codes[at] = quantize(m[at], scale, zero, args, dtype=torch.float8_e4m3fn).view(torch.uint8)
            out["tiled.block.scale"], out["tiled.block.codes"] = scales, codes
            continue

        args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="group", group_size=32,
                                scale_dtype=torch.uint8, zp_dtype=torch.uint8)
        groups = m.reshape(m.shape[0], -1, 32)
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args)
        out[f"{name}.mxfp4.scale"] = compress_mx_scale(scale, torch.uint8)
        out[f"{name}.mxfp4.codes"] = pack_fp4_to_uint8(quantize(m, scale, zero, args))

        args = QuantizationArgs(num_bits=4, type="float", symmetric=True, strategy="tensor_group", group_size=16,
                                scale_dtype=torch.float8_e4m3fn, zp_dtype=torch.float8_e4m3fn)
        groups = m.reshape(m.shape[0], -1, 16)
        divisor = generate_gparam(m.min(), m.max())
        scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), args, global_scale=divisor)
        codes = quantize(m, scale, None, args, global_scale=divisor)
        out[f"{name}.nvfp4.divisor"] = divisor
        out[f"{name}.nvfp4.scale"] = scale.to(torch.float8_e4m3fn).view(torch.uint8)
        out[f"{name}.nvfp4.codes"] = pack_fp4_to_uint8(codes)
        if name == "normal":
            out[f"{name}.nvfp4.values"] = dequantize(codes, scale, None, args, dtype=torch.float32, global_scale=divisor)
    save("floats.safetensors", out, "compressed-tensors", "torch")


def write_gptq(matrices: dict[str, torch.Tensor]) -> None:
    """GPTQModel's scales (f16) and zero points of groups: MATRIX.BITS.{sym,asym}.GROUP.{scale,zero}; group 0 is a row."""
    from gptqmodel.quantization import QuantizeConfig
    from gptqmodel.quantization.quantizer import Quantizer

    out = {}
    for name in NAMES:
        m = matrices[name]
        for bits in (2, 3, 4, 8):
            for symmetric in (True, False):
                for group in (32, 128, 0):
                    quantizer = Quantizer(QuantizeConfig(bits=bits, group_size=group or -1, sym=symmetric))
                    quantizer.configure(perchannel=True)
                    quantizer.find_params(m.reshape(-1, group) if group else m, weight=True)
                    label = f"{name}.{bits}.{'sym' if symmetric else 'asym'}.{group}"
                    out[f"{label}.scale"] = quantizer.scale.flatten().half()
                    out[f"{label}.zero"] = quantizer.zero.flatten().to(torch.uint8)
    save("gptq-grids.safetensors", out, "gptqmodel", "torch")


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--gptq", action="store_true", help="GPTQModel's, and nothing else")
    options = options.parse_args()
    torch.set_num_threads(1)
    matrices = load_file(HERE / "inputs.safetensors")
    if options.gptq:
        write_gptq(matrices)
    else:
        write_fp4(matrices)
        write_ints(matrices)
        write_floats(matrices)


if __name__ == "__main__":
    main()
