"""Bytes by URL: one face for object stores, the Hub, web servers and disks.

    open_store(url) ──▶ Store ── get · get_range · get_ranges · head · list ──▶ bytes, ObjectInfo

Law: what a method returns is what the store holds, whole; or it raises, saying which URL, what was
found and what to do. Retries, waits and time-outs live here and nowhere else. Credentials are
options of one store, or come from its usual variables; they are in no message and no `repr`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, BinaryIO, Protocol

from penstock.store.urls import Place, parse_url


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectInfo:
    """What a store says about an object without sending it."""

    path: str
    """Below the store's URL."""
    size: int
    etag: str | None = None
    """Changes when the content does; None where the store has none."""
    last_modified: datetime | None = None
    version: str | None = None


class Store(Protocol):
    """Objects below one URL. Paths are relative to it; "" is the URL itself.

    Methods may be called from any thread at the same time, not in a process forked after the first call.
    All raise ObjectMissing, AccessDenied, ObjectChanged, StoreUnavailable, or StoreError for the rest.
    """

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""

    def get(self, path: str = "") -> bytes:
        """Read an object whole."""

    def get_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read bytes [start, stop) of an object; with `etag`, only if it is still the one that has it."""

    def get_ranges(
        self, path: str, starts: Sequence[int], stops: Sequence[int], *, etag: str | None = None
    ) -> list[bytes]:
        """Read many ranges of an object, side by side, close ones in one request."""

    def begin_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> Future[bytes]:
        """Begin to read bytes [start, stop) of an object, for a caller with other work; the future can be cancelled."""

    def head(self, path: str = "") -> ObjectInfo:
        """Describe an object."""

    def peek(self, path: str = "", *, num_bytes: int, at_end: bool = False) -> tuple[ObjectInfo, bytes]:
        """Describe an object, and read its first bytes, or its last, where one request gives both; else no bytes."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Describe all objects below a prefix, however deep."""

    def put(self, path: str, data: bytes) -> None:
        """Write an object in one piece."""

    def upload(self, path: str, *, num_bytes: int | None = None) -> AbstractContextManager[BinaryIO]:
        """Open an object for writing, of any size: it is there, whole, once the block ends without an error.

        Readers see what was there before, or the new one, never a part. After an error, or if the process is
        killed, what was there before stays. Memory: see `store.uploads`.

        Args:
            path: where.
            num_bytes: how large it may become: clouds take at most 10,000 parts, so what may exceed 156 GiB has
                to be sent in larger ones. None: not so large.

        Raises:
            ConfigError: the store is only read, or no cloud holds that much (5 TiB).
            StoreError: it can't be written, or grows beyond what its parts hold.
        """

    def close(self) -> None:
        """Let go of what is held."""


def open_store(url: str | os.PathLike[str], **storage_options: Any) -> Store:
    """Open the objects below a URL; nothing is requested yet.

    Args:
        url: `s3://BUCKET/PREFIX`, `gs://BUCKET/PREFIX`, `az://CONTAINER/PREFIX`, `http(s)://HOST/PATH`,
            `hf://ORG/NAME[@REVISION]/PATH`, `file:///PATH`, `memory://NAME`, a local path, or what fsspec has a
            driver for, such as `sftp://USER@HOST/PATH`.
        storage_options: `timeout_s` (30, longest silence of a server), `retries` (6), `max_requests` (how many may be
            under way at once: 256; connections to what goes through fsspec: 8), `headers` (HTTP and Hub; a mapping,
            or a function that gives one and is called again when it is refused; they stay with
            their server unless `headers_may_leave=True`); `token` and
            `endpoint` for the Hub, else HF_TOKEN and HF_ENDPOINT, read when the store is opened; for the clouds
            whatever obstore's S3Store, GCSStore and AzureStore take: `region`, `endpoint`, `access_key_id`,
            `skip_signature`, `credential_provider` (called again when what it gave expires or is refused) …;
            for what goes through fsspec whatever its driver takes.

    Raises:
        ConfigError: an unknown scheme or option.
    """
    return open_place(parse_url(url), **storage_options)


def open_place(place: Place, **storage_options: Any) -> Store:
    """Open the objects below a URL that is taken apart already; see `open_store`."""
    # As a variable that is not set gives it.
    storage_options = {name: value for name, value in storage_options.items() if value is not None}
    if place.scheme == "file":
        from penstock.store.local import LocalStore

        return LocalStore(place.key, **storage_options)
    if not place.is_own:
        from penstock.store.bridge import BridgeStore

        return BridgeStore(place, **storage_options)
    from penstock.store.remote import RemoteStore

    return RemoteStore(place, **storage_options)
