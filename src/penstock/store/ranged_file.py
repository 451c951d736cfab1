"""A remote object as a file: seekable, read by ranges, with bounded memory.

What Arrow, Parquet and decompressors want is a file. Reads that follow one another are a scan: they are
served from windows that grow up to READ_AHEAD, the next one on its way while this one is used. Reads that
jump are what they are: the range asked for, and the little beside it that costs no other request.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from penstock.errors import StoreError
from penstock.store.failures import RangesIgnored
from penstock.store.seekable import SeekableFile
from penstock.store.store import ObjectInfo, Store, open_store
from penstock.store.whole_copy import WholeCopy
from penstock.types import check_int

READ_AHEAD = 8 << 20
FIRST_WINDOW = 64 << 10
NOTHING = (0, b"")


def open_file(
    url: str | os.PathLike[str],
    *,
    info: ObjectInfo | None = None,
    known: tuple[int, bytes] = NOTHING,
    read_ahead: int = READ_AHEAD,
    copy: WholeCopy | None = None,
    **storage_options: Any,
) -> RangedFile:
    """Open an object, or a local file, for reading at any position.

    Args:
        url: see `open_store`.
        info: its description, where it is known already: saves a request.
        known: bytes of it that are there already, behind where they begin.
        read_ahead: bytes of the largest window of a scan; twice that is the most that is held.
        copy: where the whole object is taken to if its server sends no ranges. None: that is an error.
        storage_options: see `open_store`.

    Returns:
        A binary file with read, readinto, seek, tell and size; pyarrow takes it as it is.

    Raises:
        ObjectMissing, AccessDenied, StoreUnavailable: at once, not at the first read.
    """
    check_int("read_ahead", read_ahead, minimum=FIRST_WINDOW)
    store = open_store(url, **storage_options)
    return RangedFile(store, "", info=info or store.head(), known=known, read_ahead=read_ahead, copy=copy)


class RangedFile(SeekableFile):
    """An object of a store as a seekable, read-only file. One reader at a time, as with any file.

    Args:
        store: where it is.
        path: which it is.
        info: its description; reading a changed object raises ObjectChanged.
        known: see `open_file`.
        read_ahead: see `open_file`.
        copy: see `open_file`.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        *,
        info: ObjectInfo,
        known: tuple[int, bytes] = NOTHING,
        read_ahead: int = READ_AHEAD,
        copy: WholeCopy | None = None,
    ) -> None:
        super().__init__()
        self.size = info.size
        self._store, self._path, self._info, self._read_ahead = store, path, info, read_ahead
        self._copy = copy
        self._start, self._window = known
        self._grown = FIRST_WINDOW
        self._scan_at = 0
        self._next: tuple[int, Future[bytes]] | None = None

    def __repr__(self) -> str:
        return f"RangedFile({self._store.url!r}, {self._path!r})"

    @property
    def info(self) -> ObjectInfo:
        """What the store said about the object when it was opened."""
        return self._info

    def read(self, size: int | None = -1) -> bytes:
        """Read `size` bytes, less only at the end of the object; all that is left if negative or None."""
        self._check_open()
        left = max(0, self.size - self._at)
        wanted = left if size is None or size < 0 else min(size, left)
        data = self._bytes(self._at, self._at + wanted) if wanted else b""
        self._at += len(data)
        return data

    def readall(self) -> bytes:
        """Read all that is left."""
        return self.read(-1)

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer from the position; gives the number of bytes, 0 at the end."""
        view = memoryview(buffer).cast("B")
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    def read_at(self, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) without moving the position."""
        self._check_open()
        if not 0 <= start <= stop <= self.size:
            raise StoreError(f"bytes {start:,} to {stop:,} were asked of {self!r}, which has {self.size:,}")
        return self._bytes(start, stop) if stop > start else b""

    def close(self) -> None:
        """Let go of the windows, and of the one on its way."""
        self._forget_next()
        self._window = b""
        super().close()

    def _forget_next(self) -> None:
        if self._next is not None:
            self._next[1].cancel()
            self._next = None

    def _check_open(self) -> None:
        if self.closed:
            raise StoreError(f"{self!r} is closed")

    def _bytes(self, start: int, stop: int) -> bytes:
        inside = start - self._start
        if inside >= 0 and stop <= self._start + len(self._window):
            self._scan_at = stop
            return self._window[inside : inside + stop - start]
        scanning = start == self._scan_at and start > 0
        self._scan_at = stop
        if not scanning:
            return self._jump(start, stop)
        return self._scan(start, stop)

    def _jump(self, start: int, stop: int) -> bytes:
        """Read a range that does not continue the last, and a little more: a footer, a header, a small file."""
        self._grown = FIRST_WINDOW
        begin, end = start, stop
        if stop - start < FIRST_WINDOW:
            end = min(self.size, start + FIRST_WINDOW)
            begin = max(0, min(start, end - FIRST_WINDOW))
        data = self._fetch(begin, end)
        if len(data) <= self._read_ahead:
            self._start, self._window = begin, data
        return data[start - begin : stop - begin]

    def _scan(self, start: int, stop: int) -> bytes:
        """Read a range that continues the last: from this window, the one on its way, and a larger one after it."""
        have = self._window[start - self._start :] if self._start <= start else b""
        at = start + len(have)
        pieces = [have] if have else []
        if self._next is not None and self._next[0] == at:
            # Taken first: a failure is raised once, and the next read asks again.
            ahead, self._next = self._next[1], None
            arrived = self._ranged(ahead.result, at, at + self._grown)
            self._start, self._window = at, arrived
            pieces.append(arrived[: stop - at])
            at += len(arrived)
        self._forget_next()
        self._grown = min(self._read_ahead, self._grown * 2)
        if at < stop:
            end = min(self.size, max(stop, at + self._grown))
            data = self._fetch(at, end)
            pieces.append(data[: stop - at])
            keep = max(0, stop - at)
            # A long read is not kept twice: only what lies beyond it is.
            self._start, self._window = (at, data) if len(data) <= self._read_ahead else (at + keep, data[keep:])
            at = end
        self._fetch_ahead(at)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _fetch(self, start: int, stop: int) -> bytes:
        copied = None if self._copy is None else self._copy.read(start, stop)
        if copied is not None:
            return copied
        return self._ranged(lambda: self._store.get_range(self._path, start, stop, etag=self._info.etag), start, stop)

    def _ranged(self, answer: Callable[[], bytes], start: int, stop: int) -> bytes:
        """Take up the answer to a request for a range; where it is that there are none, the whole object is taken."""
        try:
            return answer()
        except StoreError as error:
            if self._copy is None or not isinstance(error.__cause__, RangesIgnored):
                raise
        return self._copy.take(self._store, self._path, self._info, start, stop)

    def _fetch_ahead(self, start: int) -> None:
        """Begin to fetch the next window of a scan."""
        if start >= self.size or (self._copy is not None and self._copy.taken):
            return
        stop = min(self.size, start + self._grown)
        future = self._store.begin_range(self._path, start, stop, etag=self._info.etag)
        self._next = (start, future)
