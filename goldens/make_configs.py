"""The sizes of published models as config.json files, and what transformers builds from them.

    python make_configs.py

writes configs/NAME.json (only the keys that a reader needs) and configs/expected.json.
No weights: the models are built on the meta device.
"""

import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import versions

HERE = Path(__file__).parent / "configs"


def dense(model_type: str, architecture: str, **more) -> dict:
    base = dict(architectures=[architecture], model_type=model_type, hidden_act="silu", rms_norm_eps=1e-5,
                tie_word_embeddings=False, torch_dtype="bfloat16")
    return base | more


def sizes(v: int, d: int, f: int, layers: int, h: int, g: int, context: int) -> dict:
    return dict(vocab_size=v, hidden_size=d, intermediate_size=f, num_hidden_layers=layers, num_attention_heads=h,
                num_key_value_heads=g, max_position_embeddings=context)


def llama(*numbers: int, **more) -> dict:
    return dense("llama", "LlamaForCausalLM", **sizes(*numbers)) | more


def llama3_scaling(factor: float) -> dict:
    return dict(rope_type="llama3", factor=factor, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=8192)


PHI35_SHORT = [
    1.0, 1.02, 1.03, 1.03, 1.05, 1.05, 1.05, 1.05, 1.05, 1.07, 1.1, 1.11, 1.16, 1.16, 1.17, 1.29, 1.34, 1.68, 1.79,
    1.82, 1.85, 1.88, 1.91, 1.94, 1.99, 2.02, 2.02, 2.02, 2.02, 2.02, 2.02, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03, 2.03,
    2.03, 2.03, 2.08, 2.09, 2.19, 2.22, 2.59, 2.73, 2.75, 2.84,
]
PHI35_LONG = [
    1.08, 1.11, 1.14, 1.34, 1.59, 1.6, 1.62, 2.62, 3.23, 3.23, 4.79, 7.4, 7.7, 9.09, 12.2, 17.67, 24.46, 28.57, 30.42,
    30.84, 32.59, 32.93, 42.32, 44.96, 50.34, 50.45, 57.55, 57.93, 58.21, 60.14, 62.61, 62.62, 62.71, 63.14, 63.14,
    63.77, 63.93, 63.96, 63.97, 64.03, 64.07, 64.08, 64.12, 64.41, 64.48, 64.51, 64.53, 64.84,
]

