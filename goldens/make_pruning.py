"""Which weights magnitude, Wanda and SparseGPT zero, computed from the papers' definitions in torch.

    python make_pruning.py          # after make_gptq_losses.py, whose layer it prunes

writes pruning/masks.json: for each criterion and pattern the zeroed weights, a row of hexadecimal digits (columns from
the left, most significant bit first), and the error tr(ΔW·H·ΔWᵀ).
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

import versions

HERE = Path(__file__).parent
DAMPING = 0.01
BLOCK = 128


def lowest(score: torch.Tensor, count: int) -> torch.Tensor:
    """A mask of the `count` lowest of each row, of equal ones the first."""
    mask = torch.zeros_like(score, dtype=torch.bool)
    places = torch.sort(score, dim=1, stable=True).indices[:, :count]
    return mask.scatter_(1, places, True)


def in_runs(score: torch.Tensor, keep: int, of: int) -> torch.Tensor:
    return lowest(score.reshape(-1, of), of - keep).reshape(score.shape)


def magnitude(w: torch.Tensor, h: torch.Tensor, pattern: dict) -> torch.Tensor:
    score = w.abs()
    if "share" in pattern:
        mask = lowest(score.reshape(1, -1), int(pattern["share"] * w.numel())).reshape(w.shape)
    else:
        mask = in_runs(score, **pattern)
    return w.masked_fill(mask, 0.0)


def wanda(w: torch.Tensor, h: torch.Tensor, pattern: dict) -> torch.Tensor:
    """arXiv 2306.11695: |w|·‖x‖, compared within each output."""
    score = w.abs() * h.diagonal().sqrt()
    mask = lowest(score, int(pattern["share"] * w.shape[1])) if "share" in pattern else in_runs(score, **pattern)
    return w.masked_fill(mask, 0.0)


def sparsegpt(w: torch.Tensor, h: torch.Tensor, pattern: dict) -> torch.Tensor:
    """arXiv 2301.00774, algorithm 1: masks of all rows × 128 columns, or of m columns, as they are reached."""
    w, h = w.double().clone(), h.double().clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    for start in range(0, w.shape[1], BLOCK):
        end = min(start + BLOCK, w.shape[1])
        score = w[:, start:end] ** 2 / inverse.diagonal()[start:end] ** 2
        mask = torch.zeros_like(score, dtype=torch.bool)
        if "share" in pattern:
            mask = lowest(score.reshape(1, -1), int(pattern["share"] * score.numel())).reshape(score.shape)
        for j in range(start, end):
            if "of" in pattern and j % pattern["of"] == 0:
                last = j + pattern["of"]
                score = w[:, j:last] ** 2 / inverse.diagonal()[j:last] ** 2
                mask[:, j - start:last - start] = lowest(score, pattern["of"] - pattern["keep"])
            left = torch.where(mask[:, j - start], 0.0, w[:, j])
            error = (w[:, j] - left) / inverse[j, j]
            w[:, j] = left
            w[:, j + 1:] -= error[:, None] * inverse[j, j + 1:]
    return w


def digits(mask: torch.Tensor) -> list[str]:
    return ["%0*x" % (mask.shape[1] // 4, int("".join("01"[int(x)] for x in row), 2)) for row in mask]


def main() -> None:
    layer = load_file(HERE / "gptq" / "layer.safetensors")
    weights, hessian = layer["weights"], layer["hessian"]
    cases = []
    for criterion in (magnitude, wanda, sparsegpt):
        for pattern in ({"share": 0.5}, {"share": 0.3}, {"keep": 2, "of": 4}, {"keep": 4, "of": 8}):
            pruned = criterion(weights, hessian, pattern).double()
            error = weights.double() - pruned
            cases.append({"criterion": criterion.__name__, **pattern, "zeroed": digits(pruned == 0),
                          "loss": float(((error @ hessian.double()) * error).sum())})
    (HERE / "pruning").mkdir(exist_ok=True)
    about = {"versions": versions.of("torch"), "damping": DAMPING, "cases": cases}
    (HERE / "pruning" / "masks.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
