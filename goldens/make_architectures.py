"""Tiny random checkpoints of every supported architecture, with the logits that transformers gives.

    python make_architectures.py --llama-cpp PATH [NAME ...]

writes archs/NAME/: config.json, weights, tokenizer, golden.json, logits*.safetensors, and, where
GGUF can say what config.json says, model.gguf by llama.cpp's own converter.
"""

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

import versions
import vocabularies
from to_gguf import Converter

HERE = Path(__file__).parent
TOKENS = 48


@dataclass
class Golden:
    """One checkpoint: `config` is its config.json to the letter."""

    config: dict
    tokenizer: str
    storage: str = "safetensors"  # safetensors | sharded | bin | sharded-bin
    dtype: str = "bf16"  # of the stored weights; f32 ones keep all their bits
    gguf: str | None = "f16"  # type of the GGUF's matrices; None where GGUF cannot hold this model
    gguf_reads_as: dict = field(default_factory=dict)  # what a reader of the GGUF cannot know, and assumes
    short: int | None = None  # also the logits of this many tokens, on their own
    note: str = ""
    fused: bool = False  # experts as transformers 5 holds them in memory, instead of one by one


def dense(model_type: str, architecture: str, **more) -> dict:
    base = dict(
        architectures=[architecture], model_type=model_type, vocab_size=160, hidden_size=32, intermediate_size=64,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, hidden_act="silu",
        max_position_embeddings=128, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2,
        torch_dtype="bfloat16",
    )
    return base | more


def llama(**more) -> dict:
    return dense("llama", "LlamaForCausalLM", **more)


GEMMA = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0, hidden_act="gelu_pytorch_tanh",
             hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True)
BYTE_LEVEL = dict(vocab_size=283, bos_token_id=278, eos_token_id=282)

