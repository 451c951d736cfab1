"""`penstock download`: a dataset of the Hub, or of any URL, as blocks on this disk."""

from __future__ import annotations

import re
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
from penstock.errors import ConfigError

_UNITS = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def download(
    uri: Annotated[
        str,
        typer.Argument(
            metavar="URI",
            help="hf://ORG/NAME[:CONFIG][:SPLIT] (split train if not said), or the URL or path of a file, folder or "
            "glob of .jsonl, .json, .csv, .tsv, .parquet, .arrow or .txt.",
        ),
    ],
    out: OutArgument,
    max_samples: Annotated[int, typer.Option(help="Take only the first so many; 0: all.")] = 0,
    config: ConfigOption = None,
    block_size: BlockSizeOption = None,
    compression: CompressionOption = Compression.none,
    columns: Annotated[
        str | None, typer.Option(help="Columns to take of tables and CSV, as text,id; default: all.")
    ] = None,
    name: NameOption = None,
    on_error: OnErrorOption = OnError.raise_,
    on_nan: OnNanOption = OnNan.raise_,
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
        block_size=block_size_of(block_size, config),
        compression=None if compression is Compression.none else compression.value,
        columns=None if columns is None else [column.strip() for column in columns.split(",")],
        on_error=on_error.value,
        on_nan=on_nan.value,
        storage_cap=None if storage_cap is None else num_bytes("--storage-cap", storage_cap),
        free_space_margin=num_bytes("--free-space-margin", free_space_margin),
    )
    typer.echo(summary(info, out))


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
