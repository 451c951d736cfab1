"""Train on sequences far longer than memory allows, chunk by chunk: a state-space model, or a windowed transformer.

penstock tokenize corpus.jsonl data --tokenizer bytes
python long_sequences.py data --model ssm --seq-len 131072 --steps 20
python long_sequences.py data --model transformer --seq-len 131072 --steps 20
"""

import argparse
from itertools import chain, repeat
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import logsigmoid, scaled_dot_product_attention, silu

from penstock import StreamingDataLoader, TokenDataset, chunked_segment_rollout, recommend_chunk_size


class StateSpace(nn.Module):
    """h[t] = a h[t - 1] + (1 - a) u[t], one decay a per channel. The carry is h, as large for any length."""

    def __init__(self, dim):
        super().__init__()
        self.decay = nn.Parameter(torch.linspace(1, 7, dim))  # a from 0.73 to 0.999: memories of 4 to 1,000 tokens
        self.norm, self.out = nn.LayerNorm(dim), nn.Linear(dim, dim)
        self.input, self.gate = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x, state):
        size, normed, log_a = x.shape[1], self.norm(x), logsigmoid(self.decay)
        powers = torch.exp(torch.arange(size + 1, device=x.device)[:, None] * log_a)  # [t + 1, dim]
        u = self.input(normed) * (1 - log_a.exp())
        # A convolution with 1, a, a², … is all steps of the recurrence at once.
        spectrum = torch.fft.rfft(powers[:size], 2 * size, dim=0) * torch.fft.rfft(u, 2 * size, dim=1)
        h = torch.fft.irfft(spectrum, 2 * size, dim=1)[:, :size]
        if state is not None:
            h = h + powers[1:] * state[:, None]
        return x + self.out(h * silu(self.gate(normed))), h[:, -1]


class WindowedAttention(nn.Module):
    """Each token attends to the last `window` ones. The carry is their keys and values, as large for any length."""

    def __init__(self, dim, heads=4, window=512):
        super().__init__()
        self.heads, self.window = heads, window
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x, past):
        b, t, d = x.shape
        qkv = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [b, heads, t, d / heads] each
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        seen = scaled_dot_product_attention(q, k, v, attn_mask=self.bias(t, k.shape[2], x))
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norms[1](x)), (k[:, :, -self.window :], v[:, :, -self.window :])

    def bias(self, queries, keys, like):
        """Less attention with distance, at a rate per head, none outside the window: [heads, queries, keys]."""
        places = torch.arange(keys, device=like.device)
        distance = places[keys - queries :, None] - places
        rates = 0.5 ** torch.arange(1, self.heads + 1, device=like.device)
        hidden = (distance < 0) | (distance >= self.window)
        return (-rates[:, None, None] * distance).masked_fill(hidden, -torch.inf).to(like.dtype)


class LongModel(nn.Module):
    def __init__(self, vocab_size, dim, layers, layer):
        super().__init__()
        self.embed = nn.Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(layer(dim) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab_size)

    def forward(self, input_ids, carry):
        x, kept = self.embed(input_ids), []
        for layer, held in zip(self.layers, carry or [None] * len(self.layers), strict=True):
            x, held = layer(x, held)
            kept.append(held)
        return kept, self.head(self.norm(x))


LAYERS = {"ssm": StateSpace, "transformer": WindowedAttention}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.bin")
    parser.add_argument("--model", choices=LAYERS, default="ssm")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--seq-len", type=int, default=131072)
    parser.add_argument("--chunk-size", type=int, help="by default what suits the GPU's memory, 2048 on the CPU")
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--cpu-offload", action="store_true", help="keep the carry on the CPU while chunks go back")
    args = parser.parse_args()
    device, chunk_size = "cpu", args.chunk_size or 2048
    if torch.cuda.is_available():
        device, chunk_size = "cuda", args.chunk_size or recommend_chunk_size(torch.cuda.mem_get_info()[1] / 1e9)

    data = TokenDataset(args.data / "train.bin", args.seq_len)
    loader = StreamingDataLoader(data, args.batch_size, shuffle=True)  # on the CPU: chunks move to the model's device
    torch.manual_seed(0)
    model = LongModel(data.bin.meta["tokenizer"]["vocab_size"], args.dim, args.layers, LAYERS[args.model]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step, batch in zip(range(1, args.steps + 1), chain.from_iterable(repeat(loader)), strict=False):
        optimizer.zero_grad()
        sequence = {"inputs": batch["input_ids"], "targets": batch["labels"]}
        options = {"backward": True, "cpu_offload": args.cpu_offload}
        loss, metrics = chunked_segment_rollout(model, sequence, 1, chunk_size, **options)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        print(f"step {step} loss {loss.item():.6f} in {metrics['num_chunks']} chunks", flush=True)


if __name__ == "__main__":
    main()
