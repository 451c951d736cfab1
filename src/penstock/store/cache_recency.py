"""When each cached file was last used, for all processes, at the price of a memory access.

A file of float64, one per entry of the database, mapped by all: seconds of the wall clock, 0 where there
is no file to evict. It is advice, not accounting: if it is lost, all files count as equally old.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from penstock.node.disk import store_errors

FIRST_ENTRIES = 4096
ITEM_BYTES = 8
LEAST_BATCH = 1024
OLD = 1.0
"""Stands for a file of which is not known when it was used."""


class Recency:
    """The times of use of one cache folder.

    Args:
        path: the file; made if it is missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with store_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._times: memoryview[float] = self._mapped(FIRST_ENTRIES)
        self._queue: list[tuple[int, float]] = []

    def touch(self, ids: Iterable[int], at: float) -> None:
        """Record that files are used."""
        times = self._times
        for entry in ids:
            if entry >= len(times):
                times = self._reach(entry)
            times[entry] = at

    def forget(self, ids: Iterable[int]) -> None:
        """Take files out of the order."""
        self.touch(ids, 0.0)

    def adopt(self, ids: Iterable[int]) -> int:
        """Put those of the files that are in no order to its front; give how many they were."""
        count = 0
        for entry in ids:
            if entry >= len(self._times):
                self._reach(entry)
            if not self._times[entry]:
                self._times[entry] = OLD
                count += 1
        return count

    def next_oldest(self, count: int) -> list[int]:
        """Give the next entries in line, those that were not used for the longest time first; none when it ends."""
        found: list[int] = []
        while self._queue and len(found) < count:
            entry, time = self._queue.pop()
            # One that was used since it was put in line has a new place in it.
            if self._times[entry] == time:
                found.append(entry)
        return found

    def put_back(self, entries: Sequence[int]) -> None:
        """Put entries that were given, oldest first, and not needed, at the head of the line again."""
        self._queue += [(entry, self._times[entry]) for entry in reversed(entries)]

    def line_up(self) -> None:
        """Begin a new line, of the oldest sixteenth of all entries.

        Cost: a pass over all times, 10 ms for a million.
        """
        with self._lock:
            if os.fstat(self._file).st_size // ITEM_BYTES > len(self._times):
                self._times = self._mapped(0)
        times = np.array(self._times)
        entries = np.flatnonzero(times)
        count = min(len(entries), max(LEAST_BATCH, len(entries) // 16))
        if count < len(entries):
            entries = entries[np.argpartition(times[entries], count)[:count]]
        order = entries[np.argsort(times[entries], kind="stable")[::-1]]
        self._queue = list(zip(order.tolist(), times[order].tolist(), strict=True))

    def _reach(self, entry: int) -> memoryview[float]:
        with self._lock:
            if entry >= len(self._times):
                with store_errors(self._path):
                    self._times = self._mapped(1 << (entry + 1).bit_length())
            return self._times

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
        """Close the file; what is mapped stays until nobody uses it."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self.close()
