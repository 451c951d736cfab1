"""Objects from anywhere as local files: fetched once per machine, kept below a limit, shared by all processes.

    wanted ──begin──▶ hits: pinned at once · misses: claimed by one process, fetched, written, published
           ──acquire─▶ paths, each of which keeps its file in place for as long as it exists

Laws: an object is fetched by one process however many want it. A file is whole or not there, after a
kill at any moment. All files together stay below the limit, but for those in use. A file in use stays.
What is local already is neither copied nor deleted.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any

from penstock.errors import StoreError, StoreUnavailable
from penstock.store import cache_care as care
from penstock.store.cache_care import CacheStats, VerifyReport
from penstock.store.cache_downloads import Downloads, Flight, Waiter
from penstock.store.cache_names import key_of, local_path, server_of, suffix_of
from penstock.store.cache_pins import CachedFile, Pins, pinned_file, spot_of
from penstock.store.cache_rows import Claimed
from penstock.store.cache_shelf import Shelf
from penstock.store.many import MAX_BYTES, Fetcher
from penstock.store.requests import MAX_REQUESTS
from penstock.store.sizes import parse_size
from penstock.store.urls import redact
from penstock.store.wanted import Wanted

TIMEOUT_S = 300.0
GATHER_S = 0.02
POLL_S = 0.005
LONGEST_POLL_S = 0.05
IDLE_S = 1.0
CLOSE_S = 0.3

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
        max_requests: in flight at a time, at most 256.
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
        care.make_folder(self.folder)
        self._pins = Pins(self.folder, self.limit)
        self._shelf = Shelf(self.folder, self._pins)
        care.sweep_if_new(self._shelf)
        fetcher = Fetcher(storage_options, max_requests=max_requests, max_bytes=max_bytes)
        self._fetcher = fetcher
        self._downloads = Downloads(self._shelf, fetcher, self._land)
        self._reset()
        self._shelf.keep_limit()
        _open_caches.add(self)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._flights: dict[Wanted, Flight] = {}
        self._foreign: list[Flight] = []
        """Flights that another holder fetches."""
        self._keeper: threading.Thread | None = None
        self._wake: SimpleQueue[None] = SimpleQueue()
        self._closed = False
        self._poll_s = POLL_S

    def __repr__(self) -> str:
        return f"Cache({str(self.folder)!r}, limit={self.limit})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (str(self.folder), self.limit, self._given)

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Begin to fetch what is not there, and pin what is, until `acquire` or `forget` is called for it.

        A hint: it returns at once, and what goes wrong is said by `acquire`.
        """
        fresh = []
        with self._lock:
            self._check_open()
            for one in wanted:
                flight = self._flights.get(one)
                if flight is None:
                    flight = self._flights[one] = Flight(one)
                    fresh.append(flight)
                flight.holds += 1
        if fresh:
            self._look(fresh)

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

        Cost: a few microseconds for each that is there.
        """
        flights, fresh = [], []
        with self._lock:
            self._check_open()
            for one in wanted:
                flight = self._flights.get(one)
                if flight is None:
                    flight = self._flights[one] = Flight(one)
                    fresh.append(flight)
                elif flight.holds:
                    flight.holds -= 1
                flight.users += 1
                flights.append(flight)
        try:
            if fresh:
                self._look(fresh)
            self._await(flights, timeout_s)
        finally:
            files = self._hand_out(flights)
        return [self._result(flight, file, timeout_s) for flight, file in zip(flights, files, strict=True)]

    def _await(self, flights: list[Flight], timeout_s: float) -> None:
        with self._lock:
            pending = {flight for flight in flights if not flight.landed}
            waiter = Waiter(len(pending))
            for flight in pending:
                flight.waiters.append(waiter)
        if pending and not waiter.event.wait(timeout_s):
            with self._lock:
                for flight in pending:
                    if waiter in flight.waiters:
                        flight.waiters.remove(waiter)

    def _hand_out(self, flights: list[Flight]) -> list[CachedFile | None]:
        """End the use of flights and give the paths of those that have one, pinned."""
        files: list[CachedFile | None] = []
        more: list[int] = []
        pins, known = self._pins, self._flights
        with self._lock:
            for flight in flights:
                flight.users -= 1
                path, spot = flight.path, flight.spot
                over = flight.users <= 0 and flight.holds <= 0 and flight.landed
                if over and known.get(flight.wanted) is flight:
                    del known[flight.wanted]
                if path is None:
                    files.append(None)
                    if over and spot >= 0:
                        pins.drop([spot])
                elif spot < 0:
                    files.append(pinned_file(path, None, 0))
                else:
                    # The last one to want it takes the flight's own pin over.
                    if not over:
                        more.append(spot)
                    files.append(pinned_file(path, pins, spot))
            if more:
                pins.take(more)
        return files

    def _result(self, flight: Flight, file: CachedFile | None, timeout_s: float) -> CachedFile | StoreError:
        if file is not None:
            return file
        if flight.error is None:
            whose = "another process fetches it" if flight.entry is None else "its store is slow"
            shown = redact(flight.wanted.url)
            return StoreUnavailable(
                f"{shown} did not arrive within {timeout_s:g} s: {whose}. Wait longer, or try later"
            )
        if isinstance(flight.error, StoreError):
            return flight.error
        raise flight.error

    def _look(self, flights: list[Flight]) -> None:
        """Find out what is there of flights that were just made, and see to the rest."""
        try:
            away = [flight for flight in flights if not self._is_local(flight)]
            if away:
                keys = [flight.key for flight in away]
                self._pins.take([flight.spot for flight in away])
                found = self._shelf.find(keys)
                misses, now, used = [], time.time(), []
                for flight in away:
                    row = found.get(flight.key)
                    if row is not None and self._shelf.serves(row, flight.wanted) and self._shelf.is_sound(row):
                        flight.path = self._shelf.path_of(row)
                        used.append(row.id)
                    else:
                        misses.append(flight)
                self._shelf.recency.touch(used, now)
                self._shelf.counts[0] += len(used)
                if misses:
                    self._claim(misses)
        except Exception as error:  # noqa: BLE001
            # A hint raises nothing; who acquires the flights is told.
            for flight in flights:
                if not flight.landed:
                    flight.error = error
        self._land([flight for flight in flights if flight.landed])

    def _is_local(self, flight: Flight) -> bool:
        if flight.wanted.start is None and (path := local_path(flight.wanted.url)) is not None:
            flight.path = path
            return True
        flight.key = key_of(flight.wanted, self._server)
        flight.spot = spot_of(flight.key)
        return False

    def _claim(self, misses: list[Flight]) -> None:
        """Fetch what nobody else does, wait for the rest."""
        claimed = self._shelf.claim([(flight.key, suffix_of(flight.wanted), flight.wanted) for flight in misses])
        mine, foreign = [], []
        for flight, entry in zip(misses, claimed, strict=True):
            if entry is None:
                foreign.append(flight)
            elif isinstance(entry, Claimed):
                flight.entry = entry
                mine.append(flight)
            else:
                flight.path = self._shelf.path_of(entry)
        self._shelf.counts[0] += len(misses) - len(mine)
        self._shelf.counts[1] += len(mine)
        if mine:
            self._downloads.begin(mine)
        with self._lock:
            self._foreign += foreign
            self._keep_house()
        if foreign:
            self._wake.put(None)

    def _land(self, flights: list[Flight]) -> None:
        """Tell who waits that flights have landed."""
        with self._lock:
            for flight in flights:
                for waiter in flight.waiters:
                    waiter.missing -= 1
                    if not waiter.missing:
                        waiter.event.set()
                flight.waiters.clear()
                if not flight.needed and self._flights.get(flight.wanted) is flight:
                    self._drop(flight)
        if self._wake.empty():
            self._wake.put(None)

    def _drop(self, flight: Flight) -> None:
        del self._flights[flight.wanted]
        if flight.spot >= 0:
            self._pins.drop([flight.spot])

    def forget(self, wanted: Sequence[Wanted] | None = None) -> None:
        """Give up what `begin` was told, all of it by default; downloads that nobody needs end."""
        with self._lock:
            for one in list(self._flights) if wanted is None else wanted:
                flight = self._flights.get(one)
                if flight is not None:
                    flight.holds = 0
                    if flight.landed and not flight.users:
                        self._drop(flight)
        self._downloads.drop_unneeded()

    def discard(self, wanted: Sequence[Wanted]) -> None:
        """Remove files that turned out to be no good; the next to want them fetches them again."""
        away = [one for one in wanted if one.start is not None or local_path(one.url) is None]
        self.forget(away)
        self._shelf.discard([key_of(one, self._server) for one in away])

    def stats(self) -> CacheStats:
        """Count files, bytes, hits, misses and evictions of the folder, by all processes since it was made."""
        self._shelf.flush()
        return care.stats(self._shelf, self._pins, self._downloads.in_flight)

    def verify(self) -> VerifyReport:
        """Read all files, compare them with their checksums and remove those that differ."""
        self._shelf.flush()
        return care.verify(self._shelf)

    def clear(self) -> int:
        """Remove all files that are not in use; give how many bytes that were."""
        self._shelf.flush()
        return care.clear(self._shelf)

    def close(self) -> None:
        """Cancel what is under way and let go of the folder, in less than a second; paths stay pinned."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            keeper = self._keeper
        self._wake.put(None)
        self._downloads.close(CLOSE_S)
        self._fetcher.close()
        if keeper is not None and keeper is not threading.current_thread():
            keeper.join(CLOSE_S)
        with self._lock:
            self._pins.drop([flight.spot for flight in self._flights.values() if flight.spot >= 0])
            self._flights.clear()
        self._shelf.shut()
        _open_caches.discard(self)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_keeper"):
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreError(f"the cache {self.folder} was closed; open it again")

    def _keep_house(self) -> None:
        """See to it that the thread runs that records what has gathered; under the lock."""
        if self._keeper is None and not self._closed:
            arguments = (weakref.ref(self), self._wake)
            self._keeper = threading.Thread(target=_keep, args=arguments, name="penstock-cache-keeper", daemon=True)
            self._keeper.start()

    def _tend(self) -> float:
        """Record what has gathered, look after what others fetch; give the seconds until that is worth doing again."""
        try:
            self._ask_others()
            if self._shelf.has_news:
                self._shelf.flush()
            self._pins.settle()
            self._shelf.keep_limit()
            if not self._downloads.in_flight:
                self._shelf.rest()
        except StoreError:
            # A full disk, say: whoever wants an object is told by what it does itself; this is done again later.
            return IDLE_S
        self._pins.wake = self._wake if self._shelf.over else None
        return self._poll_s if self._foreign else IDLE_S

    def _ask_others(self) -> None:
        """Look whether what others fetch has come, or must be fetched here since they have ended or failed."""
        with self._lock:
            foreign, self._foreign = self._foreign, []
        if not foreign:
            self._poll_s = POLL_S
            return
        waiting = len(foreign)
        try:
            self._claim_again(foreign)
        except Exception as error:  # noqa: BLE001
            # Told to who waits for them.
            for flight in foreign:
                flight.error = error
        self._land([flight for flight in foreign if flight.landed])
        self._poll_s = min(self._poll_s * 1.5, LONGEST_POLL_S) if len(self._foreign) == waiting else POLL_S

    def _claim_again(self, foreign: list[Flight]) -> None:
        found = self._shelf.find([flight.key for flight in foreign])
        moved: list[Flight] = []
        still: list[Flight] = []
        for flight in foreign:
            row = found.get(flight.key)
            (still if row is not None and self._shelf.is_loading(row) else moved).append(flight)
        with self._lock:
            self._foreign += still
        if moved:
            self._claim(moved)

    def _after_fork(self) -> None:
        """Begin anew in a forked child: its threads are gone, what the parent fetches is another holder's."""
        closed = self._closed
        self._reset()
        self._closed = closed
        self._downloads.reset()
        self._shelf.after_fork()


def _keep(reference: weakref.ref[Cache], wake: SimpleQueue[None]) -> None:
    """The keeper's thread: it ends with the cache, closed or just forgotten."""
    while (cache := reference()) is not None and not cache._closed:
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


def _reopened(folder: str, limit: int | None, given: dict[str, Any]) -> Cache:
    """Open a cache that came from another process."""
    return Cache(folder, limit, **given)


def _after_fork_in_child() -> None:
    for cache in list(_open_caches):
        cache._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
