"""`penstock blocks`: files of records to a folder of blocks."""

from __future__ import annotations

from typing import Annotated

import typer

from penstock.cli.block_options import (
    BlockSizeOption,
    Compression,
    CompressionOption,
    ConfigOption,
    NameOption,
    OnNan,
    OnNanOption,
    OutArgument,
    block_size_of,
    summary,
)
from penstock.cli.tokenize import OnError, OnErrorOption


def blocks(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A file, folder or glob of .jsonl, .json, .csv, .tsv or .txt, plain or .gz or .zst, or of .parquet or "
            ".arrow; or a folder that `datasets` saved.",
        ),
    ],
    out: OutArgument,
    name: NameOption = None,
    config: ConfigOption = None,
    block_size: BlockSizeOption = None,
    compression: CompressionOption = Compression.none,
    on_error: OnErrorOption = OnError.raise_,
    on_nan: OnNanOption = OnNan.raise_,
) -> None:
    """Turn files of records into blocks; run it again to go on after an interruption."""
    from penstock.prep.blocks import process_raw_dataset_to_blocks

    lost: list[str] = []
    info = process_raw_dataset_to_blocks(
        source,
        out,
        name or out.absolute().name,
        block_size_of(block_size, config),
        lambda line: lost.append(line) if line.startswith("skipped ") and len(lost) < 10 else None,
        compression=None if compression is Compression.none else compression.value,
        on_error=on_error.value,
        on_nan=on_nan.value,
        show_progress=True,
    )
    typer.echo(summary(info, out))
    for line in lost:
        typer.echo(f"  {line}")
