"""The ledger of one node: an SQLite file, shared by all processes of the machine.

    free       ranges of chunks that nobody holds, per block; a chunk begun and given back stands alone
    lease      chunks that are held, until when, by which token: a few per process, so they are simply looked through
    done       one row per completion, numbered; unique per (epoch, block, chunk)
    block      how many chunks a block has and how many are done, per epoch
    handed_out how much of a begun chunk a trainer had when it made a checkpoint, be it trained or not

A block enters the tables when its first chunk is asked for, as one range, so a claim and a completion
touch a few rows of indexed tables however many chunks there are or are done.

The clock is the node's boot clock, which no change of date or time zone moves and all processes share. A lease
that ends later than its own length from now was written before a restart of the machine: it counts as ended. So the
clock is read inside a transaction, never before: what others wrote while we waited must not seem to lie ahead.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from penstock.ledger import sqlite_history as history
from penstock.ledger import sqlite_rows as rows
from penstock.ledger.database import Database
from penstock.ledger.ledger import Checkpoint, Claim, ClaimRequest, Holder, Progress, Snapshot, foreign, other_chunks
from penstock.node.presence import Presence

_SCHEMA = """
CREATE TABLE meta (
    id INTEGER PRIMARY KEY CHECK (id = 1), ledger_id TEXT NOT NULL, brain_id TEXT, dataset_name TEXT,
    epoch INTEGER NOT NULL, sequence INTEGER NOT NULL, num_blocks INTEGER,
    chunks_done INTEGER NOT NULL, optimizer_step INTEGER NOT NULL, steps INTEGER NOT NULL,
    chunk_size INTEGER);
CREATE TABLE epoch (epoch INTEGER PRIMARY KEY, sequence INTEGER NOT NULL);
CREATE TABLE block (
    epoch INTEGER, block INTEGER, chunks INTEGER NOT NULL, done INTEGER NOT NULL,
    PRIMARY KEY (epoch, block)) WITHOUT ROWID;
CREATE TABLE free (
    epoch INTEGER, block INTEGER, chunk INTEGER, stop INTEGER NOT NULL,
    sample_offset INTEGER NOT NULL, recorded INTEGER NOT NULL, PRIMARY KEY (epoch, block, chunk)) WITHOUT ROWID;
CREATE INDEX free_begun ON free (epoch, block, chunk) WHERE sample_offset > 0;
CREATE TABLE lease (
    epoch INTEGER, block INTEGER, chunk INTEGER, token TEXT NOT NULL, gpu, expires REAL NOT NULL, lease_s REAL NOT NULL,
    sample_offset INTEGER NOT NULL, recorded INTEGER NOT NULL, PRIMARY KEY (epoch, block, chunk)) WITHOUT ROWID;
CREATE TABLE done (
    sequence INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, block INTEGER NOT NULL, chunk INTEGER NOT NULL, gpu,
    optimizer_step INTEGER NOT NULL, steps INTEGER NOT NULL);
CREATE UNIQUE INDEX done_unit ON done (epoch, block, chunk);
CREATE TABLE handed_out (
    epoch INTEGER, block INTEGER, chunk INTEGER, sample_offset INTEGER NOT NULL,
    PRIMARY KEY (epoch, block, chunk)) WITHOUT ROWID;
