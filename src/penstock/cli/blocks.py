"""`penstock blocks`: files of records to a folder of blocks."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.tokenize import OnError


class Compression(StrEnum):
    """How blocks are compressed."""

    none = "none"
    zstd = "zstd"


class OnNan(StrEnum):
    """What NaN and infinities do."""

    raise_ = "raise"
    null = "null"


def blocks(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A file, folder or glob of .jsonl, .json, .csv, .tsv or .txt, plain or .gz or .zst, or of .parquet or "
            ".arrow; or a folder that `datasets` saved.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the dataset.")],
    name: Annotated[str | None, typer.Option(help="The dataset's name; default: that of OUT.")] = None,
    block_size: Annotated[int, typer.Option(help="Samples of every block but the last.")] = 100_000,
    compression: Annotated[Compression, typer.Option(help="Of the blocks.")] = Compression.none,
    on_error: Annotated[
        OnError, typer.Option(help="A row that is no record ends the run, or is counted and passed over.")
    ] = OnError.raise_,
    on_nan: Annotated[
        OnNan, typer.Option(help="NaN and infinities, which JSON has not: an error of their row, or null and counted.")
    ] = OnNan.raise_,
) -> None:
    """Turn files of records into blocks; run it again to go on after an interruption."""
    from penstock.prep.blocks import process_raw_dataset_to_blocks

    lost: list[str] = []
    info = process_raw_dataset_to_blocks(
        source,
        out,
        name or out.absolute().name,
        block_size,
        lambda line: lost.append(line) if line.startswith("skipped ") and len(lost) < 10 else None,
        compression=None if compression is Compression.none else compression.value,
        on_error=on_error.value,
        on_nan=on_nan.value,
        show_progress=True,
    )
    size = sum(block.size_bytes for block in info.blocks)
    counts = "".join(f", {count:,} {reason}" for reason, count in info.counts.items())
    blocks = f"{info.total_blocks:,} block{'s' * (info.total_blocks != 1)}"
    typer.echo(f"{info.total_samples:,} samples in {blocks} in {out} ({size:,} bytes{counts})")
    for line in lost:
        typer.echo(f"  {line}")
