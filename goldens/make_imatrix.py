"""Importance matrices by llama.cpp's llama-imatrix, in both of its formats.

    python make_imatrix.py --llama-imatrix PATH --llama-tokenize PATH

writes imatrix/: `text.txt`, what llama-imatrix makes of archs/qwen3/model.gguf over it (`once.gguf`, `once.dat`), two of
its files merged (`twice.gguf`, `twice.dat`: the same file added to itself), what it makes of a mixture of experts,
archs/qwen2-moe/model.gguf (`experts.gguf`, keys and values in f32), and `golden.json`, with the tokens of the latter.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import versions

HERE = Path(__file__).parent / "imatrix"
MODEL = Path(__file__).parent / "archs/qwen3/model.gguf"
EXPERTS = Path(__file__).parent / "archs/qwen2-moe/model.gguf"
TEXT = "The river bends twice before it reaches the mill. A blue door, a fox by the boat; 12 kitchens? "
CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-imatrix", required=True, type=Path)
    parser.add_argument("--llama-tokenize", required=True, type=Path)
    args = parser.parse_args()
    tool = args.llama_imatrix.resolve()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    (HERE / "text.txt").write_text(4 * TEXT)

    def run(*arguments: str, model: Path = MODEL) -> None:
        subprocess.run([tool, "-m", model.resolve(), "-t", "1", "-c", str(CHUNK), "-b", str(CHUNK), *arguments], cwd=HERE,
                       check=True, capture_output=True)  # the text's path goes into the file: a relative one

    for kind in ("gguf", "dat"):
        run("-f", "text.txt", "--chunks", "3", "--process-output", "--output-format", kind, "-o", f"once.{kind}")
        run("--in-file", "once.gguf", "--in-file", "once.gguf", "--output-format", kind, "-o", f"twice.{kind}")
    exact = ("-ctk", "f32", "-ctv", "f32", "-fa", "off")
    run("-f", "text.txt", "--chunks", "3", "-o", "experts.gguf", *exact, model=EXPERTS)
    listed = subprocess.run([args.llama_tokenize.resolve(), "-m", EXPERTS.resolve(), "-f", "text.txt", "--ids", "--no-escape",
                             "--log-disable"], cwd=HERE, check=True, capture_output=True, text=True)
    ids = json.loads(listed.stdout)[: 3 * CHUNK]
    about = {"made_with": {"llama.cpp": versions.LLAMA_CPP}, "model": "archs/qwen3/model.gguf", "text": "text.txt",
             "chunk_size": CHUNK, "chunks": 3,
             "experts": {"model": "archs/qwen2-moe/model.gguf", "ids": ids}}
    (HERE / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
