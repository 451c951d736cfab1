"""`penstock search`: datasets of the Hub as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.inspect import JsonOption, print_json

if TYPE_CHECKING:
    from penstock.prep.search import FoundDataset

_NAMES = "All, Text, Audio, Image, Video, Tabular, Document, Geospatial, Time-series or 3D"


def search(
    query: Annotated[str, typer.Argument(help="Words of the dataset's name; leave out for the most downloaded.")] = "",
    limit: Annotated[int, typer.Option(help="Most datasets to show.")] = 20,
    modality: Annotated[str | None, typer.Option(help=f"Only {_NAMES}.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Find datasets on the Hub that anyone may download, those most downloaded first."""
    from dataclasses import asdict

    from penstock.prep.search import search_datasets

    found = search_datasets(query, limit, modality)
    if as_json:
        print_json([asdict(dataset) for dataset in found])
    else:
        _print(found, query, modality)


def _print(found: list[FoundDataset], query: str, modality: str | None) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from penstock.prep.search import training_support

    console = Console(highlight=False)
    if not found:
        kind = f" of {modality}" if modality else ""
        console.print(f"no public dataset{kind} has {query!r} in its name", markup=False, soft_wrap=True)
        return
    table = Table(box=SIMPLE, pad_edge=False)
    table.add_column("dataset", overflow="fold", min_width=max(len(one.name) for one in found))
    for name in ("downloads", "likes"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("kinds", overflow="fold")
    table.add_column("about", no_wrap=True, overflow="ellipsis", ratio=1)
    for one in found:
        kinds = ", ".join(one.modalities) or "–"
        table.add_row(one.name, f"{one.downloads:,}", f"{one.likes:,}", kinds, one.description)
    console.print(table)
    if modality:
        console.print(f"train on {modality}: {training_support(modality).note}", markup=False, style="dim")
    console.print(f"penstock download hf://{found[0].name} FOLDER", markup=False, style="dim", soft_wrap=True)
