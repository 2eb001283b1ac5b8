"""Writes a checkpoint of train_demo.py as a Hugging Face model folder.

    python export.py --data OUT --checkpoint RUN/last.pt --to ../model
"""

import argparse
import json
import pathlib
import shutil

import torch
from safetensors.torch import save_file

from llama import Shape

TEMPLATE = (
    "{{- bos_token }}\n"
    "{%- for message in messages %}\n"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}\n"
    "{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n"
    "{{- '<|im_start|>assistant\\n' }}\n"
    "{%- endif %}\n"
)
NAMES = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
ENDS = [1, 3]  # <|eos|> ends a text, <|im_end|> ends a turn


def renamed(name):
    if name == "embed.weight":
        return "model.embed_tokens.weight"
    if name == "norm.weight":
        return "model.norm.weight"
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{NAMES[part]}.weight"


def config(s):
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": s.vocab,
        "hidden_size": s.width,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "intermediate_size": s.feed,
        "max_position_embeddings": s.context,
        "rope_theta": s.theta,
        "rope_scaling": None,
        "rms_norm_eps": s.eps,
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "initializer_range": 0.02,
        "bos_token_id": 0,
        "eos_token_id": ENDS,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def tokenizer_config(s):
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "pad_token": SPECIAL[1],
        "additional_special_tokens": SPECIAL[2:],
        "model_max_length": s.context,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": True,
        "add_eos_token": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "added_tokens_decoder": {
            str(i): {
                "content": t,
                "special": True,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "single_word": False,
            }
            for i, t in enumerate(SPECIAL)
        },
        "chat_template": TEMPLATE,
    }


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--checkpoint", type=pathlib.Path, required=True)
    p.add_argument("--to", type=pathlib.Path, required=True)
    a = p.parse_args()
    a.to.mkdir(parents=True, exist_ok=True)
    s = Shape()
    state = torch.load(a.checkpoint, map_location="cpu")
    tensors = {renamed(n): t.to(torch.bfloat16).contiguous() for n, t in state["model"].items()}
    save_file(tensors, str(a.to / "model.safetensors"), metadata={"format": "pt"})
    (a.to / "model.safetensors").chmod(0o644)
    shutil.copyfile(a.data / "tokenizer.json", a.to / "tokenizer.json")
    (a.to / "chat_template.jinja").write_text(TEMPLATE)
    files = {
        "config.json": config(s),
        "tokenizer_config.json": tokenizer_config(s),
        "special_tokens_map.json": {
            "bos_token": SPECIAL[0],
            "eos_token": SPECIAL[1],
            "pad_token": SPECIAL[1],
            "additional_special_tokens": SPECIAL[2:],
        },
        "generation_config.json": {
            "bos_token_id": 0,
            "eos_token_id": ENDS,
            "pad_token_id": 1,
            "do_sample": True,
            "temperature": 0.7,
            "top_p": 0.95,
            "max_new_tokens": 400,
        },
    }
    for name, content in files.items():
        (a.to / name).write_text(json.dumps(content, indent=2) + "\n")
    print(f"step {state['step']}, {state['tokens']} tokens -> {a.to}")


if __name__ == "__main__":
    main()
