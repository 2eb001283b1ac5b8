"""Time and memory of making GGUF files: Lathe and llama-quantize on the same file, in turn.

    python3 comparisons/random_model.py tinyllama-1.1b model --tokenizer crates/demo/model
    target/release/lathe quantize model --to f16 --container gguf -o model-f16.gguf
    python3 comparisons/quantizers/speed.py model-f16.gguf --lathe target/release/lathe \
        --llama-cpp path/to/llama.cpp/build/bin

Seconds and peak memory are of whole processes, files written included; the ratio is of the medians
over the rounds. The machine should do nothing else.
"""

import argparse
import os
import statistics
from pathlib import Path

from compare import timed

TYPES = ["Q8_0", "Q5_0", "Q4_1", "Q4_0", "Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_NL",
         "IQ4_XS"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="GGUF in f16, bf16 or f32")
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--llama-cpp", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--types", nargs="+", default=TYPES)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, default=Path("speed"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    out, log = args.work / "out.gguf", args.work / "log"
    program, threads = Path(args.llama_cpp) / "llama-quantize", str(args.threads)
    print("| type | llama-quantize, s | Lathe, s | faster | MiB llama-quantize / Lathe |")
    print("|---|---|---|---|---|")
    for kind in args.types:
        ways = {
            "theirs": [program, args.model, out, kind, threads],
            "ours": [args.lathe, "quantize", args.model, "--to", kind.lower(), "-o", out, "-q",
                     "--threads", threads],
        }
        seen = {way: [] for way in ways}
        for _ in range(args.rounds):
            for way, command in ways.items():
                out.unlink(missing_ok=True)
                seen[way].append(timed(command, log))
        seconds = {way: [one["seconds"] for one in all_] for way, all_ in seen.items()}
        peak = {way: max(one["peak"] for one in all_) >> 20 for way, all_ in seen.items()}
        shown = {way: ", ".join(f"{s:.2f}" for s in sorted(all_)) for way, all_ in seconds.items()}
        ratio = statistics.median(seconds["theirs"]) / statistics.median(seconds["ours"])
        print(f"| {kind} | {shown['theirs']} | {shown['ours']} | × {ratio:.2f} "
              f"| {peak['theirs']} / {peak['ours']} |", flush=True)
    out.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
