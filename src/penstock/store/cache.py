"""Objects from anywhere as local files: fetched once per machine, kept below a limit, shared by all processes.

    wanted ──begin──▶ hits: pinned at once · misses: claimed by one process, fetched, written, published
           ──acquire─▶ paths, each of which keeps its file in place for as long as it exists

Laws: an object is fetched by one process however many want it. A file is whole or not there, after a
kill at any moment. All files together stay below the limit, but for those in use. A file in use stays.
What is local already is neither copied nor deleted.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from penstock.errors import StoreError, StoreUnavailable
from penstock.store import cache_care as care
from penstock.store.cache_care import CacheStats, VerifyReport
from penstock.store.cache_downloads import Downloads
from penstock.store.cache_finder import Finder
from penstock.store.cache_flights import Dropped, Flight, Flights
from penstock.store.cache_kept import KeptFiles
from penstock.store.cache_names import key_of, local_path, server_of
from penstock.store.cache_shelf import Shelf
from penstock.store.cached_file import CachedFile
from penstock.store.many import MAX_BYTES, Fetcher
from penstock.store.requests import MAX_REQUESTS
from penstock.store.sizes import parse_size
from penstock.store.urls import redact
from penstock.store.wanted import Wanted

_log = logging.getLogger("penstock.store")
TIMEOUT_S = 300.0
GATHER_S = 0.02
IDLE_S = 1.0
CLOSE_S = 0.3

_Parts = tuple[Flights, Finder, Downloads, Fetcher, Shelf]
_open_caches: weakref.WeakSet[Cache] = weakref.WeakSet()


def open_cache(
    folder: str | os.PathLike[str],
    limit: int | str | None = "100mb",
    *,
    storage_options: Mapping[str, Any] | None = None,
    max_requests: int = MAX_REQUESTS,
    max_bytes: int = MAX_BYTES,
) -> Cache:
    """Open the cache in a folder of a local disk; any number of processes may have it open.

    Args:
        folder: made if it is missing. It must not be on a network file system.
        limit: bytes that all its files together may have, such as "100mb" or "2tb"; None: any number;
            0: nothing stays that is not in use. Where processes have several limits the smallest holds.
        storage_options: see `open_store`; they go to every store that is fetched from.
        max_requests: in flight for what is begun together; a process has at most 256.
        max_bytes: bound on what is in flight, in this process.

    Raises:
        ConfigError: the limit is no size.
        StoreError: the folder can't be written, or holds something else; a folder that can only be read is
            refused as well, since nothing would keep others from removing what is read.
    """
    return Cache(folder, limit, storage_options=storage_options, max_requests=max_requests, max_bytes=max_bytes)


class Cache:
    """One process's hold on a cache folder; see `open_cache`. May be used from several threads."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        limit: int | str | None,
        *,
        storage_options: Mapping[str, Any] | None,
        max_requests: int,
        max_bytes: int,
    ) -> None:
        self.limit = None if limit is None else parse_size(limit)
        self.folder = Path(os.path.abspath(folder))
        self._given = {"storage_options": storage_options, "max_requests": max_requests, "max_bytes": max_bytes}
        self._server = server_of(storage_options)
        self._fetcher = Fetcher(storage_options, max_requests=max_requests, max_bytes=max_bytes)
        care.make_folder(self.folder)
        self._pins, self._book = care.open_parts(self.folder, self.limit)
        self._shelf = Shelf(self._book, self._pins)
        care.sweep_if_new(self._book)
        self._flights = Flights(self.folder, self._pins, self._book.recency)
        self.kept = KeptFiles(self._flights, self._pins, self._book.recency)
        """What `acquire` gave, for who keeps note of it."""
        # The keeper is there before anything is fetched: what comes of that is for it to record.
        # Threads that rest keep no cache from being collected.
        landed = weakref.WeakMethod(self._land)
        self._downloads = Downloads(self._shelf, self._fetcher, landed)
        self._finder = Finder(self._shelf, self._pins, self._downloads, self._server, landed, self._flights.claims)
        self._reset()
        care.remove_stale(self._shelf)
        self._shelf.room.keep_limit()
        care.lay_by(self.folder)
        self._keep_house()
        _open_caches.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._given_up: list[list[Flight]] = []
        """Flights that an interrupt kept from being seen to."""

    def __repr__(self) -> str:
        return f"Cache({str(self.folder)!r}, limit={self.limit})"

    @property
    def closed(self) -> bool:
        """Whether it was closed: then nothing can be had from it any more."""
        return self._flights.closed

    @property
    def is_lost(self) -> bool:
        """Whether its folder was deleted while it was open: then whoever opens another one begins anew."""
        return self._book.is_lost

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self.folder), self.limit, self._given)

    def set_limit(self, limit: int | None) -> None:
        """Keep another limit from now on: the keeper sees to it, soon."""
        self.limit = limit
        self._wake.put(None)

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Begin to fetch what is not there, and pin what is, until `acquire` or `forget` is called for it.

        A hint: it returns at once, and what goes wrong is said by `acquire`.
        """
        fresh: list[Flight] = []
        try:
            self._flights.hold(wanted, fresh)
            self._look(fresh)
        except BaseException:
            # Without a call, so that it is noted however many interrupts come.
            self._given_up += (fresh,)
            self._wake.put(None)
            raise

    def acquire(self, wanted: Sequence[Wanted], timeout_s: float = TIMEOUT_S) -> list[CachedFile | StoreError]:
        """Give the local path of each object, fetching what is not there; waits until all are clear.

        Args:
            wanted: objects, or ranges of objects; a whole local file is given by its own path.
            timeout_s: how long to wait.

        Returns:
            For each a path, or the error that says why there is none: what failed, or did not come in time.
            A path's file stays as long as the path object exists, in this process or one it is sent to.

        Raises:
            ConfigError: a URL or an option that cannot be.

        Cost: 1 to 2 µs for each that this process has seen before and that is there, else about 8.
        """
        deadline = time.monotonic() + timeout_s
        found = self._acquire(wanted, timeout_s)
        # What was given up in the moment in which it was wanted again is begun again.
        while again := [place for place, one in enumerate(found) if type(one) is Dropped]:
            if self._flights.closed or time.monotonic() >= deadline:
                break
            more = self._acquire([wanted[place] for place in again], deadline - time.monotonic())
            for place, one in zip(again, more, strict=True):
                found[place] = one
        return found

    def again(self, wanted: Sequence[Wanted]) -> list[CachedFile] | None:
        """Give what `acquire` gave before, if this process remembers all of it and it is still there; else None.

        Cost: below 1 µs for each; nothing is waited for.
        """
        return self._flights.again(wanted)

    def are_there(self, several: Sequence[Sequence[Wanted]]) -> list[bool]:
        """Tell of which groups `again` would give all, and let these be the last to be evicted."""
        return self._flights.are_there(several)

    def _acquire(self, wanted: Sequence[Wanted], timeout_s: float) -> list[CachedFile | StoreError]:
        flights: list[Flight] = []
        fresh: list[Flight] = []
        try:
            try:
                self._flights.join(wanted, flights, fresh)
                self._look(fresh)
            except BaseException:
                # As above.
                self._given_up += (fresh,)
                self._wake.put(None)
                raise
            self._flights.wait(flights, timeout_s)
        finally:
            files = self._flights.hand_out(flights)
        if None not in files:
            return files  # type: ignore[return-value]
        return [file or self._failure(flight, timeout_s) for flight, file in zip(flights, files, strict=True)]

    def _look(self, fresh: list[Flight]) -> None:
        """See to flights that begin, and that somebody sees to those that an interrupt kept from that."""
        if (fresh and self._finder.look(fresh)) or self._given_up:
            self._keep_house()

    def _abandon(self) -> None:
        """Give up the flights that an interrupt kept from being seen to, on a thread that has no interrupts."""
        while self._given_up:
            self._finder.abandon(self._given_up[0])
            del self._given_up[0]

    def _failure(self, flight: Flight, timeout_s: float) -> StoreError:
        if flight.error is None:
            whose = "another process fetches it" if flight.claimed is None else "its store is slow"
            shown = redact(flight.wanted.url)
            return StoreUnavailable(f"{shown} did not arrive within {timeout_s:g} s: {whose}. Wait longer or try later")
        if isinstance(flight.error, StoreError):
            return flight.error
        raise flight.error

    def _land(self, flights: list[Flight]) -> None:
        """Tell who waits that flights have landed, and the keeper that there is something to record."""
        self._flights.land(flights)
        if self._book.has_news and self._wake.empty():
            self._wake.put(None)

    def forget(self, wanted: Sequence[Wanted] | None = None) -> None:
        """Give up what `begin` was told, all of it by default; downloads that nobody needs end."""
        self._flights.forget(wanted)
        self._downloads.drop_unneeded()

    def discard(self, wanted: Sequence[Wanted]) -> int:
        """Remove files that turned out to be no good, so that they are fetched again; give how many there were."""
        away = [one for one in wanted if one.start is not None or local_path(one.url) is None]
        if not away:
            return 0
        self._flights.forget_paths(away)
        return self._shelf.discard([key_of(one, self._server) for one in away])

    def stats(self) -> CacheStats:
        """Count files, bytes, hits, misses and evictions of the folder, by all processes since it was made."""
        self._record_hits()
        self._book.flush()
        self._pins.promise(self.limit)
        self._pins.settle()
        self._shelf.room.keep_limit()
        return care.stats(self._book, self._pins, self._downloads.in_flight)

    def verify(self) -> VerifyReport:
        """Read all files, compare them with their checksums and remove those that differ."""
        return care.verify(self._shelf)

    def clear(self) -> int:
        """Remove all files that are not in use; give how many bytes that were."""
        return care.clear(self._shelf)

    def close(self) -> None:
        """Cancel what is under way and let go of the folder, in less than a second; paths stay pinned."""
        with self._lock:
            if self._flights.closed:
                return
            self._flights.close()
            keeper = self._keeper
        self._wake.put(None)
        _open_caches.discard(self)
        try:
            self._abandon()
            _let_go(self._parts, keeper)
        except StoreError as error:
            # What this process has read is right all the same: only what others would find here is less.
            _log.warning("the cache %s could not record all that it holds: %s", self.folder, error)

    @property
    def _parts(self) -> _Parts:
        return self._flights, self._finder, self._downloads, self._fetcher, self._shelf

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # The collector may call this within any lock of its thread, such as another cache's turn to write.
        if hasattr(self, "_wake"):
            self._wake.put(None)

    def _keep_house(self) -> None:
        """See to it that the thread runs that records what has gathered, and that it looks."""
        if self._keeper is None:
            with self._lock:
                if self._keeper is None and not self._flights.closed:
                    arguments = (weakref.ref(self), self._wake, self._parts)
                    self._keeper = threading.Thread(
                        target=_keep, args=arguments, name="penstock-cache-keeper", daemon=True
                    )
                    self._keeper.start()
        if self._finder.poll_s is not None and self._wake.empty():
            self._wake.put(None)

    def _tend(self) -> float:
        """Record what has gathered, look after what others fetch; give the seconds until that is worth doing again."""
        try:
            self._abandon()
            self._pins.beat()
            self._finder.ask_others()
            self._pins.promise(self.limit)
            if self._book.has_news:
                self._record_hits()
                self._book.flush()
            self._pins.settle()
            self._book.recency.flush()
            self._shelf.room.keep_limit()
            if not self._downloads.busy:
                self._shelf.room.rest()
        except Exception as error:  # noqa: BLE001 - a thread that ended would look after nothing any more
            # A full disk, say: whoever wants an object is told by what it does itself; this is done again later.
            if not isinstance(error, StoreError):
                _log.warning("the cache %s could not be tended, it is tried again: %r", self.folder, error)
            return IDLE_S
        self._pins.wake = self._wake if self._shelf.room.over else None
        return IDLE_S if self._finder.poll_s is None else self._finder.poll_s

    def _record_hits(self) -> None:
        self._book.hits += self._flights.taken_hits()

    def _after_fork(self) -> None:
        """Begin anew in a forked child: its threads are gone, what the parent fetches is another holder's."""
        closed = self._flights.closed
        self._reset()
        self._flights.let_go()
        for part in (self._book, self._shelf.room, self._flights, self._downloads, self._finder):
            part.reset()
        self._flights.closed = closed


