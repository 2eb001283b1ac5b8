"""The model: Llama's architecture, written small so that torch.compile likes it."""

import dataclasses

import torch
import torch.nn.functional as F
from torch import nn


@dataclasses.dataclass
class Shape:
    vocab: int = 4096
    width: int = 256
    layers: int = 4
    heads: int = 8
    kv_heads: int = 4
    head_dim: int = 32
    feed: int = 768
    context: int = 512
    theta: float = 10000.0
    eps: float = 1e-5


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Block(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.q = nn.Linear(s.width, s.heads * s.head_dim, bias=False)
        self.k = nn.Linear(s.width, s.kv_heads * s.head_dim, bias=False)
        self.v = nn.Linear(s.width, s.kv_heads * s.head_dim, bias=False)
        self.o = nn.Linear(s.heads * s.head_dim, s.width, bias=False)
        self.gate = nn.Linear(s.width, s.feed, bias=False)
        self.up = nn.Linear(s.width, s.feed, bias=False)
        self.down = nn.Linear(s.feed, s.width, bias=False)
        self.norm1 = nn.RMSNorm(s.width, eps=s.eps)
        self.norm2 = nn.RMSNorm(s.width, eps=s.eps)

    def forward(self, x, cos, sin):
        s, (b, t, _) = self.s, x.shape
        h = self.norm1(x)
        q = rotate(self.q(h).view(b, t, s.heads, s.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.k(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2), cos, sin)
        v = self.v(h).view(b, t, s.kv_heads, s.head_dim).transpose(1, 2)
        many = s.heads // s.kv_heads
        k, v = k.repeat_interleave(many, dim=1), v.repeat_interleave(many, dim=1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True)
        x = x + self.o(y.transpose(1, 2).reshape(b, t, -1))
        h = self.norm2(x)
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Llama(nn.Module):
    def __init__(self, s):
        super().__init__()
        self.s = s
        self.embed = nn.Embedding(s.vocab, s.width)
        self.blocks = nn.ModuleList(Block(s) for _ in range(s.layers))
        self.norm = nn.RMSNorm(s.width, eps=s.eps)
        angle = torch.outer(torch.arange(s.context).float(), s.theta ** (-torch.arange(0, s.head_dim, 2).float() / s.head_dim))
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                out = name.endswith(("o.weight", "down.weight"))
                nn.init.normal_(p, std=0.02 / (2 * s.layers) ** 0.5 if out else 0.02)

    def forward(self, tokens):
        t = tokens.shape[1]
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos[:t], self.sin[:t])
        return F.linear(self.norm(x), self.embed.weight)

    def loss(self, tokens, targets, mask):
        """Mean loss in nats over the targets that the mask keeps."""
        logits = self(tokens).float()
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * mask.flatten()).sum() / mask.sum().clamp(min=1)
