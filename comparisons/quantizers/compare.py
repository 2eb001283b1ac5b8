"""Quantizers side by side: the same model, bits, calibration text and machine, in turn.

For every pair, the peer makes its file and Lathe makes its own; both are evaluated by the same
engine (Lathe's, in f32 arithmetic) on the same held-out text, and the difference of their KL
divergences from the unquantized model is resampled by document. Time and peak memory are the
operating system's figures of each whole process.

    python3 comparisons/quantizers/compare.py --lathe target/release/lathe \
        --model demo=crates/demo/model --text held-out.txt --calibration calibration.jsonl \
        --llama-cpp path/to/llama.cpp/build/bin --gptqmodel path/to/python \
        --llmcompressor path/to/python --bitsandbytes path/to/python --page docs/quantizers.md

Peers whose option is left out are skipped. Results are kept in --work, and a second call makes
only what is missing.
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent


def pairs(args):
    """(peer, its name for people, its command, Lathe's name, Lathe's options)"""
    calibrated = ["--calibration", args.calibration, "--samples", str(args.samples)]
    calibrated += ["--length", str(args.length)]
    list_ = []
    if args.llama_cpp:
        for kind in ["Q4_0", "Q8_0", "Q5_0", "Q4_K_M", "Q5_K_M", "Q3_K_M", "Q2_K", "Q6_K", "IQ4_XS"]:
            to = kind.lower()
            list_.append(("llama.cpp", kind, llama_quantize(args, kind, False), f"{to}", ["--to", to]))
        for kind in ["Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "Q4_0"]:
            to = kind.lower()
            ours = ["--to", to, "--method", "gptq", *calibrated]
            theirs = llama_quantize(args, kind, True)
            list_.append(("llama.cpp", f"{kind}, imatrix", theirs, f"{to}, GPTQ", ours))
        for kind in ["Q4_K_M", "Q3_K_M", "Q2_K"]:
            ours = ["--budget", "SIZE", "--container", "gguf", *calibrated]
            theirs = llama_quantize(args, kind, True)
            list_.append(("llama.cpp", f"{kind}, imatrix", theirs, "budget of its size", ours))
    if args.gptqmodel:
        for bits, group in [(4, 128), (4, 32), (3, 128), (2, 32), (8, 128)]:
            ours = ["--to", f"int{bits}_g{group}_f16", "--method", "gptq", *calibrated]
            theirs = [args.gptqmodel, HERE / "peer_gptqmodel.py", "MODEL", "OUT", str(bits)]
            theirs += [str(group), "yes", args.calibration, str(args.samples)]
            name = f"GPTQ {bits} bits, g{group}"
            list_.append(("GPTQModel", name, theirs, "GPTQ, same bits and group", ours))
    if args.llmcompressor:
        for method, scheme, ours_to, ours_method in [
            ("rtn", "W4A16", "int4_g128", "rtn"),
            ("gptq", "W4A16", "int4_g128", "gptq"),
            ("awq", "W4A16_ASYM", "int4_asym_g128", "awq"),
            ("awq", "W4A16_ASYM", "int4_asym_g128", "awq-gptq"),
        ]:
            ours = ["--to", ours_to, "--method", ours_method]
            ours += calibrated if ours_method != "rtn" else []
            theirs = [args.llmcompressor, HERE / "peer_llmcompressor.py", "MODEL", "OUT", method]
            theirs += [scheme, args.calibration, str(args.samples), str(args.length)]
            name = f"{method.upper()} {scheme}"
            list_.append(("llm-compressor", name, theirs, f"{ours_to}, {ours_method}", ours))
    if args.bitsandbytes:
        for kind in ["nf4", "nf4_dq"]:
            theirs = [args.bitsandbytes, HERE / "peer_bitsandbytes.py", "MODEL", "OUT", kind]
            list_.append(("bitsandbytes", kind, theirs, kind, ["--to", kind]))
            ours = ["--to", kind, "--method", "gptq", *calibrated]
            list_.append(("bitsandbytes", kind, theirs, f"{kind}, GPTQ", ours))
    return list_


def llama_quantize(args, kind, importance):
    options = ["--imatrix", "IMATRIX"] if importance else []
    program = Path(args.llama_cpp) / "llama-quantize"
    return [program, *options, "GGUF", "OUT", kind, str(args.threads)]


def timed(command, log):
    """Wall seconds and peak bytes of one process."""
    start = time.monotonic()
    with open(log, "w") as sink:
        process = subprocess.Popen([str(c) for c in command], stdout=sink, stderr=sink)
        _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        tail = Path(log).read_text(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"{command[0]} failed: {' '.join(tail)}")
    return {"seconds": time.monotonic() - start, "peak": usage.ru_maxrss * 1024}


def size(path):
    files = [path] if path.is_file() else path.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


class Model:
    """One model, with what the peers need made of it."""

    def __init__(self, args, name, path):
        self.args, self.name, self.path = args, name, Path(path)
        self.work = Path(args.work) / name
        self.work.mkdir(parents=True, exist_ok=True)
        self.gguf = self.work / "plain.gguf"
        self.imatrix = self.work / "imatrix.gguf"

    def prepare(self):
        if not self.args.llama_cpp:
            return
        if not self.gguf.exists():
            kind = self.args.gguf_type
            make = [self.args.lathe, "quantize", self.path, "--to", kind]
            timed([*make, "--container", "gguf", "-o", self.gguf], self.work / "plain.log")
        if not self.imatrix.exists():
            # The same texts as the other peers', one after the other.
            text = self.work / "calibration.txt"
            with open(self.args.calibration) as lines:
                texts = [json.loads(line)["text"] for line in lines][: self.args.samples]
            text.write_text("\n".join(texts))
            program = Path(self.args.llama_cpp) / "llama-imatrix"
            make = [program, "-m", self.gguf, "-f", text, "-o", self.imatrix]
            make += ["-c", str(self.args.length), "-t", str(self.args.threads)]
            timed(make, self.work / "imatrix.log")

    def made(self, key, command, gguf):
        """Makes a file once; its path and what making it took."""
        note = self.work / f"{key}.json"
        out = self.work / (f"{key}.gguf" if gguf else key)
        if note.exists():
            return out, json.loads(note.read_text())
        shutil.rmtree(out, ignore_errors=True)
        out.unlink(missing_ok=True)
        names = {"MODEL": self.path, "OUT": out, "GGUF": self.gguf, "IMATRIX": self.imatrix}
        took = timed([names.get(c, c) for c in command], self.work / f"{key}.log")
        took["bytes"] = size(out)
        note.write_text(json.dumps(took))
        return out, took

    def quality(self, key, path):
        """Sums against the unquantized model per document, by Lathe's own evaluation."""
        raw = self.work / f"{key}.raw.json"
        if not raw.exists():
            command = [self.args.lathe, "eval", path, "--base", self.path, "--exact"]
            command += ["--data", self.args.text, "--max-tokens", str(self.args.max_tokens)]
            command += ["--conventions", "documents", "--no-choices", "--save", raw]
            timed(command, self.work / f"{key}.eval.log")
        saved = json.loads(raw.read_text())
        one = saved["passes"][0]
        candidate = next(m for m in one["models"] if m["role"] == "candidate")
        documents = {}
        rows = zip(one["segments"], candidate["nll"], candidate["against"], one["models"][0]["nll"])
        for segment, nll, against, base in rows:
            sums = documents.setdefault(segment["document"], [0, 0.0, 0.0, 0.0])
            for i, value in enumerate([segment["tokens"], against["kl"], nll, base]):
                sums[i] += value
        return documents


