"""Arrow files, of either of their two layouts, as sources of rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from penstock.formats.sources import SourceFile
from penstock.formats.streams import open_raw
from penstock.formats.tables import table_errors
from penstock.index.notes import Note, read_note
from penstock.index.parquet import as_plain, plain_schema
from penstock.index.scan import FileSource


class ArrowSource(FileSource):
    """The rows of an Arrow file or stream; see `penstock.index.scan.Source`."""

    def __init__(self, file: SourceFile, storage_options: dict[str, Any]) -> None:
        super().__init__(file)
        self._options = storage_options

    @property
    def base(self) -> str:
        """What relative locations are below: what a saved index says, else its folder."""
        return self.note.base if self.note else super().base

    @property
    def note(self) -> Note | None:
        """What the file says of itself, if it is a saved index."""
        return read_note(self._stored_schema())

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return plain_schema(self._stored_schema())

    def _stored_schema(self) -> pa.Schema:
        if self._schema is None:
            with self._open() as reader:
                self._schema = reader.schema
        return self._schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows, a batch at a time."""
        schema = self.schema
        with self._open() as reader:
            if isinstance(reader, pa.RecordBatchFileReader):
                for number in range(reader.num_record_batches):
                    yield as_plain(reader.get_batch(number), schema)
            else:
                for batch in reader:
                    yield as_plain(batch, schema)
        self._copy.forget()

    @contextmanager
    def _open(self) -> Iterator[Any]:
        with table_errors(self.place, "an Arrow file"), open_raw(self.file, copy=self._copy, **self._options) as raw:
            is_file = raw.read(6) == b"ARROW1"
            raw.seek(0)
            source = pa.memory_map(str(self.file.path), "r") if self.file.url is None else pa.PythonFile(raw, mode="r")
            with pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source) as reader:
                yield reader
