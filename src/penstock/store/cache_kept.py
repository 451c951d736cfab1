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

from penstock.store.cache_flights import Flights, Kept
from penstock.store.cache_pins import Pins
from penstock.store.cache_recency import Recency
from penstock.store.cached_file import CachedFile, unpinned_file
from penstock.store.wanted import Wanted


class KeptFiles:
    """What a cache has given. May be used from several threads.

    Args:
        flights: what has arrived.
        pins: where files are pinned.
        recency: where uses are recorded.
    """

    def __init__(self, flights: Flights, pins: Pins, recency: Recency) -> None:
        self._flights, self._pins, self._recency = flights, pins, recency

    def of(self, several: Sequence[Sequence[Wanted]]) -> tuple[bytes | None, list[Kept | None]]:
        """Give what groups of things were given as, and the stamp that it is good for; None where it can't be said."""
        return self._flights.kept(several)

    def touch(self, several: Sequence[Kept], stamp: bytes) -> bool:
        """Let files be the last to be evicted, if any are; tell whether all are there: the stamp is still the same.

        Cost: 0.5 µs for each where there is a limit, else next to nothing.
        """
        if self._recency.stamp() != stamp:
            return False
        if self._pins.limit is not None:
            self._recency.touch(cast(list[int], [*chain.from_iterable(several)][2::3]), time.time())
        return True

    def again(self, several: Sequence[Kept], stamp: bytes) -> list[CachedFile] | None:
        """Give the paths, pinned, of what was given for this stamp; None if it is another now.

        Cost: half of that of `Cache.again`.
        """
        flat = [*chain.from_iterable(several)]
        files = [
            unpinned_file(cast(str, path), cast(int, spot)) for path, spot in zip(flat[::3], flat[1::3], strict=True)
        ]
        self._pins.pin(files)
        if self._recency.stamp() != stamp:
            return None
        self._recency.touch(cast(list[int], flat[2::3]), time.time())
        self._flights.count_hits(len(files))
        return files
