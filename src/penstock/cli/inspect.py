"""`penstock inspect`: what is in a file or folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape

from penstock.errors import ConfigError, ObjectMissing

JsonDict = dict[str, Any]
JsonOption = Annotated[bool, typer.Option("--json", metavar="", help="Print JSON.")]
_LISTED = 16
"""Entries of a mapping that a person is shown."""


def inspect(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A token bin, text source, table, index, tar, tokenizer, checkpoint or loader's state; a folder of "
            "these, of blocks or of samples, or the dst of a StreamingDataset. Or a table, tar or folder at a URL.",
        ),
    ],
    rows: Annotated[int, typer.Option(min=0, help="First documents or rows to show.")] = 3,
    tokenizer: Annotated[
        str | None, typer.Option(help="Decode a bin with this one; default: the one it names.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="uint16 or uint32, for a bare token file.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is in a file or folder: counts, types, first rows."""
    from rich.console import Console

    from penstock.cli.inspect_index import describe_samples
    from penstock.store.urls import is_url

    if is_url(place):
        facts = describe_samples(place, rows=rows)
    else:
        facts = describe(Path(place), rows=rows, tokenizer=tokenizer, dtype=dtype)
    if as_json:
        print_json(facts)
    else:
        _print(facts, Console())


def describe(path: Path, *, rows: int, tokenizer: str | None, dtype: str | None) -> JsonDict:
    """Find out what is at a path.

    Raises:
        ObjectMissing: nothing is.
        PenstockError: it can't be read, or is of no kind that penstock knows.
    """
    from penstock.cli import inspect_files as files
    from penstock.cli.block_folders import describe_blocks
    from penstock.cli.inspect_index import describe_index, describe_samples, describe_table
    from penstock.formats.block_manifest import MANIFEST_NAME
    from penstock.formats.sources import described, find_files
    from penstock.formats.tokens import docs_path, read_meta
    from penstock.index.databases import is_database
    from penstock.index.tars import is_tar

    if path.is_dir():
        return _describe_folder(path, rows)
    if not path.exists():
        raise ObjectMissing(f"{path} does not exist")
    beside = path.with_suffix(".bin")
    if path.suffix == ".bin":
        return files.describe_bin(path, tokenizer=tokenizer, dtype=dtype, rows=rows)
    if beside.is_file() and (path == docs_path(beside) or (path.suffix == ".json" and read_meta(beside))):
        return files.describe_bin(beside, tokenizer=tokenizer, dtype=dtype, rows=rows)
    if path.suffix in files.CHECKPOINT_SUFFIXES:
        return files.describe_checkpoint(path)
    if path.suffix in files.TOKENIZER_SUFFIXES:
        return files.describe_tokenizer(path)
    if path.name == MANIFEST_NAME:
        return describe_blocks(path.parent, rows=rows)
    if path.suffix == ".json":
        return files.describe_json(path, rows=rows)
    if path.suffix == ".arrow":
        return describe_index(path, rows=rows) or describe_table(path, rows=rows)
    if is_tar(path.name) or is_database(path.name):
        return describe_samples(str(path), rows=rows)
    if described(path)[0] in (".csv", ".tsv"):
        return describe_table(path, rows=rows)
    return files.describe_sources(find_files(path), rows=rows)


