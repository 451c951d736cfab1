"""An index built once per node, and used by all of its processes.

    source ──batches──▶ checks ──▶ FOLDER/<digest of the question>/rows-<digest of the answer's source>.arrow
                                                                  /index.json, last

The first process that asks builds; others wait for it, and take what it made. What is there is used again
while the source's signature is what it was; otherwise a new file is made, and the old one removed from
under those who still map it, which does not disturb them. Law: an index that is there is whole, and is what
the source says now.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from penstock.errors import BadBlock, BadManifest, ConfigError, FormatError, ObjectChanged, ObjectMissing, StoreError
from penstock.formats.files import atomic_write, digest, lock_folder, read_json, store_errors, write_json
from penstock.index.keys import check_keys, fingerprint_of
from penstock.index.rows import MappedRows, map_rows
from penstock.index.scan import Source, TypesWidened, conform, nearest, open_source
from penstock.index.table import Index
from penstock.types import check_int

VERSION = 1
_MANIFEST = "index.json"
_POLL_S = 0.02


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is wanted of a source."""

    key: str = "index"
    columns: tuple[str, ...] = ()
    """Columns that have to be there, apart from the key."""
    keep: tuple[str, ...] | None = None
    """Columns to keep beside these; None: all."""
    sql_query: str | None = None
    max_size: int | None = None
    allow_missing_columns: bool = False

    def columns_of(self, schema: pa.Schema, place: str) -> pa.Schema:
        """Choose columns, the key as text, those that are allowed to be missing as null.

        Raises:
            ConfigError: a column is missing.
        """
        if self.key not in schema.names:
            raise ConfigError(
                f"{place} has no column {self.key!r} for the keys; {nearest(self.key, schema.names)}: name it by "
                "index_col_name"
            )
        wanted = dict.fromkeys([self.key, *self.columns, *(schema.names if self.keep is None else self.keep)])
        missing = [name for name in wanted if name not in schema.names]
        if missing and not self.allow_missing_columns:
            raise ConfigError(
                f"{place} has no column {missing[0]!r}; {nearest(missing[0], schema.names)}. "
                "With allow_missing_columns=True its values would be None"
            )
        order = [name for name in schema.names if name in wanted] + missing
        kinds = {field.name: field.type for field in schema}
        return pa.schema([(name, self._kind(name, kinds.get(name, pa.null()))) for name in order])

    def _kind(self, name: str, kind: pa.DataType) -> pa.DataType:
        return kind if name != self.key or pa.types.is_large_string(kind) else pa.string()


def build_index(
    src: str | os.PathLike[str] | Source,
    *,
    folder: str | os.PathLike[str],
    index_col_name: str = "index",
    columns: Sequence[str] = (),
    index_cols_to_keep: Sequence[str] | None = None,
    sql_query: str | None = None,
    max_size: int | None = None,
    allow_missing_columns: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 3600.0,
) -> Index:
    """Make the index of a source, or find the one that this node has made of it.

    Args:
        src: see `open_source`; or a source of your own.
        folder: where indexes of this node lie; made if missing. Nothing else is written there.
        index_col_name: the column of the keys, which become text.
        columns: columns that have to be there.
        index_cols_to_keep: columns to keep beside these. None: all.
        sql_query: DuckDB SQL over the table `dataframe`, whose rows are the index.
        max_size: keep only so many rows, the first.
        allow_missing_columns: take None for the values of `columns` that are not there.
        storage_options: see `open_store`.
        timeout_s: how long to wait for another process that is building the same.

    Raises:
        ConfigError: a column is missing, the SQL is wrong, or nothing is selected.
        FormatError: keys are missing, or there twice; or the source is damaged.
        ObjectChanged: the source changed while it was read.
        StoreError: it can't be read, the folder can't be written, or another process took too long to build.
    """
    choice = Choice(
        key=index_col_name,
        columns=tuple(columns),
        keep=None if index_cols_to_keep is None else tuple(index_cols_to_keep),
        sql_query=sql_query,
        max_size=max_size,
        allow_missing_columns=allow_missing_columns,
    )
    if max_size is not None:
        check_int("max_size", max_size, minimum=1)
    text = {choice.key, *choice.columns}
    source = (
        open_source(src, text_columns=text, storage_options=storage_options)
        if isinstance(src, str | os.PathLike)
        else src
    )
    question = digest(orjson.dumps([VERSION, source.place, source.base, repr(choice)]))
    place = Path(folder) / question
    signature = source.signature()
    found = _built(place, source, choice, signature)
    if found is not None:
        return found
    with store_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with _leading(place, timeout_s):
        found = _built(place, source, choice, signature)
        return _build(place, source, choice, signature) if found is None else found


