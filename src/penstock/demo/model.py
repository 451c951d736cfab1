"""A small GPT, in plain PyTorch: what the demo trains.

Rotary positions, RMS norms without parameters, squared ReLU, and blocks that begin as the identity:
what makes a model of a million parameters learn the most in a minute or two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu, rms_norm, scaled_dot_product_attention

ROTARY_BASE = 10_000.0


class GPT(nn.Module):
    """A decoder-only transformer.

    Args:
        vocab_size: ids it knows.
        seq_len: longest context.
        dim: width; a multiple of twice the heads.
        num_layers: blocks.
        num_heads: attention heads of a block.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, *, vocab_size: int, seq_len: int, dim: int, num_layers: int, num_heads: int) -> None:
        super().__init__()
        self.seq_len = seq_len
        self.embed = nn.Embedding(vocab_size, dim)
        self.blocks = nn.ModuleList(Block(dim, num_heads) for _ in range(num_layers))
        self.head = nn.Linear(dim, vocab_size, bias=False)
        nn.init.zeros_(self.head.weight)
        half = dim // num_heads // 2
        angles = torch.outer(torch.arange(seq_len), ROTARY_BASE ** -(torch.arange(half) / half))  # [T, head/2]
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, input_ids: Tensor, labels: Tensor | None = None) -> Tensor:
        """Give the mean loss over labels int64 [B, T], -100 left out; without labels the logits [B, T, vocab]."""
        length = input_ids.shape[1]
        rotary = self.cos[:length], self.sin[:length]
        x = _norm(self.embed(input_ids))  # [B, T, dim]
        for block in self.blocks:
            x = block(x, rotary)
        logits = self.head(_norm(x))  # [B, T, vocab]
        return logits if labels is None else cross_entropy(logits.flatten(0, 1), labels.flatten())

    @torch.no_grad()
    def generate(self, ids: list[int], num_tokens: int, *, temperature: float, top_k: int, seed: int) -> list[int]:
        """Continue ids by drawing num_tokens of them, each from the top_k likeliest."""
        generator = torch.Generator().manual_seed(seed)
        ids = list(ids)
        for _ in range(num_tokens):
            logits = self(torch.tensor([ids[-self.seq_len :]]))[0, -1] / temperature
            best = logits.topk(min(top_k, len(logits)))
            ids.append(int(best.indices[torch.multinomial(best.values.softmax(0), 1, generator=generator)]))
        return ids


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what comes in."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attend = nn.Linear(dim, 3 * dim, bias=False)
        self.mix = nn.Linear(dim, dim, bias=False)
        self.widen = nn.Linear(dim, 4 * dim, bias=False)
        self.narrow = nn.Linear(4 * dim, dim, bias=False)
        for layer in (self.attend, self.widen):
            nn.init.normal_(layer.weight, std=dim**-0.5)
        for layer in (self.mix, self.narrow):
            nn.init.zeros_(layer.weight)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Map [B, T, dim] to the same shape; position t sees positions up to t."""
        batch, length, dim = x.shape
        qkv = self.attend(_norm(x)).view(batch, length, 3, self.num_heads, dim // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [B, heads, T, head] each
        seen = scaled_dot_product_attention(_turn(_norm(q), *rotary), _turn(_norm(k), *rotary), v, is_causal=True)
        x = x + self.mix(seen.transpose(1, 2).reshape(batch, length, dim))
        return x + self.narrow(relu(self.widen(_norm(x))).square())


def _norm(x: Tensor) -> Tensor:
    return rms_norm(x, (x.shape[-1],))


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs of [..., T, head] by their position's angles [T, head/2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
