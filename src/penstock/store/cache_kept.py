"""Files that were given before, given again while nothing has gone: neither looked for nor asked about.

    given ──of──▶ path, spot and entry, for whoever wants it again to keep ──again──▶ pinned, and then the stamp
                                                                           └─ has changed: `Cache.again` looks

Whoever takes files away changes the stamp first and looks at pins then, so one that is pinned before the stamp is
seen to be the same stays.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import chain
from typing import cast

from penstock.store.cache_flights import Flights
from penstock.store.cache_pins import CachedFile, Pins, pinned_file
from penstock.store.cache_recency import Recency
from penstock.store.wanted import Wanted

Kept = tuple[str | int, ...]
"""Files as they were given: path, spot and entry of the first, of the next … All that is looked at when they are used
again, and nothing of it is an object of its own: each lies somewhere in memory, and takes as long as that does."""


class KeptFiles:
    """What a cache has given. May be used from several threads.

    Args:
        flights: what has arrived.
        pins: where files are pinned.
        recency: where uses are recorded.
    """

    def __init__(self, flights: Flights, pins: Pins, recency: Recency) -> None:
        self._flights, self._pins, self._recency = flights, pins, recency

    def stamp(self) -> bytes | None:
        """Give what changes whenever anything goes, whoever removes it; None where that can't be said."""
        return self._recency.stamp()

    def of(self, several: Sequence[Sequence[Wanted]]) -> list[Kept | None]:
        """Give what groups of things were given as; None for one that was not whole, or may change on this machine."""
        return [
            None
            if flights is None or any(flight.local or flight.id < 0 for flight in flights)
            else cast(Kept, tuple(part for flight in flights for part in (flight.path, flight.spot, flight.id)))
            for flights in self._flights.found(several)
        ]

    def again(self, several: Sequence[Kept], stamp: bytes) -> list[CachedFile] | None:
        """Give the paths, pinned, of what was given when the stamp was this one; None if it is another now.

        Cost: half of that of `Cache.again`.
        """
        pins, flat = self._pins, [*chain.from_iterable(several)]
        spots = cast(list[int], flat[1::3])
        pins.take(spots)
        if self._recency.stamp() != stamp:
            pins.drop(spots)
            return None
        self._recency.touch(cast(list[int], flat[2::3]), time.time())
        self._flights.count_hits(len(spots))
        return [pinned_file(path, pins, spot) for path, spot in zip(cast(list[str], flat[::3]), spots, strict=True)]