def mean_kl(documents, picked):
    return sum(documents[d][1] for d in picked) / sum(documents[d][0] for d in picked)


def interval(values):
    values = sorted(values)
    return values[int(0.025 * len(values))], values[int(0.975 * len(values)) - 1]


def compared(ours, theirs):
    """KL of both and their ratio, with 95 % intervals over documents."""
    everything = sorted(ours)
    generator = random.Random(0)
    draws = [generator.choices(everything, k=len(everything)) for _ in range(2000)]
    of_ours = [mean_kl(ours, d) for d in draws]
    of_theirs = [mean_kl(theirs, d) for d in draws]
    ratios = [a / b for a, b in zip(of_ours, of_theirs)]
    point = mean_kl(ours, everything), mean_kl(theirs, everything)
    return {
        "ours": [point[0], *interval(of_ours)],
        "theirs": [point[1], *interval(of_theirs)],
        "ratio": [point[0] / point[1], *interval(ratios)],
        "documents": len(everything),
        "tokens": sum(d[0] for d in ours.values()),
    }


def slug(*words):
    text = "-".join(words).lower()
    return "".join(c if c.isalnum() else "-" for c in text).strip("-")


def compare(args, model):
    results = []
    for peer, name, command, ours_name, options in pairs(args):
        label = f"{model.name}: {peer} {name} / {ours_name}"
        print(label, file=sys.stderr, flush=True)
        try:
            theirs_key = slug(peer, name)
            theirs, theirs_took = model.made(theirs_key, command, peer == "llama.cpp")
            options = [str(theirs_took["bytes"]) if o == "SIZE" else o for o in options]
            ours_key = slug("lathe", ours_name, name)
            make = [args.lathe, "quantize", "MODEL", *options, "-o", "OUT"]
            make += ["--threads", str(args.threads)]
            ours, ours_took = model.made(ours_key, make, peer == "llama.cpp")
            both = compared(model.quality(ours_key, ours), model.quality(theirs_key, theirs))
        except RuntimeError as error:
            print(f"  {error}", file=sys.stderr)
            results.append({"model": model.name, "peer": peer, "name": name, "ours": ours_name,
                            "failed": str(error)})
            continue
        print(f"  KL ratio {both['ratio'][0]:.3f}", file=sys.stderr)
        results.append({
            "model": model.name, "peer": peer, "name": name, "ours": ours_name, "kl": both,
            "took": {"ours": ours_took, "theirs": theirs_took},
        })
    return results


