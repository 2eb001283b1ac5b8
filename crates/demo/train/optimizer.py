"""Muon for the matrices of the blocks, AdamW for the embedding and the norms.

Muon: momentum, then the nearest orthogonal matrix by five steps of a
Newton-Schulz iteration (Keller Jordan, "Muon: an optimizer for hidden layers in
neural networks", 2024). Matrices of one shape are stacked and done together.
"""

import torch


def orthogonal(g, steps=5):
    """[N, rows, columns] -> about the nearest matrices with all singular values near 1."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.bfloat16()
    tall = x.size(1) > x.size(2)
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        y = x @ x.mT
        x = a * x + (b * y + c * y @ y) @ x
    return (x.mT if tall else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    def __init__(self, parameters, lr, momentum=0.95, decay=0.05):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = {}
            for p in group["params"]:
                shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, columns), same in shapes.items():
                grads = torch.stack([p.grad for p in same])
                state = self.state[same[0]]
                speed = state.setdefault("speed", torch.zeros_like(grads))
                speed.lerp_(grads, 1 - group["momentum"])
                update = orthogonal(grads.lerp(speed, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / columns) ** 0.5
                for p, u in zip(same, update):
                    p.mul_(1 - group["lr"] * group["decay"]).add_(u, alpha=-scale)


def optimizers(model, muon, adam):
    matrices = [p for n, p in model.named_parameters() if n.startswith("blocks") and p.dim() == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    made = [Muon(matrices, lr=muon), torch.optim.AdamW(others, lr=adam, betas=(0.9, 0.98), weight_decay=0.0)]
    for o in made:
        for g in o.param_groups:
            g["base"] = g["lr"]
    return made