CONFIGS = {
    "llama-2-7b": llama(32000, 4096, 11008, 32, 32, 32, 4096, bos_token_id=1, eos_token_id=2, rope_scaling=None,
                        torch_dtype="float16"),
    "llama-3.1-8b": llama(128256, 4096, 14336, 32, 32, 8, 131072, bos_token_id=128000, eos_token_id=128001,
                          rope_theta=500000.0, rope_scaling=llama3_scaling(8.0)),
    "llama-3.2-1b": llama(128256, 2048, 8192, 16, 32, 8, 131072, bos_token_id=128000, eos_token_id=128001,
                          rope_theta=500000.0, rope_scaling=llama3_scaling(32.0), head_dim=64,
                          tie_word_embeddings=True),
    "tinyllama-1.1b": llama(32000, 2048, 5632, 22, 32, 4, 2048, bos_token_id=1, eos_token_id=2),
    "mistral-7b-v0.1": dense("mistral", "MistralForCausalLM", **sizes(32000, 4096, 14336, 32, 32, 8, 32768),
                             sliding_window=4096, rope_theta=10000.0, bos_token_id=1, eos_token_id=2),
    "qwen2.5-7b": dense("qwen2", "Qwen2ForCausalLM", **sizes(152064, 3584, 18944, 28, 28, 4, 131072),
                        rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=131072, use_sliding_window=False,
                        max_window_layers=28, bos_token_id=151643, eos_token_id=151643),
    "qwen2.5-0.5b": dense("qwen2", "Qwen2ForCausalLM", **sizes(151936, 896, 4864, 24, 14, 2, 32768),
                          rms_norm_eps=1e-6, rope_theta=1000000.0, sliding_window=32768, use_sliding_window=False,
                          max_window_layers=24, tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151643),
    "qwen3-0.6b": dense("qwen3", "Qwen3ForCausalLM", **sizes(151936, 1024, 3072, 28, 16, 8, 40960), head_dim=128,
                        rms_norm_eps=1e-6, rope_theta=1000000, rope_scaling=None, sliding_window=None,
                        use_sliding_window=False, attention_bias=False, max_window_layers=28,
                        tie_word_embeddings=True, bos_token_id=151643, eos_token_id=151645),
    "qwen3-8b": dense("qwen3", "Qwen3ForCausalLM", **sizes(151936, 4096, 12288, 36, 32, 8, 40960), head_dim=128,
                      rms_norm_eps=1e-6, rope_theta=1000000, rope_scaling=None, sliding_window=None,
                      use_sliding_window=False, attention_bias=False, max_window_layers=36, bos_token_id=151643,
                      eos_token_id=151645),
    # Gemma's files leave tie_word_embeddings to its default, which is true.
    "gemma-2-2b": dense("gemma2", "Gemma2ForCausalLM", **sizes(256000, 2304, 9216, 26, 8, 4, 8192), head_dim=256,
                        rms_norm_eps=1e-6, rope_theta=10000.0, sliding_window=4096, query_pre_attn_scalar=256,
                        attn_logit_softcapping=50.0, final_logit_softcapping=30.0,
                        hidden_activation="gelu_pytorch_tanh", hidden_act="gelu_pytorch_tanh", bos_token_id=2,
                        eos_token_id=1, pad_token_id=0, tie_word_embeddings=None, torch_dtype="float32"),
    "gemma-3-1b": dense("gemma3_text", "Gemma3ForCausalLM", **sizes(262144, 1152, 6912, 26, 4, 1, 32768),
                        head_dim=256, rms_norm_eps=1e-6, rope_theta=1000000, rope_local_base_freq=10000,
                        rope_scaling=None, sliding_window=512, sliding_window_pattern=6, query_pre_attn_scalar=256,
                        attn_logit_softcapping=None, final_logit_softcapping=None, hidden_act=None,
                        hidden_activation="gelu_pytorch_tanh", bos_token_id=2, eos_token_id=1, pad_token_id=0,
                        tie_word_embeddings=None),
    "phi-3-mini-4k": dense("phi3", "Phi3ForCausalLM", **sizes(32064, 3072, 8192, 32, 32, 32, 4096),
                           original_max_position_embeddings=4096, rope_theta=10000.0, rope_scaling=None,
                           sliding_window=2047, attention_bias=False, bos_token_id=1, eos_token_id=32000,
                           pad_token_id=32000),
    "phi-3.5-mini": dense("phi3", "Phi3ForCausalLM", **sizes(32064, 3072, 8192, 32, 32, 32, 131072),
                          original_max_position_embeddings=4096, rope_theta=10000.0, sliding_window=262144,
                          attention_bias=False, bos_token_id=1, eos_token_id=32000, pad_token_id=32000,
                          rope_scaling=dict(type="longrope", short_factor=PHI35_SHORT, long_factor=PHI35_LONG)),
}


def main() -> None:
    HERE.mkdir(exist_ok=True)
    expected = {"made_with": versions.of("transformers", "torch"), "models": {}}
    for name, config in CONFIGS.items():
        keys = {k: v for k, v in config.items() if not (k in ("tie_word_embeddings", "hidden_act") and v is None)}
        path = HERE / f"{name}.json"
        path.write_text(json.dumps(keys, indent=1) + "\n")
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(path))
        shapes = {n: list(p.shape) for n, p in model.named_parameters()}  # a tied head appears once
        expected["models"][name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "tensors": len(shapes),
            "shapes": {n: s for n, s in shapes.items() if ".layers." not in n or ".layers.0." in n},
        }
        print(f"{name:18} {expected['models'][name]['parameters']:13,}")
    (HERE / "expected.json").write_text(json.dumps(expected, separators=(",", ":")).replace('},"', '},\n"') + "\n")


if __name__ == "__main__":
    main()
