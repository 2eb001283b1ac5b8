"""The codebooks of ggml's IQ1, IQ2 and IQ3 types, packed for crates/formats/src/ggml/codebooks.

    python make_codebooks.py --llama-cpp PATH

reads the tables of ggml/src/ggml-common.h (llama.cpp, MIT licence). Every entry becomes a little-endian u16: eight
levels of two bits, or four of three bits, the first in the lowest bits.
A level is the place of a value among those of its table.
"""

import argparse
import re
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "crates/formats/src/ggml/codebooks"
# name in ggml, bytes of an entry, values of the levels
TABLES = {
    "iq2_xxs": ("iq2xxs_grid", 8, [8, 25, 43]),
    "iq2_xs": ("iq2xs_grid", 8, [8, 25, 43]),
    "iq2_s": ("iq2s_grid", 8, [8, 25, 43]),
    "iq3_xxs": ("iq3xxs_grid", 4, [4, 12, 20, 28, 36, 44, 52, 62]),
    "iq3_s": ("iq3s_grid", 4, [1, 3, 5, 7, 9, 11, 13, 15]),
    "iq1": ("iq1s_grid", 8, [-1, 0, 1]),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    header = (parser.parse_args().llama_cpp / "ggml/src/ggml-common.h").read_text()
    OUT.mkdir(exist_ok=True)
    for name, (table, size, known) in TABLES.items():
        body = re.search(rf"GGML_TABLE_BEGIN\(uint\d+_t, {table}, \w+\)(.*?)GGML_TABLE_END", header, re.S)[1]
        entries = np.array([int(x, 16) for x in re.findall(r"0x[0-9a-f]+", body)], f"<u{size}")
        values = entries.view(np.int8).reshape(-1, size).astype(int)
        levels = np.searchsorted(known, values)
        assert (np.take(known, levels) == values).all()
        bits = 2 if size == 8 else 3
        packed = (levels << (bits * np.arange(size))).sum(1).astype("<u2")
        (OUT / f"{name}.bin").write_bytes(packed.tobytes())


if __name__ == "__main__":
    main()
