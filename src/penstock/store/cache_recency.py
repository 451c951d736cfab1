"""When each cached file was last used, and whether it is still the same, at the price of a memory access.

A file of pairs of float64, one pair per entry of the database, mapped by all processes:

    time        seconds of the wall clock at the last use; 0 where there is no file to evict
    generation  grows with each change of the entry; even while its file may be used, odd while it may not

Times are advice, not accounting: if they are lost, all files count as equally old. Generations let a
process that has seen an entry once use its file again without asking the database: it pins the file
first and looks at the generation then; who takes files away changes that first and looks at pins then.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from penstock.node.disk import store_errors

FIRST_ENTRIES = 4096
ITEM_BYTES = 16
LEAST_BATCH = 1024
OLD = 1.0
"""Stands for a file of which is not known when it was used, and for one that should go first."""


class Seen(Protocol):
    """An entry as a process saw it."""

    id: int
    generation: float


S = TypeVar("S", bound=Seen)


class Recency:
    """The times and generations of one cache folder.

    Args:
        path: the file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with store_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._pairs: memoryview[float] = self._mapped(FIRST_ENTRIES)
        self._queue: list[tuple[int, float]] = []

    def touch(self, ids: Iterable[int], at: float) -> None:
        """Record that files are used."""
        for entry in ids:
            if 2 * entry >= len(self._pairs):
                self._reach(entry)
            self._pairs[2 * entry] = at

    def touch_same(self, seen: Iterable[S], at: float) -> list[S]:
        """Record that files are used, of the entries that have not changed since; give the others."""
        pairs = self._pairs
        others: list[S] = []
        for entry in seen:
            place = 2 * entry.id
            if pairs[place + 1] == entry.generation:
                pairs[place] = at
            else:
                others.append(entry)
        return others

    def generation(self, entry: int) -> float:
        """Give an entry's generation."""
        if self._file < 0:
            return 1.0
        if 2 * entry >= len(self._pairs):
            self._reach(entry)
        return self._pairs[2 * entry + 1]

    def renew(self, ids: Iterable[int]) -> None:
        """Say that the files of entries may be used, from now on."""
        for entry in ids:
            self._pairs[2 * entry + 1] = self.generation(entry) // 2 * 2 + 2

    def withdraw(self, ids: Iterable[int], at: float = 0.0) -> None:
        """Say that the files of entries may be used no longer; they are in line to go if `at` is above 0."""
        for entry in ids:
            self._pairs[2 * entry + 1] = self.generation(entry) // 2 * 2 + 1
            self._pairs[2 * entry] = at

    def adopt(self, ids: Iterable[int]) -> int:
        """Put those of the files that are in no line to the head of it; give how many they were."""
        lost = [entry for entry in ids if self.generation(entry) >= 0 and not self._pairs[2 * entry]]
        self.touch(lost, OLD)
        return len(lost)

    def next_oldest(self, count: int) -> list[int]:
        """Give the next entries in line, those that were not used for the longest time first; none when it ends."""
        found: list[int] = []
        while self._queue and len(found) < count:
            entry, time = self._queue.pop()
            # One that was used since it was put in line has a new place in it.
            if self._pairs[2 * entry] == time:
                found.append(entry)
        return found

    def put_back(self, entries: Sequence[int]) -> None:
        """Put entries that were given, oldest first, and not needed, at the head of the line again."""
        self._queue += [(entry, self._pairs[2 * entry]) for entry in reversed(entries)]

    def line_up(self) -> None:
        """Begin a new line, of the oldest sixteenth of all entries.

        Cost: a pass over all times, 10 ms for a million.
        """
        with self._lock:
            if self._file < 0:
                # At the end of the interpreter the parts of a cache go in any order.
                self._queue = []
                return
            if os.fstat(self._file).st_size > 8 * len(self._pairs):
                self._pairs = self._mapped(0)
        times = np.array(self._pairs).reshape(-1, 2)[:, 0]
        entries = np.flatnonzero(times)
        count = min(len(entries), max(LEAST_BATCH, len(entries) // 16))
        if count < len(entries):
            entries = entries[np.argpartition(times[entries], count)[:count]]
        order = entries[np.argsort(times[entries], kind="stable")[::-1]]
        self._queue = list(zip(order.tolist(), times[order].tolist(), strict=True))

    def _reach(self, entry: int) -> None:
        with self._lock:
            if 2 * entry >= len(self._pairs):
                with store_errors(self._path):
                    self._pairs = self._mapped(1 << (entry + 1).bit_length())

    def _mapped(self, entries: int) -> memoryview[float]:
        size = max(entries * ITEM_BYTES, os.fstat(self._file).st_size)
        if hasattr(os, "posix_fallocate"):
            # Real blocks: a page of a hole, written to when the disk is full, would end the process.
            os.posix_fallocate(self._file, 0, size)
        else:
            missing = size - os.fstat(self._file).st_size
            os.pwrite(self._file, bytes(missing), size - missing)
        return memoryview(mmap.mmap(self._file, size)).cast("d")

    def close(self) -> None:
        """Close the file; from then on no entry may be used."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self._pairs = memoryview(bytes(0)).cast("d")

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
