"""A remote file that is fetched ahead of its reader, into a spool.

    plan of parts ──▶ threads: store ──▶ spool ──▶ read()

Text is cut on a fixed grid; a Parquet file says which ranges its row groups take, and only these are
asked for. Parts in flight are all of one row group, or at most three pieces of text: what a crash may
cost. Parts that have arrived are on the disk, so working further ahead costs no memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass
from typing import Any

from penstock.errors import StoreUnavailable
from penstock.prep.spool import Spool
from penstock.store.seekable import SeekableFile

PIECE_BYTES = 320 << 10
"""Text is fetched in pieces of this size; all in flight together are less than 1 MB."""
WORKERS = 3
PART_BYTES = 4 << 20
"""Row groups are fetched in parts of at most this size."""
AHEAD_BYTES = 32 << 20
"""How far ahead of the reader parts may lie on the disk."""
FOOTER_BYTES = 64 << 10
CLOSE_S = 5.0
WAIT_S = 600.0
"""Longest wait for a part: the store gives up long before."""


@dataclass(frozen=True, slots=True)
class _Part:
    start: int
    stop: int
    group: int
    """Parts of different groups are never in flight together."""


class ReadAheadFile(SeekableFile):
    """A remote file, seekable; one reader.

    Args:
        number: the file's number in its source: its name in the spool.
        size: its length in bytes.
        begin: begins to fetch bytes [start, stop) of it, from any thread.
        spool: where they are kept.
        is_text: read from one end to the other: all of it is fetched ahead, from where the reader begins.
    """

    def __init__(
        self, number: int, size: int, begin: Callable[[int, int], Future[bytes]], spool: Spool, *, is_text: bool
    ) -> None:
        super().__init__()
        self.number = number
        self.size = size
        self._begin_range, self._spool, self._is_text = begin, spool, is_text
        self._changed = threading.Condition()
        self._plan: list[_Part] = []
        self._next = self._reading = 0
        self._in_flight: set[int] = set()
        self._arrived: set[int] = set()
        self._failure: BaseException | None = None
        self._ended = False
        self._futures: set[Future[bytes]] = set()
        self._threads: list[threading.Thread] = []
        self._kept: tuple[int, int, bytes] = (0, 0, b"")
        self._group_starts: list[tuple[int, int]] = []

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer, as much as one part has."""
        view = memoryview(buffer).cast("B")
        data = self._some(self._at, min(self.size, self._at + len(view)))
        view[: len(data)] = data
        self._at += len(data)
        return len(data)

    def read(self, size: int | None = -1) -> bytes:
        """Read up to size bytes; all that are left if it is negative."""
        stop = self.size if size is None or size < 0 else min(self.size, self._at + size)
        found = []
        while self._at < stop:
            found.append(bytes(self._some(self._at, stop)))
            self._at += len(found[-1])
        return found[0] if len(found) == 1 else b"".join(found)

    def announce(self, groups: Sequence[tuple[int, Sequence[tuple[int, int]]]]) -> None:
        """Say which ranges will be read next, so that they are fetched ahead.

        Args:
            groups: for each row group the row after its last, and the ranges it takes.
        """
        if self.size <= FOOTER_BYTES:
            # All of it came with the footer.
            return
        self._group_starts = [(end, min(start for start, _ in ranges)) for end, ranges in groups if ranges]
        plan = [
            _Part(at, min(stop, at + PART_BYTES), group)
            for group, (_, ranges) in enumerate(groups)
            for start, stop in ranges
            for at in range(start, stop, PART_BYTES)
        ]
        self._begin(plan, 0)

    def needed_from(self, offset: int) -> int:
        """Give the first byte that reading from a row (of a table) or an offset (of text) on will need."""
        if self._is_text:
            return offset
        return next((start for end, start in self._group_starts if end > offset), self.size)

    def _begin(self, plan: list[_Part], first: int) -> None:
        """Let threads fetch the parts of a plan, from the first that is wanted on; a file has one plan."""
        with self._changed:
            assert not self._plan, "a plan is made once, its places name its parts"
            self._plan, self._next, self._reading = plan, first, first
        for _ in range(min(WORKERS, len(plan) - first)):
            thread = threading.Thread(target=self._work, name="penstock-fetch", daemon=True)
            self._threads.append(thread)
            thread.start()

    def _some(self, start: int, stop: int) -> memoryview:
        """Give bytes from start on: at least one, at most up to stop; none at the end."""
        if start >= stop:
            return memoryview(b"")
        low, high, data = self._kept
        if not low <= start < high:
            low, high = self._part_with(start, stop)
            data = self._spool.read(self.number, low, high)
            self._kept = (low, high, data)
        return memoryview(data)[start - low : min(stop, high) - low]

    def _part_with(self, start: int, stop: int) -> tuple[int, int]:
        """Wait until a part that holds a byte is here; fetch one where none is planned."""
        if self._is_text and not self._plan:
            grid = range(0, self.size, PIECE_BYTES)
            self._begin([_Part(at, min(self.size, at + PIECE_BYTES), 0) for at in grid], start // PIECE_BYTES)
        place = self._place_of(start)
        if place is None:
            if start >= self.size - FOOTER_BYTES:
                start, stop = max(0, self.size - FOOTER_BYTES), self.size
            self._spool.ensure(self.number, start, stop, self._fetch)
            return start, stop
        part = self._plan[place]
        if self._is_coming(place):
            self._await(place)
        else:
            self._spool.ensure(self.number, part.start, part.stop, self._fetch)
        return part.start, part.stop

    def _place_of(self, offset: int) -> int | None:
        """Find the part that holds a byte, the one being read or one after it first."""
        if self._is_text:
            return offset // PIECE_BYTES
        order = (*range(self._reading, len(self._plan)), *range(self._reading))
        return next((place for place in order if self._plan[place].start <= offset < self._plan[place].stop), None)

    def _is_coming(self, place: int) -> bool:
        """Move on to a part; tell whether it is here, or the threads have it or will come to it."""
        with self._changed:
            self._reading = place
            self._next = place if self._next < place else self._next
            self._changed.notify_all()
            return place >= self._next or place in self._in_flight or place in self._arrived

    def _await(self, place: int) -> None:
        with self._changed:
            done = self._changed.wait_for(lambda: place in self._arrived or self._failure is not None, WAIT_S)
            if place not in self._arrived and self._failure is not None:
                raise self._failure
        if not done:
            raise StoreUnavailable(f"no bytes arrived for {WAIT_S:.0f} s; check the network, then run it again")

    def _work(self) -> None:
        """Fetch parts of the plan, in order, as long as there are any and the file is open."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._may_fetch())
                if self._ended:
                    return
                place = self._next
                self._next += 1
                part = self._plan[place]
                self._in_flight.add(place)
            failure: BaseException | None = None
            try:
                self._spool.ensure(self.number, part.start, part.stop, self._fetch)
            except BaseException as error:  # noqa: BLE001  (raised in the reader)
                failure = error
            with self._changed:
                self._in_flight.discard(place)
                self._failure = self._failure or failure
                if failure is None:
                    self._arrived.add(place)
                self._changed.notify_all()

    def _may_fetch(self) -> bool:
        if self._next >= len(self._plan) or self._failure is not None:
            return False
        part = self._plan[self._next]
        if any(self._plan[place].group != part.group for place in self._in_flight):
            return False
        ahead = sum(each.stop - each.start for each in self._plan[self._reading : self._next])
        return ahead < AHEAD_BYTES or self._next <= self._reading

    def _fetch(self, start: int, stop: int) -> bytes:
        """Fetch a range; closing the file ends that."""
        with self._changed:
            if self._ended:
                raise CancelledError
            future = self._begin_range(start, stop)
            self._futures.add(future)
        try:
            return future.result()
        finally:
            future.cancel()
            with self._changed:
                self._futures.discard(future)

    def close(self) -> None:
        """Cancel what is in flight, and wait until the threads have ended: nothing is written afterwards."""
        with self._changed:
            self._ended = True
            for future in self._futures:
                future.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(CLOSE_S)
        super().close()
