"""Checkpoints of schemes that have folders of their own: FP8, W8A8, NVFP4, MXFP4, FP4.

    python make_schemes.py

writes quants/{nvfp4,mxfp4,fp4} (inputs stay as they are) and activations/{w8a8,fp8-dynamic,fp8-static,fp8-block}
(inputs are rounded too), each with its logits. Weights are packed by compressed-tensors' own compressors and by
bitsandbytes; the logits are those of a dense model with the weights that these decompress to, whose linears round their
inputs with compressed-tensors' functions, INT8 ones as vLLM rounds them.
"""

import json
import shutil
from pathlib import Path

import torch
from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize, fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams, compute_dynamic_scales_and_zp, generate_gparam
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig

import versions

HERE = Path(__file__).parent
SOURCE = HERE / "archs" / "llama3"
SEED = 5
TILE = 128


def args(**given) -> QuantizationArgs:
    return QuantizationArgs(symmetric=True, **given)


EIGHT = {"num_bits": 8, "type": "float"}
INT = {"num_bits": 8, "type": "int"}
FOUR = {"num_bits": 4, "type": "float"}
# name: format, weights, inputs
SCHEMES = {
    "quants/nvfp4": ("nvfp4-pack-quantized",
                     args(**FOUR, strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn), None),
    "quants/mxfp4": ("mxfp4-pack-quantized", args(**FOUR, strategy="group", group_size=32, scale_dtype=torch.uint8), None),
    "activations/w8a8": ("int-quantized", args(**INT, strategy="channel"), args(**INT, strategy="token", dynamic=True)),
    "activations/fp8-dynamic": ("float-quantized", args(**EIGHT, strategy="channel"),
                                args(**EIGHT, strategy="token", dynamic=True)),
    "activations/fp8-static": ("float-quantized", args(**EIGHT, strategy="tensor"), args(**EIGHT, strategy="tensor")),
}


def coded(w: torch.Tensor, form: str, weights: QuantizationArgs) -> tuple[dict, torch.Tensor]:
    """The tensors of a linear's weight under their local names, and what they stand for."""
    state, scheme = {"weight": w}, QuantizationScheme(targets=["Linear"], weights=weights)
    width = weights.group_size or w.shape[1]
    groups = w.reshape(1, -1) if weights.strategy == "tensor" else w.reshape(len(w), -1, width)
    divisor = generate_gparam(w.min(), w.max()) if form.startswith("nvfp4") else None
    scale, zero = calculate_qparams(groups.amin(-1), groups.amax(-1), weights, global_scale=divisor)
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    if divisor is not None:
        state["weight_global_scale"] = divisor
    compressor = BaseCompressor.get_value_from_registry(form)
    made = compressor.compress(state, scheme)
    if divisor is not None:  # its own decompression computes in bf16
        codes = unpack_fp4_from_uint8(made["weight_packed"], *w.shape).float()
        scale = made["weight_scale"].float()
        return made, dequantize(codes, scale, None, weights, dtype=torch.float32, global_scale=divisor)
    return made, compressor.decompress(dict(made), scheme)["weight"].float()


def rounding(inputs: QuantizationArgs, scale: torch.Tensor | None):
    def hook(_, arguments):
        x = arguments[0]
        if inputs.type == "int":  # as vLLM's kernels have it; compressed-tensors itself divides by 127.5
            scale = x.abs().amax(-1, keepdim=True) / 127
            return ((x / scale).round() * scale, *arguments[1:])
        if inputs.dynamic:
            scales, zeros = compute_dynamic_scales_and_zp(x, inputs, torch.nn.Identity())
            return (fake_quantize(x, scales, zeros, inputs), *arguments[1:])
        return (fake_quantize(x, scale, torch.zeros(1), inputs), *arguments[1:])
    return hook


def linears(model):
    return [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear) and name != "lm_head"]