@contextmanager
def _leading(folder: Path, timeout_s: float) -> Iterator[None]:
    """Be the one process that builds in a folder, once whoever is before us has ended."""
    deadline = time.monotonic() + timeout_s
    while True:
        lock = lock_folder(folder)
        try:
            lock.__enter__()
            break
        except StoreError as error:
            if error.errno is not None:
                raise
            if time.monotonic() > deadline:
                raise StoreError(
                    f"another process has been building the index in {folder} for more than {timeout_s:g} s: see "
                    "whether it still works, or give it longer (timeout_s)"
                ) from None
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _built(folder: Path, source: Source, choice: Choice, signature: list[Any]) -> Index | None:
    """Open what is there, if it was made of the source as it is now."""
    try:
        manifest = read_json(folder / _MANIFEST)
        if manifest.get("version") != VERSION or manifest["signature"] != signature:
            return None
        rows = MappedRows(folder / manifest["rows"])
        if len(rows) != manifest["count"]:
            return None
    except (ObjectMissing, BadManifest, BadBlock, KeyError, AttributeError):
        return None
    return Index(rows, key=choice.key, base=source.base, fingerprint=manifest["fingerprint"])


def _build(folder: Path, source: Source, choice: Choice, signature: list[Any]) -> Index:
    name = f"rows-{digest(orjson.dumps(signature))}.arrow"
    before = {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}
    write_rows(source, choice, folder / name)
    rows = map_rows(str(folder / name))
    keys = rows.column(choice.key)
    try:
        if not len(rows):
            raise ConfigError(f"{source.place} has no rows, so there is nothing to index")
        check_keys(keys, choice.key, source.place)
        if source.signature() != signature:
            raise ObjectChanged(f"{source.place} changed while it was read; build the index again when it is complete")
    except (ConfigError, FormatError, StoreError):
        (folder / name).unlink(missing_ok=True)
        raise
    fingerprint = fingerprint_of(keys, rows.schema.names)
    manifest = {
        "version": VERSION,
        "signature": signature,
        "rows": name,
        "count": len(rows),
        "fingerprint": fingerprint,
    }
    write_json(folder / _MANIFEST, manifest)
    for old in before - {name, _MANIFEST}:
        with suppress(FileNotFoundError):
            (folder / old).unlink()
    return Index(MappedRows(folder / name), key=choice.key, base=source.base, fingerprint=fingerprint)


def write_rows(source: Source, choice: Choice, path: Path) -> None:
    """Write what is wanted of a source to an Arrow file, in one pass, a batch in memory at a time."""
    while True:
        schema = choice.columns_of(source.schema, source.place)
        try:
            _write(source, schema, choice, path)
        except TypesWidened:
            continue
        return


def _write(source: Source, schema: pa.Schema, choice: Choice, path: Path) -> None:
    left = choice.max_size
    with atomic_write(path) as file, pa.OSFile(file.name, "wb") as out, pa.ipc.new_file(out, schema) as writer:
        for batch in source.batches():
            part = batch if left is None else batch.slice(0, left)
            writer.write_batch(conform(part, schema))
            if left is not None:
                left -= len(part)
                if not left:
                    return
