"""What the demo's processes agree on: settings, names of files, and the lines of the run logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from penstock.formats.files import read_json, write_json

SETTINGS = "settings.json"
CHECKPOINT = "checkpoint.pt"
BINS = "bins"
NUM_EVALUATIONS = 12
"""Evaluations, each with a checkpoint, in a training run."""
FIRST_HASH = "0" * 32
"""What the running hash starts from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoSettings:
    """One training run, whatever process carries it on."""

    steps: int
    """Optimizer steps in all."""
    num_threads: int
    """Threads that compute; chosen by trying."""
    vocab_size: int
    seq_len: int = 128
    batch_size: int = 8
    dim: int = 128
    num_layers: int = 4
    num_heads: int = 4
    learning_rate: float = 0.006
    warmup_steps: int = 20
    seed: int = 42

    @property
    def evaluate_every(self) -> int:
        """Steps between two evaluations."""
        return max(2, self.steps // NUM_EVALUATIONS)

    @property
    def tokens_per_step(self) -> int:
        """Tokens in a batch."""
        return self.batch_size * self.seq_len

    @property
    def model(self) -> dict[str, int]:
        """The model's arguments."""
        names = ("vocab_size", "seq_len", "dim", "num_layers", "num_heads")
        return {name: getattr(self, name) for name in names}

    def learning_rate_at(self, step: int) -> float:
        """Warm up, stay, and fall in a line over the last three fifths."""
        left = 1 - step / self.steps
        return self.learning_rate * min(1.0, (step + 1) / self.warmup_steps, left / 0.6 + 0.02)

    def write(self, folder: Path) -> None:
        """Keep the settings in the demo's folder."""
        write_json(folder / SETTINGS, asdict(self))

    @staticmethod
    def read(folder: Path) -> DemoSettings:
        """Read the settings of a demo's folder."""
        return DemoSettings(**read_json(folder / SETTINGS))


def log_path(folder: Path, run: int) -> Path:
    """Give the log of a run: JSON lines, each written when it happened."""
    return folder / f"run-{run}.jsonl"


def read_log(folder: Path, run: int) -> list[dict[str, Any]]:
    """Read a run's log, without the line that a killed process may have left unfinished."""
    path = log_path(folder, run)
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [orjson.loads(line) for line in lines]


def steps_of(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Give the records of a log that are training steps."""
    return [record for record in log if record["event"] == "step"]