def largest_inputs(model, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    found, hooks = {}, []
    for name, module in linears(model):
        hooks.append(module.register_forward_pre_hook(lambda _, a, name=name: found.update({name: a[0].abs().max()})))
    with torch.inference_mode():
        model(ids[None])
    [hook.remove() for hook in hooks]
    return found


def finish(name: str, model, ids: torch.Tensor, note: str, *packages: str) -> None:
    folder = HERE / name
    with torch.inference_mode():
        logits = model.eval()(ids[None]).logits[0].float().contiguous()
    save_file({"input_ids": ids, "logits": logits}, folder / "logits.safetensors")
    about = {"made_with": versions.of("transformers", "torch", *packages), "note": note,
             "cases": [{"model": ".", "logits": "logits.safetensors"}]}
    (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


def dense(source=SOURCE):
    return AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")


def fresh(name: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_compressed(name: str, form: str, weights: QuantizationArgs, inputs: QuantizationArgs | None) -> None:
    folder, model = fresh(name), dense()
    ids = load_file(SOURCE / "logits.safetensors")["input_ids"]
    most = largest_inputs(model, ids)
    tensors = {k: v for k, v in load_file(SOURCE / "model.safetensors").items() if not k.endswith("proj.weight")}
    for module, linear in linears(model):
        made, values = coded(linear.weight.data, form, weights)
        linear.weight.data.copy_(values)
        scale = None
        if inputs is not None and not inputs.dynamic:
            scale, _ = calculate_qparams(-most[module][None], most[module][None], inputs)
            made["input_scale"] = scale
        if inputs is not None:
            linear.register_forward_pre_hook(rounding(inputs, scale))
        tensors |= {f"{module}.{part}": value.contiguous() for part, value in made.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((SOURCE / "config.json").read_text())
    group = {"targets": ["Linear"], "format": form, "weights": weights.model_dump(mode="json"),
             "input_activations": inputs and inputs.model_dump(mode="json"), "output_activations": None}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed", "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    finish(name, model, ids, "every linear layer but the tied head", "compressed-tensors")


def write_blocks() -> None:
    """DeepSeek's layout: no library quantizes to it on a CPU, so that the arithmetic is here."""
    name, inputs = "activations/fp8-block", args(**EIGHT, strategy="group", group_size=TILE, dynamic=True)
    torch.manual_seed(SEED)
    config = LlamaConfig(vocab_size=64, hidden_size=2 * TILE, intermediate_size=TILE, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, head_dim=TILE, max_position_embeddings=64,
                         tie_word_embeddings=True, initializer_range=0.1)
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config).to(torch.bfloat16).float().eval()
    model.config._attn_implementation = "eager"
    folder = fresh(name)
    tensors = {k: v.bfloat16() for k, v in model.state_dict().items() if "proj" not in k and k != "lm_head.weight"}
    for module, linear in linears(model):
        w = linear.weight.data
        rows, cols = (-(-n // TILE) for n in w.shape)
        scales = torch.tensor([[w[TILE * i:TILE * (i + 1), TILE * j:TILE * (j + 1)].abs().max() / 448
                                for j in range(cols)] for i in range(rows)])
        spread = scales.repeat_interleave(TILE, 0).repeat_interleave(TILE, 1)[: w.shape[0], : w.shape[1]]
        codes = (w / spread).clamp(-448, 448).to(torch.float8_e4m3fn)
        linear.weight.data = codes.float() * spread
        linear.register_forward_pre_hook(rounding(inputs, None))
        tensors |= {f"{module}.weight": codes, f"{module}.weight_scale_inv": scales}
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    written = config.to_dict() | {"architectures": ["LlamaForCausalLM"], "dtype": "bfloat16"}
    written["quantization_config"] = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                      "weight_block_size": [TILE, TILE], "modules_to_not_convert": ["lm_head"]}
    (folder / "config.json").write_text(json.dumps(written, indent=1) + "\n")
    finish(name, model, torch.arange(3, 35), "every linear layer but the tied head", "compressed-tensors")


def write_fp4() -> None:
    """As make_quants.py has NF4, with the library's generic dequantization."""
    name, folder = "quants/fp4", fresh("quants/fp4")
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(
        SOURCE, quantization_config=config, dtype=torch.float32, attn_implementation="eager", device_map="cpu")
    model.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    plain = dense()
    for (_, linear), (_, four) in zip(linears(plain), linears(model)):
        state = four.weight.quant_state
        values = _dequantize_4bit_compute(four.weight.data.reshape(-1), state.absmax, state.code, state.blocksize,
                                          state.shape, torch.float32)
        linear.weight.data.copy_(values)
    ids = load_file(SOURCE / "logits.safetensors")["input_ids"]
    finish(name, plain, ids, "every linear layer but the tied head in FP4", "bitsandbytes")


def main() -> None:
    torch.set_num_threads(1)
    for name, scheme in SCHEMES.items():
        write_compressed(name, *scheme)
    write_blocks()
    write_fp4()


if __name__ == "__main__":
    main()
