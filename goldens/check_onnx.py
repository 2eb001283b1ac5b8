"""Runs folders that Lathe wrote for ONNX Runtime, in plain Python, and compares the logits.

    python check_onnx.py --lathe PATH [NAME ...]     # exports goldens/archs/NAME (all), compares with their golden logits
    python check_onnx.py --folder ONNX --logits FILE # an export of any model, with ids and logits as a golden has them

For each model: onnx's checker with shape inference; then the logits of one pass over all tokens, of a pass in two halves and
of steps of one token, each with the cache of the one before, and of the same steps in a cache of a fixed length that is
written in place (IO binding). Prints the largest difference of each over the largest logit. Needs onnx, onnxruntime and
numpy; it fails where a difference is above --tolerance, and where a model is refused that is not in REFUSED.
"""

import argparse
import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

ARCHS = Path(__file__).parent / "archs"
# What the graph cannot say, and the words that say so.
REFUSED = {
    "llama-mha": "heads are 10 wide",
    "mixtral": "experts", "mixtral-fused": "experts", "olmoe": "experts", "qwen2-moe": "experts", "qwen3-moe": "experts",
    "qwen3-moe-mixed": "experts",
}


def safetensors(path: Path) -> dict[str, np.ndarray]:
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    kinds = {"F32": np.float32, "I64": np.int64}
    found = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            numbers = np.frombuffer(data[8 + length + start : 8 + length + end], kinds[entry["dtype"]])
            found[name] = numbers.reshape(entry["shape"])
    return found


class Decoder:
    def __init__(self, folder: Path):
        self.session = ort.InferenceSession(folder / "model.onnx", options(), providers=["CPUExecutionProvider"])
        self.caches = {i.name: i for i in self.session.get_inputs() if i.name.startswith("past")}
        self.names = [o.name for o in self.session.get_outputs()]
        first = next(iter(self.caches.values()))
        self.dtype = np.float16 if "float16" in first.type else np.float32

    def empty(self, length=0):
        return {name: np.zeros((1, i.shape[1], length, i.shape[3]), self.dtype) for name, i in self.caches.items()}

    def feed(self, ids, before, cache, first=None):
        """Logits of these tokens, and the cache after them."""
        feeds = {"input_ids": ids[None], "attention_mask": np.ones((1, before + len(ids)), np.int64), **cache}
        if first is not None:
            feeds["logits_from"] = np.array([first])
        outputs = dict(zip(self.names, self.session.run(None, feeds)))
        cache = {name: outputs[name.replace("past_key_values", "present")] for name in self.caches}
        return outputs["logits"][0].astype(np.float32), cache

    def in_runs(self, ids, sizes):
        cache, logits, at = self.empty(), [], 0
        for size in sizes:
            rows, cache = self.feed(ids[at : at + size], at, cache)
            logits.append(rows)
            at += size
        return np.concatenate(logits)

    def in_place(self, ids, room):
        """One token at a time, in caches of a fixed length that are input and output at once."""
        caches = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in self.empty(room).items()}
        logits = []
        for at in range(len(ids)):
            binding = self.session.io_binding()
            binding.bind_cpu_input("input_ids", ids[None, at : at + 1])
            binding.bind_cpu_input("attention_mask", np.ones((1, at + 1), np.int64))
            for name, value in caches.items():
                binding.bind_ortvalue_input(name, value)
                binding.bind_ortvalue_output(name.replace("past_key_values", "present"), value)
            binding.bind_output("logits")
            self.session.run_with_iobinding(binding)
            # Outputs come in the order in which they were bound.
            logits.append(binding.get_outputs()[-1].numpy()[0].astype(np.float32))
        return np.concatenate(logits)


def options():
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return options


def check(folder: Path):
    """onnx's checker, with the shapes that it can infer through ONNX Runtime's operators."""
    onnx.checker.check_model(str(folder / "model.onnx"), full_check=True)


def compare(folder: Path, golden: Path):
    numbers = safetensors(golden)
    ids, expected = numbers["input_ids"], numbers["logits"]
    decoder = Decoder(folder)
    scale = np.abs(expected).max()
    half = len(ids) // 2
    runs = {
        "whole": decoder.in_runs(ids, [len(ids)]),
        "halves": decoder.in_runs(ids, [half, len(ids) - half]),
        "steps": decoder.in_runs(ids, [1] * len(ids)),
        "in place": decoder.in_place(ids, len(ids) + 8),
    }
    last, _ = decoder.feed(ids, 0, decoder.empty(), first=-1)
    assert last.shape[0] == 1, "logits_from leaves the last position"
    runs["last"] = np.concatenate([expected[:-1], last])
    return {how: float(np.abs(logits - expected).max() / scale) for how, logits in runs.items()}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--lathe")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--logits", type=Path)
    parser.add_argument("--dtype", default="f32")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    args = parser.parse_args()
    bad = []

    def show(name, folder, golden):
        check(folder)
        apart = compare(folder, golden)
        print(f"{name:28}" + "  ".join(f"{how} {value:.1e}" for how, value in apart.items()), flush=True)
        if not max(apart.values()) <= args.tolerance:
            bad.append(name)

    if args.folder:
        show(args.folder.name, args.folder, args.logits)
    else:
        for name in args.names or sorted(p.name for p in ARCHS.iterdir()):
            for case in json.loads((ARCHS / name / "golden.json").read_text())["cases"]:
                title = name if case["model"] == "." else f"{name}/{case['model']}"
                with tempfile.TemporaryDirectory() as place:
                    folder = Path(place) / "onnx"
                    length = len(safetensors(ARCHS / name / case["logits"])["input_ids"])
                    command = [args.lathe, "convert", ARCHS / name / case["model"], "--to", "onnx", "-o", folder]
                    made = subprocess.run([*command, "--dtype", args.dtype, "-q"], capture_output=True, text=True)
                    if made.returncode != 0:
                        words = made.stderr.strip()
                        print(f"{title:28}refused: {words}", flush=True)
                        if name not in REFUSED or REFUSED[name] not in words:
                            bad.append(title)
                        continue
                    positions = json.loads((folder / "genai_config.json").read_text())["model"]["context_length"]
                    if positions < length:
                        print(f"{title:28}has room for {positions} of {length} tokens", flush=True)
                        continue
                    show(title, folder, ARCHS / name / case["logits"])
    if bad:
        sys.exit("apart: " + ", ".join(bad))


if __name__ == "__main__":
    main()
