"""Parquet files: read through once as a source of rows, or used where they lie, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from penstock.formats.sources import SourceFile
from penstock.formats.streams import open_raw
from penstock.formats.tables import table_errors
from penstock.index.scan import FileSource
from penstock.store.whole_copy import WholeCopy

BATCH_ROWS = 1 << 14
"""Small enough that what is decoded and written stays in memory that is already mapped."""


class ParquetSource(FileSource):
    """The rows of a Parquet file; see `penstock.index.scan.Source`."""

    def __init__(self, file: SourceFile, storage_options: dict[str, Any]) -> None:
        super().__init__(file)
        self._options = storage_options

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, without what writers note beside them."""
        if self._schema is None:
            with open_parquet(self.file, self._options, self._copy) as table:
                self._schema = plain_schema(table.schema_arrow)
        return self._schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows, a batch at a time."""
        with open_parquet(self.file, self._options, self._copy) as table:
            schema = self.schema
            for batch in table.iter_batches(batch_size=BATCH_ROWS):
                yield as_plain(batch, schema)
        self._copy.forget()


@contextmanager
def open_parquet(file: SourceFile, storage_options: dict[str, Any], copy: WholeCopy | None = None) -> Iterator[Any]:
    """Open a Parquet file.

    Args:
        file: which.
        storage_options: see `open_store`.
        copy: see `open_file`.

    Raises:
        BadBlock: it is damaged, or no Parquet; also while it is read.
        StoreError: it can't be read.
    """
    import pyarrow.parquet as pq

    with table_errors(file.place):
        if file.url is None:
            with pq.ParquetFile(file.path, memory_map=True, pre_buffer=False) as table:
                yield table
        else:
            with (
                open_raw(file, copy=copy, **storage_options) as raw,
                pq.ParquetFile(pa.PythonFile(raw, mode="r")) as table,
            ):
                yield table


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Drop notes about columns, and dictionaries: what a value is and not how it is stored."""
    return pa.schema([pa.field(field.name, _plain(field.type)) for field in schema])


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def as_plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Give a batch the types of its plain schema."""
    arrays = [
        array.cast(field.type) if array.type != field.type else array
        for array, field in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
