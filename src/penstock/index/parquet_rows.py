"""A local Parquet file as an index's rows, where it lies.

A row group can't be read but whole, and a shuffle asks for rows of all of them at once. So a row group that
is asked for is decoded once per node, to an Arrow file that all processes map; those nobody asks for are not
touched. What is decoded can be made again at any time: it is not forced to the disk, holds until the system
is booted again, and is removed with the index.

    a.parquet ──row group 7, when one of its rows is wanted──▶ FOLDER/<boot>/00007/rows.arrow, mapped
"""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.errors import ObjectChanged
from penstock.formats.files import store_errors
from penstock.formats.sources import SourceFile, source_file
from penstock.index.leading import leading
from penstock.index.parquet import BATCH_ROWS, open_parquet
from penstock.index.rows import BatchRows, Row, map_batches, write_batches
from penstock.index.scan import conform
from penstock.store.cache_book import boot_of_system

_FILE = "rows.arrow"
_TIMEOUT_S = 600.0
_MOST_THREADS = 8
_LEAST_ROWS = 1 << 12
_MOST_BATCHES = 1 << 9
_RELEASED = 8
"""Row groups between two times that memory which decoding took is given back."""


class ParquetRows:
    """The rows of a local Parquet file; see `penstock.index.rows.Rows`.

    Args:
        file: which, as it was when the index was made.
        schema: the columns wanted, by name, and the types they shall have; null where the file has none.
        folder: where row groups are decoded to.
        count: rows to take, from the first. None: all.
    """

    def __init__(
        self, file: SourceFile, schema: pa.Schema, *, folder: str | os.PathLike[str], count: int | None = None
    ) -> None:
        self.file, self.schema, self._folder, self._count = file, schema, Path(folder), count
        self._decoded = self._folder / boot_of_system()
        with open_parquet(file, {}) as table:
            sizes = [table.metadata.row_group(number).num_rows for number in range(table.num_row_groups)]
        self._size = batch_rows(sum(sizes))
        batches = [-(-size // self._size) for size in sizes]
        self._groups = np.repeat(np.arange(len(sizes)), batches)  # [k], the row group of each batch
        self._first = np.cumsum([0, *batches])  # [g + 1], the first batch of each row group
        ends = np.cumsum(
            [min(self._size, size - at) for size in sizes for at in range(0, size, self._size)], dtype=np.int64
        )
        if count is not None:
            ends = np.minimum(ends, count)
            ends = ends[: int(np.searchsorted(ends, count)) + 1]
        self._rows = BatchRows(schema, ends, self._batch)
        self._mapped: dict[int, Callable[[int], pa.RecordBatch]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.file, self.schema, self._folder, self._count)

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self, ids: np.ndarray, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values, decoding the row groups that none was read of before; see `Rows`."""
        if len(self._mapped) < len(self._first) - 1:
            groups = np.flatnonzero(np.bincount(self._groups[np.searchsorted(self._rows.ends, ids, "right")]))
            self._decode([group for group in groups.tolist() if group not in self._mapped])
        return self._rows.rows(ids, spare)

    def column(self, name: str) -> pa.ChunkedArray:
        """Give a column whole, decoded."""
        return pa.chunked_array(list(self.iter_column(name)), type=self.schema.field(name).type)

    def iter_column(self, name: str) -> Iterator[pa.Array]:
        """Decode a column, in order, some row groups side by side."""
        wanted, left = pa.schema([self.schema.field(name)]), len(self)
        threads = min(_MOST_THREADS, os.cpu_count() or 1)
        waiting: deque[Future[list[pa.RecordBatch]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            for group in range(len(self._first) - 1):
                waiting.append(pool.submit(self._read_group, group, wanted))
                if len(waiting) > threads:
                    for batch in waiting.popleft().result():
                        yield batch.column(0)[:left]
                        left -= min(left, len(batch))
                if not left:
                    return
            for future in waiting:
                for batch in future.result():
                    yield batch.column(0)[:left]
                    left -= min(left, len(batch))

    def _read_group(self, group: int, schema: pa.Schema) -> list[pa.RecordBatch]:
        with open_parquet(self.file, {}) as table:
            return list(self._batches_of(table, schema, row_groups=[group], use_threads=False))

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Decode all rows in order, a batch at a time; nothing is kept."""
        return self._read(self.schema)

    def _read(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        left = len(self)
        with open_parquet(self.file, {}) as table:
            for batch in self._batches_of(table, schema):
                yield batch[:left]
                left -= min(left, len(batch))
                if not left:
                    return

    def _batches_of(self, table: Any, schema: pa.Schema, **options: Any) -> Iterator[pa.RecordBatch]:
        names = [name for name in schema.names if name in table.schema_arrow.names]
        for batch in table.iter_batches(batch_size=BATCH_ROWS, columns=names, **options):
            yield conform(batch, schema)

    def _batch(self, number: int) -> pa.RecordBatch:
        group = int(self._groups[number])
        return self._map(group)(number - int(self._first[group]))

    def _decode(self, groups: list[int]) -> None:
        """Decode row groups side by side."""
        if len(groups) > 1:
            with ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1)) as pool:
                list(pool.map(self._map, groups))
            # What decoding took is of no use while rows are read.
            pa.default_memory_pool().release_unused()
        elif groups:
            self._map(groups[0])

    def _map(self, group: int) -> Callable[[int], pa.RecordBatch]:
        found = self._mapped.get(group)
        if found is None:
            path = self._decoded / f"{group:05d}" / _FILE
            if not path.exists():
                self._write(group, path)
            found = self._mapped[group] = map_batches(str(path))
        return found

    def _write(self, group: int, path: Path) -> None:
        if not self._decoded.exists() and self._folder.exists():
            # A crash of the system, which ends a boot, may have cut files short.
            for other in self._folder.iterdir():
                if other != self._decoded:
                    shutil.rmtree(other, ignore_errors=True)
        with store_errors(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
        with leading(path.parent, _TIMEOUT_S):
            if path.exists():
                return
            with open_parquet(self.file, {}) as table:
                names = [name for name in table.schema_arrow.names if name in self.schema.names]
                batches = table.iter_batches(
                    batch_size=self._size, row_groups=[group], columns=names, use_threads=False
                )
                even = (conform(batch, self.schema) for batch in _evenly(batches, self._size))
                write_batches(path, self.schema, even, synced=False)
            if not group % _RELEASED:
                # Each costs pages that are to be zeroed again, none at all memory of its own for every row group.
                pa.default_memory_pool().release_unused()
            if source_file(self.file.path).signature[1:] != self.file.signature[1:]:
                path.unlink()
                raise ObjectChanged(
                    f"{self.file.place} changed since its index was made: build the index again, and go on with that"
                )


def batch_rows(count: int) -> int:
    """Give the rows of each batch that row groups are decoded to: few, but not too many batches.

    Of a few columns they lie within a few hundred kilobytes. What is decoded is written while the processor's cache
    still has it, and a row that is read maps few of its neighbours. But of each batch each process knows the columns.

    >>> batch_rows(2_000_000), batch_rows(1_000_000_000)
    (4096, 16384)
    """
    return min(BATCH_ROWS, max(_LEAST_ROWS, 1 << (count // _MOST_BATCHES).bit_length()))


def _evenly(batches: Iterator[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    """Join batches that are short before the end: a batch's place says which rows it has."""
    waiting = list[pa.RecordBatch]()
    for batch in batches:
        if not waiting and len(batch) == size:
            yield batch
            continue
        waiting.append(batch)
        if sum(map(len, waiting)) >= size:
            whole = _joined(waiting)
            yield whole[:size]
            waiting = [whole[size:]] if len(whole) > size else []
    if waiting:
        yield _joined(waiting)


def _joined(batches: list[pa.RecordBatch]) -> pa.RecordBatch:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)


def _reopened(file: SourceFile, schema: pa.Schema, folder: Path, count: int | None) -> ParquetRows:
    return ParquetRows(file, schema, folder=folder, count=count)
