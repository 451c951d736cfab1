"""The rows of an SQLite ledger that a claim takes and an ended lease gives back."""

from __future__ import annotations

import sqlite3

from penstock.errors import StaleClaim
from penstock.ledger.ledger import Claim, ClaimRequest, no_such_chunk, stale_claim

UNIT = "epoch = ? AND block = ? AND chunk = ?"

Range = tuple[int, int, int, int, int]
"""(block, chunk, stop, sample offset, its number): free chunks of one block."""


def first_free(db: sqlite3.Connection, epoch: int, request: ClaimRequest) -> Range | None:
    """Find where to begin: chunks that were begun come first, then the lowest."""
    blocks = request.blocks
    if not blocks:
        return None
    start, chunk = request.start
    for begun in ("AND sample_offset > 0", ""):
        row = db.execute(
            "SELECT block, chunk, stop, sample_offset, recorded FROM free "
            f"WHERE epoch = ? AND block BETWEEN ? AND ? AND (block > ? OR (block = ? AND stop > ?)) {begun} "
            "ORDER BY block, chunk LIMIT 1",
            (epoch, blocks[0], blocks[-1], start, start, chunk),
        ).fetchone()
        if row is not None:
            return row
    return None


def open_block(db: sqlite3.Connection, epoch: int, block: int, chunks: int) -> bool:
    """Make a block known, all of its chunks free; False if it was known before."""
    opened = db.execute("INSERT OR IGNORE INTO block VALUES (?, ?, ?, 0)", (epoch, block, chunks)).rowcount > 0
    if opened and chunks:
        db.execute("INSERT INTO free VALUES (?, ?, 0, ?, 0, 0)", (epoch, block, chunks))
    return opened


def first_unknown(db: sqlite3.Connection, epoch: int, start: int) -> int:
    """Find the first block from `start` on that nobody asked for in this epoch; walks along those that are known."""
    if db.execute("SELECT 1 FROM block WHERE epoch = ? AND block = ?", (epoch, start)).fetchone() is None:
        return start
    row = db.execute(
        "SELECT block + 1 FROM block AS known WHERE epoch = ? AND block >= ? AND NOT EXISTS "
        "(SELECT 1 FROM block WHERE epoch = known.epoch AND block = known.block + 1) ORDER BY block LIMIT 1",
        (epoch, start),
    ).fetchone()
    return row[0]


def take(db: sqlite3.Connection, epoch: int, found: Range, chunk: int) -> None:
    """Cut one chunk out of a free range."""
    block, first, stop, _, _ = found
    if chunk == first:
        if stop == first + 1:
            db.execute(f"DELETE FROM free WHERE {UNIT}", (epoch, block, first))
        else:
            db.execute(f"UPDATE free SET chunk = chunk + 1 WHERE {UNIT}", (epoch, block, first))
        return
    db.execute(f"UPDATE free SET stop = ? WHERE {UNIT}", (chunk, epoch, block, first))
    if chunk + 1 < stop:
        db.execute("INSERT INTO free VALUES (?, ?, ?, ?, 0, 0)", (epoch, block, chunk + 1, stop))


def go_on_at(db: sqlite3.Connection, unit: tuple[int, int, int], offset: int, number: int) -> None:
    """Let a chunk, held or free, go on at an offset; one that is done stays done."""
    epoch, block, chunk = unit
    known = db.execute("SELECT chunks FROM block WHERE epoch = ? AND block = ?", (epoch, block)).fetchone() or (0,)
    if not 0 <= chunk < known[0]:
        raise no_such_chunk(block, chunk, known[0])
    free: Range | None = db.execute(
        "SELECT block, chunk, stop, sample_offset, recorded FROM free "
        "WHERE epoch = ? AND block = ? AND chunk <= ? AND stop > ?",
        (epoch, block, chunk, chunk),
    ).fetchone()
    if free is not None:
        take(db, epoch, free, chunk)
        db.execute("INSERT INTO free VALUES (?, ?, ?, ? + 1, ?, ?)", (*unit, chunk, offset, number))
    else:
        db.execute(f"UPDATE lease SET sample_offset = ?, recorded = ? WHERE {UNIT}", (offset, number, *unit))


def free_leases(db: sqlite3.Connection, which: str, arguments: tuple[object, ...]) -> None:
    """Turn leases back into free chunks, at the offsets that they reached."""
    ended = db.execute(
        f"DELETE FROM lease WHERE {which} RETURNING epoch, block, chunk, chunk + 1, sample_offset, recorded", arguments
    ).fetchall()
    db.executemany("INSERT INTO free VALUES (?, ?, ?, ?, ?, ?)", ended)


def free_ended(db: sqlite3.Connection, now: float) -> None:
    """Free the chunks whose leases have ended, or lie too far ahead: written before the machine restarted."""
    free_leases(db, "expires <= ? OR expires - lease_s > ?", (now, now))


def end_lease(db: sqlite3.Connection, claim: Claim, now: float) -> tuple[int, int]:
    """Take the claim's lease out, and give the offset it reached and its number."""
    row = db.execute(
        f"DELETE FROM lease WHERE {UNIT} AND token = ? AND expires > ? RETURNING sample_offset, recorded",
        (claim.epoch, claim.block_id, claim.chunk_id, claim.token, now),
    ).fetchone()
    if row is None:
        raise stale(db, claim, now)
    return row


def next_number(db: sqlite3.Connection) -> int:
    """Count one more thing that was recorded."""
    return db.execute("UPDATE meta SET sequence = sequence + 1 RETURNING sequence").fetchone()[0]


def stale(db: sqlite3.Connection, claim: Claim, now: float) -> StaleClaim:
    """Say what became of a claim that no longer holds."""
    unit = (claim.epoch, claim.block_id, claim.chunk_id)
    done = db.execute(f"SELECT gpu, sequence FROM done WHERE {UNIT}", unit).fetchone()
    lease = db.execute(f"SELECT gpu, expires, token FROM lease WHERE {UNIT}", unit).fetchone()
    if done is not None:
        what = f"gpu {done[0]} has completed it (number {done[1]})"
    elif lease is not None and lease[2] == claim.token:
        what = f"its lease of {claim.lease_s:g} s ended {now - lease[1]:.1f} s ago"
    elif lease is not None:
        what = f"its lease of {claim.lease_s:g} s ended and gpu {lease[0]} holds the chunk now"
    else:
        what = f"its lease of {claim.lease_s:g} s ended, or the chunk was given back or opened again"
    return stale_claim(claim, what)
