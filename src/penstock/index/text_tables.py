"""CSV, TSV and JSON as sources of rows: whole records in blocks, parsed side by side, handed on in order.

Such files name no types. The first block's are taken for the file's, and where a later value does not fit
them, the file is looked through once for types that hold all of it. A number is a number, true and false are
booleans; everything else, dates too, is the text that stands there. An empty field of CSV is null, unless it
is quoted.
"""

from __future__ import annotations

import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from penstock.errors import BadBlock
from penstock.formats.record_tables import QUOTE, csv_header, end_of_last_record, refuse_stray_quotes, separator
from penstock.formats.records import open_records
from penstock.formats.sources import SourceFile
from penstock.formats.streams import Opener, end_of_last_line, iter_blocks, last_of, open_raw
from penstock.index.scan import FileSource, TypesWidened, unified

BLOCK_BYTES = 2 << 20
EXACT = 1 << 53
"""From here on not every integer is a float."""
_MOST_THREADS = 8
_REPAIR = (
    "repair this row in the index, or take it out there, as a last one that was cut off: an index with such a row is "
    "not read in part, whatever on_error says, which is about samples"
)


class Blocks(Protocol):
    """How a kind of text file is cut and read."""

    @property
    def names(self) -> list[str]:
        """Columns that are there without any row."""

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read blocks of whole records, uint8, each in memory of its own."""

    def parse(self, block: np.ndarray, schema: pa.Schema | None) -> pa.Table:
        """Parse a block, as these types or whatever its values look like; ArrowInvalid if they don't fit."""


class TextSource(FileSource):
    """The rows of a CSV, TSV, JSON or JSON lines file; see `penstock.index.scan.Source`.

    Args:
        file: which.
        text_columns: columns of CSV whose values are text, numbers or not.
        storage_options: see `open_store`.
        small_bytes: a remote file of up to so many is kept from the first look at it until its rows were read.
    """

    def __init__(
        self, file: SourceFile, text_columns: frozenset[str], storage_options: dict[str, Any], small_bytes: int
    ) -> None:
        super().__init__(file)
        self._content: bytes | None = None
        self._open_raw: Opener = partial(open_raw, copy=self._copy, **storage_options)
        opener = self._open if file.url is not None and file.size_bytes <= small_bytes else self._open_raw
        self._blocks: Blocks = JsonBlocks(file, opener) if self.has_types else CsvBlocks(file, text_columns, opener)

    @property
    def has_types(self) -> bool:
        """Whether its values say what they are, as those of JSON do."""
        return self.file.kind not in ("csv", "tsv")

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns, as far as the first block shows them."""
        if self._schema is None:
            kinds = (self._blocks.parse(block, None).schema for block in self._blocks)
            first = next(kinds, None)
            self._schema = (
                pa.schema([(name, pa.null()) for name in self._blocks.names]) if first is None else _told(first)
            )
        return self._schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows, as many blocks at a time as there are cores; see `Source.batches`."""
        schema = self.schema
        for parsed in self._side_by_side(partial(self._typed, schema=schema)):
            if parsed is None:
                kinds = self._side_by_side(lambda block: _told(self._blocks.parse(block, None).schema))
                self._schema = unified([schema, *dict.fromkeys(kinds)], self.place)
                raise TypesWidened
            yield from parsed
        self._content = None
        self._copy.forget()

    @contextmanager
    def _open(self, file: SourceFile) -> Iterator[Any]:
        """Open a small remote file, whose content is kept until its rows were read."""
        if self._content is None:
            with self._open_raw(file) as raw:
                self._content = raw.read()
            self._copy.forget()
        yield io.BytesIO(self._content)

    def _typed(self, block: np.ndarray, schema: pa.Schema) -> list[pa.RecordBatch] | None:
        """Parse a block; None if it holds values that are not of these types."""
        try:
            table = self._blocks.parse(block, schema)
        except pa.ArrowInvalid:
            table = self._blocks.parse(block, None)
        return table.to_batches() if table.schema.equals(schema) else None

    def _side_by_side(self, work: Callable[[np.ndarray], Any]) -> Iterator[Any]:
        """Do something with each block, on as many threads as there are cores, results in order."""
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        waiting: deque[Future[Any]] = deque()
        with ThreadPoolExecutor(threads, thread_name_prefix="penstock-index") as pool:
            try:
                for block in self._blocks:
                    waiting.append(pool.submit(work, block))
                    if len(waiting) > threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()


def _told(schema: pa.Schema) -> pa.Schema:
    """Leave dates and the like as the text they are; what holds nothing fits any type."""
    return pa.schema(
        [pa.field(each.name, pa.string() if pa.types.is_temporal(each.type) else each.type) for each in schema]
    )


def _beyond_exact(table: pa.Table) -> list[str]:
    """Name the columns of floats in which there are such that may have been written as other integers."""
    import pyarrow.compute as pc

    found = []
    for field in table.schema:
        if pa.types.is_floating(field.type):
            least, most = pc.min_max(table.column(field.name)).as_py().values()
            if most is not None and max(-least, most) >= EXACT:
                found.append(field.name)
    return found


