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
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa

from penstock.errors import BadBlock, BadManifest, ConfigError, FormatError, ObjectChanged, ObjectMissing, StoreError
from penstock.formats.files import LOCK_NAME, digest, read_json, store_errors, write_json
from penstock.index.arrow_files import ArrowSource
from penstock.index.choice import KEY, Choice, names_of
from penstock.index.joined import JoinedSource
from penstock.index.keys import KeyCheck
from penstock.index.lazy import parts_of, plan_lazily
from penstock.index.lazy_rows import LazyRows
from penstock.index.leading import leading
from penstock.index.parquet import ParquetSource
from penstock.index.parquet_rows import ParquetRows
from penstock.index.rows import MappedRows, Rows, map_rows, write_batches
from penstock.index.scan import Source, TypesWidened, conform
from penstock.index.sources import open_source
from penstock.index.sql import run_query, with_numbers
from penstock.index.table import Index
from penstock.index.text_tables import TextSource

VERSION = 4
_MANIFEST = "index.json"


def build_index(
    src: Any,
    *,
    folder: str | os.PathLike[str],
    index_col_name: str = KEY,
    columns: Sequence[str] = (),
    index_cols_to_keep: Sequence[str] | None = None,
    sql_query: str | None = None,
    max_size: int | None = None,
    allow_missing_columns: bool = False,
    lazy_index_chunk_size: int | None = None,
    lazy_index_num_threads: int = 3,
    lazy_index_prefetch_factor: int = 3,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 3600.0,
) -> Index:
    """Make the index of a source, or find the one that this node has made of it.

    Args:
        src: see `sources.open_source`; or a source of your own.
        folder: where indexes of this node lie; made if missing. Nothing else is written there.
        index_col_name: the column of the keys, which become text. Left as it is, of a saved index the one that it
            names.
        columns: columns that have to be there.
        index_cols_to_keep: columns to keep beside these. None: all.
        sql_query: DuckDB SQL over the table `dataframe`, whose rows are the index. Keys that are numbers, in CSV too,
            are numbers to it, and become text afterwards.
        max_size: keep only so many rows, the first.
        allow_missing_columns: take None for the values of `columns` that are not there.
        lazy_index_chunk_size: of Parquet, read parts of at least so many rows when they are needed, and nothing but
            the number of rows now. None: build the index.
        lazy_index_num_threads: parts that a process reads at the same time.
        lazy_index_prefetch_factor: parts that are read ahead for each of them.
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
        columns=names_of("columns", columns),
        keep=None if index_cols_to_keep is None else names_of("index_cols_to_keep", index_cols_to_keep),
        sql_query=sql_query,
        max_size=max_size,
        allow_missing_columns=allow_missing_columns,
        parts=parts_of(lazy_index_chunk_size, lazy_index_num_threads, lazy_index_prefetch_factor),
    )
    return build_chosen(src, choice, Path(folder), storage_options, timeout_s)


def build_chosen(
    src: Any,
    choice: Choice,
    folder: Path,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 3600.0,
) -> Index:
    """Make the index of a choice of a source, or find it; see `build_index`."""
    source = _opened(src, choice, storage_options)
    if choice.key == KEY:
        choice = replace(choice, key=_noted_key(source))
    if choice.parts is None:
        return _prepared(source, choice, folder, timeout_s)
    plan, fingerprint = plan_lazily(source, choice.columns_of, choice.parts, folder, storage_options, timeout_s)
    rows = LazyRows(plan if choice.max_size is None else replace(plan, count=min(plan.count, choice.max_size)))
    return Index(rows, key=choice.key, base=source.base, fingerprint=digest(f"{fingerprint}{len(rows)}".encode()))


def _opened(src: Any, choice: Choice, storage_options: Mapping[str, Any] | None) -> Source:
    if hasattr(src, "batches"):
        return src
    text = {choice.key, *choice.columns}
    return open_source(src, key=choice.key, text_columns=text, storage_options=storage_options)


def _noted_key(source: Source) -> str:
    """Give the column that keys are in where nobody says: of saved indexes the one that they name."""
    first = source.sources[0] if isinstance(source, JoinedSource) else source
    note = first.note if isinstance(first, ArrowSource) else None
    return KEY if note is None else note.key


def _prepared(source: Source, choice: Choice, folder: Path, timeout_s: float) -> Index:
    """Find the index that this node has made of a source, or make it."""
    question = digest(orjson.dumps([VERSION, source.place, source.base, repr(choice)]))
    place = folder / question
    signature = source.signature()
    found = _built(place, source, choice, signature)
    if found is not None:
        return found
    with store_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    with leading(place, timeout_s):
        found = _built(place, source, choice, signature)
        return _build(place, source, choice, signature) if found is None else found


def _built(folder: Path, source: Source, choice: Choice, signature: list[Any]) -> Index | None:
    """Open what is there, if it was made of the source as it is now."""
    try:
        manifest = read_json(folder / _MANIFEST)
        if manifest.get("version") != VERSION or manifest["signature"] != signature:
            return None
        rows: Rows = _in_place(folder, source, choice, manifest["rows"]) or MappedRows(folder / manifest["rows"])
        if len(rows) != manifest["count"]:
            return None
    except (ObjectMissing, BadManifest, BadBlock, KeyError, AttributeError):
        return None
    return Index(rows, key=choice.key, base=source.base, fingerprint=manifest["fingerprint"])


def _build(folder: Path, source: Source, choice: Choice, signature: list[Any]) -> Index:
    before = {path.name for path in folder.iterdir()} - {LOCK_NAME}
    made_of = digest(orjson.dumps(signature))
    name = f"groups-{made_of}" if _is_in_place(source, choice) else f"rows-{made_of}.arrow"
    check = KeyCheck(choice.key, source.place)
    try:
        rows = _in_place(folder, source, choice, name) or write_rows(source, choice, folder / name, check)
        if isinstance(rows, ParquetRows):
            for keys in rows.iter_column(choice.key):
                check.add(keys)
        if not check.count:
            selected = "" if choice.sql_query is None else f" that sql_query selects: {choice.sql_query}"
            raise ConfigError(f"{source.place} has no rows{selected}; there is nothing to index")
        fingerprint = check.finish(lambda: rows.column(choice.key).chunks, rows.schema.names)
        if source.signature() != signature:
            raise ObjectChanged(f"{source.place} changed while it was read; build the index again when it is complete")
    except (ConfigError, FormatError, StoreError):
        _remove(folder / name)
        raise
    manifest = {
        "version": VERSION,
        "signature": signature,
        "rows": name,
        "count": len(rows),
        "fingerprint": fingerprint,
    }
    write_json(folder / _MANIFEST, manifest)
    for old in before - {name, _MANIFEST}:
        _remove(folder / old)
    # What was being read is of no use any more, and there is a training to be run.
    pa.default_memory_pool().release_unused()
    return Index(rows, key=choice.key, base=source.base, fingerprint=fingerprint)


def _is_in_place(source: Source, choice: Choice) -> bool:
    """Whether rows stay where they are: those of a local Parquet file that no query changes."""
    return isinstance(source, ParquetSource) and source.file.url is None and choice.sql_query is None


def _in_place(folder: Path, source: Source, choice: Choice, name: str) -> ParquetRows | None:
    if not isinstance(source, ParquetSource) or not _is_in_place(source, choice):
        return None
    schema = choice.columns_of(source.schema, source.place)
    return ParquetRows(source.file, schema, folder=folder / name, count=choice.max_size)


def _remove(path: Path) -> None:
    """Remove a file or folder of an index, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_rows(source: Source, choice: Choice, path: Path, check: KeyCheck) -> MappedRows:
    """Write what is wanted of a source to an Arrow file, a batch in memory at a time; a query sees all of it."""
    if choice.sql_query is None:
        _write(source, choice.columns_of, path, choice.max_size, check)
        return MappedRows(path)
    # A query may read its table more than once, so that lies on the disk.
    whole = path.with_suffix(".whole")
    try:
        _write(source, lambda schema, _: schema, whole)
        rows = map_rows(str(whole))
        # What an untyped file has as text for the index's sake is to the query what its values look like.
        guessed = {choice.key, *choice.columns} if _is_untyped(source) else set()
        table, before = with_numbers(pa.Table.from_batches(rows.batches, rows.schema), guessed)
        with run_query(choice.sql_query, table, path.parent) as reader:
            _write(_Selected(source, reader, before), choice.columns_of, path, choice.max_size, check)
    finally:
        whole.unlink(missing_ok=True)
    return MappedRows(path)


