"""Room below the limit: which files go, and that none goes that anybody uses.

    doom (recorded) ──▶ look at everyone's pins ──▶ unlink ──▶ free
                                   └── pinned meanwhile: it stays

All that is on the disk, or may be written next, is counted: ready files by their rows, files on their way
by their writer's table. So room is made before a file is written, and the limit holds at every moment
but for files in use.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

from penstock.store import cache_rows as rows
from penstock.store.cache_book import Book
from penstock.store.cache_pins import Pins, spot_of
from penstock.store.cache_rows import Row

LOOK_S = 0.25
ROOM_BYTES = 4 << 20
"""Room is made for so much at a time, or a 64th of the limit, so that not every file takes a transaction."""
UNLIMITED_BYTES = 1 << 20
"""Shown at a time by who has no limit: others, who may have one, see it as taken."""
CANDIDATES = 64
ADOPT_S = 60.0


class Room:
    """What may be written, as one holder sees to it. May be used from several threads.

    Args:
        book: the rows.
        pins: this holder's.
    """

    def __init__(self, book: Book, pins: Pins) -> None:
        self._book, self._pins = book, pins
        self.over = False
        """Whether there is more than the limit allows, because it is in use."""
        self._looked = self._adopted = -float("inf")
        self.reset()

    def reset(self) -> None:
        """Begin without room, as in a forked child."""
        self._lock = threading.Lock()
        self._left = 0

    def make(self, size: int) -> None:
        """See to it that `size` more bytes fit below the limit, as far as files can go that nobody uses."""
        with self._lock:
            if self._left >= size:
                self._left -= size
                return
            limit = self._limit()
            missing = size - self._left
            if limit is None:
                self._pins.reserve(max(missing, UNLIMITED_BYTES))
                self._left += max(missing, UNLIMITED_BYTES) - size
                return
            self._left += self._evict(missing, max(missing, min(limit // 64, ROOM_BYTES))) - size

    def give_back(self, size: int) -> None:
        """Return room that was made and not used."""
        with self._lock:
            self._left += size

    def rest(self) -> None:
        """Return all room that was made and not used, for others."""
        with self._lock:
            self._pins.reserve(-self._left)
            self._left = 0

    def keep_limit(self) -> None:
        """Take away what is too much and in nobody's use, now."""
        with self._lock:
            limit = self._limit()
            if limit is not None and (self.over or self._exceeds(limit)):
                self._evict(0, 0)

    def remove(self, found: Sequence[Row]) -> int:
        """Take entries away whose files nobody uses; give their bytes."""
        self._pins.settle()
        doomed: list[Row] = []
        with self._book.changing() as db:
            self._pins.look_around()
            for start in range(0, len(found), CANDIDATES):
                ids = [row.id for row in found[start : start + CANDIDATES]]
                doomed += self._doom(db, rows.candidates(db, ids))
        self._take_away(doomed)
        self._book.flush()
        return sum(row.size for row in doomed)

    def _limit(self) -> int | None:
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            if gone := self._pins.look_around():
                with self._book.changing() as db:
                    self._book.bury(db, gone)
        return self._pins.limit

    def _exceeds(self, limit: int) -> bool:
        with self._book.reading() as db:
            return rows.num_bytes(db) + self._pins.unwritten() > limit

    def _evict(self, least: int, wished: int) -> int:
        """Make room for `wished` bytes, or as many as can be freed, at least for `least`; give for how many."""
        doomed: list[Row] = []
        try:
            with self._book.changing() as db:
                self._book.bury(db, self._pins.look_around())
                self._pins.settle()
                limit = self._pins.limit
                if limit is not None:
                    excess = rows.num_bytes(db) + self._pins.unwritten() + wished - limit
                    excess -= self._doom_oldest(db, excess, doomed)
                    wished = max(least, wished - max(excess, 0))
                    self.over = excess > 0
                self._pins.reserve(wished)
        except BaseException:
            self._pins.leave(-sum(row.size for row in doomed))
            raise
        self._take_away(doomed)
        return wished

    def _doom_oldest(self, db: sqlite3.Connection, excess: int, doomed: list[Row]) -> int:
        """Doom unpinned files, oldest first, until `excess` bytes are gone; add them to `doomed`, give their bytes."""
        recency, gone = self._book.recency, 0
        for attempt in range(3):
            while gone < excess and (ids := recency.next_oldest(CANDIDATES)):
                chosen = []
                for row in rows.candidates(db, ids):
                    if gone >= excess:
                        recency.put_back(ids[ids.index(row.id) :])
                        break
                    if not self._pins.is_pinned(spot_of(row.key)):
                        chosen.append(row)
                        gone += row.size
                doomed += self._doom(db, chosen)
            if gone >= excess or (attempt == 1 and not self._adopt(db)):
                break
            recency.line_up()
        return gone

    def _doom(self, db: sqlite3.Connection, chosen: list[Row]) -> list[Row]:
        """Doom those of some ready or stale entries that nobody has pinned; give them."""
        chosen = [row for row in chosen if not self._pins.is_pinned(spot_of(row.key))]
        if chosen:
            rows.doom(db, chosen, self._pins.name)
            self._book.recency.withdraw(row.id for row in chosen)
            self._pins.leave(sum(row.size for row in chosen))
        return chosen

    def _adopt(self, db: sqlite3.Connection) -> bool:
        """Look for files that are in no line, because who published them was killed before it said so."""
        if time.monotonic() < self._adopted + ADOPT_S:
            return False
        self._adopted = time.monotonic()
        return self._book.recency.adopt(row.id for row in rows.all_of(db, rows.READY, rows.STALE)) > 0

    def _take_away(self, doomed: list[Row]) -> None:
        """Unlink doomed files that nobody has pinned meanwhile; the others stay."""
        if not doomed:
            return
        # Whoever opened the cache since may have seen these files as ready.
        self._pins.look_around()
        freed = []
        for row in doomed:
            if self._pins.is_pinned(spot_of(row.key)):
                self._book.spared(row)
                continue
            with suppress(FileNotFoundError):
                os.unlink(self._book.path_of(row))
            freed.append(row)
        self._book.freed([row.id for row in freed])
        self._book.evictions += len(freed)
        self._pins.leave(-sum(row.size for row in freed))
