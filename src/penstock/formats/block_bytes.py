"""The bytes of one file of a folder of blocks, local or remote: ranges of it, one or many at a time."""

from __future__ import annotations

import mmap
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from penstock.errors import BadBlock, ObjectMissing, StoreError

COLD_READ_S = 30e-6
"""A read that takes longer waits for the disk: then the system is told of all that follow before the next one."""
PROBES = 16


class BlockBytes(Protocol):
    """What can be read by ranges of bytes."""

    name: str
    """Path or URL, for errors."""
    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes [start, stop)."""

    def read_many(self, spans: np.ndarray) -> list[Any]:
        """Give several ranges, int64 [n, 2], as bytes or views of bytes."""

    def close(self) -> None:
        """Let go of the file."""


class LocalBytes:
    """A file on a local disk, by `pread`: what is read leaves nothing behind in this process's memory.

    Args:
        path: the file.

    Raises:
        BadBlock: it is missing.
        StoreError: it can't be opened.
    """

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        try:
            self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except FileNotFoundError as error:
            raise BadBlock(f"{path} is missing: fetch it again, or build the blocks anew") from error
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror or error}") from error
        self._close = weakref.finalize(self, os.close, self.fd)
        status = os.fstat(self.fd)
        self.size, self.mtime_ns = status.st_size, status.st_mtime_ns

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes [start, stop)."""
        parts = []
        # One call gives at most 2 GiB.
        while start < stop and (part := os.pread(self.fd, stop - start, start)):
            parts.append(part)
            start += len(part)
        if start < stop:
            raise shorter(self.name)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def read_many(self, spans: np.ndarray) -> list[bytes]:
        """Give several ranges."""
        starts, sizes = spans[:, 0].tolist(), (spans[:, 1] - spans[:, 0]).tolist()
        return read_scattered([self] * len(starts), starts, sizes)

    def close(self) -> None:
        """Close the file, which otherwise ends with the object, so that nobody's read is cut off."""
        self._close()
        self.fd = -1


class MappedBytes:
    """A file on a local disk, mapped: the quickest to read, and what was read counts as this process's memory.

    A file that is cut while it is mapped cannot be told by reading: the system ends the process (SIGBUS).
    """

    def __init__(self, path: Path) -> None:
        file = LocalBytes(path)
        self.name, self.size, self.mtime_ns = file.name, file.size, file.mtime_ns
        # Its size is checked before anything is read: touching a page behind the end of a mapped file kills a process.
        self._map = mmap.mmap(file.fd, file.size, prot=mmap.PROT_READ) if file.size else b""
        self.view = memoryview(self._map)
        file.close()

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes [start, stop)."""
        return bytes(self.view[start:stop])

    def read_many(self, spans: np.ndarray) -> list[memoryview]:
        """Give several ranges, as views of the file."""
        view = self.view
        return [view[start:stop] for start, stop in spans.tolist()]

    def close(self) -> None:
        """The pages go with the last object that refers to them."""


class RemoteBytes:
    """An object in a store, by ranged requests."""

    def __init__(self, store: Any, path: str, name: str, size: int) -> None:
        self._store = store
        self._path = path
        self.name = name
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        """Give the bytes [start, stop), by one request."""
        with self._reported():
            return self._whole(self._store.get_range(self._path, start, stop), stop - start)

    def read_many(self, spans: np.ndarray) -> list[bytes]:
        """Give several ranges; the requests run at the same time, near ranges come in one."""
        starts, stops = spans[:, 0].tolist(), spans[:, 1].tolist()
        with self._reported():
            parts = self._store.get_ranges(self._path, starts, stops)
        return [self._whole(part, stop - start) for part, start, stop in zip(parts, starts, stops, strict=True)]

    def close(self) -> None:
        """Nothing is open."""

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except ObjectMissing as error:
            raise BadBlock(f"{self.name} is missing: upload it again") from error

    def _whole(self, part: Any, size: int) -> bytes:
        if len(part) != size:
            raise shorter(self.name)
        return bytes(part)


def read_scattered(files: list[LocalBytes], starts: list[int], sizes: list[int]) -> list[bytes]:
    """Read one range of each of n files, which may be the same one many times.

    Where the first few show that the disk is waited for, the system is told of all others at once, so
    that the disk works on them together.

    Raises:
        BadBlock: a file ends before a range does.
    """
    pread, fds = os.pread, [file.fd for file in files]
    began = time.perf_counter()
    parts = list(map(pread, fds[:PROBES], sizes, starts))
    if len(fds) > PROBES:
        if time.perf_counter() - began > COLD_READ_S * PROBES and hasattr(os, "posix_fadvise"):
            list(map(os.posix_fadvise, fds[PROBES:], starts[PROBES:], sizes[PROBES:], repeat(os.POSIX_FADV_WILLNEED)))
        parts += map(pread, fds[PROBES:], sizes[PROBES:], starts[PROBES:])
    if list(map(len, parts)) != sizes:
        short = next(place for place, part in enumerate(parts) if len(part) != sizes[place])
        raise shorter(files[short].name)
    return parts


def shorter(name: str) -> BadBlock:
    """Say that a file ends before it should."""
    return BadBlock(f"{name} is shorter than it was when it was opened: fetch it again, or build the blocks anew")