def _is_untyped(source: Source) -> bool:
    parts = source.sources if isinstance(source, JoinedSource) else [source]
    return all(isinstance(part, TextSource) and not part.has_types for part in parts)


class _Selected:
    """The rows that a query gives, as a source of rows; some columns of types that they had before."""

    def __init__(self, source: Source, reader: Any, before: Mapping[str, pa.DataType]) -> None:
        self.place, self.base, self.signature = source.place, source.base, source.signature
        self._reader = reader
        self.schema = pa.schema([(field.name, before.get(field.name, field.type)) for field in reader.schema])

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self._reader:
            yield conform(batch, self.schema)


def _write(
    source: Source,
    columns_of: Callable[[pa.Schema, str], pa.Schema],
    path: Path,
    most: int | None = None,
    check: KeyCheck | None = None,
) -> None:
    while True:
        schema = columns_of(source.schema, source.place)
        try:
            write_batches(path, schema, _passing(_first(source.batches(), most), schema, check))
        except TypesWidened:
            if check is not None:
                check.begin()
            continue
        return


def _passing(batches: Iterator[pa.RecordBatch], schema: pa.Schema, check: KeyCheck | None) -> Iterator[pa.RecordBatch]:
    """Give batches their columns, and look at their keys."""
    for batch in batches:
        ready = conform(batch, schema)
        if check is not None:
            check.add(ready.column(check.column))
        yield ready


def _first(batches: Iterator[pa.RecordBatch], most: int | None) -> Iterator[pa.RecordBatch]:
    """Take so many rows."""
    left = most
    for batch in batches:
        part = batch if left is None else batch[:left]
        yield part
        if left is not None:
            left -= len(part)
            if not left:
                return