def figure(values, digits=4):
    low, high = values[1], values[2]
    return f"{values[0]:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def page(args, results):
    text = [
        "# Quantizers side by side",
        "",
        "Made by `comparisons/quantizers/compare.py`; every figure is measured. KL is the mean",
        "divergence from the unquantized model in nats per token on held-out text, computed by the",
        "same engine in f32 for both files, with 95 % intervals over documents. The ratio is ours",
        "over theirs, paired by document: below 1, Lathe's file is closer to the original. Bytes are",
        "of the weight files.",
        "",
        f"Calibration: {args.samples} texts of at most {args.length} tokens, the same for all.",
        "",
    ]
    if args.times:
        text += ["Seconds and peak memory are of the whole process that made a file, on this machine:"]
        text += [f"{args.machine}.", ""]
    for note in args.note:
        text += [note, ""]
    for model in dict.fromkeys(r["model"] for r in results):
        rows = [r for r in results if r["model"] == model]
        good = [r for r in rows if "kl" in r]
        if good:
            kl = good[0]["kl"]
            text += [f"## {model}", "", f"{kl['documents']} documents, {kl['tokens']} tokens.", ""]
        header = "| peer | its file | ours | KL theirs | KL ours | ratio | bytes theirs / ours |"
        rule = "|---|---|---|---|---|---|---|"
        if args.times:
            header += " seconds theirs / ours | peak MiB theirs / ours |"
            rule += "---|---|"
        text += [header, rule]
        for r in good:
            kl, took = r["kl"], r["took"]
            ours, theirs = took["ours"], took["theirs"]
            line = (
                f"| {r['peer']} | {r['name']} | {r['ours']} | {figure(kl['theirs'])} "
                f"| {figure(kl['ours'])} | {figure(kl['ratio'], 3)} "
                f"| {theirs['bytes']:,} / {ours['bytes']:,} |"
            )
            if args.times:
                line += f" {theirs['seconds']:.1f} / {ours['seconds']:.1f} "
                line += f"| {theirs['peak'] >> 20} / {ours['peak'] >> 20} |"
            text.append(line)
        failed = [r for r in rows if "failed" in r]
        text += [""] + [f"- {r['peer']} {r['name']} / {r['ours']}: {r['failed']}" for r in failed]
        text.append("")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--text", required=True, help="held-out text")
    parser.add_argument("--calibration", required=True, help="JSONL with `text`")
    parser.add_argument("--llama-cpp", help="folder of llama.cpp's programs")
    parser.add_argument("--gptqmodel", help="Python that has gptqmodel")
    parser.add_argument("--llmcompressor", help="Python that has llmcompressor")
    parser.add_argument("--bitsandbytes", help="Python that has bitsandbytes and transformers")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gguf-type", default="f32", help="what llama-quantize starts from")
    parser.add_argument("--work", default="comparison")
    parser.add_argument("--no-times", dest="times", action="store_false",
                        help="leave seconds and memory out, where other programs ran beside")
    parser.add_argument("--machine", default=os.uname().machine)
    parser.add_argument("--note", action="append", default=[], help="a line for the page")
    parser.add_argument("--page", help="where to write the table")
    args = parser.parse_args()
    args.lathe = str(Path(args.lathe).resolve())
    results = []
    for named in args.model:
        name, _, path = named.partition("=")
        model = Model(args, name, path)
        model.prepare()
        results += compare(args, model)
    Path(args.work, "results.json").write_text(json.dumps(results, indent=1))
    if args.page:
        Path(args.page).write_text(page(args, results))
    else:
        print(page(args, results))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
