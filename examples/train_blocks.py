"""Raw text to blocks, and a small recurrent model trained on them by any number of processes, chunk by claimed chunk.

python train_blocks.py corpus.jsonl --out run --config training.yaml --steps 1000
torchrun --nproc-per-node 2 train_blocks.py corpus.jsonl --out run --config training.yaml --steps 1000

Stop it when you like, and start it again with as many processes as you like: it goes on from its last checkpoint.
"""

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from penstock import (
    BlockDataset,
    ChunkTracker,
    PenstockError,
    StreamingDataLoader,
    Tokenizer,
    TokenizeText,
    TrainingConfig,
    chunked_segment_rollout,
    load_training_checkpoint,
    process_raw_dataset_to_blocks,
    read_config,
    save_training_checkpoint,
)


class LanguageModel(nn.Module):
    def __init__(self, vocab_size, dim):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocab_size, dim), nn.Linear(dim, vocab_size)
        self.rnn = nn.GRU(dim, dim, batch_first=True)

    def forward(self, input_ids, carry):
        out, carry = self.rnn(self.embed(input_ids), carry)
        return carry, self.head(out)


def train_step(model, optimizer, batch, config):
    """One step on sequences in one piece, or in chunks if the configuration wants that for their length."""
    sequence = {"inputs": batch["input_ids"], "targets": batch["labels"]}
    passes, chunk_size = 1, config.seq_len
    if config.use_chunks(config.seq_len):
        passes, chunk_size = config.max_segments, config.chunk_size
    options = {"gradient_checkpointing": config.gradient_checkpointing, "cpu_offload": config.cpu_offload}
    optimizer.zero_grad()
    loss, _ = chunked_segment_rollout(model, sequence, passes, chunk_size, backward=True, **options)
    optimizer.step()
    return loss.item()


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="files to make blocks of, or a folder of blocks")
    parser.add_argument("--out", type=Path, required=True, help="folder for blocks, claims and checkpoints")
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--save-every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--dim", type=int, default=128)
    args = parser.parse_args()
    try:
        config = read_config(args.config) if args.config else TrainingConfig()
    except PenstockError as error:  # a wrong key or value, by its line
        parser.error(str(error))
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group()
    is_first = not dist.is_initialized() or dist.get_rank() == 0
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else "cpu"
    if torch.cuda.is_available():
        torch.cuda.set_device(device)
    args.out.mkdir(parents=True, exist_ok=True)
    blocks = args.source if (args.source / "block_manifest.json").exists() else args.out / "blocks"
    if blocks != args.source and is_first:  # does nothing if they are there already
        process_raw_dataset_to_blocks(args.source, blocks, args.source.stem, config.samples_per_block)
    wait_for_all()
    dataset = BlockDataset(blocks)
    tokenizer = Tokenizer.from_pretrained(config.tokenizer)
    tracker = ChunkTracker(args.out / "chunks.db", "example", args.source.stem, lease_s=config.lease_s)
    transform = TokenizeText(tokenizer, config.seq_len, text_field=dataset.text_column)
    claims = {"assignment": "claim", "tracker": tracker, "dataset_chunk_size": config.dataset_chunk_size}
    claims["stop_after"] = args.save_every  # as many steps for every process, as they all must take in a group
    order = {"shuffle": True, "seed": config.seed}
    loader = StreamingDataLoader(dataset, config.batch_size, transform=transform, **order, **claims)
    torch.manual_seed(config.seed)
    plain = LanguageModel(tokenizer.vocab_size, args.dim).to(device)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=config.learning_rate)
    step, last = 0, args.out / "last.pt"
    if last.exists():  # chunks that were completed after it are open again: the weights in it have not seen them
        step = load_training_checkpoint(last, model=plain, optimizer=optimizer, loader=loader)["step"]
    wait_for_all()
    model = nn.parallel.DistributedDataParallel(plain) if dist.is_initialized() else plain
    while step < args.steps:
        for batch in loader:
            loss = train_step(model, optimizer, batch, config)
            step += 1
            if is_first:
                print(f"step {step} loss {loss:.6f}", flush=True)
        wait_for_all()  # all have recorded how far they are, and nobody goes on before that is saved
        if is_first:
            save_training_checkpoint(last, model=plain, optimizer=optimizer, loader=loader, step=step)
        wait_for_all()
    if is_first:
        stats = tracker.get_progress_stats()
        print(f"{stats['total_chunks_trained']} chunks trained, in epoch {stats['current_epoch']}")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
