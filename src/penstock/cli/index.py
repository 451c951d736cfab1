"""`penstock index`: a source of samples to an index that opens at once, anywhere."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from penstock.cli.index_words import options_named
from penstock.cli.inspect import JsonOption, print_json
from penstock.errors import ConfigError


def index(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SRC",
            help="A table (.csv, .tsv, .json, .jsonl, .parquet, .arrow), a database, a folder, tar archives, a glob or "
            "a list of these; a path or URL.",
        ),
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="The index: a path or URL that ends in .arrow.")],
    key: Annotated[str, typer.Option(help="Column of the keys.")] = "index",
    sql: Annotated[
        str | None, typer.Option(help="DuckDB SQL over the table `dataframe`; its rows are the index.")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to keep beside the key, separated by commas.")] = None,
    max_size: Annotated[int | None, typer.Option(help="Keep only so many rows, the first.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Validation's share (0.1) or number (1000) of rows; these go to a file OUT-val beside OUT."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Which split.")] = 0,
    as_json: JsonOption = False,
) -> None:
    """Make an index of a source: rows are checked, keys differ; with --split, one to train on and one to validate."""
    from penstock.index.build import build_index
    from penstock.index.notes import check_place
    from penstock.store.urls import redact

    check_place(out)
    val_ratio, val_count = _split_of(split)
    kept = None if columns is None else tuple(name.strip() for name in columns.split(",") if name.strip())
    with options_named(), tempfile.TemporaryDirectory(prefix="penstock-index-", dir=_scratch(out)) as folder:
        found = build_index(
            source,
            folder=folder,
            index_col_name=key,
            columns=kept or (),
            index_cols_to_keep=kept,
            sql_query=sql,
            max_size=max_size,
        )
        parts = {out: found}
        if split is not None:
            train, val = found.split(val_ratio, val_count=val_count, seed=seed)
            parts = {out: train, f"{out.removesuffix('.arrow')}-val.arrow": val}
        told = []
        for place, part in parts.items():
            part.save(place)
            told.append({"index": redact(place), "rows": len(part), "fingerprint": part.fingerprint})
    if as_json:
        print_json({"columns": found.columns, "written": told})
        return
    for each in told:
        typer.echo(f"{each['rows']:,} rows in {each['index']} (fingerprint {each['fingerprint']})")


def _split_of(text: str | None) -> tuple[float | None, int | None]:
    """Read a share, if there is a point in it, or a number of rows."""
    if text is None:
        return None, None
    try:
        return (float(text), None) if "." in text else (None, int(text))
    except ValueError:
        raise ConfigError(f"--split is a share of the rows, such as 0.1, or their number, got {text!r}") from None


def _scratch(out: str) -> str | None:
    """Give the folder that an index is written to, so that its parts lie on the same disk; None for a URL."""
    from penstock.store.urls import is_url

    if is_url(out):
        return None
    folder = Path(os.path.abspath(out)).parent
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)
