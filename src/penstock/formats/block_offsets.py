"""Where each line of a block starts: a table beside it, so that any line is one ranged read.

n lines have n + 1 entries, little-endian uint64: each line's first byte, then the length of the block,
uncompressed. A table is a cache of its block: one that is missing, older, or of another length is made
again by reading the block once, and replaced whole.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from penstock.errors import BadBlock, StoreError
from penstock.formats.block_bytes import BlockBytes
from penstock.formats.files import atomic_write

ENTRY_BYTES = 8
OFFSET_DTYPE = np.dtype("<u8")
SCAN_BYTES = 8 << 20
_NEWLINE, _SPACE = 10, 32


def scan_offsets(block: BlockBytes) -> np.ndarray:
    """Find the lines of a block by reading it once; int64 [lines + 1].

    A blank line is no record: its bytes count to the line before it, or to the first.

    Cost: O(bytes) time, a few megabytes and 8 bytes a line of memory.
    """
    found: list[np.ndarray] = []
    # A line begins at the first byte that is not white space after a line's end.
    awaits = True
    for base in range(0, block.size, SCAN_BYTES):
        piece = np.frombuffer(block.read(base, min(base + SCAN_BYTES, block.size)), np.uint8)
        solid = np.flatnonzero(piece > _SPACE)
        ends = np.flatnonzero(piece == _NEWLINE)
        edges = np.concatenate([np.zeros(1 if awaits else 0, np.int64), ends + 1])
        places = np.searchsorted(solid, edges)
        bounds = np.append(edges[1:], len(piece))
        holds = (
            (places < len(solid)) & (solid[np.minimum(places, len(solid) - 1)] < bounds) if len(solid) else edges < 0
        )
        found.append(edges[holds] + base)
        # A blank beginning of a line may be continued by the next piece.
        awaits = bool(len(edges)) and not holds[-1]
    starts = np.concatenate(found) if found else np.zeros(0, np.int64)
    if len(starts):
        starts[0] = 0
    return np.append(starts, block.size)


def read_offsets(path: Path, block: BlockBytes, mtime_ns: int) -> np.ndarray | None:
    """Read the table at `path`; None if there is none, or it is not that of the block as it is now."""
    try:
        if path.stat().st_mtime_ns < mtime_ns:
            return None
        return checked_offsets(path.read_bytes(), block.size)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror or error}") from error


def checked_offsets(raw: bytes, size: int) -> np.ndarray | None:
    """View the bytes of a table as int64 [lines + 1]; None if it can't be that of a block of `size` bytes."""
    if not raw or len(raw) % ENTRY_BYTES:
        return None
    table = np.frombuffer(raw, OFFSET_DTYPE).view(np.int64)
    if table[-1] != size or table[0] != 0 or not (np.diff(table) > 0).all():
        return None
    return table


def build_offsets(path: Path, block: BlockBytes) -> np.ndarray:
    """Make the table of a block, and keep it at `path` where that can be written; int64 [lines + 1]."""
    table = scan_offsets(block)
    try:
        write_offsets(path, table)
    except StoreError:
        # A folder that may only be read: the table lives as long as its reader.
        if os.access(path.parent, os.W_OK):
            raise
    return table


def write_offsets(path: Path, table: np.ndarray) -> None:
    """Write a table, atomically."""
    with atomic_write(path) as file:
        file.write(table.astype(OFFSET_DTYPE).tobytes())


def count_lines(path: Path, block: BlockBytes, mtime_ns: int) -> int:
    """Count a block's lines: by the length of its table if that is one, else by reading it."""
    try:
        status = path.stat()
    except FileNotFoundError:
        status = None
    if status is not None and status.st_mtime_ns >= mtime_ns and status.st_size % ENTRY_BYTES == 0 and status.st_size:
        with open(path, "rb") as file:
            file.seek(-ENTRY_BYTES, os.SEEK_END)
            if int.from_bytes(file.read(ENTRY_BYTES), "little") == block.size:
                return status.st_size // ENTRY_BYTES - 1
    return len(build_offsets(path, block)) - 1


def expect_lines(table: np.ndarray, count: int | None, name: str) -> np.ndarray:
    """Return a table if its block has as many lines as the manifest says.

    Raises:
        BadBlock: it has not.
    """
    if count is not None and len(table) - 1 != count:
        raise BadBlock(
            f"{name} has {len(table) - 1:,} lines, the manifest says {count:,}: it was cut or written to; fetch it "
            "again, or build the blocks anew"
        )
    return table
