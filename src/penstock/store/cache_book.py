"""The database of a cache folder as one holder writes to it: changes gather and are recorded together.

A row is there before its file and until after it. So what a holder that was killed has left on the disk
is known, and the next to look removes it.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.node.database import Database
from penstock.node.disk import store_errors
from penstock.store import cache_rows as rows
from penstock.store.cache_pins import Pins, spot_of
from penstock.store.cache_recency import OLD, Recency
from penstock.store.cache_rows import Claimed, Row, Written

DATABASE_NAME = "cache.db"
DATABASE_TIMEOUT_S = 60.0


class Book:
    """The rows of one cache folder. May be used from several threads.

    Args:
        folder: the cache's.
        pins: this holder's.
    """

    def __init__(self, folder: Path, pins: Pins) -> None:
        self.files_folder = os.path.join(folder, "files")
        self.boot = boot_of_system()
        with store_errors(self.files_folder):
            os.makedirs(self.files_folder, exist_ok=True)
        self._pins = pins
        self._database = Database(folder / DATABASE_NAME, rows.KIND, timeout_s=DATABASE_TIMEOUT_S)
        # First: what is beside a database that is not ours is not ours to write.
        with self.reading():
            pass
        self.recency = Recency(folder)
        self.reset()
        with self.changing() as db:
            dead = [name for name in rows.busy_holders(db) if not pins.is_live(name)]
            self.bury(db, [*{*pins.look_around(), *dead}])

    def reset(self) -> None:
        """Begin without gathered changes, as in a forked child: they are the parent's to record."""
        self._turn = threading.Lock()
        self.recency.reset()
        # They leave these lists when they have been recorded, each kind in one step: Ctrl-C loses none.
        self._written: list[Written] = []
        self._freed: list[int] = []
        self._spared: list[Row] = []
        self.unclaimed: list[Claimed] = []
        """Entries that may have been claimed, to be used again with the next change."""
        self.hits = self.misses = self.evictions = 0
        """Since they were last added to the totals."""

    def path_of(self, entry: Row | Claimed) -> str:
        """Give the path of an entry's file."""
        return f"{self.files_folder}/{entry.id >> 12:04x}/{entry.key.hex()}-{entry.id:x}{entry.suffix}"

    @property
    def is_lost(self) -> bool:
        """Whether the database was deleted or replaced: nothing more can be recorded in it."""
        return self._database.is_lost

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See the rows as of one moment."""
        with self._database.reading() as db:
            yield db

    @contextmanager
    def changing(self) -> Iterator[sqlite3.Connection]:
        """Change rows, together with all changes that have gathered."""
        with self._turn:
            written, freed = self._written[:], self._freed[:]
            spared, unclaimed = self._spared[:], self.unclaimed[:]
            ends = len(written), len(freed), len(spared), len(unclaimed)
            counts = self.hits, self.misses, self.evictions
            # From here on rows count these bytes; nobody else looks before the transaction ends.
            moved = sum(file.size for file in written), sum(row.size for row in spared)
            self._pins.reserve(-moved[0])
            self._pins.leave(-moved[1])
            self._database.committed = False
            try:
                with self._database.writing() as db:
                    if unclaimed:
                        rows.unclaim(db, unclaimed, self._pins.name)
                    self._record(db, written, freed, spared, counts)
                    yield db
            except BaseException:
                # What was recorded before the interrupt came is recorded: twice would count twice.
                if not self._database.committed:
                    self._pins.reserve(moved[0])
                    self._pins.leave(moved[1])
                raise
            finally:
                if self._database.committed:
                    # Without a call, so that Ctrl-C comes before all of this or after it.
                    del (
                        self._written[: ends[0]],
                        self._freed[: ends[1]],
                        self._spared[: ends[2]],
                        self.unclaimed[: ends[3]],
                    )
                    self._recorded(written, spared, counts)

    def _record(
        self, db: sqlite3.Connection, written: list[Written], freed: list[int], spared: list[Row], counts: tuple
    ) -> None:
        if written:
            rows.publish(db, written, self.boot)
        if freed:
            rows.free(db, freed)
        if spared:
            rows.spare(db, spared)
        if any(counts):
            rows.count(db, *counts)

    def _recorded(self, written: list[Written], spared: list[Row], counts: tuple[int, int, int]) -> None:
        self.hits -= counts[0]
        self.misses -= counts[1]
        self.evictions -= counts[2]
        self.recency.renew((file.id for file in written), time.time())
        self.recency.adopt(row.id for row in spared)

    @property
    def has_news(self) -> bool:
        """Whether changes have gathered that others wait for."""
        return bool(self._written or self._freed or self._spared or self.unclaimed)

    def flush(self) -> None:
        """Record all changes that have gathered."""
        with self.changing():
            pass

    def written(self, entry: Claimed, size: int, checksum: int, etag: str | None) -> None:
        """Let a whole file be published with the next change."""
        self._written.append(Written(entry.id, size, checksum, etag))

    def freed(self, ids: Sequence[int]) -> None:
        """Let entries without a file be used again, with the next change."""
        self._freed.extend(ids)

    def spared(self, row: Row) -> None:
        """Let a doomed entry stay, with the next change."""
        self._spared.append(row)

    def retire(self, db: sqlite3.Connection, outdated: Sequence[Row]) -> None:
        """Let entries be found no longer."""
        rows.retire(db, outdated)
        self.recency.withdraw([row.id for row in outdated], OLD)

    def bury(self, db: sqlite3.Connection, names: Sequence[str]) -> None:
        """Remove what ended holders were about to write, finish what they were about to take away."""
        freed = []
        for row in rows.abandoned(db, names) if names else ():
            # One without a size was never whole, whoever has pinned what replaced it.
            whole = row.state != rows.LOADING and row.size is not None
            if whole and self._pins.is_pinned(spot_of(row.key)):
                rows.spare(db, [row._replace(state=rows.READY)])
                self.recency.adopt([row.id])
                continue
            with suppress(FileNotFoundError):
                os.unlink(self.path_of(row))
            freed.append(row.id)
        if freed:
            rows.free(db, freed)
        for name in names:
            self._pins.forget(name)

    def close(self) -> None:
        """Close the files."""
        with self._turn:
            self._database.close()
            self.recency.close()


def boot_of_system() -> str:
    """Name the time from one start of the system to the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Where the system has no name for it: its minute.
        return f"{(time.time() - time.monotonic()) // 60:.0f}"
