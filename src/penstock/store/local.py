"""Objects on a disk: plain files, read by position.

A positioned read takes under a microsecond where an object client needs sixty, so files do not go
through one.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreError
from penstock.store.ranges import coalesce
from penstock.store.store import ObjectInfo


class LocalStore:
    """The files below a folder, or one file; see `penstock.store.store.Store`."""

    def __init__(self, folder: str | os.PathLike[str], **options: object) -> None:
        # What is said to a remote store about patience has no meaning for a disk; anything else is a mistake.
        unknown = options.keys() - {"timeout_s", "retries", "max_requests"}
        if unknown:
            raise ConfigError(f"a local path takes no storage options, got {', '.join(sorted(unknown))}")
        self._folder = Path(folder)

    def __repr__(self) -> str:
        return f"LocalStore({str(self._folder)!r})"

    @property
    def url(self) -> str:
        """Where the store is: its path."""
        return str(self._folder)

    def get(self, path: str = "") -> bytes:
        """Read a file whole."""
        try:
            return self._path(path).read_bytes()
        except OSError as error:
            raise self._told(path, error) from error

    def get_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read bytes [start, stop) of a file."""
        return self.get_ranges(path, [start], [stop], etag=etag)[0]

    def get_ranges(
        self, path: str, starts: Sequence[int], stops: Sequence[int], *, etag: str | None = None
    ) -> list[bytes]:
        """Read many ranges of a file."""
        found = [b""] * len(starts)
        try:
            descriptor = os.open(self._path(path), os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise self._told(path, error) from error
        try:
            if etag is not None and etag != _etag(os.fstat(descriptor)):
                raise ObjectChanged(f"{self._path(path)} changed since it was opened; read it again from the start")
            for request in coalesce(starts, stops):
                data = self._read(descriptor, path, request.start, request.stop)
                for member in request.members:
                    found[member] = data[starts[member] - request.start : stops[member] - request.start]
        except OSError as error:
            raise self._told(path, error) from error
        finally:
            os.close(descriptor)
        return found

    def begin_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> Future[bytes]:
        """Read bytes [start, stop) of a file; it is done on return."""
        future: Future[bytes] = Future()
        future.set_result(self.get_range(path, start, stop, etag=etag))
        return future

    def _read(self, descriptor: int, path: str, start: int, stop: int) -> bytes:
        data = os.pread(descriptor, stop - start, start)
        while len(data) < stop - start:
            # The system reads at most 2 GiB at a time.
            more = os.pread(descriptor, stop - start - len(data), start + len(data))
            if not more:
                size = os.fstat(descriptor).st_size
                raise StoreError(f"{self._path(path)} has {size:,} bytes, bytes {start:,} to {stop:,} were asked for")
            data += more
        return data

    def head(self, path: str = "") -> ObjectInfo:
        """Describe a file; its etag is made of its size, inode and time of change."""
        try:
            status = self._path(path).stat()
        except OSError as error:
            raise self._told(path, error) from error
        if not self._path(path).is_file():
            raise ObjectMissing(f"{self._path(path)} is a folder, not a file")
        return _described(path, status)

    def peek(self, path: str = "", *, num_bytes: int, at_end: bool = False) -> tuple[ObjectInfo, bytes]:
        """Describe a file, and read its first bytes, or its last."""
        info = self.head(path)
        count = min(info.size, num_bytes)
        start = info.size - count if at_end else 0
        return info, self.get_range(path, start, start + count)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Describe all files below a folder, in sorted order. Links are followed, but never into a folder above."""
        base = self._path(prefix)
        if not base.is_dir():
            raise ObjectMissing(f"the folder {base} does not exist")
        below = base.relative_to(self._folder).as_posix()
        try:
            yield from _files_below(os.fspath(base), "" if below == "." else f"{below}/", ())
        except PermissionError as error:
            raise AccessDenied(f"{error.filename} may not be listed: change its permissions") from error

    def put(self, path: str, data: bytes) -> None:
        """Refused: files are written by what makes them, whole and synced."""
        raise self._only_read(path)

    def upload(self, path: str, *, num_bytes: int | None = None) -> AbstractContextManager[BinaryIO]:
        """Refused, as `put` is."""
        raise self._only_read(path)

    def close(self) -> None:
        """Nothing is held between calls."""

    def _path(self, path: str) -> Path:
        return self._folder / path if path else self._folder

    def _only_read(self, path: str) -> ConfigError:
        return ConfigError(f"{self._path(path)} is a local path: write it as a file; stores only read those")

    def _told(self, path: str, error: OSError) -> Exception:
        if isinstance(error, StoreError):
            return error
        place = self._path(path)
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            return ObjectMissing(f"{place} does not exist")
        if isinstance(error, PermissionError):
            return AccessDenied(f"{place} may not be read: {error.strerror}; change its permissions")
        return StoreError(f"cannot read {place}: {error.strerror or error}")


def _etag(status: os.stat_result) -> str:
    return f"{status.st_ino:x}-{status.st_mtime_ns:x}-{status.st_size:x}"


def _files_below(folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> Iterator[ObjectInfo]:
    """Describe the files below a folder, `above` being the inodes of those on the way to it."""
    try:
        here = os.stat(folder)
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=_name)
    except FileNotFoundError:
        return  # removed since its name was read
    inode = (here.st_dev, here.st_ino)
    if inode in above:
        return
    for entry in entries:
        try:
            if entry.is_dir():
                yield from _files_below(entry.path, f"{prefix}{entry.name}/", (*above, inode))
                continue
            status = entry.stat()
        except OSError as error:
            # Removed since, or a link to nothing or to itself: there is no file.
            if error.errno in (errno.ENOENT, errno.ELOOP):
                continue
            raise
        if stat.S_ISREG(status.st_mode):
            yield _described(prefix + entry.name, status)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _described(path: str, status: os.stat_result) -> ObjectInfo:
    changed = datetime.fromtimestamp(status.st_mtime, UTC)
    return ObjectInfo(path=path, size=status.st_size, etag=_etag(status), last_modified=changed)
