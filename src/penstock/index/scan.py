"""Sources of rows: whatever can be read, once and in order, as Arrow record batches.

    Source ── signature() · schema · base · batches() ──▶ build_index ──▶ Index

A source says before it is read what its content can be told by (`signature`: sizes, etags, times of change),
so that an index made of it is used again only while that still holds. Nothing of a source is held in memory
but what is being read.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from penstock.errors import ConfigError, FormatError
from penstock.formats.sources import SourceFile
from penstock.store.whole_copy import WholeCopy

SMALL_BYTES = 1 << 20


class Source(Protocol):
    """Rows to be indexed."""

    @property
    def place(self) -> str:
        """Where it is, for people: no secrets."""

    @property
    def base(self) -> str:
        """The URL or absolute folder that relative locations in its rows are below."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; may read the beginning of the source."""

    def signature(self) -> list[Any]:
        """JSON that changes when the content does: names, sizes, etags or times of change; reads no content."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in order, batches of `schema`.

        Raises:
            TypesWidened: `schema`, which was a guess, has been corrected; read again from the start.
            BadBlock, BadRecord, StoreError: the source is damaged, or can't be read.
        """


class FileSource:
    """What a source knows of itself that is one file.

    Args:
        file: which.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self._copy = WholeCopy()
        self._schema: pa.Schema | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return self.file.place

    @property
    def base(self) -> str:
        """What relative locations are below: its folder."""
        return folder_of(self.file)

    def signature(self) -> list[Any]:
        """Name, size, and time of change or etag."""
        return self.file.signature


class TypesWidened(Exception):
    """A source without types, such as CSV, has values that its guess of them does not hold."""


def open_table(
    file: SourceFile,
    text_columns: Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
    *,
    small_bytes: int = SMALL_BYTES,
) -> Source:
    """Open one table file as a source of rows; see `sources.open_source`.

    Remote text of up to `small_bytes` is read once, in one request, for its columns, their types and its rows.
    """
    options = dict(storage_options or {})
    if file.kind == "parquet":
        from penstock.index.parquet import ParquetSource

        return ParquetSource(file, options)
    if file.kind == "arrow":
        from penstock.index.arrow_files import ArrowSource

        return ArrowSource(file, options)
    from penstock.index.text_tables import TextSource

    return TextSource(file, frozenset(text_columns), options, small_bytes)


def folder_of(file: SourceFile) -> str:
    """Give the absolute folder, or the URL, that a file lies in."""
    if file.url is None:
        return str(Path(file.path).absolute().parent)
    plain, question, query = file.url.partition("?")
    return plain.rpartition("/")[0] + question + query


def nearest(name: str, names: Iterable[str]) -> str:
    """Say which name may have been meant, and which there are, for an error.

    >>> nearest("Caption", ["url", "caption"])
    "did you mean 'caption'? its columns are 'url', 'caption'"
    """
    names = list(names)
    lowered = {known.lower(): known for known in reversed(names)}
    close = difflib.get_close_matches(name.lower(), lowered, 1)
    meant = f"did you mean {lowered[close[0]]!r}? " if close else ""
    listed = ", ".join(map(repr, names[:20])) + (f" … and {len(names) - 20:,} more" if len(names) > 20 else "")
    return f"{meant}its columns are {listed or 'none'}"


def check_names(schema: pa.Schema, place: str) -> None:
    """Raise ConfigError if two columns have one name, of which a row could hold but one."""
    if len(set(schema.names)) < len(schema.names):
        twice = next(name for name in schema.names if schema.names.count(name) > 1)
        raise ConfigError(f"{place} has {schema.names.count(twice)} columns called {twice!r}: give each its own name")


def unified(schemas: Sequence[pa.Schema], place: str) -> pa.Schema:
    """Find the columns and types that hold the rows of all of these: all columns, numbers widened, text for the rest.

    Raises:
        ConfigError: one has two columns of one name.
        FormatError: a column has types that nothing holds both of, such as a list and a number.
    """
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        check_names(schema, place)
        for field in schema:
            known = fields.get(field.name)
            kind = field.type if known is None else wider(known.type, field.type)
            if kind is None:
                raise FormatError(
                    f"{place}: column {field.name!r} is {known.type if known else None} in one place and {field.type} "
                    "in another: make them one type"
                )
            fields[field.name] = pa.field(field.name, kind)
    return pa.schema(list(fields.values()))


def wider(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """Give the type that holds the values of both, None if there is none.

    >>> wider(pa.int64(), pa.float64()), wider(pa.int64(), pa.string())
    (DataType(double), DataType(string))
    """
    if one == other or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    try:
        return (
            pa.unify_schemas([pa.schema([("x", one)]), pa.schema([("x", other)])], promote_options="permissive")
            .field("x")
            .type
        )
    except pa.ArrowException:
        return pa.string() if _is_plain(one) and _is_plain(other) else None


def _is_plain(kind: pa.DataType) -> bool:
    return pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Give a batch these columns: in this order, of these types, null where it has none, without others."""
    if batch.schema.equals(schema):
        return batch
    have = batch.schema
    arrays = [
        _cast(batch.column(field.name), field.type) if field.name in have.names else pa.nulls(len(batch), field.type)
        for field in schema
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    return array if array.type == kind else array.cast(kind)
