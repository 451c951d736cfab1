"""Where wanted objects are: one source per bucket, host or dataset, with what has been learnt about it.

A source is an open store, and beside it the size its objects have on average, how long a request to it
takes, and whether it serves ranges. So the thousandth request to a place knows what the first did not.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

from penstock.errors import ConfigError, ObjectChanged, StoreError
from penstock.store.bridge import BridgeStore
from penstock.store.failures import ended_early
from penstock.store.pace import Pace
from penstock.store.remote import RemoteStore
from penstock.store.requests import Slots
from penstock.store.store import Store, open_place
from penstock.store.urls import HTTP, Place, parse_url

FIRST_GUESS = 256 << 10
MOST_SOURCES = 256
MOST_FOLDERS = 4096
BLOCKING_THREADS = 16
LONG_BYTES = 1 << 20
_NOT_PLAIN = re.compile(r"[?#%]")


class Source:
    """An open store and what is known of it. All but the constructor: on the background thread.

    Args:
        place: where it is.
        store: opens what is asked, at first use.
        threads: where a store that blocks is asked.
    """

    def __init__(self, place: Place, store: Callable[[], Store], threads: ThreadPoolExecutor) -> None:
        self._place, self._opener, self._threads = place, store, threads
        self._opened: Store | None = None
        self._room: Slots | None = None
        """Of requests that may be under way, as the store has them."""
        self._own = place.is_own and place.scheme != "file"
        self.ranges = True
        """False once it has answered a request for a range with the whole object."""
        self.mean_bytes = float(FIRST_GUESS)
        self.paces = (Pace(), Pace())
        """Of short requests, and of long ones."""

    @property
    def _store(self) -> Store:
        if self._opened is None:
            self._opened = self._opener()
            self._room = getattr(self._opened, "room", None)
        return self._opened

    @property
    def direct(self) -> bool:
        """Whether single attempts can be made without a task or a thread of their own."""
        if not self._own:
            return False
        if (store := self._opened) is None:
            # A store that can't be opened says so at the attempt.
            with suppress(StoreError, ConfigError):
                store = self._store
        return not isinstance(store, RemoteStore) or store.direct

    def open(self) -> None:
        """Open the store now, and find out what its URL leaves open.

        Raises:
            ConfigError: no such option.
            StoreError: the Hub has no such dataset, or cannot be reached.
        """
        if isinstance(self._store, RemoteStore):
            self._store.pin()

    @property
    def has_room(self) -> bool:
        """Whether one more request to it may be under way."""
        return self._room is None or self._room.free > 0

    def take(self) -> bool:
        """Take a place for a request, if one is free."""
        return self._room is None or self._room.take()

    def give(self) -> None:
        """Give a place back."""
        if self._room is not None:
            self._room.give()

    def attempt(self, path: str, start: int, stop: int) -> asyncio.Future[Any]:
        """Make one attempt at a range; see `RemoteStore.attempt`."""
        store = self._store
        assert isinstance(store, RemoteStore)
        return store.attempt(path, start, stop)

    async def read(
        self,
        path: str,
        start: int | None,
        stop: int | None,
        *,
        etag: str | None,
        described: bool,
        failed: Exception | None,
        began: float,
    ) -> tuple[bytes, Mapping[str, Any] | None]:
        """Read an object, or bytes [start, stop) of it, with all the patience it takes; see `RemoteStore.read`."""
        if isinstance(self._store, RemoteStore):
            return await self._store.read(path, start, stop, etag=etag, described=described, failed=failed, began=began)
        if isinstance(self._store, BridgeStore):
            return await self._store.read(path, start, stop, etag=etag, described=described)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._read, path, start or 0, stop, etag)

    def _read(self, path: str, start: int, stop: int | None, etag: str | None) -> tuple[bytes, Mapping[str, Any]]:
        info = self._store.head(path)
        if etag is not None and info.etag not in (etag, None):
            raise ObjectChanged(f"{self.shown(path)} changed: it was {etag} and is now {info.etag}")
        end = info.size if stop is None else min(stop, info.size)
        data = self._store.get_range(path, start, end) if end > start else b""
        return data, {"size": info.size, "e_tag": info.etag}

    def pace(self, num_bytes: int) -> Pace:
        """Give what is known of how long requests of a size take."""
        return self.paces[num_bytes >= LONG_BYTES]

    def shown(self, path: str) -> str:
        """Give an object's URL without what may be secret."""
        return replace(self._place, key=path.strip("/")).shown()

    def ended_early(self, path: str, start: int, stop: int, length: int) -> StoreError:
        """Say that an object has not the bytes that were asked for."""
        return ended_early(f"GET {self.shown(path)}", start, stop, length)


class Sources:
    """The sources that a process reads from with the same options, opened when they are first needed.

    Args:
        storage_options: see `open_store`.
    """

    def __init__(self, storage_options: Mapping[str, Any]) -> None:
        self._options = dict(storage_options)
        self._lock = threading.Lock()
        self._open: OrderedDict[str, Source] = OrderedDict()
        self._folders: dict[str, tuple[Source, str]] = {}
        self._threads = ThreadPoolExecutor(BLOCKING_THREADS, "penstock-blocking")

    def find(self, url: str) -> tuple[Source, str]:
        """Give the source of a URL and the object's path in it.

        Cost: well under a microsecond where the last one was in the same folder; the first of a place opens
        it, which on the Hub is a request.

        Raises:
            ConfigError: no such scheme or option.
            StoreError: the Hub has no such dataset, or cannot be reached.
        """
        folder, _, name = url.rpartition("/")
        known = self._folders.get(folder)
        if known is not None and name and not _NOT_PLAIN.search(name):
            return known[0], known[1] + name
        place = parse_url(url)
        with self._lock:
            source = self._source(place)
            # Queries are part of what a place of the web is, and names may need unquoting there.
            if place.scheme in HTTP and _NOT_PLAIN.search(url):
                return source, place.key
            if name and place.key.endswith(name):
                if len(self._folders) >= MOST_FOLDERS:
                    self._folders.clear()
                self._folders[folder] = (source, place.key[: len(place.key) - len(name)])
        return source, place.key

    def _source(self, place: Place) -> Source:
        if place.scheme == "file":
            place = replace(place, key="/")
        source = self._open.get(place.root)
        if source is None:
            root = place if place.scheme == "file" else replace(place, key="")
            source = Source(root, partial(open_place, root, **self._options), self._threads)
            if not (place.scheme in HTTP and "?" in place.root):
                source.open()
            # A client takes milliseconds to make, and signed URLs need one each: nothing waits for all of them.
            self._open[place.root] = source
            if len(self._open) > MOST_SOURCES:
                _, gone = self._open.popitem(last=False)
                self._folders = {name: known for name, known in self._folders.items() if known[0] is not gone}
        else:
            self._open.move_to_end(place.root)
        return source

    def close(self) -> None:
        """Let the threads of stores that block end."""
        self._threads.shutdown(wait=False, cancel_futures=True)
