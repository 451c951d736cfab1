"""A module that Lightning trains, small and talkative: it writes down which samples it was given, and where."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from penstock import RoundsDataModule, StreamingDataLoader


class Numbered(torch.utils.data.Dataset):
    """Samples that are their own ids; each read is noted in a file, if there is one."""

    def __init__(self, size: int, log: Path | None = None) -> None:
        self.size, self.log = size, log

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> int:
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        return index


class Diary(pl.LightningModule):
    """Learns nothing and keeps a diary: batches trained on, and validations, each with the ids it saw.

    Args:
        log: a file for it too; each line is one write, so what it holds happened, however the process ended.
        before_step: called before each training step; what it raises, or does, befalls the step.
    """

    def __init__(self, log: Path | None = None, before_step: Callable[[Diary, int], None] | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[int]] = []
        self.validated: list[list[int]] = []
        self.sanity: list[list[int]] = []
        self.steps = 0
        self._log = log
        self._before_step = before_step

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if self._before_step is not None:
            self._before_step(self, batch_idx)
        self.trained.append(batch.tolist())
        self._note("train", self.current_epoch, batch_idx, *batch.tolist())
        return (self.weight * batch.float()).mean()

    def on_validation_epoch_start(self) -> None:
        (self.sanity if self.trainer.sanity_checking else self.validated).append([])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        (self.sanity if self.trainer.sanity_checking else self.validated)[-1].extend(batch.tolist())
        self.log("val_loss", float(batch.float().mean()), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self._note("val", self.current_epoch, *self.validated[-1])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.steps += 1
        super().optimizer_step(*args, **kwargs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def _note(self, what: str, *numbers: int) -> None:
        if self._log is None:
            return
        line = f"{what} {self.global_rank} {' '.join(map(str, numbers))}\n"
        file = os.open(self._log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)


class Unvalidated(Diary):
    """Has no validation."""

    validation_step = pl.LightningModule.validation_step


class OwnLoaders(Diary):
    """Brings its loaders itself, and makes new ones whenever it is asked."""

    def train_dataloader(self) -> Any:
        return StreamingDataLoader(Numbered(10), 1, shuffle=True, round_batches=4)

    def val_dataloader(self) -> Any:
        return StreamingDataLoader(Numbered(5), 1, round_batches=2, remainder="short")


def ten_in_fours(**settings: Any) -> RoundsDataModule:
    """Ten samples in rounds of four, so that rounds cross the ends of cycles; five in validations of two."""
    settings = {"batch_size": 1, "train_chunk_size": 4, "val_chunk_size": 2} | settings
    return RoundsDataModule(Numbered(10), Numbered(5), **settings)


def trainer(**settings: Any) -> pl.Trainer:
    """A Trainer on the CPU that writes and shows nothing unless it is told to."""
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return pl.Trainer(**quiet | settings)


def fit(
    module: Diary | None = None, data: Any = None, *, ckpt_path: Path | None = None, **settings: Any
) -> tuple[Diary, pl.Trainer]:
    """Train a new module, or this one."""
    module, by = module or Diary(), trainer(**settings)
    by.fit(module, datamodule=data or ten_in_fours(), ckpt_path=ckpt_path)
    return module, by
