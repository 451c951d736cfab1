"""`penstock verify` of an index: the files it names, asked for in parallel."""

from __future__ import annotations

import glob
import os
import tempfile
from pathlib import PurePath

import typer

from penstock.cli.index_words import in_options, options_named
from penstock.cli.inspect import print_json
from penstock.store.urls import is_url, redact


def is_index(place: str) -> bool:
    """Tell whether a path or URL means an index: by its name, without a look at it."""
    from penstock.formats.sources import described
    from penstock.index.databases import is_database
    from penstock.index.sources import TABLE_KINDS

    if is_url(place):
        return True
    name = PurePath(place).name
    if os.path.isdir(place) or name.endswith("manifest.json"):
        return False
    known = described(PurePath(name))[0] in TABLE_KINDS or is_database(name) or name.lower().endswith((".tar", ".txt"))
    return known or glob.has_magic(place)


def verify_index(place: str, *, columns: str | None, key: str, contents: bool, local: bool, as_json: bool) -> None:
    """Ask for all files that an index names, and print what is wrong; ends with exit code 1 if something is.

    Files of this machine are asked for only if `local` says so or the index is of this machine itself: who writes an
    index elsewhere would learn from the answer what is here.
    """
    from penstock.datasets.sample_check import verify_samples
    from penstock.datasets.streaming_index import is_of_this_machine
    from penstock.index.arrow_files import ArrowSource
    from penstock.index.build import build_index
    from penstock.index.saved import open_index
    from penstock.index.sources import open_source

    names = None if columns is None else [name.strip() for name in columns.split(",") if name.strip()]
    with options_named(), tempfile.TemporaryDirectory(prefix="penstock-verify-") as folder:
        source = open_source(place) if PurePath(place).suffix == ".arrow" else None
        if isinstance(source, ArrowSource) and source.note is not None:
            index = open_index(place, folder=folder)
        else:
            index = build_index(place, folder=folder, index_col_name=key, columns=names or ())
        allowed = local or is_of_this_machine(place, index)
        report = verify_samples(index, names, contents=contents, show=not as_json, allow_local_paths=allowed)
    if as_json:
        problems = [
            {"key": each.key, "column": each.column, "reason": each.reason, "message": in_options(each.message)}
            for each in report.problems
        ]
        found = {"samples": report.samples, "files": report.files, "bytes_read": report.bytes_read}
        print_json({"ok": report.ok, **found, "digests": report.digests, "counts": report.counts, "problems": problems})
    else:
        for each in report.problems:
            typer.echo(f"BAD  {each.key!r}, {each.column}: {in_options(each.message)}")
        read = f", {report.bytes_read:,} bytes read, {report.digests:,} digests compared" if contents else ""
        told = (
            ", ".join(f"{count:,} {reason}" for reason, count in sorted(report.counts.items())) or "all as they should"
        )
        typer.echo(f"{redact(place)}: {report.samples:,} samples, {report.files:,} files{read}: {told}")
    if not report.ok:
        raise typer.Exit(1)
