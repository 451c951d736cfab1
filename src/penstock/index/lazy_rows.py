"""Rows of Parquet files that are read when they are needed, part by part.

    row ──▶ block of row groups ──▶ decoded once per node: FOLDER/00042/rows.arrow, mapped by all processes

Nothing is known up front but how many rows each row group has. A block is one row group, or several short ones
that follow one another. Of a block the first process that needs it makes an Arrow file, the others map that.
Only the latest KEPT blocks keep their files, so an index of any size takes little of the disk; a file that is
removed stays mapped where it is.
"""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.errors import BadBlock, ObjectMissing, StoreError
from penstock.formats.files import store_errors
from penstock.formats.sources import SourceFile
from penstock.index.leading import leading
from penstock.index.parquet_groups import iter_groups, read_metadata
from penstock.index.rows import BatchRows, Row, map_rows, write_batches
from penstock.index.scan import conform

KEPT = 64
"""Blocks that stay: more than two windows of a shuffle, which has sixteen blocks unless it is told otherwise."""
_FILE = "rows.arrow"
_TIMEOUT_S = 600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Block:
    """Row groups that are read together."""

    file: int
    """Which of the files."""
    groups: tuple[int, ...]
    """Which of its row groups; they follow one another."""
    rows: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LazyPlan:
    """What is read when, and how."""

    files: tuple[SourceFile, ...]
    blocks: tuple[Block, ...]
    schema: pa.Schema
    """The columns wanted; null where a file has none."""
    folder: Path
    """Where blocks are decoded to."""
    count: int
    """Rows in all; of the last blocks perhaps not all."""
    threads: int
    """Blocks that a process reads at the same time."""
    ahead: int
    """Blocks that may wait to be read before they are needed, for each thread."""
    storage_options: Mapping[str, Any]

    def __repr__(self) -> str:
        # Storage options may hold secrets.
        return f"LazyPlan({len(self.files)} files, {len(self.blocks)} blocks, {self.count:,} rows)"


def blocks_of(sizes: Sequence[np.ndarray], least: int) -> tuple[Block, ...]:
    """Join row groups of each file, int64 [g] rows each, to blocks of at least `least` rows where it has so many.

    >>> [(b.file, b.groups, b.rows) for b in blocks_of([np.array([5, 5, 20, 5]), np.array([3])], 10)]
    [(0, (0, 1), 10), (0, (2,), 20), (0, (3,), 5), (1, (0,), 3)]
    """
    found: list[Block] = []
    for file, groups in enumerate(sizes):
        joined: list[int] = []
        rows = 0
        for group, size in enumerate(groups.tolist()):
            joined.append(group)
            rows += size
            if rows >= least or group == len(groups) - 1:
                if rows:
                    found.append(Block(file=file, groups=tuple(joined), rows=rows))
                joined, rows = [], 0
    return tuple(found)


