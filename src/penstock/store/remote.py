"""Objects behind a network: what a request is, when it is repeated, and what its failure means."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Any, BinaryIO, TypeVar

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from penstock.store import objects
from penstock.store.connection import Connection, Given, Headers
from penstock.store.failures import CREDENTIALS, BucketMissing, RedirectedInCircles, WrongRegion, ended_early
from penstock.store.hub import HubAccess, file_facts, hub_access, hub_commit, hub_tree, refusal
from penstock.store.listings import list_objects
from penstock.store.probe import Answer, probe
from penstock.store.requests import MAX_REQUESTS, Patience, Slots, Transient, begin, persist, run, slots
from penstock.store.side_by_side import read_ranges
from penstock.store.store import ObjectInfo
from penstock.store.uploads import uploading
from penstock.store.urls import HTTP, Place
from penstock.store.web_folders import WebFolders
from penstock.types import check_int, check_number

T = TypeVar("T")
TIMEOUT_S = 30.0


class RemoteStore:
    """The objects below a URL of a network or of memory; see `penstock.store.store.Store`.

    Args:
        place: the URL, taken apart.
        timeout_s: longest silence of the server.
        retries: attempts after a first that failed in a way that may pass.
        max_requests: under way at once.
        headers: sent with each request (HTTP and Hub); or a function that gives them, see `Connection`.
        headers_may_leave: they go along where another server is redirected to.
        options: see `open_store`.
    """

    def __init__(
        self,
        place: Place,
        *,
        timeout_s: float = TIMEOUT_S,
        retries: int = Patience().retries,
        max_requests: int = MAX_REQUESTS,
        headers: Headers | None = None,
        headers_may_leave: bool = False,
        **options: Any,
    ) -> None:
        check_number("timeout_s", timeout_s, above=0, unit="seconds")
        if headers and place.scheme not in (*HTTP, "hf"):
            raise ConfigError(f"headers are for http(s):// and hf://, not for {place.scheme}://")
        given = {
            "timeout_s": timeout_s,
            "retries": retries,
            "max_requests": max_requests,
            "headers": headers,
            "headers_may_leave": headers_may_leave,
            **options,
        }
        self._place, self._at = place, place
        self._pinning = threading.Lock()
        self._given = Given(given)
        self._patience = Patience(retries=retries)
        self.room = Slots(check_int("max_requests", max_requests, minimum=1))
        self._hub: HubAccess | None = None
        if place.scheme == "hf":
            who = {name: options.pop(name, None) for name in ("endpoint", "token")}
            self._hub = hub_access(place, timeout_s=timeout_s, patience=self._patience, **who)
            self._at = self._hub.files_at(place.key)
        fixed = self._hub.headers if self._hub else {}
        self._connection = Connection(
            self._at,
            headers=headers,
            fixed=fixed,
            timeout_s=float(timeout_s),
            options=options,
            headers_may_leave=headers_may_leave,
        )

    def __repr__(self) -> str:
        return f"RemoteStore({self.url!r})"

    def __reduce__(self) -> tuple[object, ...]:
        place = self._place
        if self._hub is not None:
            place = replace(place, root=f"hf://datasets/{self._hub.repo}@{self._hub.revision}")
        return _reopened, (place, dict(self._given.options))

    @property
    def url(self) -> str:
        """Where the store is, without credentials."""
        return self._place.shown()

    def get(self, path: str = "") -> bytes:
        """Read an object whole."""
        self.pin()
        return run(self._get(path, None, None, None))

    def get_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> bytes:
        """Read bytes [start, stop) of an object; long ranges travel in parts, side by side."""
        return self.get_ranges(path, [start], [stop], etag=etag)[0]

    def get_ranges(
        self, path: str, starts: Sequence[int], stops: Sequence[int], *, etag: str | None = None
    ) -> list[bytes]:
        """Read many ranges of an object, side by side, close ones in one request."""
        return run(self._ranges(path, starts, stops, None if self.pin() else etag))

    def begin_range(self, path: str, start: int, stop: int, *, etag: str | None = None) -> Future[bytes]:
        """Begin to read bytes [start, stop) of an object; cancelling the future ends the request."""
        etag = None if self.pin() else etag

        async def first() -> bytes:
            return (await self._ranges(path, [start], [stop], etag))[0]

        return begin(first())

    async def _ranges(self, path: str, starts: Sequence[int], stops: Sequence[int], etag: str | None) -> list[bytes]:
        return await read_ranges(lambda start, stop: self._get(path, start, stop, etag), starts, stops)

    def copy_to(self, path: str, file: BinaryIO) -> tuple[int, str | None]:
        """Write an object whole into a file, in one request; gives its size and, but for the Hub, etag."""
        self.pin()
        meta = run(self._persist(path, "GET", partial(self._asked, partial(objects.copy, file=file))))
        return meta["size"], None if self._hub else meta["e_tag"]

    def head(self, path: str = "") -> ObjectInfo:
        """Describe an object; on the Hub `version` is the commit and `etag` what identifies the content."""
        if self.pin():
            size, tag, commit = file_facts(run(self._persist(path, "HEAD", self._headers_of)))
            return ObjectInfo(path=path, size=size, etag=tag, version=commit)
        meta = run(self._persist(path, "HEAD", partial(self._asked, objects.describe)))
        size, etag, changed, version = objects.described(meta)
        return ObjectInfo(path=path, size=size, etag=etag, last_modified=changed, version=version)

    def peek(self, path: str = "", *, num_bytes: int, at_end: bool = False) -> tuple[ObjectInfo, bytes]:
        """Describe an object, and read its first bytes, or its last, in the same request; no bytes if it takes two."""
        start, stop = (-num_bytes, None) if at_end else (0, num_bytes)
        if self._hub is None:
            try:
                data, meta = run(self.read(path, start, stop, described=True))
            except (ObjectMissing, AccessDenied, StoreUnavailable):
                raise
            except StoreError:
                # It is empty, or its server has no ranges, or none from the end.
                meta = None
            if meta is not None:
                size, etag, changed, version = objects.described(meta)
                return ObjectInfo(path=path, size=size, etag=etag, last_modified=changed, version=version), data
        return self.head(path), b""

    async def _asked(self, ask: Callable[..., Awaitable[T]], key: str) -> T:
        return await ask(*await self._connection.target(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Describe all objects below a prefix, however deep, page by page.

        Raises:
            ConfigError: a web server that does not show its folders.
        """
        if self._place.scheme == "hf":
            yield from self._list_hub(prefix)
        elif self._place.scheme in HTTP:
            yield from WebFolders(self._at, self._connection, self._persist).list(prefix)
        else:
            below = len(self._at.key) + 1 if self._at.key else 0
            for meta in list_objects(self._connection, self._key(prefix), partial(self._persist, prefix, "LIST")):
                size, etag, changed, version = objects.described(meta)
                name = meta["path"][below:]
                yield ObjectInfo(path=name, size=size, etag=etag, last_modified=changed, version=version)

    def _list_hub(self, prefix: str) -> Iterator[ObjectInfo]:
        self.pin()
        assert self._hub is not None
        base = "/".join(part for part in (self._place.key, prefix.strip("/")) if part)
        below = len(self._place.key) + 1 if self._place.key else 0
        for name, size, content in hub_tree(self._hub, base):
            yield ObjectInfo(path=name[below:], size=size, etag=content, version=self._hub.revision)

    def put(self, path: str, data: bytes) -> None:
        """Write an object in one piece.

        Raises:
            ConfigError: web servers and the Hub are only read.
        """
        self._check_writable()
        run(self._persist(path, "PUT", lambda key: objects.write(self._connection.client, key, data)))

    def upload(self, path: str, *, num_bytes: int | None = None) -> AbstractContextManager[BinaryIO]:
        """Open an object for writing, of any size: it is there, whole, once the block ends without an error.

        Raises:
            ConfigError: web servers and the Hub are only read; or no cloud holds that much.
        """
        self._check_writable()
        client = self._connection.patient(self._patience)

        def step(work: Callable[[], Awaitable[None]]) -> None:
            run(self._persist(path, "PUT", lambda _: work(), once=True))

        return uploading(client, self._key(path), step, num_bytes)

    def _check_writable(self) -> None:
        if self._place.scheme in (*HTTP, "hf"):
            raise ConfigError(f"{self.url} cannot be written: penstock only reads from {self._place.scheme}://")

    def bucket_region(self) -> str | None:
        """Ask a server of S3 where the bucket is; None if it does not say, or the store is of another kind."""
        if self._place.scheme != "s3":
            return None
        return run(objects.region_of(self._connection.client, self._bucket()))

    def close(self) -> None:
        """Nothing is held but connections, which stores of one root share and which close when idle."""

    def pin(self) -> bool:
        """Make a store of the Hub one of the commit that its revision is now; tell whether it is such a store.

        Raises:
            StoreError: it can't be found out.
        """
        if self._hub is None:
            return False
        with self._pinning:
            if not self._hub.pinned:
                pinned = replace(self._hub, revision=hub_commit(self._hub))
                self._at = pinned.files_at(self._place.key)
                self._hub = pinned
        return True

    async def _headers_of(self, key: str) -> Answer:
        """Ask the Hub itself about a file, not the host it would redirect to."""
        answer = await self._ask(key)
        if answer is None:
            raise Transient("no connection")
        if answer.status >= 500 or answer.status in (408, 425, 429):
            raise Transient(f"the server says {answer.status}", answer.status)
        if answer.status >= 400:
            kinds = {401: AccessDenied, 403: AccessDenied, 404: ObjectMissing}
            raise kinds.get(answer.status, StoreError)(f"the server says {answer.status}")
        return answer

    def _key(self, path: str) -> str:
        path = path.strip("/")
        return f"{self._at.key}/{path}" if self._at.key and path else self._at.key or path

    async def _get(self, path: str, start: int | None, stop: int | None, etag: str | None) -> bytes:
        data, _ = await self.read(path, start, stop, etag=etag, described=etag is not None)
        if start is not None and stop is not None and len(data) != stop - start:
            raise ended_early(f"GET {self._shown(path)}", start, stop, len(data))
        return data

    async def read(
        self,
        path: str,
        start: int | None,
        stop: int | None,
        *,
        etag: str | None = None,
        described: bool = False,
        failed: Exception | None = None,
        began: float | None = None,
    ) -> tuple[bytes, Mapping[str, Any] | None]:
        """Read an object, or bytes [start, stop) of it, fewer if it ends before; on the background thread.

        Args:
            path: below the store's URL.
            start: the first byte; None for all.
            stop: behind the last.
            etag: what the object must have, if `described`.
            described: the object's description is to come along.
            failed: how a first attempt, made elsewhere, has ended.
            began: when that began, by `time.monotonic`.
        """

        async def request(key: str) -> tuple[bytes, Mapping[str, Any] | None]:
            nonlocal failed
            if failed is not None:
                first, failed = failed, None
                raise first
            client, there = await self._connection.target(key)
            data, meta = await objects.fetch(client, there, start, stop, described=described)
            if etag is not None and meta is not None and meta["e_tag"] not in (etag, None):
                raise ObjectChanged(f"it was {etag} when it was opened and is now {meta['e_tag']}")
            return data, meta

        return await self._persist(path, "GET", request, began)

    @property
    def direct(self) -> bool:
        """Whether `attempt` may be used."""
        return not self._connection.guarded

    def attempt(self, path: str, start: int, stop: int) -> asyncio.Future[Any]:
        """Make one attempt at bytes [start, stop) of an object, on the background thread; see `objects.begin_range`."""
        return objects.begin_range(self._connection.client, self._key(path), start, stop)

    async def _persist(
        self,
        path: str,
        verb: str,
        request: Callable[[str], Awaitable[T]],
        began: float | None = None,
        *,
        once: bool = False,
    ) -> T:
        """Carry out a request about an object, again if that can help; `once`: what makes it has done that itself."""
        key = self._key(path)
        what = f"{verb} {self._shown(path)}"

        async def attempt() -> T:
            async with self.room, slots():
                start = began or monotonic()
                try:
                    return await request(key)
                except Transient as failure:
                    if not once:
                        raise
                    raise StoreUnavailable(
                        f"{what} kept failing: {failure}. Check the network and the address, then try again"
                    ) from failure
                except (AccessDenied, ObjectMissing) as refusal:
                    if once or not await self._connection.helps(key, refusal, start):
                        raise
                    return await request(key)

        async def asked_wait_s() -> float | None:
            answer = await self._ask(key)
            return None if answer is None else answer.retry_after_s

        try:
            return await persist(what, attempt, self._patience, asked_wait_s)
        except (ObjectMissing, AccessDenied, ObjectChanged) as error:
            raise await self._explained(path, key, verb, error) from error
        except StoreError as error:
            if str(error).startswith(what):
                raise
            if isinstance(error, RedirectedInCircles):
                raise StoreError(f"{what} failed: {error}: {await self._connection.way_to(key)}") from error
            if isinstance(error, WrongRegion) and error.region is None:
                error = WrongRegion(await objects.region_of(self._connection.client, self._bucket()))
            raise StoreError(f"{what} failed: {error}") from error

    async def _ask(self, key: str) -> Answer | None:
        if self._at.scheme not in HTTP:
            return None
        return await probe(self._at.root, key, self._connection.headers)

    async def _explained(self, path: str, key: str, verb: str, error: StoreError) -> StoreError:
        """Say which object it was, why, and what to do."""
        shown = self._shown(path)
        if isinstance(error, ObjectChanged):
            return ObjectChanged(f"{shown} changed while it was read: {error}. Start again from its beginning")
        if self._hub is not None:
            answer = await self._ask(key)
            status = answer.status if answer else (404 if isinstance(error, ObjectMissing) else 403)
            headers = answer.headers if answer else {}
            if status < 400:
                return type(error)(f"{shown}: {error}, but not when asked again; try again")
            message = headers.get("x-error-message", str(error))
            return refusal(self._hub, shown, status, headers.get("x-error-code", ""), message)
        if isinstance(error, AccessDenied):
            wanted = "written" if verb == "PUT" else "read"
            return AccessDenied(f"{shown} may not be {wanted}: {error}. {CREDENTIALS.get(self._at.scheme, '')}")
        if isinstance(error, BucketMissing) or await self._bucket_is_missing():
            return ObjectMissing(f"{shown} does not exist: there is no bucket or container {self._at.shown_root()}")
        return ObjectMissing(f"{shown} does not exist")

    async def _bucket_is_missing(self) -> bool:
        """Find out what a bare 404 does not say: whether it is the object or the bucket that is missing."""
        if self._at.scheme not in ("s3", "gs", "az"):
            return False
        try:
            await objects.next_page(objects.listing(self._connection.client, "penstock-no-such-prefix"))
        except BucketMissing:
            return True
        except (StoreError, Transient):
            # Any other refusal leaves the first error as what is known.
            return False
        return False

    def _bucket(self) -> str:
        return self._at.root.partition("://")[2].rstrip("/")

    def _shown(self, path: str) -> str:
        return f"{self.url}/{path}" if path else self.url


def _reopened(place: Place, given: Mapping[str, Any]) -> RemoteStore:
    """Open a store that came from another process; one of the Hub stays at its commit."""
    return RemoteStore(place, **given)
