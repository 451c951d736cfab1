"""Options of every command that writes blocks, and the line it ends with."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penstock.formats.block_manifest import DatasetBlockInfo


class Compression(StrEnum):
    """How blocks are compressed."""

    none = "none"
    zstd = "zstd"


class OnNan(StrEnum):
    """What NaN and infinities do."""

    raise_ = "raise"
    null = "null"


OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the dataset.")]
NameOption = Annotated[str | None, typer.Option(help="The dataset's name; default: one that SRC or OUT suggests.")]
BlockSizeOption = Annotated[
    int | None, typer.Option(help="Samples of every block but the last; default: samples_per_block of the settings.")
]
ConfigOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Settings in YAML; samples_per_block is 100,000 if not said.")
]
CompressionOption = Annotated[Compression, typer.Option(help="Of the blocks.")]
OnNanOption = Annotated[
    OnNan, typer.Option(help="NaN and infinities, which JSON has not: an error of their row, or null and counted.")
]


def block_size_of(block_size: int | None, config: Path | None) -> int:
    """Choose the samples of a block: as given, else as the settings say.

    Raises:
        ObjectMissing, ConfigError: see `read_config`.
    """
    from penstock.train.config import TrainingConfig, read_config

    settings = TrainingConfig() if config is None else read_config(config)
    return settings.samples_per_block if block_size is None else block_size


def summary(info: DatasetBlockInfo, out: Path) -> str:
    """Say what a folder holds."""
    size = sum(block.size_bytes for block in info.blocks)
    counts = "".join(f", {count:,} {reason}" for reason, count in info.counts.items())
    blocks = f"{info.total_blocks:,} block{'s' * (info.total_blocks != 1)}"
    samples = f"{info.total_samples:,} sample{'s' * (info.total_samples != 1)}"
    return f"{samples} in {blocks} in {out} ({size:,} bytes{counts})"
