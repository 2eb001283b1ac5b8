"""Loads folders that Lathe wrote with the tools that they are for, and compares the weights.

    lathe quantize MODEL --to FORMAT --layout LAYOUT -o FOLDER
    lathe quantize FOLDER --to f32 -o FOLDER-dense          # what Lathe takes the folder's weights for
    python check_layouts.py FOLDER ...

prints, for each folder, how many modules the tool itself loaded quantized, the largest difference of its dequantized
weights from Lathe's, and that of the logits. Run it in an environment with the tool: GPTQModel for gptq, gptq-v2 and awq,
transformers with bitsandbytes, compressed-tensors or kernels for the others.
"""

import json
import os
import sys
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

IDS = torch.arange(5, 37)[None]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def by_gptqmodel(folder: Path, method: str):
    from gptqmodel import BACKEND, GPTQModel

    backend = BACKEND.AWQ_TORCH if method == "awq" else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(str(folder), backend=backend, device="cpu", dtype=torch.float16)
    values = {}
    if method == "awq":
        from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm

        parts = weights(folder)
        group = json.loads((folder / "config.json").read_text())["quantization_config"]["group_size"]
        for name in (key.removesuffix(".qweight") for key in parts if key.endswith(".qweight")):
            part = [parts[f"{name}.{p}"] for p in ("qweight", "qzeros", "scales")]
            values[name] = dequantize_gemm(*part, 4, group if group > 0 else part[0].shape[0]).T
    else:
        for name, module in model.model.named_modules():
            if hasattr(module, "qweight"):
                values[name] = module.dequantize_weight().T
    return model.model, values


def by_transformers(folder: Path, method: str):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, device_map="cpu", attn_implementation="eager")
    values = {}
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if method == "bitsandbytes" and hasattr(weight, "quant_state") and weight.quant_state is not None:
            import bitsandbytes.functional as bnb
            from bitsandbytes.backends.default.ops import _dequantize_4bit_compute

            state = weight.quant_state
            scales = state.absmax
            if state.nested:
                scales = bnb.dequantize_blockwise(scales, state.state2).float() + state.offset
            values[name] = _dequantize_4bit_compute(weight.data.reshape(-1), scales, state.code, state.blocksize,
                                                    state.shape, torch.float32)
        elif method == "bitsandbytes" and getattr(weight, "SCB", None) is not None:
            values[name] = weight.data.float() * weight.SCB[:, None] / 127
    return model, values


def by_compressed_tensors(folder: Path, method: str):
    """Its own decompression of the file's tensors; transformers loads the model only where zero points are not packed."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig

    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = QuantizationConfig.model_validate(config).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(str(getattr(scheme.format, "value", scheme.format)))
    parts = weights(folder)
    modules = {key.rsplit(".", 1)[0] for key in parts if key.endswith(".weight_scale")}
    values = {}
    for name in sorted(modules):
        own = {key.removeprefix(f"{name}."): value for key, value in parts.items() if key.startswith(f"{name}.weight")}
        values[name] = compressor.decompress(own, scheme)["weight"]
    try:
        model, _ = by_transformers(folder, method)
    except (RuntimeError, ValueError) as error:
        print(f"transformers: {str(error).splitlines()[0]}")
        model = None
    return model, values


def main() -> None:
    torch.set_num_threads(1)
    for folder in map(Path, sys.argv[1:]):
        config = json.loads((folder / "config.json").read_text())["quantization_config"]
        method = config["quant_method"]
        dense = folder.with_name(folder.name + "-dense")
        ours = weights(dense)
        loaders = {"gptq": by_gptqmodel, "awq": by_gptqmodel, "compressed-tensors": by_compressed_tensors}
        load = loaders.get(method, by_transformers)
        model, values = load(folder, method)
        worst = 0.0
        for name, theirs in values.items():
            mine = ours[f"{name}.weight"].to(theirs.dtype)
            assert mine.shape == theirs.shape, (name, mine.shape, theirs.shape)
            worst = max(worst, (mine - theirs).abs().max().item())
        if model is None:
            print(f"{folder.name}: {len(values)} modules, weights {worst:.2e} apart", flush=True)
            continue
        reference = AutoModelForCausalLM.from_pretrained(dense, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            apart = (model(IDS).logits.float() - reference(IDS).logits).abs()
        print(f"{folder.name}: {len(values)} modules, weights {worst:.2e} apart, logits {apart.max():.2e}", flush=True)


if __name__ == "__main__":
    main()
