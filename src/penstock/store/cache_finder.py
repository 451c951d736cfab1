"""What becomes of things that are wanted: found, fetched here, or waited for while others fetch them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import repeat

from penstock.errors import ObjectMissing, StoreError
from penstock.store.cache_downloads import Downloads, Landed
from penstock.store.cache_flights import Dropped, Flight, forget_claim
from penstock.store.cache_names import key_of, local_path, suffix_of
from penstock.store.cache_pins import Pins, spot_of
from penstock.store.cache_rows import Claimed, Row
from penstock.store.cache_shelf import Shelf

POLL_S = 0.005
LONGEST_POLL_S = 0.05


class Finder:
    """Finds things for one process. May be used from several threads.

    Args:
        shelf: where they may be.
        pins: where files are pinned before one looks.
        downloads: who fetches what is nowhere.
        server: which servers URLs mean, see `cache_names.server_of`.
        landed: gives who is told which flights have landed.
        claims: gives the entries that flights of this process are to fill.
    """

    def __init__(
        self,
        shelf: Shelf,
        pins: Pins,
        downloads: Downloads,
        server: str,
        landed: Landed,
        claims: Callable[[], set[int]],
    ) -> None:
        self._shelf, self._pins, self._downloads, self._server, self._landed = shelf, pins, downloads, server, landed
        self._claims = claims
        self.reset()

    def reset(self) -> None:
        """Wait for nobody, as in a forked child."""
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._foreign: list[Flight] = []
        """Flights that another holder fetches."""
        self.poll_s: float | None = None
        """After how long to ask again what others fetch; None: nothing is waited for."""
        self._closed = False

    def close(self) -> None:
        """Wait for others no longer, for good: who waits is told so."""
        with self._lock:
            self._closed = True
            flights = [flight for flight in self._foreign if not flight.landed and flight.claimed is None]
            self._foreign, self.poll_s = [], None
            for flight in flights:
                flight.error = StoreError("the cache was closed")
        self._tell(flights)

    def look(self, flights: list[Flight]) -> bool:
        """Find out where things are, and see to those that are nowhere; tell whether there were such.

        What goes wrong is the flights' error; only what ends the caller, such as Ctrl-C, is raised: see `abandon`.
        """
        misses: list[Flight] = []
        try:
            away = [flight for flight in flights if not self._is_clear(flight)]
            if away:
                spots = [spot_of(flight.key) for flight in away]
                self._pins.take(spots)
                # Only now: what is dropped later has been taken.
                for flight, spot in zip(away, spots, strict=True):
                    flight.spot = spot
                misses = self._find(away)
            if misses:
                self._claim(misses)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the flights
            self._fail(flights, error)
        self._tell([flight for flight in flights if flight.landed])
        return bool(misses)

    def abandon(self, flights: list[Flight]) -> None:
        """Give up flights whose caller was ended before they were seen to, so that others may begin them anew."""
        self._fail(flights, Dropped("who wanted it first was interrupted"))
        self._tell([flight for flight in flights if flight.landed])

    def _fail(self, flights: list[Flight], error: Exception) -> None:
        """Let flights fail, and give back their claims, that nobody sees to."""
        with self._lock:
            foreign = set(self._foreign)
        lost = [flight for flight in self._downloads.not_begun(flights) if not (flight.landed or flight in foreign)]
        for flight in lost:
            flight.error = error
        self._shelf.give_up([flight.claimed for flight in lost if flight.claimed is not None])

    def _tell(self, flights: list[Flight]) -> None:
        if (landed := self._landed()) is not None:
            landed(flights)

    def _is_clear(self, flight: Flight) -> bool:
        """Land a flight that needs no cache, or that can't have a name in it; tell whether that was so."""
        wanted = flight.wanted
        path = local_path(wanted.url)
        flight.local = path is not None
        if wanted.start is None and path is not None:
            flight.path = path
            return True
        try:
            flight.key = key_of(wanted, self._server)
        except FileNotFoundError:
            # Not the one caught: the frames that it knows would keep paths in use.
            flight.error = ObjectMissing(f"{path} does not exist")
        except OSError as error:
            flight.error = StoreError(f"cannot read {path}: {error.strerror}")
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the flight
            flight.error = error
        return flight.error is not None

    def _find(self, flights: list[Flight]) -> list[Flight]:
        """Land flights whose files are there; give the others."""
        shelf = self._shelf
        found = shelf.find([flight.key for flight in flights])
        hits: list[tuple[Flight, Row]] = []
        misses = []
        for flight in flights:
            row = found.get(flight.key)
            if row is not None and shelf.serves(row, flight.wanted):
                hits.append((flight, row))
            else:
                misses.append(flight)
        unsound = shelf.unsound([row for _, row in hits])
        for flight, row in hits:
            if row.id in unsound:
                misses.append(flight)
            else:
                flight.id, flight.path = row.id, shelf.book.path_of(row)
        sound = [row.id for _, row in hits if row.id not in unsound]
        shelf.book.recency.confirm(sound)
        shelf.book.recency.touch(sound, time.time())
        shelf.book.hits += len(flights) - len(misses)
        return misses

    def _claim(self, misses: list[Flight]) -> None:
        """Fetch what nobody else does, wait for the rest."""
        claimed = self._claimed(misses)
        mine, foreign = [], []
        for flight, entry in zip(misses, claimed, strict=True):
            if entry is None:
                foreign.append(flight)
            elif isinstance(entry, Claimed):
                mine.append(flight)
            else:
                flight.id, flight.path = entry.id, self._shelf.book.path_of(entry)
        self._shelf.book.hits += len(misses) - len(mine) - len(foreign)
        self._shelf.book.misses += len(mine)
        if mine:
            self._downloads.begin(mine)
        if foreign:
            with self._lock:
                if self._closed:
                    raise StoreError("the cache was closed")
                self._foreign += foreign
                self.poll_s = POLL_S

    def _claimed(self, misses: list[Flight]) -> list[Row | Claimed | None]:
        """Claim what nobody else does, for flights to fill."""
        mine: list[Claimed] = []
        undo, undone = map(forget_claim, misses, repeat(None)), list[None]()
        unclaimed = self._shelf.book.unclaimed
        # What is claimed and let go of again is not claimed by another thread in between.
        with self._claiming:
            try:
                entries = self._shelf.claim([(one.key, suffix_of(one.wanted), one.wanted) for one in misses], mine)
                for flight, entry in zip(misses, entries, strict=True):
                    if isinstance(entry, Claimed):
                        flight.id, flight.claimed = entry.id, entry
            except BaseException:
                # Without a call, so that a second Ctrl-C comes before all of this or after it.
                undone += undo
                unclaimed += mine
                raise
        return entries

    def ask_others(self) -> None:
        """Look whether what others fetch has come, or must be fetched here since they have ended or failed."""
        with self._lock:
            foreign = list(self._foreign)
            poll_s, self.poll_s = self.poll_s or POLL_S, None
        if not foreign:
            return
        try:
            still = self._ask(foreign)
        except Exception as error:  # noqa: BLE001 - it belongs to those who wait for the flights
            still = []
            for flight in foreign:
                if not flight.landed and flight.claimed is None:
                    flight.error = error
        self._tell([flight for flight in foreign if flight.landed])
        with self._lock:
            # What was claimed in vain has been added a second time.
            self._foreign = [flight for flight in dict.fromkeys(self._foreign) if flight.claimed is None]
            self._foreign = [flight for flight in self._foreign if not flight.landed]
            if self._foreign:
                self.poll_s = min(poll_s * 1.5, LONGEST_POLL_S) if len(still) == len(foreign) else POLL_S

    def _ask(self, foreign: list[Flight]) -> list[Flight]:
        found = self._shelf.find([flight.key for flight in foreign])
        if own := {row.key: row.id for row in found.values() if row.holder == self._pins.name}:
            # Of what several interrupts left nobody here knows; what is claimed just now waits for its turn.
            with self._claiming:
                alive = self._claims() | self._downloads.claims()
                if not alive.issuperset(own.values()):
                    self._shelf.free_lost(list(own), alive)
            found = self._shelf.find([flight.key for flight in foreign])
        moved: list[Flight] = []
        still: list[Flight] = []
        for flight in foreign:
            row = found.get(flight.key)
            loading = flight.needed and row is not None and self._shelf.is_loading(row)
            (still if loading else moved).append(flight)
        wanted = [flight for flight in moved if flight.needed]
        for flight in moved:
            if not flight.needed:
                flight.error = Dropped("nobody needed it any more")
        if wanted:
            self._claim(wanted)
        return still
