"""The demo's training process: train until the end, or until killed.

Run as `python -m penstock.demo.train FOLDER --run N …` by the demo, which follows its log and may kill
it at any moment. It resumes from the folder's checkpoint if there is one. Each step's line in the log has
a running hash over all batches since step 1, which travels in the checkpoint: two runs that agree on it at
a step have seen the same batches in the same order up to there.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import orjson

from penstock.demo.settings import BINS, CHECKPOINT, FIRST_HASH, DemoSettings, log_path
from penstock.formats.files import digest

if TYPE_CHECKING:
    import torch

    from penstock.demo.model import GPT
    from penstock.loader.loader import StreamingDataLoader

NUM_EVALUATION_BATCHES = 16


def running_hash(before: str, batch: dict[str, torch.Tensor]) -> str:
    """Hash a batch's ids and labels together with the hash of all batches before it."""
    rows = b"".join(batch[name].numpy().tobytes() for name in ("input_ids", "labels"))
    return digest(bytes.fromhex(before) + rows)


def open_train_loader(folder: Path, settings: DemoSettings, **workers: Any) -> StreamingDataLoader:
    """Open the loader of the training split; workers and their kind change its speed only."""
    from penstock.datasets.tokens import TokenDataset
    from penstock.loader.loader import StreamingDataLoader

    dataset = TokenDataset(folder / BINS / "train.bin", settings.seq_len)
    return StreamingDataLoader(
        dataset, settings.batch_size, shuffle=True, seed=settings.seed, drop_last=True, **workers
    )


def evaluate(model: GPT, folder: Path, settings: DemoSettings, num_batches: int | None = None) -> float:
    """Give the mean loss of the validation split, or of a fixed random part of it; no generator is touched."""
    import torch

    from penstock.datasets.tokens import TokenDataset
    from penstock.loader.loader import StreamingDataLoader

    dataset = TokenDataset(folder / BINS / "validation.bin", settings.seq_len)
    total, count = 0.0, 0
    model.eval()
    with torch.no_grad(), StreamingDataLoader(dataset, settings.batch_size, shuffle=True, seed=0) as loader:
        for index, batch in enumerate(loader):
            if index == num_batches:
                break
            targets = int((batch["labels"] >= 0).sum())
            total += targets * model(batch["input_ids"], batch["labels"]).item()
            count += targets
    model.train()
    return total / count


def build(settings: DemoSettings) -> tuple[GPT, torch.optim.Optimizer]:
    """Make a model and its optimizer: the same ones every time."""
    import torch

    from penstock.demo.model import GPT

    torch.set_num_threads(settings.num_threads)
    torch.manual_seed(settings.seed)
    model = GPT(**settings.model)
    return model, torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=0.1)


def take_step(model: GPT, optimizer: torch.optim.Optimizer, batch: dict[str, torch.Tensor], rate: float) -> float:
    """Take one optimizer step and give the loss before it."""
    import torch

    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(batch["input_ids"], batch["labels"])
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return loss.item()


def train(folder: Path, run: int, num_workers: int, worker_type: str) -> None:
    """Train to the end, from the checkpoint if there is one."""
    settings = DemoSettings.read(folder)
    loader = open_train_loader(folder, settings, num_workers=num_workers, worker_type=worker_type)
    with open(log_path(folder, run), "xb", buffering=0) as log, loader:
        training = _Training(folder, settings, loader, log)
        training.resume()
        training.log("start", num_workers=num_workers, lane=worker_type if num_workers else "inline")
        training.run()


class _Training:
    """A training run in this process: what a checkpoint holds, and the log."""

    def __init__(self, folder: Path, settings: DemoSettings, loader: StreamingDataLoader, log: BinaryIO) -> None:
        self.folder = folder
        self.settings = settings
        self.loader = loader
        self.model, self.optimizer = build(settings)
        self.step = 0
        self.seen = FIRST_HASH
        self._log = log
        self._parent = os.getppid()

    def resume(self) -> None:
        """Go on from the folder's checkpoint, if there is one."""
        from penstock.train.checkpoints import load_training_checkpoint

        place = self.folder / CHECKPOINT
        if place.exists():
            found = load_training_checkpoint(place, model=self.model, optimizer=self.optimizer, loader=self.loader)
            self.step, self.seen = found["step"], found["running_hash"]

    def run(self) -> None:
        """Take the steps that are left; end early if whoever started this process is gone."""
        while self.step < self.settings.steps:
            for batch in self.loader:
                self._take(batch)
                if self.step == self.settings.steps:
                    break
                if os.getppid() != self._parent:
                    return
        self.log("end", val_loss=evaluate(self.model, self.folder, self.settings))

    def _take(self, batch: dict[str, torch.Tensor]) -> None:
        loss = take_step(self.model, self.optimizer, batch, self.settings.learning_rate_at(self.step))
        self.step += 1
        self.seen = running_hash(self.seen, batch)
        stats = self.loader.stats
        epoch = self.loader.batch_info.epoch
        self.log("step", hash=self.seen, loss=loss, epoch=epoch, wait_s=stats.wait_s, elapsed_s=stats.elapsed_s)
        if self.step % self.settings.evaluate_every == 0 or self.step == self.settings.steps:
            self._save()

    def _save(self) -> None:
        from penstock.train.checkpoints import save_best, save_training_checkpoint

        val_loss = evaluate(self.model, self.folder, self.settings, NUM_EVALUATION_BATCHES)
        best = save_best(self.folder, self.model, val_loss)
        save_training_checkpoint(
            self.folder / CHECKPOINT,
            model=self.model,
            optimizer=self.optimizer,
            loader=self.loader,
            step=self.step,
            running_hash=self.seen,
        )
        self.log("checkpoint", val_loss=val_loss, best=best)

    def log(self, event: str, **values: Any) -> None:
        """Write a line. One write each, unbuffered: a kill can cut the last line off, and no other."""
        line = {"event": event, "step": self.step, **values}
        self._log.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))


def main() -> None:
    """Read the command line and train."""
    parser = argparse.ArgumentParser(prog="python -m penstock.demo.train", description="Internal to the demo.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--run", type=int, required=True)
    parser.add_argument("--num-workers", type=int, default=0)
    parser.add_argument("--worker-type", default="thread")
    arguments = parser.parse_args()
    train(arguments.folder, arguments.run, arguments.num_workers, arguments.worker_type)


if __name__ == "__main__":
    main()
