"""Trains the demo model on what prepare.py wrote.

    python train_demo.py --data OUT --run RUN --decay-at 04:25 --stop-at 04:55
    python train_demo.py --data OUT --run RUN --device cuda --tokens 200000000

The learning rate warms up, stays, and falls to zero: by the clock (UTC), or over
the last quarter of a token budget. RUN gets last.pt (everything, to go on from),
average.pt (a running average of the weights) and log.csv.
"""

import argparse
import contextlib
import csv
import datetime
import json
import os
import pathlib
import time

import numpy as np
import torch

from llama import Llama, Shape
from optimizer import optimizers


class Mix:
    """An endless stream of packed documents, each source as often as the mix says."""

    def __init__(self, folder, seed):
        self.rng = np.random.default_rng(seed)
        mix = json.loads((folder / "mix.json").read_text())
        self.sources = [(np.load(folder / f"{n}.npz"), share) for n, share in mix.items()]
        self.sources = [(f["tokens"], f["mask"], np.append(f["starts"], len(f["tokens"])), share) for f, share in self.sources]
        self.tokens = np.zeros(0, np.uint16)
        self.mask = np.zeros(0, np.uint8)
        self.rounds = 0

    def fill(self):
        picks = []
        for i, (_, _, starts, share) in enumerate(self.sources):
            count = len(starts) - 1
            whole, part = divmod(share, 1)
            order = np.concatenate([np.arange(count)] * int(whole) + [self.rng.permutation(count)[: round(part * count)]])
            picks += [(i, int(d)) for d in order]
        self.rng.shuffle(picks)
        parts = [(self.sources[i], d) for i, d in picks]
        self.tokens = np.concatenate([self.tokens] + [s[0][s[2][d] : s[2][d + 1]] for s, d in parts])
        self.mask = np.concatenate([self.mask] + [s[1][s[2][d] : s[2][d + 1]] for s, d in parts])
        self.rounds += 1

    def batch(self, rows, length):
        need = rows * length + 1
        if len(self.tokens) < need:
            self.fill()
        tokens = torch.from_numpy(self.tokens[:need].astype(np.int64))
        mask = torch.from_numpy(self.mask[:need].astype(np.float32))
        self.tokens, self.mask = self.tokens[need - 1 :], self.mask[need - 1 :]
        return tokens[:-1].view(rows, length), tokens[1:].view(rows, length), mask[1:].view(rows, length)


class Schedule:
    """Share of the full learning rate: warm-up by steps, fall by the clock or by tokens."""

    def __init__(self, a):
        self.warmup, self.budget = a.warmup, a.tokens
        self.decay_at, self.stop_at = (clock(t) if t else None for t in (a.decay_at, a.stop_at))

    def share(self, step, tokens):
        if self.stop_at:
            left = (self.stop_at - time.time()) / (self.stop_at - self.decay_at)
        else:
            left = (1 - tokens / self.budget) / 0.25
        return min(1.0, (step + 1) / self.warmup, max(0.0, left)), left < 1


def clock(text):
    now = datetime.datetime.now(datetime.timezone.utc)
    hour, minute = map(int, text.split(":"))
    at = now.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (at if at > now - datetime.timedelta(hours=12) else at + datetime.timedelta(days=1)).timestamp()


def save(path, what):
    temp = path.with_suffix(".tmp")
    torch.save(what, temp)
    os.replace(temp, path)


@torch.no_grad()
def validate(model, folder, name, device, length=512):
    f = np.load(folder / f"{name}.npz")
    tokens, mask = torch.from_numpy(f["tokens"].astype(np.int64)), torch.from_numpy(f["mask"].astype(np.float32))
    rows = (len(tokens) - 1) // length
    x, y, m = (v[: rows * length].view(rows, length).to(device) for v in (tokens[:-1], tokens[1:], mask[1:]))
    total = sum(model.loss(x[i : i + 8], y[i : i + 8], m[i : i + 8]) * m[i : i + 8].sum() for i in range(0, rows, 8))
    return (total / m.sum()).item()


