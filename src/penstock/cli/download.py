"""`penstock download`: a dataset of the Hub, or of any URL, as blocks on this disk."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.tokenize import OnError, OnErrorOption
from penstock.errors import ConfigError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


class OnNan(StrEnum):
    """What becomes of NaN and infinities."""

    raise_ = "raise"
    null = "null"


class Compression(StrEnum):
    """How blocks are stored."""

    none = "none"
    zstd = "zstd"


def download(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="hf://ORG/NAME[:CONFIG][:SPLIT] (split train if not said), or the URL or path of a file, folder or "
            "glob of .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt.",
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder for the blocks.")],
    max_samples: Annotated[int, typer.Option(help="Take only the first so many; 0: all.")] = 0,
    block_size: Annotated[int, typer.Option(help="Samples of a block.")] = 100_000,
    compression: Annotated[Compression, typer.Option(help="How blocks are stored.")] = Compression.none,
    columns: Annotated[
        str | None, typer.Option(help="Columns to take of tables and CSV, as text,id; default: all.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name for the manifest; default: the last part of the URI.")] = None,
    on_error: OnErrorOption = OnError.raise_,
    on_nan: Annotated[
        OnNan, typer.Option(help="NaN and infinities, which JSON can't say, become null, or make their row a bad one.")
    ] = OnNan.raise_,
    storage_cap: Annotated[str | None, typer.Option(help="Most that the blocks may take, as 20GB.")] = None,
    free_space_margin: Annotated[str, typer.Option(help="What must stay free on the disk.")] = "5GB",
) -> None:
    """Stream a dataset into blocks; run it again to go on after an interruption."""
    from penstock.prep.download import download_dataset

    info = download_dataset(
        uri,
        out,
        dataset_name=name,
        max_samples=max_samples,
        block_size=block_size,
        compression=None if compression is Compression.none else compression.value,
        columns=None if columns is None else [column.strip() for column in columns.split(",")],
        on_error=on_error.value,
        on_nan=on_nan.value,
        storage_cap=None if storage_cap is None else num_bytes("--storage-cap", storage_cap),
        free_space_margin=num_bytes("--free-space-margin", free_space_margin),
    )
    size = sum(block.size_bytes for block in info.blocks)
    lost = "".join(f", {count:,} {reason}" for reason, count in info.counts.items())
    blocks = f"{info.total_blocks:,} block{'s' * (info.total_blocks != 1)}"
    typer.echo(f"{info.total_samples:,} samples in {blocks}, {size / 1e6:,.1f} MB in {out}{lost}")


def num_bytes(option: str, text: str) -> int:
    """Read a number of bytes.

    Raises:
        ConfigError: it is none.

    >>> num_bytes("--storage-cap", "1.5 GB")
    1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?b)?", text.strip().lower())
    if match is None:
        raise ConfigError(f"{option} must be a number of bytes like 20GB, 500MB or 1000000, got {text!r}")
    return int(float(match[1]) * _UNITS.get(match[2] or "", 1))
