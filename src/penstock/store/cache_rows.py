"""The rows of a cache: what is on the disk, what is on its way there, and on whose account.

    free ──▶ loading(holder) ──▶ ready ──▶ doomed(holder) ──▶ free
                                   └──▶ stale: replaced or discarded, but perhaps in use ──▶ doomed

A row is there before its file and until after it, so whatever is on the disk after a kill is in some
row, and whose it was. Rows of free entries are used again: the number of an entry is its place elsewhere.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import NamedTuple, TypeVar

from penstock.errors import StoreError
from penstock.node.database import Kind

FREE, LOADING, READY, DOOMED, STALE = range(5)
KEYS_AT_A_TIME = 256

KIND = Kind(
    noun="cache",
    application_id=0x70736363,
    format_version=1,
    error=StoreError,
    recovery="A cache holds only copies: close the datasets that were opened on it, or end their process, and delete "
    "{folder} if nothing else is kept there",
    schema="""
CREATE TABLE entry (
    id INTEGER PRIMARY KEY, key BLOB, state INTEGER NOT NULL, holder TEXT, size INTEGER, checksum INTEGER,
    etag TEXT, boot TEXT, suffix TEXT);
CREATE INDEX entry_key ON entry (key) WHERE key IS NOT NULL;
CREATE INDEX entry_busy ON entry (state, holder) WHERE state <> 2;
CREATE TABLE total (
    files INTEGER NOT NULL, bytes INTEGER NOT NULL, hits INTEGER NOT NULL, misses INTEGER NOT NULL,
    downloaded INTEGER NOT NULL, evictions INTEGER NOT NULL);
INSERT INTO total VALUES (0, 0, 0, 0, 0, 0)
""",
)
_BUSY = f"state <> {READY}"
"""Lets SQLite see that `entry_busy` serves, instead of a look at each entry."""
_COLUMNS = "id, key, state, holder, size, checksum, etag, boot, suffix"


T = TypeVar("T")


class Row(NamedTuple):
    """One entry."""

    id: int
    key: bytes
    state: int
    holder: str | None
    """Whose loading or doomed entry it is."""
    size: int
    checksum: int
    etag: str | None
    boot: str | None
    """During which run of the system the file was written or last verified."""
    suffix: str


_row = partial(tuple.__new__, Row)


class Claimed(NamedTuple):
    """An entry that a holder may fill."""

    id: int
    key: bytes
    suffix: str


class Written(NamedTuple):
    """A file that is whole."""

    id: int
    size: int
    checksum: int
    etag: str | None


def find(db: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, Row]:
    """Give the entries that there are of some keys; cost about 3 µs for each."""
    found: dict[bytes, Row] = {}
    for part in _padded(keys):
        marks = ",".join("?" * len(part))
        cursor = db.execute(f"SELECT {_COLUMNS} FROM entry WHERE key IN ({marks}) AND state <> {STALE}", part)
        for row in map(_row, cursor):
            found[row[1]] = row
    return found


def _padded(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Cut values into parts of few lengths, the last value repeated, so that texts about them stay prepared.

    A text about many rows, and not the same about each: between two rows a thread would have to wait for the
    interpreter again, for milliseconds where others compute.
    """
    for start in range(0, len(values), KEYS_AT_A_TIME):
        part = values[start : start + KEYS_AT_A_TIME]
        length = 1 << (len(part) - 1).bit_length()
        yield [*part, *[part[-1]] * (length - len(part))]


def claim(db: sqlite3.Connection, keys: Sequence[tuple[bytes, str]], holder: str) -> list[Claimed]:
    """Make entries for keys, each with the suffix of its file, that this holder is going to fill."""
    free = [
        row[0] for row in db.execute(f"SELECT id FROM entry WHERE state = {FREE} AND {_BUSY} LIMIT ?", (len(keys),))
    ]
    (last,) = db.execute("SELECT max(id) FROM entry").fetchone()
    first = 0 if last is None else last + 1
    ids = [*free, *range(first, first + len(keys) - len(free))]
    claimed = [Claimed(entry, key, suffix) for entry, (key, suffix) in zip(ids, keys, strict=True)]
    for part in _padded(claimed):
        marks = ",".join([f"(?, ?, ?, {LOADING}, '{holder}')"] * len(part))
        db.execute(
            f"INSERT OR REPLACE INTO entry (id, key, suffix, state, holder) VALUES {marks}",
            list(chain.from_iterable(part)),
        )
    return claimed


def unclaim(db: sqlite3.Connection, entries: Sequence[Claimed], holder: str) -> None:
    """Let entries be used again as far as they were claimed."""
    db.executemany(
        f"UPDATE entry SET key = NULL, state = {FREE}, holder = NULL, size = NULL "
        f"WHERE id = ? AND key = ? AND state = {LOADING} AND holder = '{holder}'",
        [(entry.id, entry.key) for entry in entries],
    )


