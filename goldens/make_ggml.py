"""Bytes by ggml's own quantization code, without and with an importance vector.

    python make_ggml.py --llama-cpp PATH

PATH is a source tree of llama.cpp; its ggml-quants.c is compiled with `-ffp-contract=off` (as the release builds for
x86-64 are: without instructions that fuse a product and a sum), beside ggml/quantize.c. Writes ggml/*.safetensors.
"""

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

import versions

HERE = Path(__file__).parent / "ggml"
DEMO = Path(__file__).parents[1] / "crates/demo/model/model.safetensors"
SEED = 17
COLS = 768  # three blocks of 256: an odd number

# Types that only are read: how many bytes a block of 256 has, and where in it an f16 scale lies.
READ_ONLY = {
    "iq2_xxs": (66, 0), "iq2_xs": (74, 0), "iq2_s": (82, 0), "iq3_xxs": (98, 0), "iq3_s": (110, 0),
    "iq1_s": (50, 0), "iq1_m": (56, None), "tq1_0": (54, 52), "tq2_0": (66, 64),
}

TYPES = ["q4_0", "q5_0", "q8_0", "q4_1", "q5_1", "q2_K", "q3_K", "q4_K", "q5_K", "q6_K", "iq4_nl", "iq4_xs"]


def compile_harness(llama_cpp: Path, into: Path) -> Path:
    src = llama_cpp / "ggml/src"
    (into / "ggml-version.h").write_text('#define GGML_VERSION ""\n#define GGML_COMMIT ""\n')
    program = into / "quantize"
    flags = ["-O2", "-ffp-contract=off", "-DNDEBUG", "-D_GNU_SOURCE", "-ffunction-sections", f"-I{into}", f"-I{src}", f"-I{src}/../include"]
    objects = []
    for i, file in enumerate([HERE / "quantize.c", src / "ggml.c", src / "ggml-quants.c", src / "ggml-threading.cpp"]):
        objects.append(into / f"{i}.o")
        subprocess.run(["g++" if file.suffix == ".cpp" else "gcc", *flags, "-c", file, "-o", objects[-1]], check=True)
    subprocess.run(["gcc", *objects, "-lm", "-lstdc++", "-Wl,--gc-sections", "-o", program], check=True)
    return program