GOLDENS = {
    # Grouped-query attention, and widths that no block size divides. Every bit of f32 in use.
    "llama": Golden(
        llama(hidden_size=48, num_attention_heads=6, num_key_value_heads=2, intermediate_size=90, rms_norm_eps=1e-4,
              rope_theta=5000.0, torch_dtype="float32"),
        "llama2", dtype="f32", gguf="f32"),
    # Plain multi-head attention, an f16 checkpoint, the names that transformers 5 writes.
    "llama-mha": Golden(
        llama(num_attention_heads=4, num_key_value_heads=4, dtype="float16", torch_dtype=None, hidden_size=40,
              rope_parameters=dict(rope_type="default", rope_theta=700.0)),
        "llama2", dtype="f16"),
    "llama-bias": Golden(llama(attention_bias=True, head_dim=8), "llama2"),
    "llama3": Golden(
        llama(**BYTE_LEVEL, rope_theta=1000.0, tie_word_embeddings=True,
              rope_scaling=dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                                original_max_position_embeddings=32)),
        "llama3", note="tied; rotary wavelengths on both sides of both thresholds"),
    "llama-linear": Golden(
        llama(rope_scaling=dict(type="linear", factor=4.0)), "llama2", storage="bin"),
    "llama-dynamic": Golden(
        llama(max_position_embeddings=32, rope_scaling=dict(rope_type="dynamic", factor=2.0)), "llama2",
        storage="sharded-bin", gguf=None, short=24,
        note="the whole run of 48 tokens is rotated with the base for 48; GGUF has no dynamic scaling"),
    "llama-yarn": Golden(
        llama(max_position_embeddings=1024, rope_theta=100.0,
              rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=256)),
        "llama2"),
    "llama-yarn-explicit": Golden(
        llama(max_position_embeddings=128, rope_theta=100.0,
              rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=4.0,
                                beta_slow=0.5, attention_factor=1.25)),
        "llama2", gguf=None,
        note="not through GGUF: llama.cpp's attention factor is a multiple of the usual one, not its replacement"),
    "llama-longrope": Golden(
        llama(max_position_embeddings=128,
              rope_scaling=dict(rope_type="longrope", factor=4.0, original_max_position_embeddings=32,
                                short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
                                long_factor=[1.0, 1.2, 1.7, 2.5, 3.5, 5.0, 7.0, 9.0])),
        "llama2", gguf=None, short=24, note="llama.cpp's converter writes these factors for Phi-3 only"),
    "mistral": Golden(
        dense("mistral", "MistralForCausalLM", sliding_window=16, head_dim=8, num_attention_heads=6,
              num_key_value_heads=2, rope_theta=50000.0),
        "llama2", storage="sharded", gguf_reads_as=dict(sliding_window=None),
        note="the GGUF is of arch llama and has no sliding window: full attention"),
    "qwen2": Golden(
        dense("qwen2", "Qwen2ForCausalLM", **BYTE_LEVEL, tie_word_embeddings=True, use_sliding_window=False,
              sliding_window=16, max_window_layers=1, rms_norm_eps=1e-6, rope_theta=1000000.0),
        "qwen2", note="use_sliding_window is false, so sliding_window says nothing"),
    "qwen2-window": Golden(
        dense("qwen2", "Qwen2ForCausalLM", num_hidden_layers=3, use_sliding_window=True, sliding_window=16,
              max_window_layers=1, rms_norm_eps=1e-6, rope_theta=1000000.0, intermediate_size=56),
        "llama2", gguf=None, note="the window holds from layer 1 on; GGUF cannot say so"),
    "qwen3": Golden(
        dense("qwen3", "Qwen3ForCausalLM", **BYTE_LEVEL, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
              attention_bias=False, rope_theta=1000000.0, rms_norm_eps=1e-6, sliding_window=None,
              use_sliding_window=False, max_window_layers=2),
        "qwen2", note="head_dim 16 is not hidden_size / heads = 8"),
    "gemma2": Golden(
        dense("gemma2", "Gemma2ForCausalLM", **GEMMA, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=24, sliding_window=16,
              attn_logit_softcapping=5.0, final_logit_softcapping=10.0, intermediate_size=48, rope_theta=10000.0),
        "gemma", gguf_reads_as=dict(query_pre_attn_scalar=16),
        note="GGUF has no query_pre_attn_scalar: readers take head_dim"),
    "gemma3": Golden(
        dense("gemma3_text", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=7, num_attention_heads=2,
              num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=24, sliding_window=16, intermediate_size=40,
              rope_theta=1000000.0, rope_local_base_freq=5000.0, rope_scaling=dict(rope_type="linear", factor=8.0),
              attn_logit_softcapping=None, final_logit_softcapping=None, rms_norm_eps=1e-6),
        "gemma", gguf_reads_as=dict(query_pre_attn_scalar=16),
        note="no pattern in config.json, so every 6th layer is global; GGUF has no query_pre_attn_scalar"),
    "gemma3-pattern": Golden(
        dense("gemma3_text", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=4, num_attention_heads=4,
              num_key_value_heads=2, head_dim=8, query_pre_attn_scalar=8, sliding_window=16, intermediate_size=48,
              sliding_window_pattern=3, rms_norm_eps=1e-6),
        "gemma", gguf=None, note="no rope keys at all: 1e6 globally, 1e4 locally; every 3rd layer is global"),
    "gemma3-layer-types": Golden(
        dense("gemma3_text", "Gemma3ForCausalLM", **GEMMA, num_hidden_layers=3, num_attention_heads=2,
              num_key_value_heads=1, head_dim=16, query_pre_attn_scalar=16, sliding_window=16, intermediate_size=48,
              layer_types=["full_attention", "sliding_attention", "sliding_attention"], rms_norm_eps=1e-6,
              rope_parameters=dict(
                  full_attention=dict(rope_type="linear", factor=2.0, rope_theta=100000.0),
                  sliding_attention=dict(rope_type="default", rope_theta=500.0))),
        "gemma", gguf=None, note="the names that transformers 5 writes"),
    "phi3": Golden(
        dense("phi3", "Phi3ForCausalLM", sliding_window=20, original_max_position_embeddings=128, rope_scaling=None,
              rope_theta=10000.0, pad_token_id=0),
        "llama2", note="llama.cpp reads phi3.attention.sliding_window and does not use it; these logits do"),
    "phi3-longrope": Golden(
        dense("phi3", "Phi3ForCausalLM", num_attention_heads=2, num_key_value_heads=2, sliding_window=None,
              original_max_position_embeddings=32, pad_token_id=0, rope_theta=10000.0,
              rope_scaling=dict(type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
                                long_factor=[1.0, 1.2, 1.7, 2.5, 3.5, 5.0, 7.0, 9.0])),
        "llama2", short=24, note="longer than 32 tokens: the long factors, for all of them"),
    "phi3-partial": Golden(
        dense("phi3", "Phi3ForCausalLM", sliding_window=None, tie_word_embeddings=True,
              original_max_position_embeddings=32, pad_token_id=0, partial_rotary_factor=0.75,
              rope_scaling=dict(type="longrope", short_factor=[1.0, 1.05, 1.1, 1.2, 1.3, 1.4],
                                long_factor=[1.0, 1.2, 1.7, 2.5, 3.5, 5.0])),
        "llama2", short=24, note="12 of a head's 16 numbers are rotated (Phi-4-mini)"),
    "mixtral": Golden(
        dense("mixtral", "MixtralForCausalLM", intermediate_size=32, num_local_experts=4, num_experts_per_tok=2,
              num_attention_heads=4, num_key_value_heads=2, rope_theta=1000000.0, sliding_window=None),
        "llama2", storage="sharded"),
    "mixtral-fused": Golden(
        dense("mixtral", "MixtralForCausalLM", intermediate_size=40, num_local_experts=3, num_experts_per_tok=1,
              num_hidden_layers=1, rope_theta=1000000.0, sliding_window=8),
        "llama2", gguf=None, fused=True, note="one expert per token; a layer's experts in two tensors"),
    "qwen2-moe": Golden(
        dense("qwen2_moe", "Qwen2MoeForCausalLM", **BYTE_LEVEL, num_experts=6, num_experts_per_tok=3,
              moe_intermediate_size=16, shared_expert_intermediate_size=40, decoder_sparse_step=1,
              norm_topk_prob=False, use_sliding_window=False, sliding_window=16, max_window_layers=1,
              rms_norm_eps=1e-6, rope_theta=1000000.0),
        "qwen2", note="a shared expert with a gate; weights that do not sum to 1"),
    "qwen3-moe": Golden(
        dense("qwen3_moe", "Qwen3MoeForCausalLM", **BYTE_LEVEL, num_attention_heads=4, num_key_value_heads=2,
              head_dim=16, num_experts=8, num_experts_per_tok=2, moe_intermediate_size=16, norm_topk_prob=True,
              decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False, rope_theta=1000000.0,
              rms_norm_eps=1e-6, sliding_window=None, use_sliding_window=False),
        "qwen2"),
    "qwen3-moe-mixed": Golden(
        dense("qwen3_moe", "Qwen3MoeForCausalLM", num_hidden_layers=3, num_local_experts=4, num_experts_per_tok=3,
              moe_intermediate_size=24, norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[1],
              rms_norm_eps=1e-6, rope_parameters=dict(rope_type="default", rope_theta=10000.0)),
        "llama2", gguf=None, note="a layer without experts, which GGUF has no place for; num_local_experts"),
    "olmoe": Golden(
        dense("olmoe", "OlmoeForCausalLM", **BYTE_LEVEL, intermediate_size=16, num_experts=8, num_experts_per_tok=2,
              num_attention_heads=4, num_key_value_heads=4, norm_topk_prob=False, clip_qkv=None,
              rope_theta=10000.0),
        "qwen2", note="norms over all heads of queries and keys"),
}