def arguments():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", type=pathlib.Path, required=True)
    p.add_argument("--run", type=pathlib.Path, required=True)
    p.add_argument("--device", default="cpu")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--tokens", type=int, default=40_000_000, help="budget, when no --stop-at is given")
    p.add_argument("--decay-at", help="UTC HH:MM at which the learning rate begins to fall")
    p.add_argument("--stop-at", help="UTC HH:MM at which it reaches zero")
    p.add_argument("--batch", type=int, default=8192, help="tokens a step")
    p.add_argument("--length", type=int, default=256, help="tokens a row before the fall; 512 during it")
    p.add_argument("--muon", type=float, default=0.02, help="learning rate of the matrices")
    p.add_argument("--adam", type=float, default=0.004, help="learning rate of the embedding and the norms")
    p.add_argument("--warmup", type=int, default=60)
    p.add_argument("--seed", type=int, default=20261121)
    p.add_argument("--float32", action="store_true", help="no bfloat16 arithmetic")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--minutes", type=float, default=4, help="minutes between checkpoints")
    p.add_argument("--resume", action="store_true", help="go on from RUN/last.pt")
    a = p.parse_args()
    if bool(a.decay_at) != bool(a.stop_at):
        p.error("--decay-at and --stop-at go together")
    return a


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    a.run.mkdir(parents=True, exist_ok=True)
    model = Llama(Shape()).to(a.device)
    average = {n: p.detach().clone() for n, p in model.named_parameters()}
    opts = optimizers(model, a.muon, a.adam)
    step = tokens = 0
    spent = 0.0
    if a.resume:
        state = torch.load(a.run / "last.pt", map_location=a.device)
        model.load_state_dict(state["model"])
        average = state["average"]
        for o, s in zip(opts, state["optimizers"]):
            bases = [g["base"] for g in o.param_groups]
            o.load_state_dict(s)
            for g, base in zip(o.param_groups, bases):
                g["base"] = base
        step, tokens, spent = state["step"], state["tokens"], state["seconds"]
    stream = Mix(a.data, a.seed + step)
    schedule = Schedule(a)
    loss_of = model.loss if a.no_compile else torch.compile(model.loss, dynamic=False)
    low = contextlib.nullcontext() if a.float32 else torch.autocast(torch.device(a.device).type, torch.bfloat16)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")

    log = open(a.run / "log.csv", "a", newline="")
    rows = csv.writer(log)
    if step == 0:
        rows.writerow(["step", "tokens", "seconds", "rate_share", "train_loss", "valid_loss", "valid_chat_loss", "average_valid_loss"])
    begun, saved, recent = time.time() - spent, time.time(), []

    def checkpoint(share):
        losses = []
        with low:
            losses += [validate(model, a.data, "valid", a.device), validate(model, a.data, "valid_chat", a.device)]
        kept = {n: p.detach().clone() for n, p in model.named_parameters()}
        copy(average, model)
        with low:
            losses.append(validate(model, a.data, "valid", a.device))
        save(a.run / "average.pt", {"model": model.state_dict(), "step": step, "tokens": tokens})
        copy(kept, model)
        line = [step, tokens, round(time.time() - begun), round(share, 4), round(float(np.mean(recent or [0])), 4)]
        rows.writerow(line + [round(v, 4) for v in losses])
        log.flush()
        print(dict(zip(("step", "tokens", "seconds", "share", "train", "valid", "chat", "average"), line + losses)), flush=True)
        state = {"model": model.state_dict(), "average": average, "optimizers": [o.state_dict() for o in opts]}
        save(a.run / "last.pt", state | {"step": step, "tokens": tokens, "seconds": time.time() - begun})

    while True:
        share, falling = schedule.share(step, tokens)
        if share <= 0:
            break
        length = model.s.context if falling else a.length
        x, y, m = (v.to(a.device) for v in stream.batch(a.batch // length, length))
        with low:
            loss = loss_of(x, y, m)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for o in opts:
            for g in o.param_groups:
                g["lr"] = g["base"] * share
            o.step()
        model.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + x.numel()
        recent.append(loss.item())
        if step % 5 == 0:
            keep = min(0.98, step / (step + 50))
            for n, p in model.named_parameters():
                average[n].lerp_(p.detach(), 1 - keep)
        if step % 20 == 0:
            print(f"step {step} loss {np.mean(recent[-20:]):.3f} share {share:.3f} {tokens / (time.time() - begun):.0f} tokens/s", flush=True)
        if time.time() - saved > a.minutes * 60:
            checkpoint(share)
            saved, recent = time.time(), []
    checkpoint(0.0)


@torch.no_grad()
def copy(values, model):
    for n, p in model.named_parameters():
        p.copy_(values[n])


if __name__ == "__main__":
    main()
