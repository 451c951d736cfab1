"""What `penstock inspect` says of an index, or of a table that one could be made of."""

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
    from penstock.index.build import KEY
    from penstock.index.scan import TypesWidened, open_table

    file = source_file(path, kinds=RECORD_KINDS)
    source = open_table(file, [KEY])
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
    return {
        "kind": {"csv": "CSV", "tsv": "TSV", "arrow": "Arrow"}[file.kind],
        "path": os.fspath(path),
        "bytes": file.size_bytes,
        "rows": count,
        "fields": {field.name: str(field.type) for field in source.schema},
        "first_rows": [short(row) for row in shown],
    }