PRE = {"llama3": "llama-bpe", "qwen2": "qwen2"}
STORED = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_tokenizer(folder: Path, family: str, size: int) -> None:
    if family in PRE:
        vocabularies.write_byte_level(folder, family, size)
    else:
        # so small a vocabulary has no room for 256 bytes
        vocabularies.write_sentencepiece(folder, family, size, byte_fallback=False, ascii_only=True)


def random_weights(model: torch.nn.Module, dtype: str, seed: int) -> dict[str, torch.Tensor]:
    """Weights that make sharp attention and logits that are far from flat.

    Those not stored in f32 are exact in f16 and in bf16 alike, so that every container holds the same model.
    """
    rng = torch.Generator().manual_seed(seed)
    zero_centred = model.config.model_type.startswith("gemma")  # these norms add 1 themselves
    weights = {}
    for name, old in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        noise = torch.randn(old.shape, generator=rng)
        if "norm" in name:
            w = 0.25 * noise + (0.0 if zero_centred else 1.0)
        elif name.endswith("bias"):
            w = 0.3 * noise
        elif "embed" in name or "lm_head" in name:
            w = 0.35 * noise
        elif any(part in name for part in ("q_proj", "k_proj", "qkv_proj")):
            w = noise * 1.6 / old.shape[-1] ** 0.5
        else:
            w = noise * 1.1 / old.shape[-1] ** 0.5
        if dtype != "f32":
            w = w.bfloat16().float()
            w[w.abs() < 2.0**-14] = 0.0
        weights[name] = w.to(STORED[dtype]).contiguous()
    return weights


