"""Quantizers side by side: the same model, bits and calibration text.

For every pair, the peer makes its file and Lathe makes its own; both are evaluated by the same
engine (Lathe's, in f32 arithmetic) on the same held-out text. Shown are bytes of weight files,
perplexity and by how much it is above the unquantized model's, the KL divergence from that model
in nats per token, and the ratio of both files' divergences, all with 95 % intervals over documents
(drawn again 2000 times, the same documents for both files of a pair).

    python3 comparisons/quantizers/compare.py --lathe target/release/lathe \
        --model demo=crates/demo/model --text held-out.jsonl --calibration calibration.jsonl \
        --llama-cpp path/to/llama.cpp/build/bin --gptqmodel path/to/python \
        --llmcompressor path/to/python --bitsandbytes path/to/python > tables.md

Peers whose option is left out are skipped. Results are kept in --work, and a second call makes
only what is missing. speed.py measures time and memory.
"""

import argparse
import json
import math
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
GGUF_TYPES = ["Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
              "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K"]
PEER_METHODS = {"rtn": "round to nearest", "gptq": "GPTQ", "awq": "AWQ",
                "smoothquant": "SmoothQuant 0.8 then GPTQ"}
# Rows that are judged with inputs rounded, as engines run such files; all others by their weights alone.
AS_RUN = ", inputs rounded"


