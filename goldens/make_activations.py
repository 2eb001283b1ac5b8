"""What engines do to activations before they multiply, by their reference implementations.

    python make_activations.py

writes activations/golden.json, inputs and results as the bits of f32, and activations/llm-int8/, a checkpoint by
bitsandbytes with its logits (from archs/llama, which has to be there).
"""

import json
from pathlib import Path

import bitsandbytes  # noqa: F401  (registers its operations)
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import compute_dynamic_scales_and_zp

import versions

HERE = Path(__file__).parent / "activations"
THRESHOLD = 6.0
STATIC_SCALE = 0.013
GROUP = 32
# Low enough that a model with random weights has outliers.
MODEL_THRESHOLD = 1.5


def bits(x: torch.Tensor) -> list[int]:
    return x.contiguous().float().view(torch.int32).flatten().tolist()


def llm_int8(x: torch.Tensor, codes: torch.Tensor, absmax: torch.Tensor) -> torch.Tensor:
    """Each token fed alone, as in decoding: bitsandbytes takes outlier columns out for all tokens of a call."""
    rows = []
    for token in x.split(1):
        coded, scales, columns = torch.ops.bitsandbytes.int8_vectorwise_quant(token.half(), THRESHOLD)
        out, _ = torch.ops.bitsandbytes.int8_mixed_scaled_mm(token, coded, codes, scales, absmax, columns, None)
        rows.append(out)
    return torch.cat(rows)


def write_model() -> None:
    """Logits of tokens that are fed one at a time."""
    source, folder = HERE.parent / "archs" / "llama", HERE / "llm-int8"
    config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=MODEL_THRESHOLD)
    model = AutoModelForCausalLM.from_pretrained(
        source, quantization_config=config, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    ids = load_file(source / "logits.safetensors")["input_ids"]
    cache, rows = None, []
    with torch.no_grad():
        for token in ids.split(1):
            out = model(token[None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0].float())
    save_file({"input_ids": ids, "logits": torch.cat(rows).contiguous()}, folder / "logits.safetensors",
              metadata=versions.of("transformers", "bitsandbytes", "torch"))


def main() -> None:
    rng = torch.Generator().manual_seed(7)
    x = torch.randn(5, 96, generator=rng)
    x[1, 5], x[1, 40], x[1, 64] = 9.5, -7.25, 6.0
    x[2] *= 1e-3
    x[3] = 0.0
    x[4, 1:] = 0.0
    x[4, 0] = 3.0
    weights = torch.randn(7, 96, generator=rng).half()
    codes, absmax, _ = torch.ops.bitsandbytes.int8_vectorwise_quant(weights, 0.0)

    token = QuantizationArgs(num_bits=8, type="float", strategy="token", dynamic=True, symmetric=True)
    # Activations are [B, T, D]: of two dimensions it would take one scale for all.
    scales, zero_points = compute_dynamic_scales_and_zp(x[None], token, torch.nn.Identity())
    group = QuantizationArgs(num_bits=8, type="float", strategy="group", group_size=GROUP, dynamic=True, symmetric=True)
    group_scales, group_zeros = compute_dynamic_scales_and_zp(x[None], group, torch.nn.Identity())
    static = QuantizationArgs(num_bits=8, type="float", strategy="tensor", symmetric=True)
    scale = torch.tensor([STATIC_SCALE])
    golden = {
        "versions": versions.of("bitsandbytes", "compressed-tensors", "torch"),
        "tokens": x.shape[0],
        "cols": x.shape[1],
        "rows": weights.shape[0],
        "x": bits(x),
        "codes": codes.flatten().tolist(),
        "absmax": bits(absmax),
        "threshold": THRESHOLD,
        "static_scale": bits(scale)[0],
        "llm_int8": bits(llm_int8(x, codes, absmax)),
        "fp8_per_token": bits(fake_quantize(x[None], scales, zero_points, token)),
        "group": GROUP,
        "fp8_per_group": bits(fake_quantize(x[None], group_scales, group_zeros, group)),
        "fp8_static": bits(fake_quantize(x, scale, torch.zeros(1), static)),
    }
    HERE.mkdir(exist_ok=True)
    (HERE / "golden.json").write_text(json.dumps(golden) + "\n")
    write_model()


if __name__ == "__main__":
    main()
