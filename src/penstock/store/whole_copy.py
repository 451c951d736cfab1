"""A copy of an object whose server sends no ranges: the whole object, taken once, for reading at any position."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from tempfile import SpooledTemporaryFile, gettempdir
from typing import TYPE_CHECKING, BinaryIO, cast

from penstock.errors import ObjectChanged
from penstock.node.disk import store_errors
from penstock.store.store import ObjectInfo, Store

if TYPE_CHECKING:
    from penstock.store.remote import RemoteStore

IN_MEMORY = 8 << 20
"""A larger copy lies in a file without a name, in the folder for temporary files (TMPDIR)."""
MOST = 8
"""Copies that a process holds; of more, those taken first go, and are taken again when they are needed."""
_taken: deque[weakref.ref[WholeCopy]] = deque()
_lock = threading.Lock()


class WholeCopy:
    """Room for a copy of one object, empty until it is taken. It is gone with whoever holds this, or by `forget`."""

    def __init__(self) -> None:
        self._file: SpooledTemporaryFile[bytes] | None = None
        self._closing: weakref.finalize[..., WholeCopy] | None = None
        self._lock = threading.Lock()

    @property
    def taken(self) -> bool:
        """Whether there is a copy."""
        return self._file is not None

    def read(self, start: int, stop: int) -> bytes | None:
        """Read bytes [start, stop), fewer if it ends before; None if there is no copy."""
        with self._lock:
            if self._file is None:
                return None
            self._file.seek(start)
            return self._file.read(stop - start)

    def take(self, store: Store, path: str, info: ObjectInfo, start: int, stop: int) -> bytes:
        """Take the object and read bytes [start, stop) of it.

        Args:
            store: where it is: one over the network, since only such refuse ranges.
            path: which it is.
            info: what it was when it was opened.
            start: the first byte.
            stop: behind the last.

        Raises:
            ObjectChanged: it is another by now.
            ObjectMissing, AccessDenied, StoreUnavailable, StoreError: it can't be had, or not be kept.
        """
        with self._lock:
            with store_errors(gettempdir()):
                file = SpooledTemporaryFile(IN_MEMORY, prefix="penstock-whole-")  # noqa: SIM115 - it stays open
            try:
                size, etag = cast("RemoteStore", store).copy_to(path, cast(BinaryIO, file))
                if size != info.size or etag not in (info.etag, None):
                    raise ObjectChanged(
                        f"{store.url} changed while it was read: it had {info.size:,} bytes ({info.etag}) and has "
                        f"{size:,} ({etag}). Start again from its beginning"
                    )
            except BaseException:
                file.close()
                raise
            if self._closing is not None:
                self._closing()
            self._file, self._closing = file, weakref.finalize(self, file.close)
            file.seek(start)
            data = file.read(stop - start)
        self._count()
        return data

    def _count(self) -> None:
        """Let the copies go that were taken first, where there are too many."""
        with _lock:
            _taken.append(weakref.ref(self))
            gone = [_taken.popleft() for _ in range(len(_taken) - MOST)]
        for each in gone:
            copy = each()
            if copy is not None and copy is not self:
                copy.forget()

    def forget(self) -> None:
        """Let go of the copy."""
        with self._lock:
            if self._closing is not None:
                self._closing()
            self._file = self._closing = None
