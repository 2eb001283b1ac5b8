"""Small tokenizers of each family, trained here, and what the references make of hard text.

    python make_tokenizers.py [--llama-cpp PATH] [--llama-tokenize PATH]

writes tokenizers/hard_text.json and tokenizers/FAMILY/: the tokenizer's files, expected.json and, with a source tree
of llama.cpp, vocab.gguf by its converter; with its llama-tokenize also gguf.json, the ids that llama.cpp gives.
"""

import argparse
import json
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Tokenizer, decoders, normalizers
from transformers import AutoTokenizer

import versions
import vocabularies

HERE = Path(__file__).parent / "tokenizers"

HARD_TEXT = [
    "",
    " ",
    "  ",
    "   ",
    "        ",
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\t",
    "\t\t\tx",
    "\r\n",
    " \n \n  \n",
    "a",
    " a",
    "  a",
    "a ",
    "a  ",
    " a b  c   d    e     f ",
    "The river bends twice before it reaches the mill.",
    "\nThe river\n\n  bends\ttwice \r\nbefore it\n",
    "MiXeD cAsE, ALL CAPS and camelCaseWords and snake_case_words",
    "It's I'm you're we've he'd she'll DON'T CAN'T I'M WE'LL it’s",
    "'s't're've'm'll'd 'S 'RE",
    "...!!!???---===+++***///\\\\\\",
    "x=3;y=x+1;if(x<y){return [x,y];}",
    "def f(a, b):\n    return a  +  b\n\n\nclass C:\n\tpass\n",
    "1 12 123 1234 12345 123456 1234567 3.14159 1,000,000 0x1F 1e-5",
    "2024-11-21T03:00:00Z v1.2.3-rc.4",
    "½ ² ③ Ⅳ ٣ ३ 百",
    "é e\u0301 ñ n\u0303 Å A\u030a",
    "ﬁ ﬂ ﬃ Ａｂｃ ① ™ …",
    "Straße GROẞ ſ İstanbul ıI",
    "Où est la clé ? ¿Qué? ¡Ñandú! „Größe“ «да»",
    "Река течёт медленно.",
    "川は静かに流れています。",
    "今天天气很好，我们去河边散步。",
    "강은 천천히 흐르고",
    "يجري النهرُ ببطءٍ",
    "नदी धीरे बहती है क्षत्रिय",
    "สวัสดีครับ ລາວ ខ្មែរ",
    "שָׁלוֹם עולם",
    "🙂",
    "🙂🙂 🙃",
    "👩‍👩‍👧‍👦 family 👍🏽 🏳️‍🌈 🇨🇭 ❤️",
    "a\u200bb\u200dc\ufeffd\u00ade",
    "non\u00a0breaking\u2003em\u3000ideographic\u2028line\u2029para\u0085next",
    "\u0000 \u0001 \u0007 \u001b[31m \u007f",
    "\ufffd \U0010ffff \ue000",
    "<s>",
    "</s>",
    "a <s> b </s> c",
    "<s>a</s>b<unk>c",
    "<|begin_of_text|>Hi<|eot_id|>",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|> <|endoftext|>x<|endoftext|>",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n",
    "< s > <|im_start| > <|im_start|><|im_start|>",
    "<0x0A> <0xE2> ▁ ▁▁a Ġa Ċ",
    "\"quoted\" 'single' `code` (paren) [bracket] {brace} <angle>",
    "https://example.org/a/b?c=d&e=%20f#g user@example.org",
    "supercalifragilistic" * 12,
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the the the the thethethe",
    "日本語とEnglishとрусский混在123",
    "trailing newline\n",
    " leading and trailing ",
    "lathe lathes the lathe, <mask> a<mask>b  <mask>  c",
]

BYTE_LEVEL = ["gpt2", "llama3", "qwen2"]
SIZE = 520


def llama2_as_published(folder: Path) -> None:
    """The tokenizer.json of Llama 2: spaces made by a normalizer, so a space of its own stays beside the dummy one."""
    vocabularies.write_sentencepiece(folder, "llama2", SIZE)
    tok = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    tok.pre_tokenizer = None
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.save(str(folder / "tokenizer.json"), pretty=False)


