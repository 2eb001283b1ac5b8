"""Time and memory of making quantized files: Lathe and the peers on the same model, in turn.

GGUF files, against llama-quantize on the same file:

    python3 comparisons/random_model.py tinyllama-1.1b model --tokenizer crates/demo/model
    target/release/lathe quantize model --to f16 --container gguf -o model-f16.gguf
    python3 comparisons/quantizers/speed.py --gguf model-f16.gguf \
        --lathe target/release/lathe --llama-cpp path/to/llama.cpp/build/bin

GPTQ and AWQ, on the same texts and settings:

    python3 comparisons/quantizers/speed.py --model model --calibration texts.jsonl \
        --lathe target/release/lathe --gptqmodel path/to/python --llmcompressor path/to/python

Seconds and peak memory are of whole processes, files written included; where a peer says how long
its quantizing alone took, that is shown too, without its imports, loading and saving. A round is
one process of each in turn; "faster" is the geometric mean of the rounds' ratios, theirs over ours,
with its 95 % interval by Student's t. Every call adds its rounds to those in --work, so that it
can be done in pieces. The machine should do nothing else.
"""

import argparse
import json
import math
import os
import re
import shutil
import statistics
import sys
from pathlib import Path

from compare import HERE, timed

TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
         "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
# Student's t at 97.5 %, by degrees of freedom.
T = [math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262]


def gguf_ways(args):
    """(what is made, their command, ours)"""
    program, threads = Path(args.llama_cpp) / "llama-quantize", str(args.threads)
    for kind in args.types:
        theirs = [program, args.gguf, "OUT", kind, threads]
        ours = [args.lathe, "quantize", args.gguf, "--to", kind.lower(), "-o", "OUT.gguf", "-q"]
        yield kind, theirs, [*ours, "--threads", threads]


def calibrated_ways(args):
    samples, length = str(args.samples), str(args.length)
    calibrated = ["--calibration", args.calibration, "--samples", samples, "--length", length]
    ours = [args.lathe, "quantize", args.model, "-q", "-o", "OUT", "--threads", str(args.threads)]
    if args.gptqmodel:
        theirs = [args.gptqmodel, HERE / "peer_gptqmodel.py", args.model, "OUT", "4", "128", "yes"]
        theirs += [args.calibration, samples]
        mine = [*ours, "--to", "int4_g128_f16", "--method", "gptq", *calibrated]
        yield "GPTQModel, GPTQ", theirs, mine
    if args.llmcompressor:
        for method, scheme, to, how in [("gptq", "W4A16", "int4_g128", "gptq"),
                                        ("awq", "W4A16_ASYM", "int4_asym_g128", "awq")]:
            theirs = [args.llmcompressor, HERE / "peer_llmcompressor.py", args.model, "OUT", method]
            theirs += [scheme, args.calibration, samples, length]
            mine = [*ours, "--to", to, "--method", how, *calibrated]
            yield f"llm-compressor, {method.upper()} {scheme}", theirs, mine


def run(args, command):
    """What one process took."""
    out, log = args.work / "out", args.work / "log"
    for old in [out, args.work / "out.gguf"]:
        shutil.rmtree(old, ignore_errors=True)
        old.unlink(missing_ok=True)
    named = {"OUT": out, "OUT.gguf": args.work / "out.gguf"}
    took = timed([named.get(c, c) for c in command], log)
    inner = re.findall(r"^quantized in ([0-9.]+) s$", log.read_text(errors="replace"), re.M)
    return {**took, "inner": float(inner[-1]) if inner else None}


def faster(rounds):
    """The geometric mean of their seconds over ours, with its interval."""
    logs = [math.log(r["theirs"]["seconds"] / r["ours"]["seconds"]) for r in rounds]
    mean = statistics.mean(logs)
    if len(logs) < 2:
        return f"× {math.exp(mean):.2f}"
    half = T[min(len(logs), len(T)) - 1] * statistics.stdev(logs) / math.sqrt(len(logs))
    return f"× {math.exp(mean):.2f} ({math.exp(mean - half):.2f}–{math.exp(mean + half):.2f})"


def row(what, rounds):
    def median(values):
        return f"{statistics.median(values):.2f}"

    sides = {side: [r[side] for r in rounds] for side in ["theirs", "ours"]}
    seconds = {side: median([one["seconds"] for one in all_]) for side, all_ in sides.items()}
    peak = {side: max(one["peak"] for one in all_) >> 20 for side, all_ in sides.items()}
    inner = [one["inner"] for one in sides["theirs"] if one["inner"]]
    inner = f" ({median(inner)})" if inner else ""
    return (f"| {what} | {len(rounds)} | {seconds['theirs']}{inner} | {seconds['ours']} "
            f"| {faster(rounds)} | {peak['theirs']} / {peak['ours']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--gguf", help="model in f16, bf16 or f32, for GGUF files")
    parser.add_argument("--llama-cpp", help="folder of llama.cpp's programs")
    parser.add_argument("--types", nargs="*", default=TYPES)
    parser.add_argument("--model", help="Hugging Face folder, for GPTQ and AWQ")
    parser.add_argument("--calibration", help="JSONL with `text`")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--gptqmodel", help="Python that has gptqmodel")
    parser.add_argument("--llmcompressor", help="Python that has llmcompressor")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("speed"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    kept = args.work / "rounds.json"
    seen = json.loads(kept.read_text()) if kept.exists() else {}
    ways = [*(gguf_ways(args) if args.gguf else []), *(calibrated_ways(args) if args.model else [])]
    for what, theirs, ours in ways:
        for _ in range(args.rounds):
            print(what, file=sys.stderr, flush=True)
            one = {"theirs": run(args, theirs), "ours": run(args, ours)}
            seen.setdefault(what, []).append(one)
            kept.write_text(json.dumps(seen, indent=1))
    print("| what | rounds | theirs, s | Lathe, s | faster | peak MiB, theirs / Lathe |")
    print("|---|---|---|---|---|---|")
    for what, rounds in seen.items():
        print(row(what, rounds))


if __name__ == "__main__":
    main()