INSERT INTO epoch VALUES (0, 0);
"""


_FREE_FROM = "SELECT 1 FROM free WHERE epoch = ? AND block >= ? AND (block > ? OR stop > ?)"
_HELD_FROM = "SELECT 1 FROM lease WHERE epoch = ? AND block >= ? AND (block > ? OR chunk >= ?)"


def boot_clock() -> float:
    """Seconds since the machine started, sleep included: one clock for all its processes, moved by nobody."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class SqliteLedger:
    """A `Ledger` in a file on a local disk. Threads may share it; a fork gets connections of its own.

    Args:
        path: the file; made if it is not there.
        timeout_s: how long an operation may wait for its turn before it is a LedgerError.
        clock: seconds, the same in all processes that use the file.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, timeout_s: float = 60.0, clock: Callable[[], float] = boot_clock
    ) -> None:
        self.path = Path(path).absolute()
        self._database = Database(self.path, schema=_SCHEMA, timeout_s=timeout_s)
        self._presence = Presence(Path(f"{self.path}-holders"))
        self._clock = clock
        # (number of the epoch's start, start block, first block that may have no row yet): saves a search.
        self._next_block: tuple[int, int, int] | None = None

    def introduce(self, brain_id: str, dataset_name: str) -> str:
        """See `Ledger`."""
        with self._database.writing() as db:
            row = db.execute("SELECT ledger_id, brain_id, dataset_name FROM meta").fetchone()
            if row is None:
                row = (secrets.token_hex(8), brain_id, dataset_name)
                db.execute("INSERT INTO meta VALUES (1, ?, ?, ?, 0, 0, NULL, 0, 0, 0, NULL)", row)
        if row[1:] != (brain_id, dataset_name):
            raise foreign(self.path, row[1:], (brain_id, dataset_name))
        return row[0]

    def agree(self, chunk_size: int) -> int:
        """See `Ledger`."""
        with self._database.writing() as db:
            db.execute("UPDATE meta SET chunk_size = ? WHERE chunk_size IS NULL", (chunk_size,))
            return db.execute("SELECT chunk_size FROM meta").fetchone()[0]

    def claim(self, request: ClaimRequest) -> Claim | None:
        """See `Ledger`.

        Raises:
            LedgerError: a block has another number of chunks here than is asked for.
        """
        with self._database.writing() as db:
            self._presence.announce(_tracker_of(request.token))
            now = self._clock()
            epoch, num_blocks = db.execute("SELECT epoch, num_blocks FROM meta").fetchone()
            if request.chunks_per_block is not None and num_blocks != len(request.chunks_per_block):
                db.execute("UPDATE meta SET num_blocks = ?", (len(request.chunks_per_block),))
            rows.free_ended(db, now)
            found = rows.first_free(db, epoch, request)
            # Of the start block there may be nothing to grant.
            while found is None and self._open_next_block(db, epoch, request):
                found = rows.first_free(db, epoch, request)
            if found is None and self._free_gone(db, epoch):
                found = rows.first_free(db, epoch, request)
            if found is None:
                return None
            block, first, _, offset, recorded = found
            self._check_chunks(db, epoch, block, request)
            chunk = max(first, request.start[1]) if block == request.start[0] else first
            rows.take(db, epoch, found, chunk)
            db.execute(
                "INSERT INTO lease VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    epoch,
                    block,
                    chunk,
                    request.token,
                    request.gpu_id,
                    now + request.lease_s,
                    request.lease_s,
                    offset,
                    recorded,
                ),
            )
        return request.granted(epoch=epoch, block_id=block, chunk_id=chunk, sample_offset=offset)

    def heartbeat(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """See `Ledger`."""
        with self._database.writing() as db:
            now = self._clock()
            unit = (claim.epoch, claim.block_id, claim.chunk_id)
            mine = f"WHERE {rows.UNIT} AND token = ? AND expires > ?"
            if sample_offset is None:
                changed = db.execute(
                    f"UPDATE lease SET expires = ? {mine}", (now + claim.lease_s, *unit, claim.token, now)
                )
            else:
                changed = db.execute(
                    f"UPDATE lease SET expires = ?, sample_offset = ?, recorded = ? {mine}",
                    (now + claim.lease_s, sample_offset, rows.next_number(db), *unit, claim.token, now),
                )
            if not changed.rowcount:
                raise rows.stale(db, claim, now)

    def complete(self, claim: Claim, *, optimizer_step: int, steps: int) -> int:
        """See `Ledger`."""
        with self._database.writing() as db:
            now = self._clock()
            rows.end_lease(db, claim, now)
            (sequence,) = db.execute(
                "UPDATE meta SET sequence = sequence + 1, chunks_done = chunks_done + 1, steps = steps + ?, "
                "optimizer_step = max(optimizer_step, ?) RETURNING sequence",
                (steps, optimizer_step),
            ).fetchone()
            unit = (claim.epoch, claim.block_id, claim.chunk_id)
            db.execute(
                "INSERT INTO done VALUES (?, ?, ?, ?, ?, ?, ?)", (sequence, *unit, claim.gpu_id, optimizer_step, steps)
            )
            db.execute("UPDATE block SET done = done + 1 WHERE epoch = ? AND block = ?", unit[:2])
            db.execute(f"DELETE FROM handed_out WHERE {rows.UNIT}", unit)
        return sequence

    def release(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """See `Ledger`."""
        with self._database.writing() as db:
            now = self._clock()
            offset, recorded = rows.end_lease(db, claim, now)
            if sample_offset is not None:
                offset, recorded = sample_offset, rows.next_number(db)
            unit = (claim.epoch, claim.block_id, claim.chunk_id)
            db.execute("INSERT INTO free VALUES (?, ?, ?, ?, ?, ?)", (*unit, claim.chunk_id + 1, offset, recorded))

    def position(self) -> tuple[int, int]:
        """See `Ledger`."""
        with self._database.reading() as db:
            return db.execute("SELECT epoch, sequence FROM meta").fetchone()

    def progress(self) -> Progress:
        """See `Ledger`."""
        with self._database.reading() as db:
            row = db.execute(
                "SELECT epoch, sequence, num_blocks, chunks_done, optimizer_step, steps FROM meta"
            ).fetchone()
            blocks = db.execute(
                "SELECT count(*), coalesce(sum(done = chunks), 0), coalesce(sum(done = chunks AND epoch = ?), 0) "
                "FROM block",
                (row[0],),
            ).fetchone()
        return Progress(
            epoch=row[0],
            sequence=row[1],
            num_blocks=row[2],
            chunks_done=row[3],
            optimizer_step=row[4],
            steps=row[5],
            blocks_started=blocks[0],
            blocks_completed=blocks[1],
            blocks_completed_this_epoch=blocks[2],
        )

    def is_done(self, epoch: int | None, block_id: int, chunk_id: int | None) -> bool:
        """See `Ledger`."""
        with self._database.reading() as db:
            if epoch is None:
                (epoch,) = db.execute("SELECT epoch FROM meta").fetchone()
            if chunk_id is None:
                query = "SELECT 1 FROM block WHERE epoch = ? AND block = ? AND done = chunks"
                return db.execute(query, (epoch, block_id)).fetchone() is not None
            return (
                db.execute(f"SELECT 1 FROM done WHERE {rows.UNIT}", (epoch, block_id, chunk_id)).fetchone() is not None
            )

    def is_epoch_complete(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """See `Ledger`. Cost: O(blocks), and less while there is anything free or held."""
        block, chunk = start
        with self._database.reading() as db:
            (epoch,) = db.execute("SELECT epoch FROM meta").fetchone()
            for pending in (_FREE_FROM, _HELD_FROM):
                if db.execute(pending + " LIMIT 1", (epoch, block, block, chunk)).fetchone():
                    return False
            (later,) = db.execute(
                "SELECT coalesce(sum(done), 0) FROM block WHERE epoch = ? AND block > ? AND block < ?",
                (epoch, block, len(chunks_per_block)),
            ).fetchone()
            (first,) = db.execute(
                "SELECT count(*) FROM done WHERE epoch = ? AND block = ? AND chunk >= ?", (epoch, block, chunk)
            ).fetchone()
        wanted = (
            sum(chunks_per_block[block:]) - min(chunk, chunks_per_block[block]) if block < len(chunks_per_block) else 0
        )
        return later + first >= wanted

    def has_free(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """See `Ledger`."""
        block, chunk = start
        with self._database.reading() as db:
            (epoch,) = db.execute("SELECT epoch FROM meta").fetchone()
            now = self._clock()
            if db.execute(_FREE_FROM, (epoch, block, block, chunk)).fetchone():
                return True
            ended = f"{_HELD_FROM} AND (expires <= ? OR expires - lease_s > ?)"
            if db.execute(ended, (epoch, block, block, chunk, now, now)).fetchone():
                return True
            last = len(chunks_per_block)
            (known,) = db.execute(
                "SELECT count(*) FROM block WHERE epoch = ? AND block >= ? AND block < ?", (epoch, block, last)
            ).fetchone()
            return known < last - block or bool(self._gone(db, epoch))

    def holders(self) -> list[Holder]:
        """See `Ledger`."""
        with self._database.reading() as db:
            (epoch,) = db.execute("SELECT epoch FROM meta").fetchone()
            found = db.execute(
                "SELECT block, chunk, gpu, min(expires - ?, lease_s) FROM lease WHERE epoch = ? ORDER BY expires",
                (self._clock(), epoch),
            ).fetchall()
        return [Holder(block_id=row[0], chunk_id=row[1], gpu_id=row[2], left_s=max(0.0, row[3])) for row in found]

    def start_epoch(self, *, after: int, forget_claims: bool = False) -> int:
        """See `Ledger`."""
        with self._database.writing() as db:
            (epoch,) = db.execute("SELECT epoch FROM meta").fetchone()
            if epoch != after:
                return epoch
            db.execute("INSERT INTO epoch VALUES (?, ?)", (epoch + 1, rows.next_number(db)))
            db.execute("UPDATE meta SET epoch = ?", (epoch + 1,))
            db.execute("DELETE FROM handed_out")
            if forget_claims:
                rows.free_leases(db, "epoch = ?", (epoch,))
            return epoch + 1

    def checkpoint(self, handed_out: Sequence[tuple[int, int, int, int]]) -> Checkpoint:
        """See `Ledger`. Cost: O(chunks begun)."""
        with self._database.writing() as db:
            return history.checkpoint(db, handed_out)

    def reopen_after(self, sequence: int, offsets: Sequence[tuple[int, int, int]] = ()) -> int:
        """See `Ledger`.

        Raises:
            LedgerError: the ledger has not come that far, so it is not the one the number was taken from.
        """
        with self._database.writing() as db:
            return history.reopen_after(db, sequence, offsets)

    def snapshot(self) -> Snapshot:
        """See `Ledger`."""
        with self._database.reading() as db:
            return history.snapshot(db)

    def restore(self, snapshot: Snapshot) -> None:
        """See `Ledger`."""
        with self._database.writing() as db:
            history.restore(db, snapshot)

    def save(self) -> None:
        """See `Ledger`: from here on what is recorded survives a power cut as well. Costs two syncs of the disk."""
        self._database.save()

    def close(self) -> None:
        """See `Ledger`."""
        self._presence.close()
        self._database.close()

    def _open_next_block(self, db: sqlite3.Connection, epoch: int, request: ClaimRequest) -> bool:
        """Give the first block that nobody asked for in this epoch its row and its range; False if there is none."""
        if request.chunks_per_block is None:
            block = request.blocks[0]
            return rows.open_block(db, epoch, block, request.chunks_of(block))
        (started,) = db.execute("SELECT sequence FROM epoch WHERE epoch = ?", (epoch,)).fetchone()
        # An epoch that is undone and begun again has another number, so what we know of it ends with it.
        if self._next_block is None or self._next_block[:2] != (started, request.start[0]):
            self._next_block = (started, request.start[0], rows.first_unknown(db, epoch, request.start[0]))
        for block in range(self._next_block[2], len(request.chunks_per_block)):
            opened = rows.open_block(db, epoch, block, request.chunks_per_block[block])
            self._next_block = (started, request.start[0], block + 1)
            if opened and request.chunks_per_block[block]:
                return True
        return False

    def _gone(self, db: sqlite3.Connection, epoch: int) -> list[str]:
        """List the trackers that hold chunks and have ended."""
        tokens = db.execute("SELECT token FROM lease WHERE epoch = ?", (epoch,)).fetchall()
        return [tracker for tracker in {_tracker_of(token) for (token,) in tokens} if self._presence.is_gone(tracker)]

    def _free_gone(self, db: sqlite3.Connection, epoch: int) -> bool:
        """Free the chunks of trackers that have ended, whatever is left of their leases; False if there is none."""
        gone = self._gone(db, epoch)
        for tracker in gone:
            rows.free_leases(db, "token LIKE ? || ':%'", (tracker,))
            self._presence.forget(tracker)
        return bool(gone)

    def _check_chunks(self, db: sqlite3.Connection, epoch: int, block: int, request: ClaimRequest) -> None:
        asked = request.chunks_of(block)
        (known,) = db.execute("SELECT chunks FROM block WHERE epoch = ? AND block = ?", (epoch, block)).fetchone()
        if known != asked:
            raise other_chunks(block, known, asked, self.path)


def _tracker_of(token: str) -> str:
    return token.partition(":")[0]