class LazyRows:
    """The rows of Parquet files, read part by part; see `penstock.index.rows.Rows`."""

    def __init__(self, plan: LazyPlan) -> None:
        self.plan, self.schema = plan, plan.schema
        ends = np.minimum(np.cumsum([block.rows for block in plan.blocks], dtype=np.int64), plan.count)
        self._ends = ends[: int(np.searchsorted(ends, plan.count)) + 1]
        self._starts = np.concatenate([np.zeros(1, np.int64), self._ends])
        self._lock = threading.Lock()
        self._blocks: OrderedDict[int, Future[BatchRows]] = OrderedDict()
        self._waiting: deque[int] = deque()
        self._workers = 0
        self._metadata: dict[int, Any] = {}
        _lazy.add(self)

    def _after_fork(self) -> None:
        """Read anew, in a forked child, what the parent's threads were reading."""
        self._lock = threading.Lock()
        self._blocks = OrderedDict((number, block) for number, block in self._blocks.items() if block.done())
        self._waiting.clear()
        self._workers = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.plan,)

    def __len__(self) -> int:
        return self.plan.count

    @property
    def block_ends(self) -> np.ndarray:
        """Where each block ends, int64 [k]."""
        return self._ends

    def rows(self, ids: np.ndarray, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values, reading what blocks of theirs are not there yet; see `Rows`."""
        numbers = np.searchsorted(self._ends, ids, "right")
        wanted = np.unique(numbers).tolist()
        blocks = self._begin(wanted)
        found: list[Row] = [{}] * len(ids)
        for number, block in zip(wanted, blocks, strict=True):
            places = np.flatnonzero(numbers == number)
            rows = self._arrived(number, block).rows(ids[places] - self._starts[number], spare)
            for place, row in zip(places.tolist(), rows, strict=True):
                found[place] = row
        return found

    def _arrived(self, number: int, block: Future[BatchRows]) -> BatchRows:
        try:
            return block.result(_TIMEOUT_S)
        except FutureTimeout:
            file = self.plan.files[self.plan.blocks[number].file]
            raise StoreError(
                f"rows {self._starts[number]:,} to {self._ends[number]:,} of the index did not arrive within "
                f"{_TIMEOUT_S:g} s from {file.place}: see whether it can be read, and whether {self.plan.folder} can "
                "be written"
            ) from None

    def prefetch(self, ids: np.ndarray) -> None:
        """Begin to read the blocks of rows, as many as may be read ahead; returns at once."""
        numbers, firsts = np.unique(np.searchsorted(self._ends, ids, "right"), return_index=True)
        room = self.plan.threads * self.plan.ahead - len(self._waiting)
        coming = [number for number in numbers[np.argsort(firsts)].tolist() if number not in self._blocks]
        if room > 0 and coming:
            self._begin(coming[:room])

    def column(self, name: str) -> pa.ChunkedArray:
        """Read a column whole, from all files."""
        wanted = pa.schema([self.schema.field(name)])
        return pa.chunked_array([batch.column(0) for batch in self._all(wanted)], type=wanted.field(0).type)

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in order, from where they are; nothing of it is kept."""
        return self._all(self.schema)

    def _all(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        left = len(self)
        for block in self.plan.blocks:
            for batch in self._read(block, schema):
                yield batch[:left]
                left -= len(batch)
                if left <= 0:
                    return

    def _begin(self, numbers: Sequence[int]) -> list[Future[BatchRows]]:
        """Begin to read blocks that are not there; give all, those that were last needed kept."""
        with self._lock:
            found = []
            for number in numbers:
                block = self._blocks.pop(number, None)
                if block is None or (block.done() and block.exception() is not None):
                    # One that failed is tried again by who needs it next.
                    block = Future[BatchRows]()
                    self._waiting.append(number)
                self._blocks[number] = block
                found.append(block)
            while len(self._blocks) > max(KEPT, len(numbers)):
                oldest = next(iter(self._blocks))
                if not self._blocks[oldest].done():
                    break
                del self._blocks[oldest]
            while self._workers < min(self.plan.threads, len(self._waiting)):
                self._workers += 1
                threading.Thread(target=self._work, name="penstock-lazy-index", daemon=True).start()
        return found

    def _work(self) -> None:
        """Read blocks while some wait; then the thread ends."""
        while True:
            with self._lock:
                if not self._waiting:
                    self._workers -= 1
                    return
                number = self._waiting.popleft()
                future = self._blocks[number]
            try:
                future.set_result(self._decoded(number))
            except BaseException as error:  # noqa: BLE001 - it is raised again, by who asks for the rows
                future.set_exception(error)

    def _decoded(self, number: int) -> BatchRows:
        """Map a block's Arrow file, made first if it is not there."""
        folder = self.plan.folder / f"{number:07d}"
        path = folder / _FILE
        with suppress(ObjectMissing, BadBlock):
            rows = map_rows(str(path))
            os.utime(path)
            return rows
        with store_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with leading(folder, _TIMEOUT_S):
            with suppress(ObjectMissing, BadBlock):
                return map_rows(str(path))
            write_batches(path, self.schema, self._read(self.plan.blocks[number], self.schema))
            # What Arrow keeps for the next time would be kept by each thread that ever reads.
            pa.default_memory_pool().release_unused()
            rows = map_rows(str(path))
        self._tidy()
        return rows

    def _read(self, block: Block, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Read a block's rows from where they are."""
        file, options = self.plan.files[block.file], self.plan.storage_options
        metadata = self._metadata.get(block.file)
        if metadata is None:
            metadata = self._metadata[block.file] = read_metadata(file, options)
        for batch in iter_groups(file, metadata, block.groups, schema.names, options):
            yield conform(batch, schema)

    def _tidy(self) -> None:
        """Remove the files of blocks that were not used for longest."""
        used: list[tuple[int, str]] = []
        with os.scandir(self.plan.folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    used.append((os.stat(f"{entry.path}/{_FILE}").st_mtime_ns, entry.path))
        for _, path in sorted(used)[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)


_lazy: weakref.WeakSet[LazyRows] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for rows in list(_lazy):
        rows._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