def _keep(reference: weakref.ref[Cache], wake: SimpleQueue[None], parts: _Parts) -> None:
    """The keeper's thread: it ends with the cache, which it closes if that was just forgotten."""
    while (cache := reference()) is not None and not cache._flights.closed:
        pause_s = cache._tend()
        del cache
        try:
            wake.get(timeout=pause_s)
        except Empty:
            continue
        if pause_s > GATHER_S:
            time.sleep(GATHER_S)
        while not wake.empty():
            wake.get()
    if cache is None:
        flights = parts[0]
        flights.close()
        # There is nobody left to be told of a full disk.
        with suppress(StoreError):
            _let_go(parts, None)


def _let_go(parts: _Parts, keeper: threading.Thread | None) -> None:
    """End what is under way in a cache whose flights were closed, record what came of it, close its files."""
    flights, finder, downloads, fetcher, shelf = parts
    finder.close()
    downloads.close(CLOSE_S)
    fetcher.close()
    if keeper is not None and keeper is not threading.current_thread():
        keeper.join(CLOSE_S)
    shelf.book.hits += flights.taken_hits()
    shelf.close()


def _reopened(folder: str, limit: int | None, given: dict[str, Any]) -> Cache:
    """Open a cache that came from another process."""
    return Cache(folder, limit, **given)


def _after_fork_in_child() -> None:
    for cache in list(_open_caches):
        cache._after_fork()


def _at_exit() -> None:
    for cache in list(_open_caches):
        with suppress(StoreError):
            cache.close()


os.register_at_fork(after_in_child=_after_fork_in_child)
atexit.register(_at_exit)