def publish(db: sqlite3.Connection, files: Sequence[Written], boot: str) -> None:
    """Make entries ready whose files are whole; one that others did not wait for stays what it is, stale.

    One that was given up meanwhile, as by an interrupt, stays free.
    """
    state = f"CASE WHEN state = {LOADING} THEN {READY} ELSE {STALE} END"
    ready = f"size = column2, checksum = column3, etag = column4, boot = '{boot}', state = {state}, holder = NULL"
    sizes: list[int] = []
    for part in _padded(files):
        marks = ",".join(["(?, ?, ?, ?)"] * len(part))
        done = db.execute(
            f"UPDATE entry SET {ready} FROM (VALUES {marks}) WHERE id = column1 AND key IS NOT NULL RETURNING size",
            list(chain.from_iterable(part)),
        )
        sizes += [size for (size,) in done]
    db.execute(
        "UPDATE total SET files = files + ?1, bytes = bytes + ?2, downloaded = downloaded + ?2",
        (len(sizes), sum(sizes)),
    )


def free(db: sqlite3.Connection, ids: Iterable[int]) -> None:
    """Let entries be used again; their files are gone."""
    _set(db, f"key = NULL, state = {FREE}, holder = NULL, size = NULL", list(ids))


def candidates(db: sqlite3.Connection, ids: Sequence[int]) -> list[Row]:
    """Give those of some entries that are ready, or stale and nobody's, in the order of `ids`."""
    where = f"id IN ({','.join(map(str, ids))}) AND state IN ({READY}, {STALE}) AND holder IS NULL"
    found = {row[0]: Row._make(row) for row in db.execute(f"SELECT {_COLUMNS} FROM entry WHERE {where}")}
    return [found[entry] for entry in ids if entry in found]


def doom(db: sqlite3.Connection, rows: Sequence[Row], holder: str) -> None:
    """Begin to take ready or stale entries away; their bytes count no longer."""
    _set(db, f"state = {DOOMED}, holder = '{holder}'", [row.id for row in rows])
    _count(db, -1, rows)


def spare(db: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Keep doomed entries after all; a replaced one stays replaced."""
    db.executemany(
        f"UPDATE entry SET state = CASE WHEN state = {DOOMED} THEN ? ELSE {STALE} END, holder = NULL WHERE id = ?",
        [(row.state, row.id) for row in rows],
    )
    _count(db, 1, rows)


def retire(db: sqlite3.Connection, rows: Iterable[Row]) -> None:
    """Let ready or doomed entries be found no longer; who has their files keeps them."""
    _set(db, f"state = {STALE}", [row.id for row in rows])


def _set(db: sqlite3.Connection, change: str, ids: Sequence[int]) -> None:
    for part in _padded(ids):
        db.execute(f"UPDATE entry SET {change} WHERE id IN ({','.join('?' * len(part))})", part)


def _count(db: sqlite3.Connection, sign: int, rows: Sequence[Row]) -> None:
    size = sum(row.size for row in rows)
    db.execute("UPDATE total SET files = files + ?, bytes = bytes + ?", (sign * len(rows), sign * size))


def abandoned(db: sqlite3.Connection, holders: Sequence[str]) -> list[Row]:
    """Give what holders that have ended were about to write or to take away."""
    marks = ",".join("?" * len(holders))
    where = f"state IN ({LOADING}, {DOOMED}, {STALE}) AND holder IN ({marks}) AND {_BUSY}"
    return [Row._make(row) for row in db.execute(f"SELECT {_COLUMNS} FROM entry WHERE {where}", tuple(holders))]


def busy_holders(db: sqlite3.Connection) -> list[str]:
    """Give the names of all who have something on its way, there or away."""
    where = f"state IN ({LOADING}, {DOOMED}, {STALE}) AND holder IS NOT NULL AND {_BUSY}"
    return [name for (name,) in db.execute(f"SELECT DISTINCT holder FROM entry WHERE {where}")]


def all_of(db: sqlite3.Connection, *states: int) -> list[Row]:
    """Give all entries in some states."""
    where = f"state IN ({','.join(map(str, states))})"
    return [Row._make(row) for row in db.execute(f"SELECT {_COLUMNS} FROM entry WHERE {where} ORDER BY id")]


def num_bytes(db: sqlite3.Connection) -> int:
    """Give the bytes of all files that are ready or stale."""
    return int(db.execute("SELECT bytes FROM total").fetchone()[0])


def vouch(db: sqlite3.Connection, rows: Sequence[Row], boot: str) -> None:
    """Record that files were found to be whole during this run of the system."""
    _set(db, f"boot = '{boot}'", [row.id for row in rows])


def count(db: sqlite3.Connection, hits: int, misses: int, evictions: int) -> None:
    """Add to the totals since the cache was made."""
    db.execute(
        "UPDATE total SET hits = hits + ?, misses = misses + ?, evictions = evictions + ?", (hits, misses, evictions)
    )
