"""Files made by Lathe, loaded and run by the engines that people deploy: do they compute the same?

Makes a model's files in every layout, loads each in the engines given, and compares with Lathe's
own logits in f32 arithmetic: the mean KL divergence per token, and the largest difference of a
probability. What an engine refuses is written down with its words.

    python3 comparisons/loading/check.py --lathe target/release/lathe \
        --logits target/release/examples/logits --model crates/demo/model \
        --transformers path/to/python --vllm path/to/python --llama-cpp path/to/program

`--llama-cpp` is `llama_cpp.cpp` beside this file, compiled against llama.cpp.
"""

import argparse
import json
import math
import subprocess
import sys
from array import array
from pathlib import Path

HERE = Path(__file__).parent

# (name, options of lathe quantize, engines that should load it)
FOLDERS = "transformers", "vllm"
FILES = [
    ("gptq", ["--to", "int4_g128_f16", "--layout", "gptq"], FOLDERS),
    ("gptq-asym", ["--to", "int4_asym_g128_f16", "--layout", "gptq"], ("transformers",)),
    ("gptq-3bit", ["--to", "int3_g128_f16", "--layout", "gptq"], ("transformers",)),
    ("gptq-8bit", ["--to", "int8_g128_f16", "--layout", "gptq"], ("transformers",)),
    ("awq", ["--to", "int4_asym_g128_f16", "--layout", "awq"], FOLDERS),
    ("w4a16", ["--to", "int4_g128"], FOLDERS),
    ("w4a16-asym", ["--to", "int4_asym_g128"], ("vllm",)),
    ("int8", ["--to", "int8"], FOLDERS),
    ("nf4", ["--to", "nf4"], ("transformers",)),
    ("nf4-dq", ["--to", "nf4_dq"], ("transformers",)),
    ("fp4", ["--to", "fp4"], ("transformers",)),
    ("fp8", ["--to", "fp8_row"], FOLDERS),
]
GGUF = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"]
GGUF += ["iq4_nl", "iq4_xs"]
FILES += [(name, ["--to", name], ("llama.cpp",)) for name in GGUF]


def run(command, log):
    with open(log, "w") as sink:
        done = subprocess.run([str(c) for c in command], stdout=sink, stderr=sink, check=False)
    if done.returncode == 0:
        return None
    lines = Path(log).read_text(errors="replace").splitlines()
    errors = [line for line in lines if "Error" in line] or lines[-1:] or ["no words"]
    return errors[-1].strip()[-300:]


def rows(path, vocab):
    values = array("f")
    values.frombytes(Path(path).read_bytes())
    return [values[i : i + vocab] for i in range(0, len(values), vocab)]


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def divergence(ours, theirs):
    """Mean KL of the rows and the largest difference of a probability."""
    total, largest = 0.0, 0.0
    for p, q in zip(ours, theirs):
        p, q = log_softmax(p), log_softmax(q)
        total += sum(math.exp(a) * (a - b) for a, b in zip(p, q))
        largest = max(largest, max(abs(math.exp(a) - math.exp(b)) for a, b in zip(p, q)))
    return total / len(ours), largest


def compare(args, engine, path, ours, work):
    out = work / f"{engine}.out"
    programs = {
        "transformers": [args.transformers, HERE / "peer_transformers.py"],
        "vllm": [args.vllm, HERE / "peer_vllm.py"],
        "llama.cpp": [args.llama_cpp],
    }
    refused = run([*programs[engine], path, out, args.ids], work / f"{engine}.log")
    if refused:
        return {"refused": refused}
    if engine == "vllm":
        found = json.loads(out.read_text())["logprobs"]
        ids = [int(i) for i in args.ids.split(",")]
        own = [log_softmax(row)[token] for row, token in zip(ours, ids[1:])]
        apart = [abs(math.exp(a) - math.exp(b)) for a, b in zip(own, found)]
        return {"probability": max(apart)}
    kl, largest = divergence(ours, rows(out, len(ours[0])))
    return {"kl": kl, "probability": largest}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--logits", default="target/release/examples/logits")
    parser.add_argument("--model", default="crates/demo/model")
    parser.add_argument("--transformers", help="Python that has transformers and its quantizers")
    parser.add_argument("--vllm", help="Python that has vllm")
    parser.add_argument("--llama-cpp", help="llama_cpp.cpp, compiled")
    parser.add_argument("--ids", default=",".join(str(3 + 37 * i) for i in range(64)))
    parser.add_argument("--only", action="append", help="only these files")
    parser.add_argument("--work", default="loading")
    args = parser.parse_args()
    available = {"transformers": args.transformers, "vllm": args.vllm, "llama.cpp": args.llama_cpp}
    vocab = json.loads(Path(args.model, "config.json").read_text())["vocab_size"]
    results = {}
    for name, options, engines in FILES:
        wanted = [engine for engine in engines if available[engine]]
        if not wanted or args.only and name not in args.only:
            continue
        work = Path(args.work, name)
        work.mkdir(parents=True, exist_ok=True)
        path = work / ("model.gguf" if engines == ("llama.cpp",) else "model")
        make = [args.lathe, "quantize", args.model, *options, "--force", "-o", path]
        failed = run(make, work / "make.log")
        failed = failed or run([args.logits, path, work / "ours.out", args.ids], work / "own.log")
        if failed:
            results[name] = {"made": failed}
            print(f"{name:12} not made: {failed}", flush=True)
            continue
        ours = rows(work / "ours.out", vocab)
        for engine in wanted:
            found = compare(args, engine, path, ours, work)
            results.setdefault(name, {})[engine] = found
            words = ", ".join(f"{k} {v if isinstance(v, str) else f'{v:.2e}'}" for k, v in found.items())
            print(f"{name:12} {engine:12} {words}", flush=True)
    Path(args.work, "results.json").write_text(json.dumps(results, indent=1))
    return 1 if any("refused" in f or "made" in r for r in results.values() for f in r.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
