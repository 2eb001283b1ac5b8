"""PyTorch files for the tests of lathe-files, as torch.save writes them.

    python make.py

Made with torch 2.15.0.
"""

import os
from collections import OrderedDict
from pathlib import Path

import torch

HERE = Path(__file__).parent


def tensors() -> OrderedDict:
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return OrderedDict(
        plain=base,
        transposed=base.T,
        columns=base[:, 1:6:2],
        scalar=torch.tensor(2.5),
        vector=torch.arange(5, dtype=torch.float64) / 4,
        half=(torch.arange(6) / 8).to(torch.float16).reshape(2, 3),
        brain=(torch.arange(6) / 8).to(torch.bfloat16).reshape(2, 3),
        parameter=torch.nn.Parameter(torch.ones(2, 2)),
        empty=torch.empty(0, 3),
        counts=torch.arange(3),
    )


class Shell:
    """Runs a command in whoever unpickles it."""

    def __reduce__(self):
        return os.system, ("true",)


torch.save(tensors(), HERE / "today.pt")
torch.save(tensors(), HERE / "legacy.pt", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state_dict": {"w": torch.ones(2, 2)}, "lr": 0.1}, HERE / "nested.pt")
torch.save({"w": torch.ones(2, 2), "x": Shell()}, HERE / "shell.pt")
torch.save(torch.nn.Linear(2, 2), HERE / "module.pt")
torch.save({"w": torch.ones(1).expand(1000)}, HERE / "expanded.pt")
