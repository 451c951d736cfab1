"""`penstock cache stats | clear | verify`: look after a folder in which objects from elsewhere are kept."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.inspect import JsonOption, print_json
from penstock.errors import ObjectMissing

app = typer.Typer(help="Look after the files that are kept of remote objects.", no_args_is_help=True)

FolderArgument = Annotated[Path, typer.Argument(help="The folder of a cache: `cache` in a dataset's `dst`.")]


@app.command()
def stats(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Count files, bytes, hits and evictions."""
    from penstock.store.cache import open_cache

    with open_cache(_checked(folder), None) as cache:
        found = cache.stats()
    if as_json:
        print_json({"folder": str(folder), **asdict(found)})
        return
    asked = found.hits + found.misses
    limit = "no process that has it open sets a limit" if found.limit is None else f"limit {found.limit:,}"
    typer.echo(f"{folder}: {found.files:,} files, {found.bytes:,} bytes ({limit})")
    typer.echo(f"asked for    {asked:,} objects, {found.hits / asked if asked else 0:.1%} of which were there")
    typer.echo(f"downloaded   {found.downloaded_bytes:,} bytes")
    typer.echo(f"evicted      {found.evictions:,} files")


@app.command()
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Compare all files with their checksums and remove those that differ; exit code 1 if there were such."""
    from penstock.store.cache import open_cache

    with open_cache(_checked(folder), None) as cache:
        report = cache.verify()
    if as_json:
        print_json({"folder": str(folder), "ok": not report.damaged, **asdict(report)})
    else:
        for path in report.damaged:
            typer.echo(f"BAD  {path}: removed, it will be fetched again")
        strays = f"; {report.strays:,} files of no entry removed" if report.strays else ""
        good = report.files - len(report.damaged)
        typer.echo(f"{folder}: {good:,} of {report.files:,} files are as they were downloaded{strays}")
    if report.damaged:
        raise typer.Exit(1)


@app.command()
def clear(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Remove all files that no process uses."""
    from penstock.store.cache import open_cache

    with open_cache(_checked(folder), None) as cache:
        removed = cache.clear()
        left = cache.stats()
    if as_json:
        print_json({"folder": str(folder), "removed_bytes": removed, "files": left.files, "bytes": left.bytes})
        return
    used = f"; {left.files:,} files of {left.bytes:,} bytes are in use" if left.files else ""
    typer.echo(f"{folder}: {removed:,} bytes removed{used}")


def _checked(folder: Path) -> Path:
    """Refuse a folder that is no cache, rather than make one there."""
    from penstock.store.cache_care import is_cache

    if not is_cache(folder):
        hint = f"; {folder / 'cache'} is" if is_cache(folder / "cache") else ""
        raise ObjectMissing(f"{folder} holds no cache{hint}")
    return folder
