"""Rows by number, of tables that need not fit in memory.

Rows lie in record batches of an Arrow file that is mapped, not read: what nobody asks for is never loaded,
and all processes of a node share what is. A row becomes Python values without a copy of anything but
itself: each column of a batch is a memory view, or a closure over two, so a row costs a few microseconds
wherever it lies, and a row in a batch of rows no more than that.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from penstock.errors import BadBlock, ObjectMissing
from penstock.formats.files import atomic_write

Row = dict[str, Any]
Reader = Callable[[int], Any]
_EMPTY: dict[int, Any] = {}
_NOTHING: Reader = _EMPTY.get
"""Reads None everywhere."""
_FORMATS = {
    pa.int8(): "b",
    pa.uint8(): "B",
    pa.int16(): "h",
    pa.uint16(): "H",
    pa.int32(): "i",
    pa.uint32(): "I",
    pa.int64(): "q",
    pa.uint64(): "Q",
    pa.float32(): "f",
    pa.float64(): "d",
}


class Rows(Protocol):
    """What an index stands on. All methods may be called from any thread; pickling carries places, not data."""

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""

    def __len__(self) -> int: ...

    def rows(self, ids: np.ndarray, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values, None where there is none, and in the columns that are to be spared.

        Args:
            ids: int64 [n], all of them in range.
            spare: names of columns.
        """

    def column(self, name: str) -> pa.ChunkedArray:
        """Give a column whole, without a copy where it is mapped."""

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in order, a batch at a time."""


class BatchRows:
    """The rows of some record batches, each of them given when it is first needed.

    Args:
        schema: what all of them have.
        ends: int64 [k], ascending: where each batch ends.
        batch: gives the batch of a number.
    """

    def __init__(self, schema: pa.Schema, ends: np.ndarray, batch: Callable[[int], pa.RecordBatch]) -> None:
        self.schema, self.ends = schema, ends
        self._batch = batch
        self._starts = np.concatenate([np.zeros(1, np.int64), ends])
        self._readers: dict[frozenset[str], dict[int, list[tuple[str, Reader]]]] = {}
        """What reads the columns of a batch, by those that are spared and the batch's number."""

    @staticmethod
    def of(schema: pa.Schema, batches: Sequence[pa.RecordBatch]) -> BatchRows:
        """Make rows of batches that are there."""
        full = [batch for batch in batches if len(batch)]
        return BatchRows(schema, np.cumsum([len(batch) for batch in full], dtype=np.int64), full.__getitem__)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).of, (self.schema, self.batches)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def batches(self) -> list[pa.RecordBatch]:
        """All of them, in order."""
        return list(self.iter_batches())

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Give all of them, in order."""
        return map(self._batch, range(len(self.ends)))

    def rows(self, ids: np.ndarray, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values; see `Rows`."""
        numbers = np.searchsorted(self.ends, ids, "right")
        known = self._readers.setdefault(spare, {})
        return [
            {name: read(row) for name, read in known.get(number) or self._readers_of(number, spare)}
            for number, row in zip(numbers.tolist(), (ids - self._starts[numbers]).tolist(), strict=True)
        ]

    def _readers_of(self, number: int, spare: frozenset[str]) -> list[tuple[str, Reader]]:
        batch = self._batch(number)
        found = self._readers[spare][number] = [
            (name, _NOTHING if name in spare else reader(batch.column(i))) for i, name in enumerate(batch.schema.names)
        ]
        return found

    def column(self, name: str) -> pa.ChunkedArray:
        """Give a column whole, without a copy."""
        field = self.schema.field(name)
        return pa.chunked_array([batch.column(name) for batch in self.batches], type=field.type)


class MappedRows:
    """The rows of an Arrow file on a disk, mapped when they are first asked for.

    Args:
        path: the file, uncompressed; it may be removed while it is mapped.

    Raises:
        ObjectMissing: it is not there.
        BadBlock: it is no Arrow file, or truncated.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._opening = Lock()
        self._opened: BatchRows | None = None
        self._map()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def _map(self) -> BatchRows:
        with self._opening:
            if self._opened is None:
                self._opened = map_rows(self.path)
            return self._opened

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._map().schema

    def __len__(self) -> int:
        return len(self._map())

    def rows(self, ids: np.ndarray, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values; see `Rows`."""
        return (self._opened or self._map()).rows(ids, spare)

    def column(self, name: str) -> pa.ChunkedArray:
        """Give a column whole, without a copy."""
        return self._map().column(name)

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Give all rows in order, without a copy."""
        return self._map().iter_batches()


def map_rows(path: str) -> BatchRows:
    """Map an Arrow file.

    Raises:
        ObjectMissing, BadBlock: see `MappedRows`.
    """
    with _reported(path):
        reader = _mapped(path)
        return BatchRows.of(reader.schema, [reader.get_batch(number) for number in range(reader.num_record_batches)])


def map_batches(path: str) -> Callable[[int], pa.RecordBatch]:
    """Map an Arrow file of many batches, of which nothing is looked at before it is needed.

    Returns:
        Gives the batch of a number; may be called from any thread.

    Raises:
        ObjectMissing, BadBlock: see `MappedRows`; the second by the function returned too.
    """
    with _reported(path):
        reader = _mapped(path)
        # What all batches share is read with the first: from then on nothing is changed by reading.
        reader.get_batch(0)

    def batch(number: int) -> pa.RecordBatch:
        with _reported(path):
            return reader.get_batch(number)

    return batch


def _mapped(path: str) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(pa.memory_map(path, "r"))


@contextmanager
def _reported(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ObjectMissing(f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise BadBlock(f"{path} cannot be read as an Arrow file: {error}; remove it, it will be made again") from error


def write_batches(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch], *, synced: bool = True) -> None:
    """Write an Arrow file to be mapped; it is there when all of it is.

    Args:
        path: where.
        schema: what all batches have.
        batches: in order.
        synced: force it to the disk, so that it is whole after a crash of the system too.
    """
    with (
        atomic_write(path, synced=synced) as file,
        pa.OSFile(file.name, "wb") as out,
        pa.ipc.new_file(out, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def reader(array: pa.Array) -> Reader:
    """Make what reads one value of a column as Python does, None where there is none."""
    read = _plain_reader(array)
    if read is None:
        return lambda row: array[row].as_py()
    if not array.null_count:
        return read
    valid, shift, read_valid = memoryview(array.buffers()[0]), array.offset, read

    def read_or_none(row: int) -> Any:
        bit = row + shift
        return read_valid(row) if valid[bit >> 3] >> (bit & 7) & 1 else None

    return read_or_none


def _plain_reader(array: pa.Array) -> Reader | None:
    """Make what reads a value that is known to be there; None for types that are left to Arrow."""
    kind, start, stop = array.type, array.offset, array.offset + len(array)
    if kind in _FORMATS:
        return _as_numbers(array.buffers()[1], _FORMATS[kind])[start:stop].__getitem__
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        _, offsets, data = array.buffers()
        places = _as_numbers(offsets, "i" if pa.types.is_string(kind) else "q")[start : stop + 1]
        text = memoryview(data) if data is not None else memoryview(b"")
        return lambda row: str(text[places[row] : places[row + 1]], "utf-8")
    return None


def _as_numbers(buffer: pa.Buffer, width: Any) -> memoryview[Any]:
    """View a buffer as numbers; a slice of one may have any length."""
    view = memoryview(buffer).cast("B")
    return view[: len(view) - len(view) % struct.calcsize(width)].cast(width)