def pairs(args):
    """(peer, its name for people, its command, Lathe's name, Lathe's options)"""
    calibrated = ["--calibration", args.calibration, "--samples", str(args.samples)]
    calibrated += ["--length", str(args.length)]
    gptq = ["--method", "gptq", *calibrated]
    list_ = []
    if args.llama_cpp:
        for kind in GGUF_TYPES:
            ours = ["--to", kind.lower(), "--method", "rtn"]
            list_.append(("llama.cpp", kind, llama_quantize(args, kind, False), "the same", ours))
        for kind in GGUF_TYPES:
            theirs = llama_quantize(args, kind, True)
            ours = ["--to", kind.lower(), "--method", "rtn", "--imatrix", "IMATRIX"]
            list_.append(("llama.cpp", f"{kind}, imatrix", theirs, "the same", ours))
            ours = ["--to", kind.lower(), *gptq]
            list_.append(("llama.cpp", f"{kind}, imatrix", theirs, "GPTQ", ours))
    if args.gptqmodel:
        for bits, group in [(8, 128), (4, 32), (4, 128), (3, 128), (2, 32)]:
            ours = ["--to", f"int{bits}_g{group}_f16", *gptq]
            theirs = [args.gptqmodel, HERE / "peer_gptqmodel.py", "MODEL", "OUT", str(bits)]
            theirs += [str(group), "yes", args.calibration, str(args.samples)]
            name = f"GPTQ, {bits} bits, groups of {group}"
            list_.append(("GPTQModel", name, theirs, "GPTQ", ours))
    if args.llmcompressor:
        for method, scheme, ours_name, ours in [
            ("rtn", "W8A16", "round to nearest, int8_g128", ["--to", "int8_g128", "--method", "rtn"]),
            ("rtn", "W8A16", "searched scales, int8_g128", ["--to", "int8_g128"]),
            ("rtn", "W4A16", "round to nearest, int4_g128", ["--to", "int4_g128", "--method", "rtn"]),
            ("rtn", "W4A16", "searched scales, int4_g128", ["--to", "int4_g128"]),
            ("rtn", "W4A16_ASYM", "round to nearest, int4_asym_g128",
             ["--to", "int4_asym_g128", "--method", "rtn"]),
            ("rtn", "W4A16_ASYM", "searched scales, int4_asym_g128", ["--to", "int4_asym_g128"]),
            ("rtn", "FP8_DYNAMIC", "round to nearest, fp8_dynamic",
             ["--to", "fp8_dynamic", "--method", "rtn"]),
            ("rtn", "FP8_DYNAMIC", "searched scales, fp8_dynamic",
             ["--to", "fp8_dynamic", "--method", "search"]),
            ("rtn", "FP8_BLOCK", "round to nearest, fp8_block", ["--to", "fp8_block", "--method", "rtn"]),
            ("rtn", "FP8_BLOCK", "searched scales, fp8_block", ["--to", "fp8_block", "--method", "search"]),
            ("rtn", "NVFP4A16", "round to nearest, nvfp4", ["--to", "nvfp4", "--method", "rtn"]),
            ("rtn", "NVFP4A16", "searched scales, nvfp4", ["--to", "nvfp4", "--method", "search"]),
            ("rtn", "MXFP4A16", "round to nearest, mxfp4", ["--to", "mxfp4", "--method", "rtn"]),
            ("rtn", "MXFP4A16", "searched scales, mxfp4", ["--to", "mxfp4", "--method", "search"]),
            ("gptq", "W8A16", "GPTQ, int8_g128", ["--to", "int8_g128", *gptq]),
            ("gptq", "W4A16", "GPTQ, int4_g128", ["--to", "int4_g128", *gptq]),
            ("gptq", "W4A16_ASYM", "GPTQ, int4_asym_g128", ["--to", "int4_asym_g128", *gptq]),
            ("awq", "W4A16_ASYM", "AWQ, int4_asym_g128",
             ["--to", "int4_asym_g128", "--method", "awq", *calibrated]),
            ("awq", "W4A16_ASYM", "AWQ then GPTQ, int4_asym_g128",
             ["--to", "int4_asym_g128", "--method", "awq-gptq", *calibrated]),
            ("smoothquant", "W8A8", "SmoothQuant 0.8 then GPTQ, w8a8",
             ["--to", "w8a8", "--smooth", "0.8", *gptq]),
            ("smoothquant", "W8A8", f"SmoothQuant 0.8 then GPTQ, w8a8{AS_RUN}",
             ["--to", "w8a8", "--smooth", "0.8", *gptq]),
            ("smoothquant", "W8A8", f"SmoothQuant then GPTQ, w8a8{AS_RUN}",
             ["--to", "w8a8", "--smooth", "auto", *gptq]),
        ]:
            theirs = [args.llmcompressor, HERE / "peer_llmcompressor.py", "MODEL", "OUT", method]
            theirs += [scheme, args.calibration, str(args.samples), str(args.length)]
            list_.append(("llm-compressor", f"{PEER_METHODS[method]}, {scheme}", theirs, ours_name, ours))
    if args.bitsandbytes:
        for kind in ["nf4", "nf4_dq", "fp4"]:
            theirs = [args.bitsandbytes, HERE / "peer_bitsandbytes.py", "MODEL", "OUT", kind]
            for name, how in [("the same", ["rtn"]), ("searched scales", ["search"]),
                              ("GPTQ", ["gptq", *calibrated])]:
                list_.append(("bitsandbytes", kind, theirs, name, ["--to", kind, "--method", *how]))
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

    def quality(self, key, path, as_run):
        """Sums against the unquantized model per document, by Lathe's own evaluation."""
        key += "-as-run" if as_run else ""
        raw = self.work / f"{key}.raw.json"
        if not raw.exists():
            command = [self.args.lathe, "eval", path, "--base", self.path]
            command += [] if as_run else ["--exact"]
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


def rise(documents, picked):
    """How much larger the perplexity is than the unquantized model's, as a share of it."""
    difference = sum(documents[d][2] - documents[d][3] for d in picked)
    return math.expm1(difference / sum(documents[d][0] for d in picked))


def perplexity(documents, column):
    return math.exp(sum(d[column] for d in documents.values()) / sum(d[0] for d in documents.values()))


def compared(ours, theirs):
    """KL of both, their ratio, and what happened to perplexity, with 95 % intervals over documents."""
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
        "perplexity": {
            "base": perplexity(ours, 3), "ours": perplexity(ours, 2), "theirs": perplexity(theirs, 2),
        },
        "rise": {
            whose: [rise(all_, everything), *interval([rise(all_, d) for d in draws])]
            for whose, all_ in [("ours", ours), ("theirs", theirs)]
        },
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
        if args.only and not re.search(args.only, label):
            continue
        print(label, file=sys.stderr, flush=True)
        try:
            theirs_key = slug(peer, name)
            theirs, theirs_took = model.made(theirs_key, command, peer == "llama.cpp")
            ours_key = slug("lathe", ours_name, peer, name)
            make = [args.lathe, "quantize", "MODEL", *options, "-o", "OUT"]
            make += ["--threads", str(args.threads)]
            ours, ours_took = model.made(ours_key, make, peer == "llama.cpp")
            as_run = ours_name.endswith(AS_RUN)
            files = [(ours_key, ours), (theirs_key, theirs)]
            both = compared(*(model.quality(key, path, as_run) for key, path in files))
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


