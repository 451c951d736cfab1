"""Files of every other kind of place, such as SFTP, FTP, SMB, DBFS or OCI, through fsspec.

The one file that knows fsspec: how a place is opened, what its calls give, and what its errors mean. All of
it blocks; `bridge.py` knows how to wait. What a scheme needs beside fsspec, its driver says when it is missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any
from urllib.parse import unquote, urlsplit

from penstock.errors import AccessDenied, ConfigError, ObjectMissing, StoreError
from penstock.store.requests import Transient
from penstock.store.store import ObjectInfo
from penstock.store.urls import KNOWN, Place, redact

_ETAGS = ("ETag", "etag", "md5Hash", "md5", "content_md5", "checksum")
_CHANGES = ("mtime", "LastModified", "last_modified", "updated", "modify", "modified", "timeModified")
_SECRET = re.compile(r"pass|secret|token|key|credential|sas", re.IGNORECASE)
_REFUSED = re.compile(r"auth|denied|forbidden|credential|login incorrect|permission|privilege", re.IGNORECASE)
# What fsspec knows and is no place of its own: wrappers of others, and what penstock reads itself.
_NOT_PLACES = {"file", "local", "memory", "http", "https", "s3", "gs", "az", "hf", "data", "reference", "generic"}


def check_scheme(scheme: str) -> None:
    """Let a scheme be one that fsspec has a driver for.

    Raises:
        ConfigError: it has none, or there is no fsspec.
    """
    known = set(_fsspec(scheme).available_protocols()) - _NOT_PLACES
    if scheme not in known:
        raise ConfigError(f"{scheme}:// is not a store that penstock knows: {KNOWN}, and what fsspec has a driver for")


def _fsspec(scheme: str) -> Any:
    try:
        import fsspec
    except ImportError:
        raise ConfigError(
            f"{scheme}:// is not a store that penstock knows by itself: {KNOWN}. If fsspec has a driver for it: "
            "pip install 'penstock[fsspec]'"
        ) from None
    return fsspec


class Driver:
    """One connection to a place; for one thread at a time. What it raises, `meaning` explains.

    Args:
        place: where to.
        options: of fsspec's file system for that scheme.
    """

    def __init__(self, place: Place, options: Mapping[str, Any]) -> None:
        from fsspec.core import url_to_fs

        self._files, base = url_to_fs(f"{place.root}/", skip_instance_cache=True, **options)
        self._base = base.rstrip("/") + "/" if base else ""
        self._moves = type(self._files).mv is not _fsspec(place.scheme).AbstractFileSystem.mv

    def describe(self, key: str) -> ObjectInfo:
        """Describe a file; its etag is made of size and time of change where the place has none."""
        self._files.invalidate_cache()
        return self._described(key, self._files.info(self._base + key))

    def read(self, key: str, start: int, stop: int) -> bytes:
        """Read bytes [start, stop) of a file, fewer if it ends before."""
        path = self._base + key
        if not getattr(self._files, "async_impl", False):
            # The usual cache of an open file reads megabytes beyond what is asked for.
            with self._files.open(path, "rb", cache_type="none") as file:
                file.seek(start)
                return bytes(file.read(stop - start))
        return bytes(self._files.cat_file(path, start=start, end=stop))

    def folder(self, key: str) -> tuple[list[ObjectInfo], list[str]]:
        """Give the files in a folder, and the paths of the folders in it."""
        self._files.invalidate_cache()
        path = (self._base + key).rstrip("/") or "/"
        files, folders = [], []
        for found in self._files.ls(path, detail=True):
            name = f"/{found['name']}".rstrip("/").rpartition("/")[2]
            below = f"{key}/{name}" if key else name
            if found["type"] not in ("file", "directory"):
                found = self._files.info(self._base + below)
            if found["type"] == "directory":
                folders.append(below)
            else:
                files.append(self._described(below, found))
        return files, folders

    def write(self, key: str, data: bytes) -> None:
        """Write a file; where the place has folders and names, readers see it whole or not at all."""
        self._write(key, lambda path: self._files.pipe_file(path, data))

    def write_pieces(self, key: str, piece: Callable[[int], bytes]) -> None:
        """Write a file of any size, as `write` does, out of pieces; `piece(at)` gives the one there, b"" at the end."""

        def fill(path: str) -> None:
            with self._files.open(path, "wb") as file:
                while data := piece(file.tell()):
                    file.write(data)

        self._write(key, fill)

    def _write(self, key: str, fill: Callable[[str], object]) -> None:
        path = self._base + key
        folder = path.rpartition("/")[0]
        if folder:
            self._files.makedirs(folder, exist_ok=True)
        if not self._moves:
            fill(path)
            return
        temporary = f"{path}.{token_hex(8)}.partial"
        try:
            fill(temporary)
            self._files.mv(temporary, path)
        except BaseException:
            with suppress(OSError):
                self._files.rm_file(temporary)
            raise

    def close(self) -> None:
        """End the connection, of drivers that hold one."""
        for name in ("ftp", "client"):
            connection = getattr(self._files, name, None)
            if connection is not None and hasattr(connection, "close"):
                with suppress(OSError, EOFError):
                    connection.close()

    def _described(self, key: str, found: Mapping[str, Any]) -> ObjectInfo:
        if found.get("type") == "directory":
            raise ObjectMissing("it is a folder, not a file")
        if found.get("size") is None:
            raise StoreError("its size is not known")
        size = int(found["size"])
        changed = next((at for name in _CHANGES if (at := _moment(found.get(name))) is not None), None)
        etag = next((str(found[name]) for name in _ETAGS if found.get(name)), None)
        if etag is None and changed is not None:
            etag = f"{changed.timestamp():.6f}-{size}"
        return ObjectInfo(path=key, size=size, etag=etag, last_modified=changed)


def _moment(value: object) -> datetime | None:
    """Read a time as drivers write it: a datetime, seconds, ISO, or FTP's run of digits."""
    if isinstance(value, int | float):
        return datetime.fromtimestamp(value, UTC)
    if isinstance(value, str):
        digits = value[:14]
        try:
            value = datetime.strptime(digits, "%Y%m%d%H%M%S") if digits.isdecimal() else datetime.fromisoformat(value)
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def meaning(error: Exception, place: Place, options: Mapping[str, Any]) -> Exception:
    """Say in our terms what an error of a driver means.

    Args:
        error: the error.
        place: where it happened.
        options: what the place was opened with; no secret of them is repeated.
    """
    if isinstance(error, StoreError | ConfigError):
        return error
    reason = _hidden(redact(str(error)).strip().partition("\n")[0] or type(error).__name__, place, options)
    if isinstance(error, ImportError | TypeError | AttributeError):
        return ConfigError(f"{place.shown_root()} cannot be opened: {reason}")
    if isinstance(error, NotImplementedError):
        return ConfigError(f"{place.shown_root()} has no such operation: {reason or type(error).__name__}")
    status = _status(error)
    if isinstance(error, FileNotFoundError) or status == 404:
        return ObjectMissing(reason)
    if isinstance(error, IsADirectoryError | NotADirectoryError):
        return ObjectMissing(reason)
    if isinstance(error, PermissionError) or status in (401, 403):
        return AccessDenied(reason)
    if _REFUSED.search(type(error).__name__) or _REFUSED.search(reason):
        return AccessDenied(reason)
    if isinstance(error, ValueError | KeyError) or (status is not None and status < 500 and status not in (408, 429)):
        return StoreError(reason)
    return Transient(reason, status or 0)


def _status(error: Exception) -> int | None:
    """Find the HTTP status in an error of a driver, if it has one."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            found = getattr(holder, name, None)
            if isinstance(found, int) and 400 <= found < 600:
                return found
    return None


def _hidden(text: str, place: Place, options: Mapping[str, Any]) -> str:
    secrets = [str(value) for name, value in options.items() if _SECRET.search(name) and isinstance(value, str)]
    secrets.append(unquote(urlsplit(place.root).password or ""))
    for secret in secrets:
        if len(secret) > 2:
            text = text.replace(secret, "…")
    return text[:300]