def one_by_one(model: torch.nn.Module, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights under the names that `save_pretrained` gives, which has no stacks of experts."""
    model.load_state_dict({name: w.float() for name, w in weights.items()}, strict=False)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        saved = load_file(Path(folder) / "model.safetensors")
    dtype = next(iter(weights.values())).dtype
    return {name: w.to(dtype).contiguous() for name, w in saved.items()}


def write_weights(folder: Path, weights: dict[str, torch.Tensor], storage: str) -> None:
    if storage == "safetensors":
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return
    if storage == "bin":
        torch.save(weights, folder / "pytorch_model.bin")
        return
    stem, end = ("model", "safetensors") if storage == "sharded" else ("pytorch_model", "bin")
    names = sorted(weights)
    cut = len(names) // 2
    where = {}
    for number, part in enumerate((names[:cut], names[cut:]), 1):
        file = f"{stem}-{number:05}-of-00002.{end}"
        shard = {n: weights[n] for n in part}
        if end == "bin":
            torch.save(shard, folder / file)
        else:
            save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
    total = sum(w.numel() * w.element_size() for w in weights.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index, indent=1) + "\n")


def logits_of(folder: Path, ids: torch.Tensor, **overrides) -> torch.Tensor:
    """A fresh model each time: dynamic scaling keeps state between calls."""
    config = AutoConfig.from_pretrained(folder)
    for key, value in overrides.items():
        setattr(config, key, value)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, config=config, dtype=torch.float32, attn_implementation="eager", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"], info
    with torch.inference_mode():
        return model.eval()(ids[None]).logits[0].float().contiguous()


def write_logits(folder: Path, name: str, ids: torch.Tensor, logits: torch.Tensor) -> str:
    save_file({"input_ids": ids, "logits": logits}, folder / name)
    return name


def make(name: str, golden: Golden, converter: Converter, seed: int) -> None:
    folder = HERE / "archs" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = {k: v for k, v in golden.config.items() if not (k == "torch_dtype" and v is None)}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    write_tokenizer(folder, golden.tokenizer, config["vocab_size"])

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    weights = random_weights(model, golden.dtype, seed)
    if any(".experts." in name for name in weights) and not golden.fused:
        weights = one_by_one(model, weights)
    write_weights(folder, weights, golden.storage)

    ids = torch.randint(3, config["vocab_size"], (TOKENS,), generator=torch.Generator().manual_seed(seed))
    full = logits_of(folder, ids)
    cases = [{"model": ".", "logits": write_logits(folder, "logits.safetensors", ids, full)}]
    if golden.short:
        part = ids[: golden.short].clone()
        short = write_logits(folder, "logits-short.safetensors", part, logits_of(folder, part))
        cases.append({"model": ".", "logits": short})
    if golden.gguf:
        # llama.cpp looks for Phi-3's own special tokens where general.name says phi3
        called = f"golden-{name}".replace("phi3", "phi-three")
        converter.run(folder, folder / "model.gguf", golden.gguf, PRE.get(golden.tokenizer, "default"), called)
        expected = "logits.safetensors"
        if golden.gguf_reads_as:
            read = logits_of(folder, ids, **golden.gguf_reads_as)
            assert (read - full).abs().max() > 1e-2, f"{name}: the override changes nothing"
            expected = write_logits(folder, "logits-gguf.safetensors", ids, read)
        cases.append({"model": "model.gguf", "logits": expected})
    about = {
        "made_with": versions.of("transformers", "torch") | {"llama.cpp": versions.LLAMA_CPP},
        "parameters": sum(w.numel() for w in weights.values()),
        "seed": seed,
        "note": golden.note,
        "cases": cases,
    }
    (folder / "golden.json").write_text(json.dumps(about, indent=1) + "\n")
    size = sum(f.stat().st_size for f in folder.iterdir())
    top = full.softmax(-1).max(-1).values.mean()
    print(f"{name:20} {about['parameters']:7} parameters {size // 1000:4} kB, logits std {full.std():.2f}, mean top-1 {top:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, required=True, help="source tree of llama.cpp, for its converter")
    parser.add_argument("names", nargs="*", help="only these")
    args = parser.parse_args()
    torch.set_num_threads(1)
    converter = Converter(args.llama_cpp)
    for seed, (name, golden) in enumerate(GOLDENS.items(), 100):
        if not args.names or name in args.names:
            make(name, golden, converter, seed)


if __name__ == "__main__":
    main()
