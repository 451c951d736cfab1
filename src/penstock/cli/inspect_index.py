"""What `penstock inspect` says of an index, of what one could be made of, and of what a StreamingDataset keeps."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from penstock.cli.inspect_files import short


def describe_index(path: Path, *, rows: int = 3) -> dict[str, Any] | None:
    """Describe a saved index; None if the file is none."""
    from penstock.formats.sources import RECORD_KINDS, source_file
    from penstock.index.arrow_files import ArrowSource
    from penstock.index.rows import map_rows

    note = ArrowSource(source_file(path, kinds=RECORD_KINDS), {}).note
    if note is None:
        return None
    held = map_rows(str(path))
    first = next(held.iter_batches(), None)
    return {
        "kind": "index",
        "path": os.fspath(path),
        "bytes": path.stat().st_size,
        "rows": len(held),
        "key": note.key,
        "base": note.base,
        "fingerprint": note.fingerprint,
        "fields": {field.name: str(field.type) for field in held.schema},
        "first_rows": [short(row) for row in first[:rows].to_pylist()] if first is not None else [],
    }


def describe_table(path: Path, *, rows: int = 3) -> dict[str, Any]:
    """Describe a CSV, TSV or Arrow file, reading all of it: its types are those that an index would have."""
    from penstock.formats.sources import RECORD_KINDS, source_file
    from penstock.index.choice import KEY
    from penstock.index.scan import open_table

    file = source_file(path, kinds=RECORD_KINDS)
    return {
        "kind": {"csv": "CSV", "tsv": "TSV", "arrow": "Arrow"}[file.kind],
        "path": os.fspath(path),
        "bytes": file.size_bytes,
        **_rows_of(open_table(file, [KEY]), rows),
    }


def describe_samples(place: str, *, rows: int = 3) -> dict[str, Any]:
    """Describe what an index could be made of, local or at a URL: its rows are those that the index would have.

    Raises:
        ConfigError, FormatError, StoreError: see `open_source`.
    """
    from penstock.index.folders import FolderSource
    from penstock.index.sources import open_source
    from penstock.index.tars import TarSource
    from penstock.store.urls import redact

    source = open_source(place)
    kinds = {FolderSource: "folder of samples", TarSource: "tar archives of samples"}
    return {"kind": kinds.get(type(source), "table"), "path": redact(place), **_rows_of(source, rows)}


def holds_samples(folder: Path) -> bool:
    """Tell whether a folder's files are samples, of several kinds each or of no kind of table or text."""
    from penstock.formats.sources import RECORD_KINDS, described

    suffixes = [described(path)[0] for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")]
    others = sum(bool(suffix) and suffix not in RECORD_KINDS for suffix in suffixes)
    return others > 0 and others >= len(suffixes) - others


def describe_kept(folder: Path) -> dict[str, Any] | None:
    """Describe the folder in which StreamingDatasets keep what they need, their `dst`; None if it is none."""
    from penstock.formats.files import read_json
    from penstock.store.cache import open_cache
    from penstock.store.cache_care import is_cache

    indexes = sorted(folder.glob("index/*/index.json"))
    has_cache = is_cache(folder / "cache")
    if not indexes and not has_cache:
        return None
    facts: dict[str, Any] = {
        "kind": "what StreamingDatasets keep (dst)",
        "path": os.fspath(folder),
        "indexes": {path.parent.name: f"{read_json(path)['count']:,} rows" for path in indexes},
    }
    if has_cache:
        with open_cache(folder / "cache", None) as cache:
            found = cache.stats()
        facts["cache"] = {"files": found.files, "bytes": found.bytes}
    lists = folder.glob("quarantine/*.jsonl")
    return {**facts, "failures": sum(path.read_bytes().count(b"\n") for path in lists)}


def _rows_of(source: Any, rows: int) -> dict[str, Any]:
    """Count the rows of a source, and give its columns and its first rows."""
    from penstock.index.scan import TypesWidened

    while True:
        count, shown = 0, list[Any]()
        try:
            for batch in source.batches():
                if len(shown) < rows:
                    shown += batch[: rows - len(shown)].to_pylist()
                count += len(batch)
        except TypesWidened:
            continue
        break
    fields = {field.name: str(field.type) for field in source.schema}
    return {"rows": count, "fields": fields, "first_rows": [short(row) for row in shown]}
