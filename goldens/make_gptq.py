"""Checkpoints quantized by GPTQModel: GPTQ of both versions, all bits, act-order; AWQ in its GEMM layout.

    python make_gptq.py

writes quants/{gptq-*,awq}/ from archs/qwen3, which has to be there; AWQ from a random Llama of one layer, because its search
for clipping wants 64 outputs. Needs an environment of its own: GPTQModel wants other versions of transformers than the rest.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ["CUDA_VISIBLE_DEVICES"] = ""

import torch
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from gptqmodel.quantization import FORMAT, METHOD
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import versions

HERE = Path(__file__).parent / "quants"
SOURCE = Path(__file__).parent / "archs/qwen3"
DTYPE = torch.float16
CASES = {
    "gptq-4": dict(bits=4, group_size=32, sym=True, desc_act=True),
    "gptq-3": dict(bits=3, group_size=32, sym=False, desc_act=False, format=FORMAT.GPTQ_V2),
    "gptq-2": dict(bits=2, group_size=32, sym=False, desc_act=True),
    "gptq-8": dict(bits=8, group_size=-1, sym=True, desc_act=False, act_group_aware=False),
    "gptq-g16": dict(bits=4, group_size=16, sym=False, desc_act=False),
    "awq": dict(bits=4, group_size=32, sym=False, method=METHOD.AWQ, format=FORMAT.GEMM),
}


def calibration() -> list[dict[str, list[int]]]:
    rng = torch.Generator().manual_seed(3)
    rows = [torch.randint(5, 270, (64,), generator=rng).tolist() for _ in range(8)]
    return [{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in rows]


def wide(folder: Path) -> None:
    """A model whose matrices all have a multiple of 64 outputs."""
    torch.manual_seed(29)
    config = LlamaConfig(vocab_size=283, hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
                         num_key_value_heads=4, max_position_embeddings=128, tie_word_embeddings=True)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(SOURCE / file, folder / file)


def quantize(name: str, source: Path, settings: dict) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    backend = BACKEND.AWQ_TORCH if name == "awq" else BACKEND.GPTQ_TORCH
    model = GPTQModel.load(str(source), QuantizeConfig(offload_to_disk=False, **settings), dtype=DTYPE, device="cpu")
    model.quantize(calibration(), batch_size=1, backend=backend)
    model.save(str(folder))
    for extra in ("quant_log.csv", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        (folder / extra).unlink(missing_ok=True)
    for file in ("config.json", "quantize_config.json"):  # a folder for temporary files is of no interest
        config = json.loads((folder / file).read_text())
        config.get("quantization_config", config)["meta"] = {"quantizer": [f"gptqmodel:{versions.of('gptqmodel')['gptqmodel']}"]}
        (folder / file).write_text(json.dumps(config, indent=1) + "\n")
    return folder


def dequantized(folder: Path, name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the tool's own code makes of its modules, with scales in `dtype`."""
    if name == "awq":  # its module dequantizes on a GPU only
        parts = load_file(folder / "model.safetensors")
        get = lambda module, part: parts[f"{module}.{part}"]
        modules = [key.removesuffix(".qweight") for key in parts if key.endswith(".qweight")]
        return {m: dequantize_gemm(get(m, "qweight"), get(m, "qzeros"), get(m, "scales").to(dtype), 4, 32).T for m in modules}
    model = GPTQModel.load(str(folder), backend=BACKEND.GPTQ_TORCH, device="cpu", dtype=DTYPE)
    values = {}
    for module_name, module in model.model.named_modules():
        if hasattr(module, "qweight"):
            module.scales = module.scales.to(dtype)
            values[module_name] = module.dequantize_weight().T
    return values


def main() -> None:
    torch.set_num_threads(1)
    ids = load_file(SOURCE / "logits.safetensors")["input_ids"]
    temporary = Path(tempfile.mkdtemp())
    wide(temporary)
    for name, settings in CASES.items():
        if sys.argv[1:] and name not in sys.argv[1:]:
            continue
        source = temporary if name == "awq" else SOURCE
        folder = quantize(name, source, settings)
        values = {k: v.contiguous() for k, v in dequantized(folder, name, DTYPE).items()}
        made_with = versions.of("gptqmodel", "transformers", "torch")
        save_file(values, folder / "values.safetensors", metadata={"made_with": json.dumps(made_with)})
        dense = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        stored = load_file(folder / "model.safetensors")
        with torch.no_grad():
            for key, parameter in dense.named_parameters():
                if key in stored:  # AWQ scales norms
                    parameter.copy_(stored[key])
            for module, weight in dequantized(folder, name, torch.float32).items():
                dense.get_submodule(module).weight.copy_(weight)
            logits = dense.eval()(ids[None]).logits[0].float().contiguous()
        save_file({"input_ids": ids, "logits": logits}, folder / "logits.safetensors")
        note = ", ".join(f"{k} {getattr(v, 'value', v)}" for k, v in settings.items())
        about = {"made_with": made_with, "source": SOURCE.name if source is SOURCE else "random", "note": note + "; logits of the dequantized weights in f32",
                 "cases": [{"model": ".", "logits": "logits.safetensors"}]}
        (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
        whole = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32, attn_implementation="eager")
        with torch.no_grad():
            apart = logits.log_softmax(-1) - whole.eval()(ids[None]).logits[0].log_softmax(-1)
        print(f"{name:10} logits {apart.abs().mean():.3f} from the source's")
    shutil.rmtree(temporary)


if __name__ == "__main__":
    main()
