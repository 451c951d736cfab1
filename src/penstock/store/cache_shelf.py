"""The files of a cache folder: found, claimed by one of all who want them, written, replaced.

    find ──▶ ready: its path
         ──▶ claim ──▶ make room, write ──▶ published with the next change of the book

No file is synced: after a crash of the system, which rows know by their `boot`, a file is compared with
its size and checksum before it is used. So is one that somebody has changed: a file's time of change has its
checksum in the place of the fraction of a second, which each process looks at once for each file.
"""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress

from penstock.node.disk import refused
from penstock.store import cache_rows as rows
from penstock.store.cache_book import Book
from penstock.store.cache_pins import Pins
from penstock.store.cache_room import Room
from penstock.store.cache_rows import Claimed, Row
from penstock.store.wanted import Wanted

READ_BYTES = 1 << 20
SECOND_NS = 1_000_000_000
TIME_STEPS_NS = 100, 1_000, 1_000_000, 10_000_000, SECOND_NS
"""In which file systems may count time; they cut off what is smaller."""


class Shelf:
    """The files of one cache folder, as one holder sees and changes them. May be used from several threads.

    Args:
        book: the rows.
        pins: this holder's.
    """

    def __init__(self, book: Book, pins: Pins) -> None:
        self.book, self.room, self._pins = book, Room(book, pins), pins

    def find(self, keys: Sequence[bytes]) -> dict[bytes, Row]:
        """Give the entries that there are of some keys."""
        with self.book.reading() as db:
            return rows.find(db, keys)

    def serves(self, row: Row, wanted: Wanted) -> bool:
        """Whether an entry is ready and of the version that is wanted."""
        if row.state != rows.READY or (wanted.etag is not None and wanted.etag != row.etag):
            return False
        return wanted.size is None or wanted.start is not None or wanted.size == row.size

    def unsound(self, found: Sequence[Row]) -> set[int]:
        """Read files that may have been changed; give the entries that are not what they were.

        These are files of before the system's last start, and files whose size or time of change is another.

        Cost: 2 µs for each file that need not be read.
        """
        old = [row for row in found if row.boot != self.book.boot or not self._is_untouched(row)]
        if not old:
            return set()
        sound = [row for row in old if checksum_of_file(self.book.path_of(row)) == (row.size, row.checksum)]
        for row in sound:
            with suppress(OSError):
                mark(self.book.path_of(row), row.checksum)
        with self.book.changing() as db:
            rows.vouch(db, sound, self.book.boot)
        bad = {row.id for row in old} - {row.id for row in sound}
        if bad:
            self.discard([row.key for row in old if row.id in bad])
        return bad

    def _is_untouched(self, row: Row) -> bool:
        try:
            found = os.stat(self.book.path_of(row))
        except OSError:
            return False
        if found.st_size != row.size:
            return False
        fraction, marked = found.st_mtime_ns % SECOND_NS, row.checksum % SECOND_NS
        return fraction == marked or any(fraction == marked - marked % step for step in TIME_STEPS_NS)

    def claim(self, wanted: Sequence[tuple[bytes, str, Wanted]], claimed: list[Claimed]) -> list[Row | Claimed | None]:
        """Claim what is not there.

        Args:
            wanted: key, suffix and what it is of.
            claimed: gets what this claims, before that is recorded.

        Returns:
            For each an entry that is ready, one for this holder to fill, or None: another fills it.
        """
        keys = [key for key, _, _ in wanted]
        with self.book.changing() as db:
            known = rows.find(db, keys)
            holders = {row.holder for row in known.values() if row.state == rows.LOADING and row.holder}
            if dead := [name for name in holders if not self._pins.is_live(name)]:
                self.book.bury(db, dead)
                known = rows.find(db, keys)
            absent, outdated = {}, []
            for key, suffix, want in wanted:
                row = known.get(key)
                if row is not None and (self.is_loading(row) or self.serves(row, want)):
                    continue
                if key not in absent and row is not None:
                    outdated.append(row)
                absent[key] = suffix
            self.book.retire(db, outdated)
            if absent:
                claimed += rows.claim(db, list(absent.items()), self._pins.name)
        mine = {entry.key: entry for entry in claimed}
        # Of two versions of one object the first is fetched; who wants the other waits, and then replaces it.
        return [mine.pop(key) if key in mine else self._ready(known.get(key), want) for key, _, want in wanted]

    def free_lost(self, keys: Sequence[bytes], alive: set[int]) -> None:
        """Let this holder's claims be used again, except those that it is to fill.

        Args:
            keys: of what.
            alive: entries that this process knows that it is to fill.
        """
        name = self._pins.name
        with self.book.changing() as db:
            found = [row for row in rows.find(db, keys).values() if row.holder == name and row.id not in alive]
            rows.unclaim(db, [Claimed(row.id, row.key, row.suffix) for row in found], name)

    def _ready(self, row: Row | None, wanted: Wanted) -> Row | None:
        return row if row is not None and self.serves(row, wanted) else None

    def is_loading(self, row: Row) -> bool:
        """Whether a holder fills an entry that lives and gets on."""
        if row.state != rows.LOADING or row.holder is None:
            return False
        return self._pins.is_live(row.holder) and not self._pins.is_stalled(row.holder)

    def discard(self, keys: Sequence[bytes]) -> int:
        """Let entries be found no longer, give how many; their files go when nobody uses them."""
        with self.book.changing() as db:
            found = [row for row in rows.find(db, keys).values() if row.state != rows.LOADING]
            self.book.retire(db, found)
        if found:
            self.room.remove(found)
        return len(found)

    def write(self, entry: Claimed, data: bytes, etag: str | None) -> str:
        """Write a whole object and give its path; it is published with the next change.

        Raises:
            StoreError: the disk is full, or the folder can't be written.
        """
        path = self.book.path_of(entry)
        self.room.make(len(data))
        try:
            descriptor = create(path)
            try:
                write_all(descriptor, data, 0)
                checksum = zlib.crc32(data)
                mark(descriptor, checksum)
            finally:
                os.close(descriptor)
        except BaseException as error:
            self.room.give_back(len(data))
            if isinstance(error, OSError):
                raise refused(path, error) from error
            raise
        self.book.written(entry, len(data), checksum, etag)
        return path

    def give_up(self, entries: Sequence[Claimed]) -> None:
        """Let go of entries that will not be filled."""
        for entry in entries:
            with suppress(OSError):
                os.unlink(self.book.path_of(entry))
        self.book.freed([entry.id for entry in entries])

    def still_there(self, found: Sequence[Row]) -> list[Row]:
        """Give those of some entries that nobody has taken away or replaced meanwhile."""
        now = self.find([row.key for row in found]) if found else {}
        return [row for row in found if (other := now.get(row.key)) is not None and other[:3] == row[:3]]

    def close(self) -> None:
        """Record what has gathered, keep the limit, and let go; pins that are left stay."""
        pins = self._pins
        try:
            self.room.rest()
            self.book.flush()
            pins.settle()
            self.room.keep_limit()
            if self.book.has_news:
                self.book.flush()
        finally:
            self.book.close()
            pins.retire()


def create(path: str) -> int:
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


def mark(file: str | int, checksum: int) -> None:
    """Let a file's time of change say that it was last changed here.

    A file system that counts in coarser steps keeps a part of it, one without fractions of a second nothing: of its
    files only the size is looked at.
    """
    now = time.time_ns()
    os.utime(file, ns=(now, now // SECOND_NS * SECOND_NS + checksum % SECOND_NS))


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
