"""Going back in an SQLite ledger, taking it away, and filling a new one: whole tables, and rarely."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from penstock.ledger import sqlite_rows as rows
from penstock.ledger.ledger import (
    Checkpoint,
    Completion,
    Snapshot,
    free_ranges,
    not_empty,
    too_old,
)


def checkpoint(db: sqlite3.Connection, handed_out: Sequence[tuple[int, int, int, int]]) -> Checkpoint:
    """Note what trainers had, and read how far each begun chunk of the epoch is: all as of one moment."""
    epoch, sequence = db.execute("SELECT epoch, sequence FROM meta").fetchone()
    for one in handed_out:
        if one[0] == epoch and db.execute(f"SELECT 1 FROM done WHERE {rows.UNIT}", one[:3]).fetchone() is None:
            db.execute(
                "INSERT INTO handed_out VALUES (?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET sample_offset = max(sample_offset, excluded.sample_offset)",
                one,
            )
    begun = "SELECT block, chunk, sample_offset FROM {} WHERE epoch = ?1 AND sample_offset > 0"
    offsets = db.execute(
        "SELECT block, chunk, max(sample_offset) FROM "
        f"({' UNION ALL '.join(map(begun.format, ('free', 'lease', 'handed_out')))}) "
        "GROUP BY block, chunk ORDER BY block, chunk",
        (epoch,),
    ).fetchall()
    return Checkpoint(epoch=epoch, sequence=sequence, offsets=offsets)


def reopen_after(db: sqlite3.Connection, sequence: int, offsets: Sequence[tuple[int, int, int]]) -> int:
    """Undo what was recorded after a number: completions, offsets, epochs. The numbers themselves go on."""
    (now,) = db.execute("SELECT sequence FROM meta").fetchone()
    if sequence > now:
        raise too_old(sequence, now)
    (epoch,) = db.execute("SELECT max(epoch) FROM epoch WHERE sequence <= ?", (sequence,)).fetchone()
    undone = db.execute("DELETE FROM done WHERE sequence > ? RETURNING epoch, block, chunk", (sequence,)).fetchall()
    for table in ("epoch", "block", "free", "lease"):
        db.execute(f"DELETE FROM {table} WHERE epoch > ?", (epoch,))
    kept = [unit for unit in undone if unit[0] <= epoch]
    db.executemany("INSERT INTO free VALUES (?, ?, ?, ? + 1, 0, 0)", [(*unit, unit[2]) for unit in kept])
    db.executemany("UPDATE block SET done = done - 1 WHERE epoch = ? AND block = ?", [unit[:2] for unit in kept])
    for table in ("free", "lease"):
        db.execute(f"UPDATE {table} SET sample_offset = 0, recorded = 0 WHERE recorded > ?", (sequence,))
    db.execute("DELETE FROM handed_out")
    db.execute("UPDATE meta SET sequence = sequence + 1, epoch = ?", (epoch,))
    for block, chunk, offset in offsets:
        rows.go_on_at(db, (epoch, block, chunk), offset, now + 1)
    _count_again(db)
    return len(undone)


def snapshot(db: sqlite3.Connection) -> Snapshot:
    """Read all that is known."""
    ledger_id, epoch, sequence, num_blocks, chunk_size = db.execute(
        "SELECT ledger_id, epoch, sequence, num_blocks, chunk_size FROM meta"
    ).fetchone()
    begun = "SELECT epoch, block, chunk, sample_offset, recorded FROM {} WHERE sample_offset > 0"
    rows = db.execute("SELECT sequence, epoch, block, chunk, gpu, optimizer_step, steps FROM done ORDER BY sequence")
    return Snapshot(
        ledger_id=ledger_id,
        epoch=epoch,
        sequence=sequence,
        num_blocks=num_blocks,
        chunk_size=chunk_size,
        epochs=db.execute("SELECT epoch, sequence FROM epoch ORDER BY epoch").fetchall(),
        blocks=db.execute("SELECT epoch, block, chunks FROM block ORDER BY epoch, block").fetchall(),
        partial=sorted(db.execute(f"{begun.format('free')} UNION ALL {begun.format('lease')}").fetchall()),
        completions=[
            Completion(
                sequence=row[0],
                epoch=row[1],
                block_id=row[2],
                chunk_id=row[3],
                gpu_id=row[4],
                optimizer_step=row[5],
                steps=row[6],
            )
            for row in rows
        ],
    )


def restore(db: sqlite3.Connection, snapshot: Snapshot) -> None:
    """Fill a ledger that knows nothing yet."""
    sequence, blocks = db.execute("SELECT sequence, (SELECT count(*) FROM block) FROM meta").fetchone()
    if sequence or blocks:
        raise not_empty()
    db.execute(
        "UPDATE meta SET ledger_id = ?, epoch = ?, sequence = ?, num_blocks = ?, chunk_size = ?",
        (snapshot.ledger_id, snapshot.epoch, snapshot.sequence, snapshot.num_blocks, snapshot.chunk_size),
    )
    db.execute("DELETE FROM epoch")
    db.executemany("INSERT INTO epoch VALUES (?, ?)", snapshot.epochs)
    db.executemany(
        "INSERT INTO done VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            (one.sequence, one.epoch, one.block_id, one.chunk_id, one.gpu_id, one.optimizer_step, one.steps)
            for one in snapshot.completions
        ),
    )
    db.executemany("INSERT INTO block VALUES (?, ?, ?, 0)", snapshot.blocks)
    db.execute(
        "UPDATE block SET done = "
        "(SELECT count(*) FROM done WHERE done.epoch = block.epoch AND done.block = block.block)"
    )
    db.executemany("INSERT INTO free VALUES (?, ?, ?, ?, ?, ?)", free_ranges(snapshot))
    _count_again(db)


def _count_again(db: sqlite3.Connection) -> None:
    db.execute(
        "UPDATE meta SET (chunks_done, steps, optimizer_step) = "
        "(SELECT count(*), coalesce(sum(steps), 0), coalesce(max(optimizer_step), 0) FROM done)"
    )
