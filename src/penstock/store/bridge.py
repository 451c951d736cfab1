"""A store behind a driver of fsspec: calls that block, made so that waiting for them ends.

    BridgeStore ── a thread a call, at most CONNECTIONS at once ──▶ Driver ──▶ sftp:// ftp:// dbfs:// oci:// …

Drivers know neither time-outs nor retries that could be relied on, and few may be used by two threads. So
each call has a connection to itself, on a thread that is left behind if it does not answer in time.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from functools import partial
from tempfile import TemporaryFile
from typing import Any, BinaryIO, TypeVar

from penstock.errors import AccessDenied, ObjectChanged, ObjectMissing, StoreError
from penstock.store.connection import Given
from penstock.store.drivers import Driver, meaning
from penstock.store.listings import walk
from penstock.store.requests import Patience, Slots, Transient, begin, persist, run, slots
from penstock.store.side_by_side import read_ranges
from penstock.store.store import ObjectInfo
from penstock.store.urls import Place
from penstock.types import check_int, check_number

T = TypeVar("T")
TIMEOUT_S = 30.0
CONNECTIONS = 8
PIECE = 1 << 20
SLOWEST = 64 << 10
"""Bytes a second; what is slower counts as silence."""


class BridgeStore:
    """The objects below a URL that fsspec has a driver for; see `penstock.store.store.Store`.

    Args:
        place: the URL, taken apart.
        timeout_s: longest silence of the server.
        retries: attempts after a first that failed in a way that may pass.
        max_requests: connections to the server.
        options: what the driver takes, such as username, password, key_filename.
    """

    def __init__(
        self,
        place: Place,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = Patience().retries,
        max_requests: int = CONNECTIONS,
        **options: Any,
    ) -> None:
        check_number("timeout_s", timeout_s, above=0, unit="seconds")
        self._place, self._timeout_s, self._patience = place, float(timeout_s), Patience(retries=retries)
        self._given = Given(options)
        self._max_requests = check_int("max_requests", max_requests, minimum=1)
        self.room = Slots(self._max_requests)
        self._idle: list[Driver] = []

    def __repr__(self) -> str:
        return f"BridgeStore({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        given = {
            "timeout_s": self._timeout_s,
            "retries": self._patience.retries,
            "max_requests": self._max_requests,
            **self._given.options,
        }
        return _reopened, (self._place, given)

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self._place.shown()

    def get(self, path: str = "") -> bytes:
        """Read an object whole."""
        return run(self.read(path, None, None))[0]

    def get_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read bytes [start, stop) of an object; long ranges travel in parts, side by side."""
        return self.get_ranges(path, [start], [stop], etag=etag)[0]

    def get_ranges(
        self, path: str, starts: Sequence[int], stops: Sequence[int], *, etag: str | None = None
    ) -> list[bytes]:
        """Read many ranges of an object, side by side, close ones in one request."""
        return run(self._ranges(path, starts, stops, etag))

    def begin_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> Future[bytes]:
        """Begin to read bytes [start, stop) of an object, for a caller with other work."""

        async def first() -> bytes:
            return (await self._ranges(path, [start], [stop], etag))[0]

        return begin(first())

    async def _ranges(self, path: str, starts: Sequence[int], stops: Sequence[int], etag: str | None) -> list[bytes]:
        if etag is not None:
            await self.read(path, 0, 0, etag=etag)
        return await read_ranges(partial(self._whole_range, path), starts, stops)

    def head(self, path: str = "") -> ObjectInfo:
        """Describe an object."""
        return run(self._describe(path))

    def peek(self, path: str = "", *, num_bytes: int, at_end: bool = False) -> tuple[ObjectInfo, bytes]:
        """Describe an object; its bytes would be another request."""
        return self.head(path), b""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Describe all files below a folder, folder by folder, many at a time."""
        below = len(self._place.key) + 1 if self._place.key else 0

        async def opened(path: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
            files, folders = await self._persist(path, "LIST", lambda driver, key: driver.folder(key))
            named = [
                ObjectInfo(path=one.path[below:], size=one.size, etag=one.etag, last_modified=one.last_modified)
                for one in files
            ]
            return named, [folder[below:] for folder in folders]

        yield from walk(prefix.strip("/"), opened)

    def put(self, path: str, data: bytes) -> None:
        """Write an object in one piece."""
        run(self._persist(path, "PUT", lambda driver, key: driver.write(key, data), num_bytes=len(data)))

    @contextmanager
    def upload(self, path: str, *, num_bytes: int | None = None) -> Iterator[BinaryIO]:
        """Open an object for writing, of any size: it is sent, from a nameless file and whole, when the block ends."""
        with TemporaryFile() as file:
            yield file
            file.flush()
            descriptor = file.fileno()
            write = partial(_send, descriptor=descriptor)
            run(self._persist(path, "PUT", write, num_bytes=os.fstat(descriptor).st_size))

    def close(self) -> None:
        """End the connections that are not in use."""
        while self._idle:
            self._idle.pop().close()

    async def read(
        self,
        path: str,
        start: int | None,
        stop: int | None,
        *,
        etag: str | None = None,
        described: bool = False,
    ) -> tuple[bytes, Mapping[str, Any] | None]:
        """Read an object, or bytes [start, stop) of it, fewer if it ends before; on the background thread.

        Returns:
            The bytes; and size and e_tag, if `described`, or if all of the object was read.
        """
        if start is not None and stop is not None and not described and etag is None:
            return await self._read(path, start, stop), None
        info = await self._describe(path)
        if etag is not None and info.etag not in (etag, None):
            raise ObjectChanged(
                f"{self._shown(path)} changed while it was read: it was {etag} and is now {info.etag}. Start again "
                "from its beginning"
            )
        first, end = start or 0, info.size if stop is None else min(stop, info.size)
        data = (await read_ranges(partial(self._whole_range, path), [first], [end]))[0]
        return data, {"size": info.size, "e_tag": info.etag}

    async def _whole_range(self, path: str, start: int, stop: int) -> bytes:
        data = await self._read(path, start, stop)
        if len(data) != stop - start:
            raise StoreError(
                f"GET {self._shown(path)} failed: bytes {start:,} to {stop:,} were asked for, but it ends at "
                f"{start + len(data):,}"
            )
        return data

    async def _read(self, path: str, start: int, stop: int) -> bytes:
        ask = partial(_read, start=start, stop=stop)
        return await self._persist(path, "GET", ask, num_bytes=stop - start)

    async def _describe(self, path: str) -> ObjectInfo:
        info = await self._persist(path, "HEAD", lambda driver, key: driver.describe(key))
        return ObjectInfo(path=path, size=info.size, etag=info.etag, last_modified=info.last_modified)

    async def _persist(self, path: str, verb: str, ask: Callable[[Driver, str], T], num_bytes: int = 0) -> T:
        key = "/".join(part for part in (self._place.key, path.strip("/")) if part)
        shown = self._shown(path)
        deadline_s = self._timeout_s + num_bytes / SLOWEST

        async def attempt() -> T:
            async with self.room, slots():
                return await _in_thread(partial(self._ask, ask, key), deadline_s)

        async def asked_wait_s() -> float | None:
            return None

        try:
            return await persist(f"{verb} {shown}", attempt, self._patience, asked_wait_s)
        except ObjectMissing as error:
            raise ObjectMissing(f"{shown} does not exist ({error})") from None
        except AccessDenied as error:
            wanted = "written" if verb == "PUT" else "read"
            raise AccessDenied(
                f"{shown} may not be {wanted}: {error}. Give what its driver in fsspec takes as storage options, "
                "such as username, password or key_filename"
            ) from None

    def _ask(self, ask: Callable[[Driver, str], T], key: str) -> T:
        """Put a question to a connection that is free, or to a new one; one that has failed is not used again."""
        driver = None
        try:
            with suppress(IndexError):
                driver = self._idle.pop()
            driver = driver or Driver(self._place, self._given.options)
            found = ask(driver, key)
        except Exception as error:  # noqa: BLE001 — drivers raise what they like; `meaning` sorts it
            if driver is not None:
                driver.close()
            # Not `from error`: its text may hold what is secret.
            raise meaning(error, self._place, self._given.options) from None
        self._idle.append(driver)
        return found

    def _shown(self, path: str) -> str:
        return f"{self.url.rstrip('/')}/{path}" if path else self.url


def _read(driver: Driver, key: str, *, start: int, stop: int) -> bytes:
    return driver.read(key, start, stop)


def _send(driver: Driver, key: str, *, descriptor: int) -> None:
    """Write a file from one that is open, which may be closed while a connection that hangs still reads it."""
    own = os.dup(descriptor)
    try:
        driver.write_pieces(key, lambda at: os.pread(own, PIECE, at))
    finally:
        os.close(own)


def _reopened(place: Place, given: Mapping[str, Any]) -> BridgeStore:
    return BridgeStore(place, **given)


async def _in_thread(work: Callable[[], T], deadline_s: float) -> T:
    """Do what blocks on a thread of its own, which nobody waits for beyond the deadline."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]

    def work_and_tell() -> None:
        outcome: tuple[T | None, BaseException | None]
        try:
            outcome = work(), None
        except BaseException as error:  # noqa: BLE001 — whatever it is, it is raised where it is waited for
            outcome = None, error
        with suppress(RuntimeError):  # the loop has ended with the interpreter
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work_and_tell, name="penstock-bridge", daemon=True).start()
    try:
        async with asyncio.timeout(deadline_s):
            return await done
    except TimeoutError:
        if done.done() and not done.cancelled():
            raise
        raise Transient("no answer within the time-out") from None
