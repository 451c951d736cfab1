"""What is fetched ahead of its time: in the order it was hinted, and no more than there is room for.

    hint ──▶ waiting ──room──▶ begun: the cache fetches and holds it ──take──▶ who fetches the sample

What was begun may not be removed before it was used, so it must stay well below the cache's limit; and what
is hinted and never used must not be held for ever. A hint that comes after the fetch it was for is dropped.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from penstock.errors import StoreError
from penstock.store.wanted import Wanted

At = tuple[int, int]
"""Epoch and id of a sample."""

ROOM_SHARE = 4
"""A process may begin a quarter of the limit: the cache is for others, and for the past, too."""
FIRST_GUESS_BYTES = 256 << 10
CHUNK = 128
"""Objects begun at a time: whoever fetches waits for one such beginning at most."""
FIRST_SAMPLES = 64
"""Samples begun until as many have landed: what a first batch waits for shares the machine with no others."""
SOON_S = 0.05
"""After the first have landed: by then a smaller batch has been handed out, and its trainer may be busy for long."""
MOST_HINTED = 4096
OVERTAKEN = 512
"""What was hinted so many samples before one that is fetched now will not be: its reader has left."""
LATE_S = 5.0
NEVER = float("-inf")


class _Hinted:
    """A sample to come."""

    __slots__ = ("guessed", "known_bytes", "number", "plan", "wanted")

    def __init__(self, number: int, plan: Any, wanted: Sequence[Wanted]) -> None:
        self.number, self.plan, self.wanted = number, plan, wanted
        sizes = [_size_of(one) for one in wanted]
        self.known_bytes = sum(size for size in sizes if size is not None)
        self.guessed = sizes.count(None)
        """Objects whose size nobody knows yet."""


class Lookahead:
    """The hints of one dataset in one process. May be used from several threads.

    Args:
        limit: bytes that the cache may hold; None: any number.
        begin: has objects fetched and held.
        forget: lets go of them.
    """

    def __init__(
        self, limit: int | None, begin: Callable[[Sequence[Wanted]], None], forget: Callable[[Sequence[Wanted]], None]
    ) -> None:
        self._room = None if limit is None else limit // ROOM_SHARE
        self._begin, self._forget = begin, forget
        self._lock = threading.Lock()
        self._hinted: dict[At, _Hinted] = {}
        self._waiting: deque[At] = deque()
        self._begun: dict[At, _Hinted] = {}
        self._begun_bytes = self._guessed = 0
        self._taken: dict[At, float] = {}
        self._count = 0
        self._num_begun = self._num_landed = 0
        self._soon: threading.Timer | None = None
        self._mean_bytes = float(FIRST_GUESS_BYTES)
        _lookaheads.add(self)

    def unknown(self, places: Iterable[At]) -> list[bool]:
        """Tell which samples a hint would be new of."""
        late = time.monotonic() - LATE_S
        with self._lock:
            return [at not in self._hinted and self._taken.get(at, NEVER) < late for at in places]

    def add(self, hints: Iterable[tuple[At, Any, Sequence[Wanted]]], *, in_turn: bool = True) -> None:
        """Take hints.

        Args:
            hints: where, what is known of the sample, and which objects it needs.
            in_turn: whether they will be fetched in this order, so that the first are wanted before all others.
        """
        if not in_turn:
            self._num_landed = FIRST_SAMPLES
        late = time.monotonic() - LATE_S
        with self._lock:
            for at, plan, wanted in hints:
                if at in self._hinted or self._taken.get(at, NEVER) >= late:
                    continue
                self._count += 1
                self._hinted[at] = _Hinted(self._count, plan, wanted)
                if wanted:
                    self._waiting.append(at)
            surplus = list(islice(self._hinted, max(0, len(self._hinted) - MOST_HINTED)))
            stale = [one for at in surplus for one in self._drop(at)]
        if stale:
            self._forget(stale)
        self.go_on()

    def expects(self, places: Sequence[At]) -> bool:
        """Whether any of the samples was hinted and not fetched since."""
        hinted = self._hinted
        return bool(hinted) and any(at in hinted for at in places)

    def take(self, places: Sequence[At], *, in_turn: bool) -> list[Any]:
        """Give what is known of samples that are about to be fetched, `self` where nothing is.

        Args:
            places: the samples.
            in_turn: whether a hint of them may still be on its way.
        """
        found: list[Any] = []
        newest = 0
        with self._lock:
            if in_turn:
                self._taken.update(dict.fromkeys(places, time.monotonic()))
                for at in list(islice(self._taken, max(0, len(self._taken) - MOST_HINTED))):
                    del self._taken[at]
            for at in places:
                hinted = self._hinted.get(at)
                if hinted is None:
                    found.append(self)
                    continue
                newest = max(newest, hinted.number)
                self._drop(at)
                found.append(hinted.plan)
            passed = newest - OVERTAKEN
            left = [at for at, hinted in islice(self._begun.items(), CHUNK) if hinted.number < passed]
            stale = [one for at in left for one in self._drop(at)]
        if stale:
            self._forget(stale)
        return found

    def land(self, count: int, num_bytes: int | None = None) -> None:
        """Take note that so many samples have just arrived, and begin what there is room for.

        After the first ones nothing is begun here: a batch is waited for that they belong to.

        Args:
            count: how many.
            num_bytes: of one of their objects, from which the size of others is guessed.
        """
        with self._lock:
            were_first = self._num_landed < FIRST_SAMPLES
            self._num_landed += count
            if num_bytes is not None:
                self._mean_bytes += (num_bytes - self._mean_bytes) / 8
            if were_first and self._soon is None:
                # It knows this by a weak reference: what is dropped is gone at once, not when the collector comes.
                self._soon = threading.Timer(SOON_S, _go_on_anyway, [weakref.ref(self)])
                self._soon.daemon = True
                self._soon.start()
        if not were_first:
            self.go_on()

    def go_on(self) -> None:
        """Begin what there is room for."""
        while self._waiting:
            # Within the lock: what is begun and what is taken are never the same.
            with self._lock:
                if not (chunk := self._next()):
                    return
                self._begin(chunk)

    def go_on_anyway(self) -> None:
        """Begin what there is room for, however few have landed."""
        self._num_landed = max(self._num_landed, FIRST_SAMPLES)
        # Whoever closed the cache meanwhile wants nothing more of it.
        with suppress(StoreError):
            self.go_on()

    def clear(self) -> None:
        """Forget all hints, and what they began."""
        with self._lock:
            if self._soon is not None:
                self._soon.cancel()
                self._soon = None
            begun = [one for hinted in self._begun.values() for one in hinted.wanted]
            for kept in (self._hinted, self._waiting, self._begun, self._taken):
                kept.clear()
            self._begun_bytes = self._guessed = 0
            self._num_begun = self._num_landed = 0
        if begun:
            self._forget(begun)

    def _after_fork(self) -> None:
        """Begin without hints in a forked child, whatever a thread of the parent was doing to them."""
        self._lock, self._soon = threading.Lock(), None
        self.clear()

    def _next(self) -> list[Wanted]:
        """Choose the objects to begin next."""
        chunk: list[Wanted] = []
        while self._waiting and len(chunk) < CHUNK:
            if self._num_landed < FIRST_SAMPLES <= self._num_begun:
                break
            at = self._waiting[0]
            hinted = self._hinted.get(at)
            if hinted is not None:
                num_bytes, guessed = self._begun_bytes + hinted.known_bytes, self._guessed + hinted.guessed
                if self._room is not None and num_bytes + guessed * self._mean_bytes > self._room:
                    break
                self._begun[at] = hinted
                self._num_begun += 1
                self._begun_bytes, self._guessed = num_bytes, guessed
                chunk += hinted.wanted
            self._waiting.popleft()
        return chunk

    def _drop(self, at: At) -> Sequence[Wanted]:
        """Forget a hint; give what had been begun for it."""
        hinted = self._hinted.pop(at)
        if self._begun.pop(at, None) is None:
            return ()
        self._begun_bytes -= hinted.known_bytes
        self._guessed -= hinted.guessed
        return hinted.wanted


def _go_on_anyway(reference: weakref.ref[Lookahead]) -> None:
    if (ahead := reference()) is not None:
        ahead.go_on_anyway()


def _size_of(wanted: Wanted) -> int | None:
    """Give the bytes of what is wanted, None if it does not say."""
    return wanted.size if wanted.start is None or wanted.stop is None else wanted.stop - wanted.start


_lookaheads: weakref.WeakSet[Lookahead] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for ahead in list(_lookaheads):
        ahead._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