def divergence(values):
    """Three digits that count, but no fewer than four places."""
    places = 2 - math.floor(math.log10(values[0])) if values[0] > 0 else 4
    return figure(values, max(4, min(places, 9)))


def perplexity_of(one, whose):
    point, low, high = (100 * value for value in one["rise"][whose])
    return f"{one['perplexity'][whose]:.3f} ({point:+.2f} %, {low:.2f} to {high:.2f})"


def alike(row):
    """Whether both files say the same of every document, as far as is shown."""
    return all(f"{value:.3f}" == "1.000" for value in row["kl"]["ratio"])


def bytes_of(row):
    return f"{row['took']['theirs']['bytes']:,} / {row['took']['ours']['bytes']:,}"


def tables(model, results):
    """The tables of one model as lines of Markdown."""
    rows = [r for r in results if r["model"] == model]
    good = [r for r in rows if "kl" in r]
    if good:
        one = good[0]["kl"]
        yield from [f"## {model}", "", f"{one['documents']} documents, {one['tokens']:,} tokens, on "
                    f"which the unquantized model has a perplexity of {one['perplexity']['base']:.3f}."]
    for peer in dict.fromkeys(r["peer"] for r in rows):
        yield from ["", f"### {peer}, {model}", ""]
        of_peer = [r for r in good if r["peer"] == peer]
        both = [r for r in of_peer if alike(r)]
        if len(both) > 3:
            yield from ["Files that come out alike (ratio 1.000, its interval too):", "",
                        "| file | bytes theirs / ours | perplexity | KL |", "|---|---|---|---|"]
            for r in both:
                yield (f"| {r['name']} | {bytes_of(r)} | {perplexity_of(r['kl'], 'ours')} "
                       f"| {divergence(r['kl']['ours'])} |")
            yield ""
            of_peer = [r for r in of_peer if not alike(r)]
        if of_peer:
            yield ("| theirs | ours | bytes theirs / ours | perplexity theirs | perplexity ours "
                   "| KL theirs | KL ours | KL ratio |")
            yield "|---|---|---|---|---|---|---|---|"
        for r in of_peer:
            kl = r["kl"]
            yield (f"| {r['name']} | {r['ours']} | {bytes_of(r)} | {perplexity_of(kl, 'theirs')} "
                   f"| {perplexity_of(kl, 'ours')} | {divergence(kl['theirs'])} | {divergence(kl['ours'])} "
                   f"| {figure(kl['ratio'], 3)} |")
        failed = dict.fromkeys((r["name"], r["failed"]) for r in rows
                               if r["peer"] == peer and "failed" in r)
        if failed:
            yield ""
        yield from (f"- {name}: not made. {why}" for name, why in failed)
    yield ""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lathe", default="target/release/lathe")
    parser.add_argument("--model", action="append", required=True, metavar="NAME=PATH")
    parser.add_argument("--text", required=True, help="held-out text")
    parser.add_argument("--calibration", required=True, help="JSONL with `text`")
    parser.add_argument("--llama-cpp", help="folder of llama.cpp's programs")
    parser.add_argument("--gptqmodel", help="Python that has gptqmodel")
    parser.add_argument("--llmcompressor", help="Python that has llmcompressor")
    parser.add_argument("--only", help="pairs whose names match this regular expression")
    parser.add_argument("--bitsandbytes", help="Python that has bitsandbytes and transformers")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--max-tokens", type=int, default=32768)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--gguf-type", default="f32", help="what llama-quantize starts from")
    parser.add_argument("--work", default="comparison")
    args = parser.parse_args()
    args.lathe = str(Path(args.lathe).resolve())
    results = []
    for named in args.model:
        name, _, path = named.partition("=")
        model = Model(args, name, path)
        model.prepare()
        results += compare(args, model)
    Path(args.work, "results.json").write_text(json.dumps(results, indent=1))
    for name in dict.fromkeys(r["model"] for r in results):
        print("\n".join(tables(name, results)))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()