class CsvBlocks:
    """Records of CSV as RFC 4180 has it, separated by commas or tabs."""

    def __init__(self, file: SourceFile, text_columns: frozenset[str], opener: Any) -> None:
        self._file, self._text, self._opener = file, text_columns, opener
        self._header: tuple[list[str], int] | None = None

    @property
    def names(self) -> list[str]:
        """Columns that the first record names."""
        return self._names()[0]

    def _names(self) -> tuple[list[str], int]:
        if self._header is None:
            self._header = csv_header(self._file, self._opener)
        return self._header

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read blocks of whole records; the first record, which names the columns, is left out."""
        start = self._names()[1]
        for block, end in iter_blocks(self._file, 0, BLOCK_BYTES, self._end, self._opener):
            whole = block[max(0, start - (end - len(block))) :].copy()
            if len(whole):
                yield whole

    def _end(self, buffer: np.ndarray) -> int:
        end = end_of_last_record(buffer)
        if end != end_of_last_line(buffer):
            # A quote that is out of place looks like a field over many lines, perhaps all there are.
            whole = buffer[:end] if end else buffer
            if not end and np.count_nonzero(buffer == QUOTE) % 2:
                whole = buffer[: last_of(QUOTE, buffer)]
            refuse_stray_quotes(self._file, whole)
        return end

    def parse(self, block: np.ndarray, schema: pa.Schema | None) -> pa.Table:
        """Parse records; see `Blocks`.

        Raises:
            BadBlock: without types: they are no CSV, or have too few or too many fields.
        """
        import pyarrow.compute as pc

        table = self._parsed(block, schema)
        # What are integers to whoever wrote them stay exact: as text, as the whole column then is.
        found = {name: self._written(block, name) for name in _beyond_exact(table)}
        for name, written in found.items():
            if pc.any(pc.match_substring_regex(written, r"^[+-]?\d+$")).as_py():
                table = table.set_column(table.schema.names.index(name), name, written)
        return table

    def _written(self, block: np.ndarray, name: str) -> pa.ChunkedArray:
        """Give a column as the text that stands there."""
        return self._parsed(block, pa.schema([(name, pa.string())]), only=name).column(name)

    def _parsed(self, block: np.ndarray, schema: pa.Schema | None, only: str | None = None) -> pa.Table:
        import pyarrow.csv as pa_csv

        names = self.names
        text = [name for name in names if name in self._text]
        types = (
            dict.fromkeys(text, pa.string()) if schema is None else dict(zip(schema.names, schema.types, strict=True))
        )
        try:
            table = pa_csv.read_csv(
                pa.BufferReader(pa.py_buffer(block)),
                read_options=pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
                parse_options=pa_csv.ParseOptions(delimiter=separator(self._file), newlines_in_values=True),
                convert_options=pa_csv.ConvertOptions(
                    column_types=types,
                    include_columns=None if only is None else [only],
                    strings_can_be_null=True,
                    quoted_strings_can_be_null=False,
                    null_values=[""],
                ),
            )
        except pa.ArrowInvalid as error:
            if schema is not None:
                raise
            raise BadBlock(
                f"{self._file.place} is not CSV with the columns {', '.join(names)}: {error}; correct it, or "
                "write it as JSON lines"
            ) from error
        other = next((field.name for field in table.schema if pa.types.is_binary(field.type)), None)
        if other is not None:
            raise BadBlock(f"{self._file.place} is not UTF-8, in column {other!r}; write it anew in UTF-8")
        return table


class JsonBlocks:
    """Objects, a line each, or in one array."""

    def __init__(self, file: SourceFile, opener: Any) -> None:
        self._file, self._opener = file, opener

    @property
    def names(self) -> list[str]:
        """None: each object names its own."""
        return []

    def __iter__(self) -> Iterator[np.ndarray]:
        """Read lines that are known to be objects."""
        records = open_records(
            [self._file], on_nan="null", block_bytes=BLOCK_BYTES, opener=self._opener, advice=_REPAIR
        )
        for batch in records.read():
            if len(batch.data):
                yield batch.data.copy()

    def parse(self, block: np.ndarray, schema: pa.Schema | None) -> pa.Table:
        """Parse lines; see `Blocks`.

        Raises:
            BadBlock: without types: a field has values of several types.
        """
        import pyarrow.json as pa_json

        try:
            table = pa_json.read_json(
                pa.BufferReader(pa.py_buffer(block)),
                read_options=pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
                parse_options=pa_json.ParseOptions(explicit_schema=schema),
            )
        except pa.ArrowInvalid as error:
            if schema is not None:
                raise
            raise BadBlock(f"{self._file.place} is no table: {error}; give each field values of one type") from error
        for name in _beyond_exact(table):
            self._refuse_rounded(block, table.column(name), name)
        return table

    def _refuse_rounded(self, block: np.ndarray, floats: pa.ChunkedArray, name: str) -> None:
        """Refuse integers that floats do not hold."""
        import pyarrow.compute as pc

        rows = pc.indices_nonzero(pc.fill_null(pc.greater_equal(pc.abs(floats), float(EXACT)), False)).to_pylist()
        lines = [line for line in block.tobytes().split(b"\n") if line.strip()]
        for row in rows:
            value = json.loads(lines[row]).get(name)
            if isinstance(value, int):
                raise BadBlock(
                    f"{self._file.place}: field {name!r} holds the integer {value} beside numbers that are none, or "
                    "beyond 64 bits, where it would be rounded: write this field as text, in quotes"
                )
