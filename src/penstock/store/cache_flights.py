"""What is wanted in this process: where it is, who waits for it, and what was wanted before.

A flight begins when something is wanted that was not, lands when it is clear what has become of it, and
holds a pin on its file until nobody needs it. Then it rests: its file may be taken away, but if it was
not, which its generation tells, the next to want it needs no database.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from penstock.errors import StoreError
from penstock.store.cache_pins import Pins
from penstock.store.cache_recency import Recency
from penstock.store.cache_rows import Claimed
from penstock.store.cached_file import CachedFile, unpinned_file
from penstock.store.wanted import Wanted

MOST_FLIGHTS = 1 << 15
"""Beyond so many those that rest are forgotten, the first to have begun before the others: about 20 MB."""
NO_ENTRY = -1
Kept = tuple[str | int, ...]
"""Files as they were given: path, spot and entry of the first, of the next … All that is looked at when they are used
again, and nothing of it is an object of its own: each lies somewhere in memory, and takes as long as that does."""


class Dropped(StoreError):
    """A flight ended because nobody needed it; whoever came to need it meanwhile begins another."""


class Flight:
    """One object that is, or was, wanted."""

    __slots__ = (
        *("claimed", "error", "generation", "holds", "id", "key", "local", "path"),
        *("resting", "spot", "users", "waiters", "wanted"),
    )
    id: int
    path: str | None
    error: Exception | None
    claimed: Claimed | None
    """The entry that this holder is to fill."""
    resting: bool
    spot: int
    """Where its pin counts; below 0: it has none and needs none."""

    def __init__(self, wanted: Wanted) -> None:
        self.wanted = wanted
        self.key = b""
        self.local = False
        """Whether it is on this machine, where it may change at any time."""
        self.waiters: list[Waiter] | None = None
        """Who waits for it now. What is kept of thousands has as few parts as possible: the collector looks at each."""
        self.holds = 0
        """Hints that nobody has followed yet."""
        self.users = 0
        """Calls that wait for it now."""
        self.generation = -1.0
        self.start()

    def start(self) -> None:
        """Know nothing of where it is."""
        self.id = NO_ENTRY
        self.spot = -1
        self.path = None
        self.error = None
        self.claimed = None
        self.resting = False

    @property
    def landed(self) -> bool:
        """Whether it is clear what has become of it."""
        return self.path is not None or self.error is not None

    @property
    def needed(self) -> bool:
        """Whether anybody still wants it."""
        return self.holds > 0 or self.users > 0


forget_claim: Callable[[Flight, None], None] = Flight.__dict__["claimed"].__set__
"""Takes a claim from a flight, within which no interrupt comes."""


def _kept(flights: Sequence[Flight]) -> Kept:
    return tuple(part for flight in flights if flight.path for part in (flight.path, flight.spot, flight.id))


class Waiter:
    """A call that waits until so many flights have landed."""

    __slots__ = ("event", "missing")

    def __init__(self, missing: int) -> None:
        self.missing = missing
        self.event = threading.Event()


class Flights:
    """All flights of a process's hold on a cache folder. May be used from several threads.

    Args:
        folder: for messages.
        pins: where files are pinned.
        recency: where uses are recorded.
    """

    def __init__(self, folder: Path, pins: Pins, recency: Recency) -> None:
        self._folder, self._pins, self._recency = folder, pins, recency
        self.reset()

    def reset(self) -> None:
        """Begin without flights, as in a forked child: those of the parent are not its own."""
        self._lock = threading.Lock()
        self._known: dict[Wanted, Flight] = {}
        self.closed = False
        self.hits = 0
        """How many rested and needed no database."""

    def hold(self, wanted: Sequence[Wanted], fresh: list[Flight]) -> None:
        """Want things until somebody else does; add the flights that begin with that to `fresh`."""
        with self._lock:
            for flight in self._find(wanted, fresh):
                flight.holds += 1

    def join(self, wanted: Sequence[Wanted], flights: list[Flight], fresh: list[Flight]) -> None:
        """Want things until `hand_out`, in the place of who held them.

        Args:
            wanted: what.
            flights: gets all flights: those that are in it when Ctrl-C comes are in use, and no others.
            fresh: gets those that begin.
        """
        with self._lock:
            for flight in self._find(wanted, fresh):
                # Without a call, so that Ctrl-C comes before all of this or after it.
                flights += (flight,)
                flight.users += 1
                if flight.holds:
                    flight.holds -= 1

    def again(self, wanted: Sequence[Wanted]) -> list[CachedFile] | None:
        """Give the paths, pinned, of things that all rest and whose files are still there; None if one does not."""
        with self._lock:
            if (flights := self._resting(wanted)) is None:
                return None
            files = [unpinned_file(flight.path, flight.spot) for flight in flights if flight.path is not None]
            self._pins.pin(files)
            if self._recency.touch_same(flights, time.time()):
                return None
            self.hits += len(files)
        return files

    def kept(self, several: Sequence[Sequence[Wanted]]) -> tuple[bytes | None, list[Kept | None]]:
        """Give what groups of things were given as, and the stamp for as long as which they are there.

        None stands for a group that does not rest, that has changed since it did, or that may change on this machine.
        """
        with self._lock:
            groups = [self._resting(group) for group in several]
            flights = [flight for group in groups for flight in group or ()]
            stamp, unchanged = self._recency.unchanged(flights)
            pairs = zip(flights, unchanged, strict=True)
            there = {flight for flight, is_same in pairs if is_same and flight.id >= 0 and not flight.local}
            return stamp, [_kept(group) if group is not None and there.issuperset(group) else None for group in groups]

    def count_hits(self, hits: int) -> None:
        """Count what needed no database, and no look at what is known here either."""
        with self._lock:
            self.hits += hits

    def are_there(self, several: Sequence[Sequence[Wanted]]) -> list[bool]:
        """Tell which groups of things rest and are still there, and count that as a use: they are the last to go."""
        same, now = self._recency.touch_same, time.time()
        with self._lock:
            flights = self._resting([one for group in several for one in group])
            if flights is not None and not same(flights, now):
                return [True] * len(several)
            groups = map(self._resting, several)
            return [group is not None and not same(group, now) for group in groups]

    def _resting(self, wanted: Sequence[Wanted]) -> list[Flight] | None:
        """Give the flights of things; None unless all of them rest."""
        known = self._known
        try:
            flights = [known[one] for one in wanted]
        except KeyError:
            return None
        return flights if all(flight.resting for flight in flights) else None

    def _find(self, wanted: Sequence[Wanted], fresh: list[Flight]) -> list[Flight]:
        if self.closed:
            raise StoreError(f"the cache {self._folder} was closed; open it again")
        known = self._known
        flights: list[Flight] = []
        rested: dict[Flight, None] = {}
        for one in wanted:
            flight = known.get(one)
            if flight is not None and type(flight.error) is Dropped:
                # Given up, and not ended: whoever was interrupted once more may have it in use for ever.
                self._end(flight)
                flight = None
            if flight is None:
                flight = Flight(one)
                # First: one that is known and not in here would be begun by nobody.
                fresh.append(flight)
                known[one] = flight
            elif flight.resting:
                rested[flight] = None
            flights.append(flight)
        if rested:
            self._awake(list(rested), fresh)
        if len(known) > MOST_FLIGHTS:
            for flight in [flight for flight in islice(known.values(), MOST_FLIGHTS // 8) if flight.resting]:
                del known[flight.wanted]
        return flights

    def _awake(self, rested: list[Flight], fresh: list[Flight]) -> None:
        """Pin the files of flights that rested; add those whose file is not there any more to those that begin.

        A flight rests until it has its pin: interrupted here, it never has a path without one.
        """
        self._pins.take([flight.spot for flight in rested])
        changed = self._recency.touch_same(rested, time.time())
        self.hits += len(rested) - len(changed)
        if changed:
            spots = [flight.spot for flight in changed]
            for flight in changed:
                fresh.append(flight)
                flight.start()
            self._pins.drop(spots)
        for flight in rested:
            flight.resting = False

    def wait(self, flights: Sequence[Flight], timeout_s: float) -> None:
        """Wait until flights have landed, or the time is over."""
        with self._lock:
            pending = {flight for flight in flights if flight.path is None and flight.error is None}
            if not pending:
                return
            waiter = Waiter(len(pending))
            for flight in pending:
                if flight.waiters is None:
                    flight.waiters = []
                flight.waiters.append(waiter)
        if waiter.event.wait(timeout_s):
            return
        with self._lock:
            for flight in pending:
                if flight.waiters and waiter in flight.waiters:
                    flight.waiters.remove(waiter)

    def hand_out(self, flights: Sequence[Flight]) -> list[CachedFile | None]:
        """End the use of flights and give the paths of those that have one, pinned."""
        files: list[CachedFile | None] = []
        shared: list[CachedFile] = []
        with self._lock:
            try:
                for flight in flights:
                    self._give(flight, files, shared)
                self._share(shared)
            except BaseException:
                # Interrupted: nobody has the others in use any more either.
                for flight in flights[len(files) :]:
                    self._give(flight, [], [])
                raise
        return files

    def _give(self, flight: Flight, files: list[CachedFile | None], shared: list[CachedFile]) -> None:
        """End one use of a flight and add its path to `files`; one that needs a pin of its own to `shared` as well."""
        path, spot, over = flight.path, flight.spot, flight.users <= 1 and not flight.holds
        if path is None:
            flight.users -= 1
            files += (None,)
            if over and flight.error is not None:
                self._end(flight)
            return
        file = unpinned_file(path, spot)
        if not over:
            if spot >= 0:
                shared.append(file)
            flight.users -= 1
            files += (file,)
            return
        generation = self._generation_of(flight)
        # The last one to want it takes the flight's own pin over. Without a call, so that Ctrl-C comes before or after.
        flight.users -= 1
        files += (file,)
        flight.generation, flight.resting = generation, True
        if spot >= 0:
            file._pins = self._pins
        if generation < 0:
            self._drop(flight)

    def _share(self, files: list[CachedFile]) -> None:
        """Give paths pins of their own."""
        if files:
            self._pins.pin(files)

    def _generation_of(self, flight: Flight) -> float:
        """Give what a flight that is to rest goes by; below 0, which no file has: it can't."""
        generation = 1.0 if flight.local or flight.id < 0 else self._recency.generation(flight.id)
        return -1.0 if generation % 2 or self._known.get(flight.wanted) is not flight else generation

    def _end(self, flight: Flight) -> None:
        """Let go of a flight's pin, after that of its path; that of a file is known further."""
        if flight.path is not None:
            flight.generation, flight.resting = self._generation_of(flight), True
        if flight.path is None or flight.generation < 0:
            self._drop(flight)
        if flight.spot >= 0:
            # Once, whoever else has it in use; what failed has no path that would need it.
            spot, flight.spot = flight.spot, flight.spot if flight.path is not None else -1
            self._pins.drop([spot])

    def _drop(self, flight: Flight) -> None:
        """Know a flight no longer, unless another has taken its place."""
        if self._known.get(flight.wanted) is flight:
            del self._known[flight.wanted]

    def land(self, flights: Sequence[Flight]) -> None:
        """Tell who waits that flights have landed."""
        with self._lock:
            for flight in flights:
                for waiter in flight.waiters or ():
                    waiter.missing -= 1
                    if not waiter.missing:
                        waiter.event.set()
                flight.waiters = None
                if flight.path is not None:
                    flight.claimed = None
                if not flight.needed and not flight.resting and self._known.get(flight.wanted) is flight:
                    self._end(flight)

    def forget(self, wanted: Sequence[Wanted] | None) -> None:
        """Let go of what is held; all of it if None."""
        with self._lock:
            for one in list(self._known) if wanted is None else wanted:
                flight = self._known.get(one)
                if flight is not None and flight.holds:
                    flight.holds = 0
                    if flight.landed and not flight.users:
                        self._end(flight)

    def forget_paths(self, wanted: Sequence[Wanted]) -> None:
        """Look for things anew when they are wanted again."""
        self.forget(wanted)
        with self._lock:
            for one in wanted:
                flight = self._known.get(one)
                if flight is not None and flight.resting:
                    del self._known[one]

    def claims(self) -> set[int]:
        """Give the entries that flights are to fill."""
        with self._lock:
            return {one.claimed.id for one in self._known.values() if one.claimed is not None and not one.landed}

    def let_go(self) -> None:
        """Unpin what the flights of the parent hold, in a forked child, which has copies of their pins."""
        self._pins.drop([flight.spot for flight in self._known.values() if flight.spot >= 0 and not flight.resting])

    def taken_hits(self) -> int:
        """Give how many rested and needed no database since this was last asked."""
        hits, self.hits = self.hits, 0
        return hits

    def close(self) -> None:
        """Let go of all, for good."""
        with self._lock:
            self.closed = True
            flights = list(self._known.values())
            self._known.clear()
            # Who waits for one lets go of its pin himself.
            self._pins.drop(
                [flight.spot for flight in flights if flight.spot >= 0 and not (flight.resting or flight.users)]
            )
