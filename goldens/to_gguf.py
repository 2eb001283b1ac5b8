"""Run llama.cpp's own converter on a folder, in this process.

Its check of the pre-tokenizer compares a hash against a list of published vocabularies, where a
tokenizer trained a minute ago cannot be; that one question is answered for it (`pre`).
"""

import importlib.util
import logging
import sys
from pathlib import Path


class Converter:
    def __init__(self, llama_cpp: Path):
        sys.path.insert(1, str(llama_cpp / "gguf-py"))
        sys.path.insert(1, str(llama_cpp))
        spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", llama_cpp / "convert_hf_to_gguf.py")
        self.module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.module)
        logging.disable(logging.INFO)

    def run(self, folder: Path, out: Path, outtype: str, pre: str, name: str, vocab_only: bool = False) -> None:
        """Write `out` from `folder`; `outtype` is f32, f16 or bf16, `name` becomes general.name."""
        from conversion.base import TextModel

        TextModel.get_vocab_base_pre = lambda _self, _tokenizer: pre
        argv = sys.argv
        sys.argv = ["convert", str(folder), "--outfile", str(out), "--outtype", outtype, "--model-name", name]
        if vocab_only:
            sys.argv.append("--vocab-only")
        try:
            self.module.main()
        finally:
            sys.argv = argv