def inputs() -> dict[str, np.ndarray]:
    """Matrices f32 [rows, COLS] that quantizers stumble over."""
    rng = np.random.default_rng(SEED)

    def normal(rows: int, scale: float = 0.05) -> np.ndarray:
        return (scale * rng.standard_normal((rows, COLS))).astype(np.float32)

    heavy = (0.02 * rng.standard_t(2, (3, COLS))).astype(np.float32)
    zeros = normal(3)
    zeros[0, ::2] = -0.0
    zeros[1] = 0.0
    zeros[2, 32:208] = 0.0
    one = np.zeros((2, COLS), np.float32)
    one[0, 300], one[1, 511] = 1.0, -3.0
    outlier = normal(2)
    outlier[0, 100], outlier[1, 600] = 40.0, -900.0
    # Orders of magnitude from group to group: scales that become 0 beside others.
    steps = normal(2) * np.repeat(10.0 ** -(np.arange(COLS // 16) % 9), 16).astype(np.float32)
    # Halves of a step, and equal distances from both ends.
    ties = np.tile(((np.arange(COLS) % 65) - 32) / 2, (2, 1)).astype(np.float32)
    ties[1] = np.abs(ties[1])
    model = load_file(DEMO)
    down = model["model.layers.0.mlp.down_proj.weight"].float().numpy()
    embedding = model["model.embed_tokens.weight"].float().numpy()
    return {
        "normal": normal(3),
        "heavy": heavy,
        "zeros": zeros,
        "constant": np.repeat(np.float32([[0.3], [-0.3]]), COLS, 1),
        "one": one,
        "outlier": outlier,
        "steps": steps,
        "ties": ties,
        "signs": np.abs(normal(2)) * np.float32([[1], [-1]]),
        "tiny": normal(4) * np.float32([[1e-5], [1e-8], [1e-14], [1e-37]]),
        "large": normal(2, 1e3),
        "demo": np.concatenate([down[:4], embedding[90:99].reshape(3, COLS)]),
    }


def importance() -> np.ndarray:
    """Mean squares of activations, f32 [COLS]: positive, a few of them large."""
    rng = np.random.default_rng(SEED + 1)
    return np.exp(1.5 * rng.standard_normal(COLS)).astype(np.float32)


def any_codes() -> dict[str, np.ndarray]:
    """Random bytes u8 [4, bytes], with scales that are ordinary numbers: most codes occur."""
    rng = np.random.default_rng(SEED + 2)
    coded = {}
    for kind, (size, at) in READ_ONLY.items():
        blocks = rng.integers(0, 256, (4 * COLS // 256, size), np.uint8)
        scale = np.float16(0.037 * rng.random(len(blocks)) + 0.01)
        if at is not None:
            blocks[:, at : at + 2] = scale.view(np.uint8).reshape(-1, 2)
        else:  # IQ1_M: four bits of it in each of the last four u16
            words = blocks[:, -8:].copy().view(np.uint16)
            for i in range(4):
                words[:, i] = words[:, i] & 0x0FFF | (scale.view(np.uint16) >> (4 * i) & 15) << 12
            blocks[:, -8:] = words.view(np.uint8)
        if kind == "tq1_0":  # bytes that five or four digits to base 3 give
            digits = rng.integers(0, 3, (len(blocks), 52, 5))
            digits[:, 48:, 4] = 0
            number = digits @ [81, 27, 9, 3, 1]
            blocks[:, :52] = (number * 256 + 242) // 243
        coded[kind] = blocks.reshape(4, -1)
    return coded


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--llama-cpp", type=Path, required=True)
    args = parser.parse_args()
    made_with = {"made_with": json.dumps(versions.of("numpy") | {"llama.cpp": versions.LLAMA_CPP})}

    def save(name: str, tensors: dict[str, np.ndarray]) -> None:
        save_file({k: torch.from_numpy(v.copy()) for k, v in tensors.items()}, HERE / name, metadata=made_with)

    matrices, weighing = inputs(), importance()
    save("inputs.safetensors", matrices | {"importance": weighing})
    with tempfile.TemporaryDirectory() as folder:
        program = compile_harness(args.llama_cpp, Path(folder))

        def run(kind: str, rows: int, *mode: str, data: bytes) -> bytes:
            command = [program, kind, str(rows), str(COLS), *mode]
            return subprocess.run(command, input=data, stdout=subprocess.PIPE, check=True).stdout

        plain, weighted, values = {}, {}, {}
        for kind in TYPES:
            for name, m in matrices.items():
                rows = len(m)
                coded = run(kind, rows, data=m.tobytes())
                plain[f"{name}.{kind}"] = np.frombuffer(coded, np.uint8).reshape(rows, -1)
                if kind != "q8_0":  # knows no importance
                    by_weight = run(kind, rows, "weighted", data=weighing.tobytes() + m.tobytes())
                    weighted[f"{name}.{kind}"] = np.frombuffer(by_weight, np.uint8).reshape(rows, -1)
                if name == "heavy":
                    floats = run(kind, rows, "decode", data=coded)
                    values[f"{name}.{kind}"] = np.frombuffer(floats, np.float32).reshape(rows, -1)
        codes = any_codes()
        decoded = {}
        for kind, data in codes.items():
            floats = run(kind, len(data), "decode", data=data.tobytes())
            decoded[f"{kind}.values"] = np.frombuffer(floats, np.float32).reshape(len(data), -1)
        save("read_only.safetensors", codes | decoded)
        save("plain.safetensors", plain)
        save("weighted.safetensors", weighted)
        save("values.safetensors", values)


if __name__ == "__main__":
    main()