def _describe_folder(folder: Path, rows: int) -> JsonDict:
    """Describe its blocks, bins, finished or not, or checkpoints; what a dataset keeps; its samples; or its texts."""
    from penstock.cli.block_folders import describe_blocks, holds_blocks
    from penstock.cli.inspect_files import CHECKPOINT_SUFFIXES, describe_bin, describe_sources, describe_unfinished
    from penstock.cli.inspect_index import describe_kept, describe_samples, holds_samples
    from penstock.formats.sources import find_files

    if holds_blocks(folder):
        return describe_blocks(folder, rows=rows)
    if (kept := describe_kept(folder)) is not None:
        return kept
    bins = bins_below(folder)
    begun = sorted(folder.glob("*.bin.partial"))
    if bins or begun:
        unfinished = {place.with_suffix("").name: describe_unfinished(place.with_suffix("")) for place in begun}
        return {
            "kind": "token bins" if bins else "unfinished tokenize run: run the same command again to go on",
            "path": str(folder),
            "unfinished": unfinished or None,
            **({"bins": [describe_bin(place, rows=0) for place in bins]} if bins else {}),
        }
    states = sorted(place for place in folder.iterdir() if place.suffix in CHECKPOINT_SUFFIXES)
    if states:
        sizes = {place.name: f"{place.stat().st_size:,} bytes" for place in states}
        return {"kind": "folder of checkpoints", "path": str(folder), "files": sizes}
    if holds_samples(folder):
        return describe_samples(str(folder), rows=rows)
    return describe_sources(find_files(folder), rows=rows)


def bins_below(folder: Path) -> list[Path]:
    """Find the token files in a folder and below it, sorted; hidden folders are left out."""
    found = (place.relative_to(folder) for place in folder.rglob("*.bin"))
    return [folder / place for place in sorted(found) if not any(part.startswith(".") for part in place.parts)]


def print_json(value: Any) -> None:
    """Print a value for machines."""
    import orjson

    typer.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())


def _print(facts: JsonDict, console: Any) -> None:
    from rich.table import Table

    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if name not in ("bins", "first_documents", "first_rows") and value is not None:
            table.add_row(name.replace("_", " "), _words(value))
    console.print(table)
    if "bins" in facts:
        console.print(_bin_table(facts["bins"], facts["path"]))
    for number, row in enumerate(facts.get("first_documents") or facts.get("first_rows") or []):
        console.print(f"\n[bold]{'document' if 'first_documents' in facts else 'row'} {number}[/bold]")
        console.print(_row_words(row), markup=False, highlight=False)


def _bin_table(bins: list[JsonDict], folder: str) -> Any:
    from rich.table import Column, Table

    table = Table(Column("bin", overflow="fold"), "tokens", "documents", "dtype", "tokenizer", "bytes")
    for facts in bins:
        documents, made_by = facts["documents"], facts["tokenizer"]
        name = "?" if made_by is None else f"{made_by['name']}, {made_by['vocab_size']:,} ids"
        row = (facts["tokens"], "?" if documents is None else documents, facts["dtype"], name, facts["bytes"])
        table.add_row(escape(os.path.relpath(facts["path"], folder)), *map(_words, row))
    return table


def _words(value: Any) -> str:
    """Write a value as a person reads it."""
    if isinstance(value, bool) or not isinstance(value, int | float | dict | list):
        return escape(str(value))
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    lines = [f"{escape(str(name))}: {_words(inner)}" for name, inner in list(value.items())[:_LISTED]]
    if len(value) > _LISTED:
        lines.append(f"… and {len(value) - _LISTED} more")
    return "\n".join(lines) or "none"


def _row_words(row: Any) -> str:
    if not isinstance(row, dict):
        return str(row)
    if "ids" in row and "tokens" in row:
        head = f"{row['tokens']:,} tokens: {', '.join(map(str, row['ids']))}, …"
        return f"{head}\n{row['text']}" if "text" in row else head
    return "\n".join(f"{name}: {value}" for name, value in row.items())


def check_is_there(path: Path, what: str) -> None:
    """Refuse a path that does not exist.

    Raises:
        ObjectMissing: it does not.
    """
    if not path.exists():
        raise ObjectMissing(f"{path} does not exist; give {what}")


def check_has_bins(folder: Path, bins: list[Path]) -> None:
    """Refuse a folder without token files.

    Raises:
        ConfigError: it has none.
    """
    if not bins:
        raise ConfigError(f"{folder} holds no .bin file; `penstock tokenize SOURCE {folder}` would make some")
