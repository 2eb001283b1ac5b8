"""Tiny real tokenizers of each family, trained on corpus.py. Used by the other scripts."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import corpus

# The split patterns that the families publish in their tokenizer.json.
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")

# family: (split pattern or None for GPT-2's own, special tokens, begin-of-text token or None)
BYTE_LEVEL = {
    "gpt2": (None, ["<|endoftext|>"], None),
    "llama3": (
        LLAMA3_SPLIT,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        "<|begin_of_text|>",
    ),
    "qwen2": (QWEN2_SPLIT, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], None),
}

END_OF_TEXT = {"gpt2": "<|endoftext|>", "llama3": "<|eot_id|>", "qwen2": "<|im_end|>"}


def write_byte_level(folder: Path, family: str, size: int, template: str | None = None) -> None:
    """A byte-level BPE: tokenizer.json and tokenizer_config.json, as the family publishes them."""
    split, specials, begin = BYTE_LEVEL[family]
    tok = Tokenizer(models.BPE(ignore_merges=family == "llama3"))
    if split is None:
        tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tok.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(split), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    if family == "qwen2":
        tok.normalizer = normalizers.NFC()
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(specials),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tok.train_from_iterator(corpus.lines(), trainer)
    tok.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in specials])
    byte_level = processors.ByteLevel(trim_offsets=True)
    if begin is not None:
        tok.post_processor = processors.Sequence([
            byte_level,
            processors.TemplateProcessing(
                single=f"{begin} $A",
                pair=f"{begin} $A {begin} $B:1",
                special_tokens=[(begin, tok.token_to_id(begin))],
            ),
        ])
    else:
        tok.post_processor = byte_level
    assert tok.get_vocab_size() == size, (tok.get_vocab_size(), size)

    folder.mkdir(parents=True, exist_ok=True)
    tok.save(str(folder / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": {"gpt2": "GPT2Tokenizer", "qwen2": "Qwen2Tokenizer"}.get(family, "PreTrainedTokenizerFast"),
        "bos_token": begin,
        "eos_token": END_OF_TEXT[family],
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {
            str(tok.token_to_id(s)): {
                "content": s, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True,
            }
            for s in specials
        },
        "model_max_length": 2048,
    }
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")


# The first ids of a Gemma vocabulary.
GEMMA_PIECES = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", "\n", "\n\n", "▁▁", "▁▁▁▁"]

# family: what SentencePiece's trainer is told, beyond what all share
SENTENCEPIECE = {
    # Llama 2: dummy prefix, digits split, bytes for what is not in the vocabulary
    "llama2": dict(model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
                   add_dummy_prefix=True, allow_whitespace_only_pieces=True),
    # Gemma: no dummy prefix
    "gemma": dict(model_type="bpe", byte_fallback=True, split_digits=True, normalization_rule_name="identity",
                  add_dummy_prefix=False, allow_whitespace_only_pieces=True,
                  pad_id=0, eos_id=1, bos_id=2, unk_id=3, pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>",
                  user_defined_symbols=GEMMA_PIECES[4:]),
    # T5 and ALBERT style: unigram with a compiled table of replacements, no bytes
    "unigram": dict(model_type="unigram", byte_fallback=False, add_dummy_prefix=True, remove_extra_whitespaces=True),
}

# A few of NFKC's replacements: the whole table would be most of a megabyte.
REPLACEMENTS = {
    "\u00a0": " ", "\u3000": " ", "\u2003": " ", "\t": " ", "\n": " ", "\r": " ", "\ufb01": "fi", "\ufb02": "fl",
    "\uff21": "A", "\u2460": "1", "\u2026": "...", "\u2122": "TM", "e\u0301": "\u00e9", "n\u0303": "\u00f1",
    "\u200b": " ", "\ufeff": "",
}


def replacement_table() -> str:
    """The lines of a SentencePiece normalization_rule_tsv."""
    def code(text: str) -> str:
        return " ".join(f"{ord(c):X}" for c in text)

    return "".join(f"{code(a)}\t{code(b)}\n" for a, b in REPLACEMENTS.items())


def train_sentencepiece(family: str, size: int, ascii_only: bool = False, **more) -> bytes:
    """The bytes of a tokenizer.model."""
    lines = [line for line in corpus.lines() if line.isascii() or not ascii_only]
    model = io.BytesIO()
    options = dict(
        model_writer=model, vocab_size=size, num_threads=1, character_coverage=1.0,
        remove_extra_whitespaces=False, minloglevel=2,
    )
    options |= SENTENCEPIECE[family] | more
    # the table's path is written into the model: it has to be the same on every machine
    with tempfile.TemporaryDirectory() as scratch, contextlib.chdir(scratch):
        if family == "unigram":
            Path("replacements.tsv").write_text(replacement_table())
            options["normalization_rule_tsv"] = "replacements.tsv"
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), **options)
    return model.getvalue()


def write_sentencepiece(folder: Path, family: str, size: int, template: str | None = None, **more) -> None:
    """tokenizer.model and tokenizer_config.json, as Llama 2, Mistral, Phi-3 and Gemma publish them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_sentencepiece(family, size, **more))
    gemma = family == "gemma"
    config = {
        "tokenizer_class": {"gemma": "GemmaTokenizer", "llama2": "LlamaTokenizer", "unigram": "T5Tokenizer"}[family],
        "add_bos_token": family != "unigram",
        "add_eos_token": False,
        "bos_token": "<bos>" if gemma else "<s>",
        "eos_token": "<eos>" if gemma else "</s>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    if gemma:
        config["pad_token"] = "<pad>"
        config["added_tokens_decoder"] = {
            str(i): {"content": piece, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": piece.startswith("<")}
            for i, piece in enumerate(GEMMA_PIECES)
        }
    if family == "llama2":
        config["legacy"] = False
    if template is not None:
        config["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n")
