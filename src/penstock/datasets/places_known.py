"""What samples need, of those that were fetched lately: so that a later epoch looks up nothing twice.

fetched ──note──▶ id: its objects ──of──▶ cache.again, with neither locations nor hints to work out
               └▶ id: its files, while nothing goes ──kept──▶ cache.kept.again, and hints that cost nothing
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import islice

from penstock.store.cache_flights import Kept
from penstock.store.wanted import Wanted

MOST_SAMPLES = 1 << 15
"""As many as a cache remembers of objects: more would find nothing there."""


class PlacesKnown:
    """Which objects samples need. May be used from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._places: dict[int, tuple[Wanted, ...]] = {}
        self._kept: tuple[bytes, dict[int, Kept]] = b"", {}
        """Files of samples that were in the cache, and for as long as its stamp is this one still are."""
        _all_known.add(self)

    def note(self, found: Mapping[int, tuple[Wanted, ...]]) -> None:
        """Remember ids, and what their samples need."""
        with self._lock:
            self._places.update(found)
            for id_ in list(islice(self._places, max(0, len(self._places) - MOST_SAMPLES))):
                del self._places[id_]
                self._kept[1].pop(id_, None)

    def keep(self, found: Mapping[int, Kept], stamp: bytes) -> None:
        """Remember the files of samples, of those that are known.

        Args:
            found: by id.
            stamp: the cache's, as long as which they are there.
        """
        with self._lock:
            last, kept = self._kept
            if stamp != last:
                last, kept = self._kept = stamp, {}
            kept.update((id_, files) for id_, files in found.items() if id_ in self._places)

    def kept(self, ids: Sequence[int]) -> tuple[list[Kept], bytes] | None:
        """Give the files of samples, and the stamp that says whether they are there; None unless of all."""
        stamp, kept = self._kept
        try:
            return [kept[id_] for id_ in ids], stamp
        except KeyError:
            return None

    def of(self, ids: Sequence[int]) -> list[tuple[Wanted, ...]] | None:
        """Give what samples need; None unless it is known of all."""
        places = self._places
        try:
            return [places[id_] for id_ in ids]
        except KeyError:
            return None

    def some_of(self, ids: Sequence[int]) -> dict[int, tuple[Wanted, ...]]:
        """Give what samples need, by the place in `ids` of those of which it is known."""
        places = map(self._places.get, ids)
        return {j: wanted for j, wanted in enumerate(places) if wanted is not None}

    def clear(self) -> None:
        """Remember nothing."""
        with self._lock:
            self._places.clear()
            self._kept = b"", {}


_all_known: weakref.WeakSet[PlacesKnown] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A thread that was noting something is not there any more.
    for known in list(_all_known):
        known._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
