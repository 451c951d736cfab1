"""The settings of a training run over blocks, as a YAML file.

    samples_per_block: 100_000      # see TrainingConfig for all of them
    dataset_chunk_size: 4_000       read_config(path) ──▶ TrainingConfig, frozen and checked
    use_chunked_training: true

Law: a file is read as it is meant or refused. A key that is not known, given twice, of the wrong type or
out of range is an error that names the file, the line and what to write.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError
from penstock.formats.settings import Check, check_fields, check_flag, read_settings
from penstock.types import check_int, check_number

CHUNK_THRESHOLD = 10_000
"""Tokens above which a sequence is called long: what to give as `chunk_threshold` where nothing else is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingConfig:
    """What is read, how much of it at a time, and how it is trained on. Each field is a key of the file.

    Raises:
        ConfigError: a value of the wrong type or out of range.

    >>> config = TrainingConfig(chunk_threshold=10_000)
    >>> config.use_chunks(8_192), config.use_chunks(131_072)
    (False, True)
    """

    samples_per_block: int = 100_000
    """Samples per block when blocks are written. Blocks that are there keep the size in their manifest."""
    dataset_chunk_size: int = 4_000
    """Samples read and claimed at a time; see `recommend_dataset_chunk_size`."""
    use_chunked_training: bool = False
    """Train every sequence in chunks of `chunk_size` tokens."""
    chunk_size: int = 2_048
    """Tokens per chunk of a sequence; see `recommend_chunk_size`."""
    chunk_threshold: int | None = None
    """Train only sequences of more tokens than this in chunks, whatever `use_chunked_training` says."""
    max_segments: int = 1
    """Passes over each sequence that is trained in chunks."""
    gradient_checkpointing: bool = False
    """Compute a chunk's activations again in its backward pass instead of keeping them."""
    cpu_offload: bool = False
    """Keep the carry on the CPU between chunks."""
    tokenizer: str = "bytes"
    """A path or name for `Tokenizer.from_pretrained`."""
    seq_len: int = 512
    """Tokens per sequence."""
    batch_size: int = 8
    """Sequences per step and process."""
    learning_rate: float = 1e-3
    """Step size of the optimizer, above 0."""
    seed: int = 0
    """Key of the order and of the first weights."""
    lease_s: float = 600.0
    """Seconds after which a chunk goes back to the pool if the process that claimed it is silent."""

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)

    def use_chunks(self, seq_len: int) -> bool:
        """Tell whether a sequence of seq_len tokens is to be trained with `chunked_segment_rollout`.

        A `chunk_threshold` alone decides; without one `use_chunked_training` does.
        """
        if self.chunk_threshold is None:
            return self.use_chunked_training
        return seq_len > self.chunk_threshold


def read_config(path: str | os.PathLike[str]) -> TrainingConfig:
    """Read the settings of a YAML file; what it does not mention keeps its default.

    Raises:
        ObjectMissing: there is no such file.
        ConfigError: it is no YAML mapping, or has a key that is unknown (says the nearest), given twice, of the wrong
            type or out of range; names the line.
    """
    return TrainingConfig(**read_settings(Path(path), _CHECKS))


def _positive(name: str, value: Any) -> float:
    """Return a finite number above 0."""
    # YAML 1.1 takes `1e-3`, which has no dot, for text.
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    return check_number(name, value, above=0)


def _optional_count(name: str, value: Any) -> Any:
    return None if value is None else check_int(name, value, minimum=1)


def _name(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not value:
        raise ConfigError(f"{name} must be a path or a name, got {value!r}")
    return value


_count = partial(check_int, minimum=1)
_CHECKS: dict[str, Check] = {
    "samples_per_block": _count,
    "dataset_chunk_size": _count,
    "use_chunked_training": check_flag,
    "chunk_size": _count,
    "chunk_threshold": _optional_count,
    "max_segments": _count,
    "gradient_checkpointing": check_flag,
    "cpu_offload": check_flag,
    "tokenizer": _name,
    "seq_len": _count,
    "batch_size": _count,
    "learning_rate": _positive,
    "seed": partial(check_int, minimum=0),
    "lease_s": _positive,
}
assert list(_CHECKS) == [field.name for field in fields(TrainingConfig)]
