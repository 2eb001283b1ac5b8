"""Importance matrices by llama.cpp's llama-imatrix, in both of its formats.

    python make_imatrix.py --llama-imatrix PATH

writes imatrix/: `text.txt`, what llama-imatrix makes of archs/qwen3/model.gguf over it (`once.gguf`, `once.dat`), two of
its files merged (`twice.gguf`, `twice.dat`: the same file added to itself), and `golden.json`.
"""

import argparse
import json
import shutil
import subprocess
from pathlib import Path

import versions

HERE = Path(__file__).parent / "imatrix"
MODEL = Path(__file__).parent / "archs/qwen3/model.gguf"
TEXT = "The river bends twice before it reaches the mill. A blue door, a fox by the boat; 12 kitchens? "
CHUNK = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--llama-imatrix", required=True, type=Path)
    tool = parser.parse_args().llama_imatrix.resolve()
    shutil.rmtree(HERE, ignore_errors=True)
    HERE.mkdir()
    (HERE / "text.txt").write_text(4 * TEXT)

    def run(*arguments: str) -> None:
        subprocess.run([tool, "-m", MODEL.resolve(), "-t", "1", "-c", str(CHUNK), "-b", str(CHUNK), *arguments], cwd=HERE,
                       check=True, capture_output=True)  # the text's path goes into the file: a relative one

    for kind in ("gguf", "dat"):
        run("-f", "text.txt", "--chunks", "3", "--process-output", "--output-format", kind, "-o", f"once.{kind}")
        run("--in-file", "once.gguf", "--in-file", "once.gguf", "--output-format", kind, "-o", f"twice.{kind}")
    about = {"made_with": {"llama.cpp": versions.LLAMA_CPP}, "model": "archs/qwen3/model.gguf", "text": "text.txt",
             "chunk_size": CHUNK, "chunks": 3}
    (HERE / "golden.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
