"""`penstock verify`: is every byte of bins and blocks as it was written, and everything there that an index names?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.block_folders import block_folders_below, holds_blocks
from penstock.cli.inspect import JsonOption, bins_below, check_has_bins, check_is_there, print_json
from penstock.cli.inspect_index import holds_samples
from penstock.cli.verify_index import is_index, verify_index
from penstock.errors import ConfigError, FormatError, ObjectMissing
from penstock.formats.block_manifest import MANIFEST_NAME

_AT_A_TIME = 4
"""Bins verified at the same time; each of them keeps all cores busy, but for its start and end."""


def verify(
    place: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A .bin, or a folder: of blocks, or with bins and folders of blocks in it and below. Or an index, "
            "also at a URL: one that was saved (.arrow), a table, a database, a folder of samples, or tar archives.",
        ),
    ],
    columns: Annotated[
        str | None,
        typer.Option(help="Of an index: columns that name files, separated by commas. Default: those with lengths."),
    ] = None,
    key: Annotated[str, typer.Option(help="Of an index that is not a saved one: column of the keys.")] = "index",
    contents: Annotated[
        bool, typer.Option("--contents", metavar="", help="Of an index: read the files, compare lengths and digests.")
    ] = False,
    local: Annotated[
        bool,
        typer.Option(
            "--allow-local-paths", metavar="", help="Of an index at a URL: let it name files of this machine."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare bins and blocks with their checksums, or an index with the files it names; exit code 1 if one differs."""
    if is_index(place) or _is_of_samples(Path(place)):
        verify_index(place, columns=columns, key=key, contents=contents, local=local, as_json=as_json)
        return
    options = (("--columns", columns), ("--contents", contents), ("--allow-local-paths", local))
    given = [name for name, value in options if value]
    if given:
        raise ConfigError(f"{given[0]} is for an index; {place} is none")
    _verify_files(Path(place), as_json)


def _verify_files(path: Path, as_json: bool) -> None:
    """Verify bins and blocks."""
    check_is_there(path, "a .bin, a folder of bins, or a folder of blocks")
    folders = _block_folders(path)
    bins = [] if folders else [path]
    if path.is_dir():
        bins = sorted({*bins_below(path), *_missing_bins(path)})
        # The files beside blocks are theirs.
        bins = [place for place in bins if not any(folder in place.parents for folder in folders)]
        if not folders:
            check_has_bins(path, bins)
    # Each folder of blocks keeps all cores busy.
    results = [_verify_blocks(folder) for folder in folders]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        checked = list(pool.map(_verify, bins))
    results += checked
    if as_json:
        fine = all(result["problem"] is None for result in results)
        print_json({"ok": fine, "blocks": results[: len(folders)], "bins": checked})
    else:
        _print(results)
    if any(result["problem"] for result in results):
        raise typer.Exit(1)


def _block_folders(path: Path) -> list[Path]:
    """Find the folders of blocks: the path itself, of whatever layout, else those with a manifest below it."""
    if not path.is_dir():
        return [path.parent] if path.name == MANIFEST_NAME else []
    below = block_folders_below(path)
    return below or ([path] if holds_blocks(path) else [])


def _is_of_samples(path: Path) -> bool:
    """Whether a folder holds samples, and neither bins nor blocks."""
    return (
        path.is_dir() and holds_samples(path) and not (bins_below(path) or _missing_bins(path) or _block_folders(path))
    )


def _missing_bins(folder: Path) -> list[Path]:
    """Give the places of bins of which only the document table is left."""
    return [place.with_suffix(".bin") for place in folder.rglob("*.docs") if not place.with_suffix(".bin").exists()]


def _verify(path: Path) -> dict[str, Any]:
    from penstock.formats.tokens import verify_bin

    problem = None
    try:
        verify_bin(path)
    except (FormatError, ObjectMissing) as error:
        problem = str(error)
    return {"path": os.fspath(path), "bytes": path.stat().st_size if path.exists() else None, "problem": problem}


def _verify_blocks(folder: Path) -> dict[str, Any]:
    from penstock.formats.block_check import verify_block_structure

    ok, message = verify_block_structure(folder)
    return {"path": os.fspath(folder), "found": message if ok else None, "problem": None if ok else message}


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for result in results:
        if result["problem"] is None:
            found = result.get("found") or f"{result['path']}  {result['bytes']:,} bytes"
            console.print("[green]ok[/green]   ", end="")
            console.print(found, markup=False)
        else:
            console.print("[red]BAD[/red]  ", end="")
            console.print(result["problem"], markup=False)
