"""The files of a cache folder and the rows about them, kept in step through every kind of end.

    claim ──▶ make room, write ──▶ publish              nothing is read before its row is ready
    doom (committed) ──▶ look at all pins ──▶ unlink ──▶ free

No file is synced: after a crash of the system, which rows know by their `boot`, a file is compared with
its size and checksum before it is used.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from penstock.node.database import Database
from penstock.node.disk import store_errors
from penstock.store import cache_rows as rows
from penstock.store.cache_pins import Pins, spot_of
from penstock.store.cache_recency import Recency
from penstock.store.cache_rows import Claimed, Row, Written
from penstock.store.wanted import Wanted

DATABASE_NAME = "cache.db"
DATABASE_TIMEOUT_S = 60.0
LOOK_S = 0.25
ROOM_BYTES = 4 << 20
"""Room is made for so much at a time, or a 64th of the limit, so that not every file takes a transaction."""
CANDIDATES = 64
ADOPT_S = 60.0
READ_BYTES = 1 << 20


class Shelf:
    """The files of one cache folder, as one holder sees and changes them. May be used from several threads.

    Args:
        folder: made if it is missing.
        pins: this holder's.
    """

    def __init__(self, folder: Path, pins: Pins) -> None:
        self.folder = folder
        self.files_folder = os.path.join(folder, "files")
        self._pins = pins
        self._boot = boot_of_system()
        with store_errors(self.files_folder):
            os.makedirs(self.files_folder, exist_ok=True)
        self._database = Database(folder / DATABASE_NAME, rows.KIND, timeout_s=DATABASE_TIMEOUT_S)
        self.recency = Recency(folder / "recency")
        self.counts = [0, 0, 0]
        """Hits, misses and evictions since they were last added to the totals."""
        self._written: deque[Written] = deque()
        self._freed: deque[int] = deque()
        self._spared: deque[Row] = deque()
        self._reset_locks()
        self.over = False
        """Whether there is more than the limit allows, because it is in use."""
        self._allowance = 0
        self._looked = self._adopted = -float("inf")
        self._bury_all()

    def _reset_locks(self) -> None:
        self._turn, self._room = threading.Lock(), threading.Lock()

    def path_of(self, entry: Row | Claimed) -> str:
        """Give the path of an entry's file."""
        return f"{self.files_folder}/{entry.id >> 12:04x}/{entry.key.hex()}-{entry.id:x}{entry.suffix}"

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Give the entries that there are of some keys."""
        with self._database.reading() as db:
            return rows.find(db, keys)

    def serves(self, row: Row, wanted: Wanted) -> bool:
        """Whether an entry is ready and of the version that is wanted."""
        if row.state != rows.READY or (wanted.etag is not None and wanted.etag != row.etag):
            return False
        return wanted.size is None or wanted.start is not None or wanted.size == row.size

    def is_sound(self, row: Row) -> bool:
        """Whether what was written before the system's last start is what it was; reads it."""
        if row.boot == self._boot:
            return True
        if checksum_of_file(self.path_of(row)) != (row.size, row.checksum):
            return False
        self._written_again(row)
        return True

    def _written_again(self, row: Row) -> None:
        with self._changing() as db:
            db.execute("UPDATE entry SET boot = ? WHERE id = ?", (self._boot, row.id))

    def claim(self, wanted: Sequence[tuple[bytes, str, Wanted]]) -> list[Row | Claimed | None]:
        """Claim what is not there: key, suffix and what it is of.

        Returns:
            For each an entry that is ready, one for this holder to fill, or None: another fills it.
        """
        keys = [key for key, _, _ in wanted]
        with self._changing() as db:
            known = rows.find(db, keys)
            holders = {row.holder for row in known.values() if row.state == rows.LOADING and row.holder}
            if dead := [name for name in holders if not self._pins.is_live(name)]:
                self._bury(db, dead)
                known = rows.find(db, keys)
            absent, outdated = [], []
            for key, suffix, want in wanted:
                row = known.get(key)
                if row is not None and (row.state == rows.LOADING or self.serves(row, want)):
                    continue
                absent.append((key, suffix))
                if row is not None:
                    outdated.append(row)
            self._retire(db, outdated)
            mine = {entry.key: entry for entry in rows.claim(db, absent, self._pins.name)} if absent else {}
        return [mine.get(key) or (row if (row := known[key]).state == rows.READY else None) for key in keys]

    def discard(self, keys: Sequence[bytes]) -> None:
        """Let entries be found no longer; the files go when nobody uses them."""
        with self._changing() as db:
            found = [row for row in rows.find(db, keys).values() if row.state != rows.LOADING]
            self._retire(db, found)
        self.remove(found)

    def remove(self, found: Sequence[Row]) -> int:
        """Remove files that nobody uses, whether found any longer or not; give their bytes."""
        if not found:
            return 0
        self._pins.settle()
        with self._changing() as db:
            self._pins.look_around()
            doomed = []
            for start in range(0, len(found), CANDIDATES):
                ids = [row.id for row in found[start : start + CANDIDATES]]
                doomed += self._doom_unpinned(db, rows.candidates(db, ids))
        self._take_away(doomed)
        self.flush()
        return sum(row.size for row in doomed)

    def still_there(self, found: Sequence[Row]) -> list[Row]:
        """Give those of some entries that nobody has taken away or replaced meanwhile."""
        now = self.find([row.key for row in found]) if found else {}
        return [row for row in found if (other := now.get(row.key)) is not None and other[:3] == row[:3]]

    def is_loading(self, row: Row) -> bool:
        """Whether a living holder fills an entry."""
        return row.state == rows.LOADING and row.holder is not None and self._pins.is_live(row.holder)

    def _retire(self, db: sqlite3.Connection, outdated: list[Row]) -> None:
        if outdated:
            rows.retire(db, outdated)
            self.recency.touch([row.id for row in outdated], 1.0)

    def write(self, entry: Claimed, data: bytes, etag: str | None) -> str:
        """Write a whole object and give its path; it is published with the next change.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        path = self.path_of(entry)
        self.make_room(len(data))
        try:
            with store_errors(path):
                descriptor = self.create(path)
                try:
                    write_all(descriptor, data, 0)
                finally:
                    os.close(descriptor)
        except BaseException:
            self.give_room_back(len(data))
            raise
        self.written(entry, len(data), zlib.crc32(data), etag)
        return path

    def create(self, path: str) -> int:
        """Open a file that is not there; one that an ended holder left goes first."""
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        for _ in range(3):
            try:
                return os.open(path, flags, 0o666)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
            except FileExistsError:
                os.unlink(path)
        return os.open(path, flags, 0o666)

    def written(self, entry: Claimed, size: int, checksum: int, etag: str | None) -> None:
        """Let a whole file be published with the next change."""
        self._written.append(Written(entry.id, size, checksum, etag))

    def give_up(self, entries: Sequence[Claimed]) -> None:
        """Let go of entries that will not be filled."""
        for entry in entries:
            with suppress(OSError):
                os.unlink(self.path_of(entry))
        self._freed.extend(entry.id for entry in entries)

    def make_room(self, size: int) -> None:
        """See to it that `size` more bytes fit below the limit, as far as files can go that nobody uses."""
        with self._room:
            if self._allowance >= size:
                self._allowance -= size
                return
            limit = self._limit()
            if limit is None:
                self._pins.reserve(size)
                return
            missing = size - self._allowance
            granted = self._evict(missing, max(missing, min(limit // 64, ROOM_BYTES)))
            self._allowance += granted - size

    def give_room_back(self, size: int) -> None:
        """Return room that was made and not used."""
        with self._room:
            self._allowance += size

    def rest(self) -> None:
        """Return all room that was made and not used, for others."""
        with self._room:
            self._pins.reserve(-self._allowance)
            self.over = False
        """Whether there is more than the limit allows, because it is in use."""
        self._allowance = 0

    def _limit(self) -> int | None:
        if time.monotonic() > self._looked + LOOK_S:
            self._looked = time.monotonic()
            if gone := self._pins.look_around():
                with self._changing() as db:
                    self._bury(db, gone)
        return self._pins.limit

    def keep_limit(self) -> None:
        """Take away what is too much and in nobody's use, now."""
        with self._room:
            if self._limit() is not None and (self.over or self._is_over()):
                self._evict(0, 0)

    def _is_over(self) -> bool:
        with self._database.reading() as db:
            return rows.num_bytes(db) + self._pins.unwritten() > (self._pins.limit or 0)

    def _evict(self, least: int, wished: int) -> int:
        """Make room for `wished` bytes, or as many as can be freed, at least for `least`; give for how many."""
        doomed: list[Row] = []
        try:
            with self._changing() as db:
                self._bury(db, self._pins.look_around())
                limit = self._pins.limit
                if limit is not None:
                    excess = rows.num_bytes(db) + self._pins.unwritten() + wished - limit
                    self._pins.settle()
                    doomed, excess = self._doom(db, excess)
                    self.over = excess > 0
                    wished = max(least, wished - max(excess, 0))
                self._pins.reserve(wished)
        except BaseException:
            self._pins.leave(-sum(row.size for row in doomed))
            raise
        self._take_away(doomed)
        return wished

    def _doom(self, db: sqlite3.Connection, excess: int) -> tuple[list[Row], int]:
        """Doom unpinned files, oldest first, until `excess` bytes are gone; give them and what of it is left."""
        doomed: list[Row] = []
        for attempt in range(3):
            while excess > 0 and (ids := self.recency.next_oldest(CANDIDATES)):
                chosen, used = [], 0
                for used, row in enumerate(rows.candidates(db, ids), start=1):  # noqa: B007
                    if not self._pins.is_pinned(spot_of(row.key)):
                        chosen.append(row)
                        excess -= row.size
                    if excess <= 0:
                        self.recency.put_back(ids[ids.index(row.id) + 1 :])
                        break
                doomed += self._doom_unpinned(db, chosen)
            if excess <= 0 or (attempt == 1 and not self._adopt(db)):
                break
            self.recency.line_up()
        return doomed, excess

    def _doom_unpinned(self, db: sqlite3.Connection, chosen: list[Row]) -> list[Row]:
        chosen = [row for row in chosen if not self._pins.is_pinned(spot_of(row.key))]
        if chosen:
            rows.doom(db, chosen, self._pins.name)
            self.recency.forget(row.id for row in chosen)
            self._pins.leave(sum(row.size for row in chosen))
        return chosen

    def _adopt(self, db: sqlite3.Connection) -> bool:
        """Look for files that are in no order of use, because who published them was killed before it said so."""
        if time.monotonic() < self._adopted + ADOPT_S:
            return False
        self._adopted = time.monotonic()
        return self.recency.adopt(row.id for row in rows.all_of(db, rows.READY, rows.STALE)) > 0

    def _take_away(self, doomed: list[Row]) -> None:
        """Unlink doomed files that nobody has pinned meanwhile; the others stay."""
        if not doomed:
            return
        self._pins.look_around()
        freed = 0
        for row in doomed:
            if self._pins.is_pinned(spot_of(row.key)):
                self._spared.append(row)
                continue
            with suppress(FileNotFoundError):
                os.unlink(self.path_of(row))
            self._freed.append(row.id)
            self.counts[2] += 1
            freed += row.size
        self._pins.leave(-freed)

    def _bury_all(self) -> None:
        """Take over what holders left that ended while nobody looked."""
        with self._changing() as db:
            gone = set(self._pins.look_around())
            self._bury(db, [*gone, *[name for name in rows.busy_holders(db) if not self._pins.is_live(name)]])

    def _bury(self, db: sqlite3.Connection, names: Sequence[str]) -> None:
        """Remove what ended holders were about to write, finish what they were about to take away."""
        if not names:
            return
        freed = []
        for row in rows.abandoned(db, names):
            if row.state != rows.LOADING and self._pins.is_pinned(spot_of(row.key)):
                rows.spare(db, [row._replace(state=rows.READY)])
                self.recency.adopt([row.id])
                continue
            with suppress(FileNotFoundError):
                os.unlink(self.path_of(row))
            freed.append(row.id)
        rows.free(db, freed)
        for name in names:
            self._pins.forget(name)

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """Change rows, together with all changes that have gathered."""
        with self._turn:
            written, freed, spared = _taken(self._written), _taken(self._freed), _taken(self._spared)
            counts, self.counts = self.counts, [0, 0, 0]
            try:
                with self._database.writing() as db:
                    rows.publish(db, written, self._boot)
                    rows.free(db, freed)
                    rows.spare(db, spared)
                    rows.count(db, *counts)
                    yield db
            except BaseException:
                self._written.extendleft(reversed(written))
                self._freed.extendleft(reversed(freed))
                self._spared.extendleft(reversed(spared))
                self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)]
                raise
            self.recency.touch([file.id for file in written], time.time())
            self.recency.adopt([row.id for row in spared])
            self._pins.reserve(-sum(file.size for file in written))
            self._pins.leave(-sum(row.size for row in spared))

    @property
    def has_news(self) -> bool:
        """Whether changes have gathered."""
        return bool(self._written or self._freed or self._spared)

    def flush(self) -> None:
        """Record all changes that have gathered."""
        with self._changing():
            pass

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Change or read rows at a moment when nobody else changes them, with all that has gathered recorded."""
        with self._changing() as db:
            yield db

    def shut(self) -> None:
        """Record what has gathered, keep the limit, and let go; pins that are left stay."""
        try:
            self.rest()
            if self.has_news or any(self.counts):
                self.flush()
            self._pins.settle()
            self.keep_limit()
            if self.has_news:
                self.flush()
        finally:
            self._database.close()
            self.recency.close()
            self._pins.wake = None
            self._pins.lift_limit()
            if not self._pins.num_pinned():
                self._pins.close()

    def after_fork(self) -> None:
        """Begin anew in a forked child; what had gathered is the parent's to record."""
        self._reset_locks()
        self._written.clear()
        self._freed.clear()
        self._spared.clear()
        self.counts = [0, 0, 0]
        self._allowance = 0


def _taken(gathered: deque) -> list:
    return [gathered.popleft() for _ in range(len(gathered))]


def write_all(descriptor: int, data: bytes, offset: int) -> None:
    """Write bytes at an offset, all of them."""
    done = os.pwrite(descriptor, data, offset)
    while done < len(data):
        # Where the disk fills up, the first part still fits; the next attempt says why the rest does not.
        done += os.pwrite(descriptor, memoryview(data)[done:], offset + done)


def checksum_of_file(path: str) -> tuple[int, int] | None:
    """Give a file's size and checksum; None if there is none that can be read."""
    size = checksum = 0
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(READ_BYTES):
                size += len(data)
                checksum = zlib.crc32(data, checksum)
    except OSError:
        return None
    return size, checksum


def boot_of_system() -> str:
    """Name the time from one start of the system to the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Where the system has no name for it: its minute.
        return f"{(time.time() - time.monotonic()) // 60:.0f}"
