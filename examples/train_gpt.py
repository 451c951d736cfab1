"""Train a small GPT on token bins, in plain PyTorch. Stop it when you like, and go on with --resume.

penstock tokenize corpus.jsonl data --tokenizer bytes --val-fraction 0.05
python train_gpt.py data --out run --steps 1000
python train_gpt.py data --out run --steps 1000 --resume
torchrun --nproc-per-node 2 train_gpt.py data --out run --steps 1000 --resume
"""

import argparse
import os
from itertools import chain, repeat
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from penstock import StreamingDataLoader, TokenDataset, load_training_checkpoint, save_best, save_training_checkpoint


class Block(nn.Module):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim)])
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # [b, heads, t, d / heads] each
        seen = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(b, t, d))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    def __init__(self, vocab_size, seq_len, dim, layers, heads=4):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, dim), nn.Embedding(seq_len, dim)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, vocab_size, bias=False)

    def forward(self, input_ids, labels):
        x = self.tokens(input_ids) + self.places.weight[: input_ids.shape[1]]
        logits = self.head(self.norm(self.blocks(x)))  # [b, t, vocab]
        return cross_entropy(logits.flatten(0, 1), labels.flatten())


@torch.no_grad()
def evaluate(model, loader, device):
    total = torch.zeros(2, device=device)
    for batch in loader:
        count = (batch["labels"] >= 0).sum()
        total += torch.stack([count * model(batch["input_ids"], batch["labels"]), count])
    if dist.is_initialized():
        dist.all_reduce(total)
    return (total[0] / total[1]).item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with train.bin and validation.bin")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoints")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=32, help="windows a step, over all ranks")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--eval-every", type=int, default=100, help="steps between evaluations, each with a checkpoint")
    parser.add_argument("--log-every", type=int, default=10)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args()
    device = "cpu"
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group()
    is_first = not dist.is_initialized() or dist.get_rank() == 0

    # Loaders find out by themselves which rank of how many they serve.
    options = {"global_batch_size": args.batch_size, "device": device}
    train_set = TokenDataset(args.data / "train.bin", args.seq_len)
    train = StreamingDataLoader(train_set, shuffle=True, drop_last=True, **options)
    val = StreamingDataLoader(TokenDataset(args.data / "validation.bin", args.seq_len), **options)

    torch.manual_seed(0)
    plain = GPT(train_set.bin.meta["tokenizer"]["vocab_size"], args.seq_len, args.dim, args.layers).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3)
    start, last = 0, args.out / "last.pt"
    if args.resume:
        start = load_training_checkpoint(last, model=plain, optimizer=optimizer, loader=train)["step"]
        if start >= args.steps:
            parser.error(f"{last} is at step {start} already: to go on, give --steps more than that")
    model = nn.parallel.DistributedDataParallel(plain) if dist.is_initialized() else plain

    batches = chain.from_iterable(repeat(train))  # the rest of this epoch, and the next ones
    for step, batch in zip(range(start + 1, args.steps + 1), batches, strict=False):
        loss = model(batch["input_ids"], batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if is_first and step % args.log_every == 0:
            print(f"step {step} loss {loss.item():.6f} waited {train.stats.wait_share:.1%}", flush=True)
        if step % args.eval_every == 0 or step == args.steps:
            val_loss = evaluate(plain, val, device)
            if is_first:
                best = save_best(args.out, plain, val_loss)
                save_training_checkpoint(last, model=plain, optimizer=optimizer, loader=train, step=step)
                print(f"step {step} validation {val_loss:.6f}{' (best)' if best else ''}", flush=True)
    if dist.is_initialized():
        dist.barrier()  # the first rank may still be saving
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
