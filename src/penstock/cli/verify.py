"""`penstock verify`: is every byte of the bins as it was written?"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from penstock.cli.inspect import JsonOption, bins_below, check_has_bins, check_is_there, print_json
from penstock.errors import FormatError, ObjectMissing

_AT_A_TIME = 4
"""Bins verified at the same time; each of them keeps all cores busy, but for its start and end."""


def verify(
    path: Annotated[Path, typer.Argument(help="A .bin, or a folder: then all bins in it and below.")],
    as_json: JsonOption = False,
) -> None:
    """Compare token bins with their checksums, reading all of them; exit code 1 if one has changed."""
    check_is_there(path, "a .bin or a folder of bins")
    bins = bins_below(path) if path.is_dir() else [path]
    if path.is_dir():
        bins = sorted({*bins, *_missing_bins(path)})
        check_has_bins(path, bins)
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        results = list(pool.map(_verify, bins))
    if as_json:
        print_json({"ok": all(result["problem"] is None for result in results), "bins": results})
    else:
        _print(results)
    if any(result["problem"] for result in results):
        raise typer.Exit(1)


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


def _print(results: list[dict[str, Any]]) -> None:
    from rich.console import Console

    console = Console(soft_wrap=True, highlight=False)
    for result in results:
        if result["problem"] is None:
            console.print(f"[green]ok[/green]   {result['path']}  {result['bytes']:,} bytes")
        else:
            console.print("[red]BAD[/red]  ", end="")
            console.print(result["problem"], markup=False)