def llama2_metaspace(folder: Path) -> None:
    """The tokenizer.json that transformers writes today (also Mistral's and TinyLlama's newer ones)."""
    vocabularies.write_sentencepiece(folder, "llama2", SIZE)
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    (folder / "tokenizer.model").unlink()


def gemma(folder: Path) -> None:
    vocabularies.write_sentencepiece(folder, "gemma", SIZE)
    AutoTokenizer.from_pretrained(folder).backend_tokenizer.save(str(folder / "tokenizer.json"), pretty=False)


def unigram(folder: Path) -> None:
    vocabularies.write_sentencepiece(folder, "unigram", 320)
    from transformers.convert_slow_tokenizer import SpmConverter

    class Holder:
        vocab_file = str(folder / "tokenizer.model")

    class Unigram(SpmConverter):
        def post_processor(self):
            return None

    tok = Unigram(Holder()).converted()
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in ("<unk>", "<s>", "</s>")])
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    config = json.loads((folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def added(folder: Path) -> None:
    """GPT-2 with added tokens of every kind: stripping neighbours, whole words only, normalized ones."""
    vocabularies.write_byte_level(folder, "gpt2", SIZE)
    path = folder / "tokenizer.json"
    tok = Tokenizer.from_file(str(path))
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True, normalized=False)])
    tok.add_tokens([
        AddedToken("lathe", single_word=True, normalized=True),
        AddedToken("snake_case", rstrip=True, normalized=False),
        AddedToken("river\n", normalized=False),
    ])
    tok.save(str(path), pretty=False)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    del config["added_tokens_decoder"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def model_only(family: str):
    return lambda folder: vocabularies.write_sentencepiece(folder, family, SIZE)


FAMILIES = {
    **{f: (lambda folder, f=f: vocabularies.write_byte_level(folder, f, SIZE)) for f in BYTE_LEVEL},
    "gpt2-added": added,
    "llama2": llama2_as_published,
    "llama2-metaspace": llama2_metaspace,
    "llama2-model": model_only("llama2"),
    "gemma": gemma,
    "gemma-model": model_only("gemma"),
    "unigram": unigram,
}
# What GGUF calls the pre-tokenizer, for the families that get a vocab.gguf.
PRE = {"gpt2": "gpt-2", "llama3": "llama-bpe", "qwen2": "qwen2", "llama2": "default", "gemma": "default"}


def random_ids(size: int, seed: int) -> list[list[int]]:
    """Runs of tokens that no text gives: cut characters, special tokens anywhere, spaces first and last."""
    rng = random.Random(seed)
    return [[rng.randrange(size) for _ in range(rng.randrange(1, 9))] for _ in range(40)]


def by_tokenizers(tok) -> dict:
    """The file's own rules, as the tokenizers library applies them."""
    return {
        "ids": [tok.encode(t, add_special_tokens=False).ids for t in HARD_TEXT],
        "ids_with_special": [tok.encode(t, add_special_tokens=True).ids for t in HARD_TEXT],
    }


def by_transformers(tok) -> dict:
    return {
        "ids": [tok.encode(t, add_special_tokens=False) for t in HARD_TEXT],
        "ids_with_special": [tok.encode(t, add_special_tokens=True) for t in HARD_TEXT],
    }


def expected(folder: Path, seed: int) -> dict:
    auto = AutoTokenizer.from_pretrained(folder)
    file = folder / "tokenizer.json"
    backend = Tokenizer.from_file(str(file)) if file.exists() else auto.backend_tokenizer
    first = by_tokenizers(backend)
    about = {
        "made_with": versions.of("transformers", "tokenizers", "sentencepiece"),
        "reference": "tokenizers, from tokenizer.json" if file.exists() else "transformers, from tokenizer.model",
        "size": backend.get_vocab_size(),
        **first,
        "decoded": [backend.decode(i, skip_special_tokens=False) for i in first["ids_with_special"]],
        "decoded_without_special": [backend.decode(i, skip_special_tokens=True) for i in first["ids_with_special"]],
        "decode": [
            {"ids": ids, "text": backend.decode(ids, skip_special_tokens=False),
             "text_without_special": backend.decode(ids, skip_special_tokens=True)}
            for ids in random_ids(backend.get_vocab_size(), seed)
        ],
    }
    others = {f"transformers {about['made_with']['transformers']}": by_transformers(auto)}
    if (model := folder / "tokenizer.model").exists():
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
        others["sentencepiece, special tokens not read in text"] = {"ids": [pieces.encode(t) for t in HARD_TEXT]}
    # What another reference says differently, by the index of the text.
    about["differs"] = {
        who: {key: {str(i): x for i, x in enumerate(ids) if x != first[key][i]} for key, ids in said.items()}
        for who, said in others.items()
    }
    return about


def write_json(path: Path, value: dict) -> None:
    """One top-level key a line."""
    lines = [f"{json.dumps(k)}: {json.dumps(v, ensure_ascii=True)}" for k, v in value.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_gguf(converter, folder: Path, family: str) -> None:
    """vocab.gguf, as the converter makes it for a model with this tokenizer."""
    config = {"llama2": ("llama", "LlamaForCausalLM"), "gemma": ("gemma2", "Gemma2ForCausalLM"),
              "qwen2": ("qwen2", "Qwen2ForCausalLM")}.get(family, ("llama", "LlamaForCausalLM"))
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / family
        shutil.copytree(folder, model)
        if (model / "tokenizer.model").exists():
            (model / "tokenizer.json").unlink(missing_ok=True)
        size = SIZE
        (model / "config.json").write_text(json.dumps({
            "model_type": config[0], "architectures": [config[1]], "vocab_size": size, "hidden_size": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 64,
            "head_dim": 16, "sliding_window": 16, **({"bos_token_id": 2, "eos_token_id": 1} if family == "gemma" else {}),
        }))
        # a converter insists on a weight, even for the vocabulary alone
        from safetensors.torch import save_file
        import torch

        save_file({"model.norm.weight": torch.ones(32)}, model / "model.safetensors", metadata={"format": "pt"})
        converter.run(model, folder / "vocab.gguf", "f32", PRE[family], f"golden-{family}", vocab_only=True)


def by_llama_cpp(binary: Path, vocabulary: Path) -> dict:
    """The ids that llama.cpp gives, special tokens read in text, without and with the begin-of-text token."""
    said = {"made_with": {"llama.cpp": versions.LLAMA_CPP}, "ids": [], "ids_with_special": []}
    with tempfile.NamedTemporaryFile() as file:
        for text in HARD_TEXT:
            file.seek(0)
            file.truncate()
            file.write(text.encode())
            file.flush()
            for key, flags in (("ids", ["--no-bos"]), ("ids_with_special", [])):
                if not text:  # llama-tokenize refuses an empty prompt
                    said[key].append(None)
                    continue
                run = subprocess.run(
                    [binary, "-m", vocabulary, "-f", file.name, "--ids", "--log-disable", "--no-escape", *flags],
                    capture_output=True, check=True, text=True)
                said[key].append(json.loads(run.stdout))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, help="source tree of llama.cpp, for its converter")
    parser.add_argument("--llama-tokenize", type=Path, help="the binary")
    args = parser.parse_args()
    converter = None
    if args.llama_cpp:
        from to_gguf import Converter

        converter = Converter(args.llama_cpp)
    HERE.mkdir(exist_ok=True)
    (HERE / "hard_text.json").write_text(
        "[\n" + ",\n".join(json.dumps(t, ensure_ascii=True) for t in HARD_TEXT) + "\n]\n")
    for seed, (family, write) in enumerate(FAMILIES.items()):
        folder = HERE / family
        shutil.rmtree(folder, ignore_errors=True)
        write(folder)
        about = expected(folder, seed)
        write_json(folder / "expected.json", about)
        differs = {who: {k: len(v) for k, v in d.items()} for who, d in about["differs"].items()}
        print(f"{family:18} {about['size']} tokens, differs: {differs}")
        if converter and family in PRE:
            write_gguf(converter, folder, family)
        if args.llama_tokenize and family in PRE:
            said = by_llama_cpp(args.llama_tokenize, folder / "vocab.gguf")
            odd = [i for i, ids in enumerate(said["ids"]) if ids is not None and ids != about["ids"][i]]
            print(f"{'':18} llama.cpp differs on {odd}")
            write_json(folder / "gguf.json", said)


if __name__ == "__main__":
    main()
