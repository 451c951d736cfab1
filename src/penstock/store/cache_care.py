"""Look after a cache folder: count, verify, clear."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import StoreError
from penstock.node.disk import store_errors
from penstock.store import cache_parts as parts
from penstock.store import cache_rows as rows
from penstock.store.cache_book import DATABASE_NAME, Book
from penstock.store.cache_pins import Pins
from penstock.store.cache_rows import Row
from penstock.store.cache_shelf import Shelf, checksum_of_file
from penstock.store.cache_tables import allocate

THREADS = 8
_OURS = re.compile(r"[0-9a-f]{32}-[0-9a-f]+(\.[A-Za-z0-9_]{1,16})?")


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheStats:
    """What a cache folder holds, and what has been done with it."""

    files: int
    bytes: int
    limit: int | None
    """Bytes; the smallest of all processes that have it open."""
    hits: int
    misses: int
    """Objects that were fetched, or begun to be."""
    evictions: int
    downloaded_bytes: int
    in_flight: int
    """Objects that this process is fetching."""
    pinned: int
    """Paths that this process has in use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VerifyReport:
    """What came of reading all files."""

    files: int
    bytes: int
    damaged: tuple[str, ...]
    """Paths of files that differed from their checksums or were missing; they have been removed."""
    strays: int
    """Files of no entry, such as of a database that was deleted; they have been removed."""


def make_folder(folder: Path) -> None:
    """Make a cache folder, unless the path is something else."""
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"cannot write {folder}: a cache records who uses what; choose a folder you may write to")


def open_parts(folder: Path, limit: int | None) -> tuple[Pins, Book]:
    """Open what all holders write to; where the disk is full, what was laid by for that makes room for it.

    Raises:
        StoreError: the folder can't be written, or holds something else, or nothing was laid by.
    """
    parts.refuse_others(folder)
    try:
        return _opened(folder, limit)
    except StoreError as error:
        if not (parts.means_full(error) and parts.is_database_ours(folder) and parts.is_reserve_whole(folder)):
            raise
        with store_errors(folder / parts.RESERVE):
            os.unlink(folder / parts.RESERVE)
        return _opened(folder, limit)


def _opened(folder: Path, limit: int | None) -> tuple[Pins, Book]:
    pins = Pins(folder, limit)
    try:
        return pins, Book(folder, pins)
    except BaseException:
        pins.close()
        raise


def lay_by(folder: Path) -> None:
    """Keep some room on the disk, so that a cache on a full one can be opened with a smaller limit."""
    with suppress(OSError):
        file = os.open(folder / parts.RESERVE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            allocate(file, parts.RESERVE_BYTES)
        except OSError:
            os.unlink(folder / parts.RESERVE)
        finally:
            os.close(file)


def sweep_if_new(book: Book) -> None:
    """Remove files that an earlier cache left here whose database is gone: nothing says what they are."""
    with book.changing() as db:
        if db.execute("SELECT max(id) FROM entry").fetchone()[0] is None:
            _sweep(book, set())


def remove_stale(shelf: Shelf) -> None:
    """Remove files that were replaced or discarded while somebody used them."""
    with shelf.book.reading() as db:
        stale = rows.all_of(db, rows.STALE)
    if stale:
        shelf.room.remove(stale)


def stats(book: Book, pins: Pins, in_flight: int) -> CacheStats:
    """Count."""
    pins.settle()
    pins.look_around()
    with book.reading() as db:
        files, size, hits, misses, downloaded, evictions = db.execute(
            "SELECT files, bytes, hits, misses, downloaded, evictions FROM total"
        ).fetchone()
    return CacheStats(
        files=files,
        bytes=size,
        limit=pins.limit,
        hits=hits,
        misses=misses,
        evictions=evictions,
        downloaded_bytes=downloaded,
        in_flight=in_flight,
        pinned=pins.num_pinned(),
    )


def verify(shelf: Shelf) -> VerifyReport:
    """Read all files; remove those that are not what they were, and those that no entry knows."""
    with shelf.book.changing() as db:
        known = rows.all_of(db, rows.READY)
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda row: checksum_of_file(shelf.book.path_of(row)), known))
    bad = [row for row, facts in zip(known, found, strict=True) if facts != (row.size, row.checksum)]
    bad = shelf.still_there(bad)
    if bad:
        shelf.discard([row.key for row in bad])
    with shelf.book.changing() as db:
        kept = {shelf.book.path_of(row) for row in rows.all_of(db, rows.LOADING, rows.READY, rows.DOOMED, rows.STALE)}
        strays = _sweep(shelf.book, kept)
    return VerifyReport(
        files=len(known),
        bytes=sum(row.size for row in known),
        damaged=tuple(shelf.book.path_of(row) for row in bad),
        strays=strays,
    )


def clear(shelf: Shelf) -> int:
    """Remove all files that nobody uses; give their bytes."""
    with shelf.book.changing() as db:
        known: list[Row] = rows.all_of(db, rows.READY, rows.STALE)
    return shelf.room.remove(known)


def _sweep(book: Book, kept: set[str]) -> int:
    """Remove files that look like ours and are not among those to keep; under a transaction."""
    count = 0
    for path in _files(book.files_folder):
        if path not in kept:
            with suppress(FileNotFoundError):
                os.unlink(path)
                count += 1
    return count


def _files(folder: str) -> Iterator[str]:
    for root, _, names in os.walk(folder):
        for name in names:
            # Whatever else someone keeps here is not for us to remove.
            if _OURS.fullmatch(name):
                yield os.path.join(root, name)


def is_cache(folder: Path) -> bool:
    """Whether there is a cache in a folder."""
    return (folder / DATABASE_NAME).is_file()
