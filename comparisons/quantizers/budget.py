"""Formats by measured budget against llama.cpp's mixes, at the same bytes.

Every mix of llama.cpp is made without and with an importance matrix; Lathe then makes a file that
is no larger than the smaller of the two. All are evaluated by the same engine (Lathe's, in f32
arithmetic) on the same held-out text, and the ratio of their KL divergences from the unquantized
model is resampled by document.

    python3 comparisons/quantizers/budget.py --lathe target/release/lathe \
        --model demo=crates/demo/model --text held-out.txt --calibration calibration.jsonl \
        --llama-cpp path/to/llama.cpp/build/bin --page docs/budget.md

The importance matrix is made of all calibration texts; Lathe draws at most --samples times --length
tokens from the same. Results are kept in --work, and a second call makes only what is missing.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from compare import Model, compared, figure, llama_quantize, size, slug, timed

MIXES = ["Q2_K", "Q3_K_S", "IQ4_XS", "IQ4_NL", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
         "Q5_K_S", "Q5_K_M", "Q6_K"]


def theirs(args, model, mix, importance):
    """The key, file and cost of a mix; the file is made once."""
    key = slug("llama.cpp", mix, "imatrix" if importance else "plain")
    path, took = model.made(key, llama_quantize(args, mix, importance), True)
    return key, path, took


def ours(args, model, budget):
    """The key, file and cost of Lathe's file of at most `budget` bytes."""
    key = slug("lathe", str(budget))
    note, out = model.work / f"{key}.json", model.work / f"{key}.gguf"
    if not note.exists():
        # Under one name, so that measurements of one budget serve the next.
        made = model.work / "lathe.gguf"
        make = [args.lathe, "quantize", model.path, "--budget", budget, "--container", "gguf"]
        make += ["--calibration", args.calibration, "--samples", args.samples]
        make += ["--length", args.length, "--threads", args.threads, "--force", "--json", "-o", made]
        log = model.work / f"{key}.log"
        took = timed(make, log)
        took["bytes"] = size(made)
        made.rename(out)
        note.write_text(json.dumps(took))
    return key, out, json.loads(note.read_text())


def compare(args, model):
    rows = []
    for mix in args.mixes:
        print(f"{model.name}: {mix}", file=sys.stderr, flush=True)
        try:
            both = [(importance, *theirs(args, model, mix, importance))
                    for importance in [False, True]]
            budget = min(took["bytes"] for *_, took in both)
            key, path, took = ours(args, model, budget)
            documents = model.quality(key, path)
            for importance, their_key, their_path, their_took in both:
                kl = compared(documents, model.quality(their_key, their_path))
                rows.append({"mix": mix, "imatrix": importance, "kl": kl,
                             "bytes": {"ours": took["bytes"], "theirs": their_took["bytes"]},
                             "seconds": {"ours": took["seconds"]}})
                print(f"  KL ratio {kl['ratio'][0]:.3f}", file=sys.stderr, flush=True)
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr, flush=True)
            rows.append({"mix": mix, "failed": str(error)})
    return rows


def page(args, results):
    text = [
        "# Formats by measured budget",
        "",
        "Made by `comparisons/quantizers/budget.py`; every figure is measured. `lathe quantize",
        "--budget` is given the bytes of llama.cpp's file (the smaller of the two where the",
        "importance matrix changes them), and both files are evaluated by the same engine in f32 on",
        "held-out text. KL is the mean divergence from the unquantized model in nats per token, with",
        "95 % intervals over documents; the ratio is ours over theirs, paired by document: below 1,",
        "Lathe's file is closer to the original.",
        "",
        "Both were given the same calibration texts: llama.cpp all of them for its importance matrix,",
        f"Lathe at most {args.samples} × {args.length} tokens.",
        f"{args.machine}; {args.versions}.",
        "",
    ]
    text += [line for note in args.note for line in (note, "")]
    for name, rows in results.items():
        good = [row for row in rows if "kl" in row]
        if not good:
            continue
        kl = good[0]["kl"]
        text += [f"## {name}", "", f"{kl['documents']} documents, {kl['tokens']} tokens.", ""]
        text += ["| llama.cpp's file | bytes theirs / ours | KL theirs | KL ours | ratio |",
                 "|---|---|---|---|---|"]
        for row in good:
            kl, sizes = row["kl"], row["bytes"]
            label = row["mix"] + (", imatrix" if row["imatrix"] else "")
            text.append(f"| {label} | {sizes['theirs']:,} / {sizes['ours']:,} "
                        f"| {figure(kl['theirs'], 5)} | {figure(kl['ours'], 5)} "
                        f"| {figure(kl['ratio'], 3)} |")
        failed = [row for row in rows if "failed" in row]
        text += [""] + [f"- {row['mix']}: {row['failed']}" for row in failed]
        text += [""] if failed else []
    return "\n".join(text).rstrip() + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--llama-cpp", required=True, help="folder of llama.cpp's programs")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--text", required=True, help="held-out text")
    parser.add_argument("--calibration", required=True, help="JSONL with `text`")
    parser.add_argument("--mixes", nargs="+", default=MIXES)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gguf-type", default="f32", help="what llama-quantize starts from")
    parser.add_argument("--work", default="budgets")
    parser.add_argument("--machine", default=os.uname().machine)
    parser.add_argument("--versions", default="", help="of both programs, for the page")
    parser.add_argument("--note", action="append", default=[], help="a line for the page")
    parser.add_argument("--page", help="where to write the table")
    args = parser.parse_args()
    args.lathe = str(Path(args.lathe).resolve())
    results = {}
    for named in args.model:
        name, _, path = named.partition("=")
        # Of all texts, not of the first ones.
        model = Model(argparse.Namespace(**{**vars(args), "samples": None}), name, path)
        model.prepare()
        results[name] = compare(args, model)
    Path(args.work, "results.json").write_text(json.dumps(results, indent=1))
    if args.page:
        Path(args.page).write_text(page(args, results))
    else:
        print(page(args, results))


if __name__ == "__main__":
    main()
