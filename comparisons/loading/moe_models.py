"""Small mixtures of experts with random weights, wide enough for every format's groups: OUT TOKENIZER_FOLDER

    python comparisons/loading/moe_models.py OUT crates/demo/model

Writes OUT/ARCHITECTURE/, one folder for each architecture of that kind that Lathe reads, experts stored one by one as on
the hub. Needs torch and transformers.
"""

import json
import shutil
import sys
from pathlib import Path

from transformers import AutoConfig, AutoModelForCausalLM

sys.path.append(str(Path(__file__).parents[2] / "goldens"))
from make_architectures import dense, one_by_one, random_weights, write_weights  # noqa: E402

COMMON = dict(
    vocab_size=4096, hidden_size=256, num_attention_heads=8, num_key_value_heads=4, head_dim=32, bos_token_id=0,
    max_position_embeddings=512, num_experts_per_tok=2)
MODELS = {
    "mixtral": dense("mixtral", "MixtralForCausalLM", **COMMON, num_local_experts=4, intermediate_size=256,
                     rope_theta=1e6, sliding_window=None),
    "qwen2-moe": dense("qwen2_moe", "Qwen2MoeForCausalLM", **COMMON, num_experts=4, moe_intermediate_size=256,
                       intermediate_size=512, shared_expert_intermediate_size=256, decoder_sparse_step=1,
                       norm_topk_prob=False, use_sliding_window=False, rope_theta=1e6),
    "qwen3-moe": dense("qwen3_moe", "Qwen3MoeForCausalLM", **COMMON, num_experts=4, moe_intermediate_size=256,
                       intermediate_size=512, decoder_sparse_step=1, norm_topk_prob=True, mlp_only_layers=[],
                       attention_bias=False, rope_theta=1e6, use_sliding_window=False, sliding_window=None),
    "olmoe": dense("olmoe", "OlmoeForCausalLM", **COMMON | dict(num_key_value_heads=8), num_experts=4,
                   intermediate_size=256, norm_topk_prob=False, rope_theta=1e4),
}
CALM = {"q_proj": 0.5, "k_proj": 0.5, "lm_head": 0.25}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def main():
    out, tokenizer = (Path(p) for p in sys.argv[1:3])
    for seed, (name, config) in enumerate(MODELS.items()):
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        for file in TOKENIZER:
            shutil.copy(tokenizer / file, folder)
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        weights = random_weights(model, "bf16", seed)
        # Flatter than those: what one rounding changes is not to grow on its way.
        for part, factor in CALM.items():
            weights |= {key: w * factor for key, w in weights.items() if part in key}
        write_weights(folder, one_by_one(model, weights), "safetensors")


if __name__ == "__main__":
    main()
