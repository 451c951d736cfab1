"""A training run as a process of its own, or as several: a list of fits, each told by a JSON object.

    {"log": FILE, "reads": FILE, "size": 10, "val_size": 5, "data": {RoundsDataModule's}, "trainer": {Trainer's},
     "resume": CHECKPOINT or null, "save": {ModelCheckpoint's} or null, "kill": [EPOCH, BATCH] or null,
     "keep": CHECKPOINT or null}

The log's lines are `train RANK EPOCH BATCH IDS…` and `val RANK EPOCH IDS…`; what they hold was done, however it ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_subjects import Diary, Numbered, fit
from penstock import RoundsDataModule


def run(settings: dict[str, Any]) -> None:
    def end_here(module: Diary, batch_idx: int) -> None:
        if settings.get("kill") == [module.current_epoch, batch_idx]:
            os.kill(os.getpid(), signal.SIGKILL)

    reads = Path(settings["reads"]) if "reads" in settings else None
    val = Numbered(settings["val_size"]) if "val_size" in settings else None
    data = RoundsDataModule(Numbered(settings["size"], reads), val, **settings["data"])
    save = settings.get("save")
    options: dict[str, Any] = settings["trainer"]
    if save is not None:
        options = {**options, "enable_checkpointing": True, "callbacks": [ModelCheckpoint(**save)]}
    module = Diary(Path(settings["log"]), end_here)
    _, trainer = fit(module, data, ckpt_path=settings.get("resume"), **options)
    if settings.get("keep") is not None:
        trainer.save_checkpoint(settings["keep"])


if __name__ == "__main__":
    for each in json.loads(sys.argv[1]):
        run(each)
