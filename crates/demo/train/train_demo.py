"""Trains the demo model on what prepare.py wrote.

    python train_demo.py --data OUT --run RUN --decay-at 04:25 --stop-at 04:55
    python train_demo.py --data OUT --run RUN --device cuda --tokens 200000000

The learning rate warms up, stays, and falls to zero: by the clock (UTC), or over
the last quarter of a token budget. RUN gets last.pt (everything, to go on from),
average.pt (a running average of the weights) and log.csv. SIGINT and SIGTERM end
a run early, with a checkpoint.
"""

import argparse
import contextlib
import csv
import datetime
import json
import os
import pathlib
import signal
import time

import numpy as np
import torch

from llama import Llama, Shape
from optimizer import optimizers


COLUMNS = ["step", "tokens", "seconds", "rate_share", "train_loss", "valid_loss", "valid_chat_loss", "average_valid_loss"]


class Mix:
    """An endless stream of packed documents, each source as often as the mix says."""

    def __init__(self, folder, seed):
        self.rng = np.random.default_rng(seed)
        mix = json.loads((folder / "mix.json").read_text())
        self.sources = [(np.load(folder / f"{n}.npz"), shares) for n, shares in mix.items()]
        self.sources = [(f["tokens"], f["mask"], np.append(f["starts"], len(f["tokens"])), s) for f, s in self.sources]
        self.falling = False
        self.clear()

    def clear(self):
        self.tokens = np.zeros(0, np.uint16)
        self.mask = np.zeros(0, np.uint8)

    def fill(self):
        picks = []
        for i, (_, _, starts, shares) in enumerate(self.sources):
            count = len(starts) - 1
            whole, part = divmod(shares[self.falling], 1)
            order = np.concatenate([np.arange(count)] * int(whole) + [self.rng.permutation(count)[: round(part * count)]])
            picks += [(i, int(d)) for d in order]
        self.rng.shuffle(picks)
        parts = [(self.sources[i], d) for i, d in picks]
        self.tokens = np.concatenate([self.tokens] + [s[0][s[2][d] : s[2][d + 1]] for s, d in parts])
        self.mask = np.concatenate([self.mask] + [s[1][s[2][d] : s[2][d + 1]] for s, d in parts])

    def batch(self, rows, length, falling):
        if falling and not self.falling:
            self.falling = True
            self.clear()
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
    p.add_argument("--stop-at", help="UTC HH:MM at which it has reached zero")
    p.add_argument("--batch", type=int, default=4096, help="tokens a step")
    p.add_argument("--length", type=int, default=256, help="tokens a row before the fall; 512 during it")
    p.add_argument("--muon", type=float, default=0.015, help="learning rate of the matrices")
    p.add_argument("--adam", type=float, default=0.003, help="learning rate of the embedding and the norms")
    p.add_argument("--warmup", type=int, default=60)
    p.add_argument("--seed", type=int, default=20261121)
    p.add_argument("--float32", action="store_true", help="no bfloat16 arithmetic")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--minutes", type=float, default=6, help="minutes between checkpoints")
    p.add_argument("--resume", action="store_true", help="go on from RUN/last.pt")
    a = p.parse_args()
    if bool(a.decay_at) != bool(a.stop_at):
        p.error("--decay-at and --stop-at go together")
    return a


class Run:
    """The model with everything that a checkpoint keeps, and the log beside it."""

    def __init__(self, a):
        self.a = a
        self.model = Llama(Shape()).to(a.device)
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.optimizers = optimizers(self.model, a.muon, a.adam)
        self.step = self.tokens = 0
        spent = 0.0
        a.run.mkdir(parents=True, exist_ok=True)
        if a.resume:
            spent = self.load(a.run / "last.pt")
        self.loss = self.model.loss if a.no_compile else torch.compile(self.model.loss, dynamic=False)
        self.begun, self.recent = time.time() - spent, []
        self.log = open(a.run / "log.csv", "a", newline="")
        if self.log.tell() == 0:
            csv.writer(self.log).writerow(COLUMNS)

    def arithmetic(self):
        kind = torch.device(self.a.device).type
        return contextlib.nullcontext() if self.a.float32 else torch.autocast(kind, torch.bfloat16)

    def learn(self, x, y, mask, share):
        """One step on a batch, at a share of the full learning rate."""
        with self.arithmetic():
            loss = self.loss(x, y, mask)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for o in self.optimizers:
            for g in o.param_groups:
                g["lr"] = g["base"] * share
            o.step()
        self.model.zero_grad(set_to_none=True)
        self.step, self.tokens = self.step + 1, self.tokens + x.numel()
        self.recent.append(loss.item())
        if self.step % 5 == 0:
            keep = min(0.98, self.step / (self.step + 50))
            for n, p in self.model.named_parameters():
                self.average[n].lerp_(p.detach(), 1 - keep)
        if self.step % 20 == 0:
            speed = self.tokens / (time.time() - self.begun)
            print(f"step {self.step} loss {np.mean(self.recent[-20:]):.3f} share {share:.3f} {speed:.0f} tokens/s", flush=True)

    def valid(self, name):
        with self.arithmetic():
            return validate(self.model, self.a.data, name, self.a.device)

    def checkpoint(self, share):
        losses = [self.valid("valid"), self.valid("valid_chat")]
        kept = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        copy(self.average, self.model)
        losses.append(self.valid("valid"))
        where = {"step": self.step, "tokens": self.tokens, "seconds": time.time() - self.begun}
        save(self.a.run / "average.pt", {"model": self.model.state_dict()} | where)
        copy(kept, self.model)
        train = float(np.mean(self.recent or [np.nan]))
        line = [self.step, self.tokens, round(where["seconds"]), round(share, 4)] + [round(v, 4) for v in [train] + losses]
        csv.writer(self.log).writerow(line)
        self.log.flush()
        print(dict(zip(COLUMNS, line)), flush=True)
        state = {"model": self.model.state_dict(), "average": self.average, "optimizers": [o.state_dict() for o in self.optimizers]}
        save(self.a.run / "last.pt", state | where)
        self.recent = []

    def load(self, path):
        state = torch.load(path, map_location=self.a.device)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        for o, s in zip(self.optimizers, state["optimizers"]):
            bases = [g["base"] for g in o.param_groups]
            o.load_state_dict(s)
            for g, base in zip(o.param_groups, bases):
                g["base"] = base
        self.step, self.tokens = state["step"], state["tokens"]
        return state["seconds"]


def main():
    a = arguments()
    torch.manual_seed(a.seed)
    torch.set_num_threads(a.threads)
    run, schedule = Run(a), Schedule(a)
    stream = Mix(a.data, a.seed + run.step)
    print(f"{sum(p.numel() for p in run.model.parameters())} parameters", flush=True)
    stopped = []
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.append(True))
    first, saved, share = run.step, time.time(), 1.0
    while not stopped:
        share, falling = schedule.share(run.step, run.tokens)
        if share <= 0:
            break
        length = run.model.s.context if falling else a.length
        batch = stream.batch(a.batch // length, length, falling)
        run.learn(*(v.to(a.device) for v in batch), share)
        if time.time() - saved > a.minutes * 60:
            run.checkpoint(share)
            saved = time.time()
    if run.step > first:
        run.checkpoint(max(share, 0.0))


@torch.no_grad()
def copy(values, model):
    for n, p in model.named_parameters():
        p.copy_(values[n])


if __name__ == "__main__":
    main()
