"""Indexes as Arrow files that say what they are: which column is the key, what locations are below, the fingerprint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from penstock.errors import ConfigError
from penstock.formats.files import store_errors
from penstock.index.rows import write_batches
from penstock.store.store import open_store
from penstock.store.urls import Place, is_url, parse_url, redact

_NAME = b"penstock.index"
_VERSION = 1
SUFFIX = ".arrow"


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a saved index says of itself."""

    key: str
    base: str
    """The URL or absolute folder that relative locations are below; without secrets."""
    fingerprint: str
    compressed: bool = False

    def on(self, schema: pa.Schema) -> pa.Schema:
        """Write the note on a schema."""
        return schema.with_metadata({_NAME: orjson.dumps({"version": _VERSION, **asdict(self)})})


def read_note(schema: pa.Schema) -> Note | None:
    """Read the note on a schema; None if there is none, or one of a later version."""
    text = (schema.metadata or {}).get(_NAME)
    said = orjson.loads(text) if text else {}
    if said.pop("version", None) != _VERSION:
        return None
    return Note(**said)


def save_rows(
    url: str | os.PathLike[str],
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    note: Note,
    storage_options: Mapping[str, Any],
) -> None:
    """Write rows with a note on them; see `Index.save`."""
    name = os.fspath(url)
    place = check_place(name)
    if place is None or place.scheme == "file":
        path = Path(name if place is None else place.key)
        with store_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_batches(path, note.on(schema), batches)
        return
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    noted = Note(key=note.key, base=note.base, fingerprint=note.fingerprint, compressed=True).on(schema)
    with pa.ipc.new_file(sink, noted, options=options) as writer:
        for batch in batches:
            writer.write_batch(batch)
    open_store(name, **storage_options).put("", sink.getvalue().to_pybytes())


def check_place(name: str) -> Place | None:
    """Take the URL of a saved index apart; None for a path.

    Raises:
        ConfigError: it does not end in .arrow.
    """
    place = parse_url(name) if is_url(name) else None
    if not (place.key if place else name).endswith(SUFFIX):
        raise ConfigError(f"an index is saved as an Arrow file, got {redact(name)}: let the name end in {SUFFIX}")
    return place
