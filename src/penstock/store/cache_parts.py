"""Which files of a folder are a cache's own: what somebody else keeps under one of their names is never written."""

from __future__ import annotations

import errno
import sqlite3
import stat
from pathlib import Path

import numpy as np

from penstock.errors import StoreError
from penstock.node.database import read_head
from penstock.store import cache_rows as rows
from penstock.store.cache_book import DATABASE_NAME
from penstock.store.cache_recency import ITEM_BYTES, OLD

RESERVE = "reserve"
RESERVE_BYTES = 256 << 10
EARLIEST_S, LATEST_S = 1e8, 1e11
"""All times of use are between these: 1973 and 5138."""
_HEADER_BYTES = 72
_APPLICATION_ID = slice(68, 72)
"""Where SQLite's header has what `Kind.application_id` is."""
_OURS = rows.KIND.application_id.to_bytes(4, "big")


def refuse_others(folder: Path) -> None:
    """Refuse a folder that has files of a cache's names which are somebody else's; change nothing.

    Raises:
        StoreError: which file it is.

    Cost: one short read where there is a cache; without its database, about 0.5 MB.
    """
    if is_database_ours(folder):
        return
    for name in ("holders", "files"):
        if (folder / name).exists() and not (folder / name).is_dir():
            raise _others(folder / name)
    for name, fits in (("recency", _are_times), ("generations", _are_generations), (RESERVE, _are_zeros)):
        path = folder / name
        try:
            mode = path.lstat().st_mode
            data = path.read_bytes() if stat.S_ISREG(mode) else None
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StoreError(f"cannot read {path}: {error.strerror}") from error
        if data is None or not fits(data):
            raise _others(path)


def _others(path: Path) -> StoreError:
    return StoreError(
        f"{path} is not of a cache of penstock, but has the name of one of its files: choose another folder"
    )


def is_database_ours(folder: Path) -> bool:
    """Whether a folder has a cache's database, as its header says: one that was just made says so only later."""
    try:
        head = read_head(folder / DATABASE_NAME, _HEADER_BYTES)
    except OSError:
        return False
    # What this process has open was looked at when it was opened.
    return head is None or head[_APPLICATION_ID] == _OURS


def is_reserve_whole(folder: Path) -> bool:
    """Whether there is what a cache laid by, and nothing else of that name."""
    path = folder / RESERVE
    try:
        return path.lstat().st_size == RESERVE_BYTES and path.read_bytes() == bytes(RESERVE_BYTES)
    except OSError:
        return False


def means_full(error: StoreError) -> bool:
    """Whether what could not be opened wanted room on the disk."""
    # Where SQLite can't map its shared memory for want of room it says no more than that the disk failed.
    code = getattr(error.__cause__, "sqlite_errorcode", 0) & 0xFF
    return error.errno in (errno.ENOSPC, errno.EDQUOT) or code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _are_zeros(data: bytes) -> bool:
    return len(data) <= RESERVE_BYTES and not any(data)


def _are_times(data: bytes) -> bool:
    numbers = _numbers(data)
    if numbers is None:
        return False
    return bool(np.all((numbers == 0) | (numbers == OLD) | ((numbers > EARLIEST_S) & (numbers < LATEST_S))))


def _are_generations(data: bytes) -> bool:
    numbers = _numbers(data)
    return numbers is not None and bool(np.all((numbers[1:] >= 0) & (numbers[1:] % 1 == 0)))


def _numbers(data: bytes) -> np.ndarray | None:
    """Give the numbers of a file that a cache makes, made or lost the end of; None for another one."""
    if len(data) % ITEM_BYTES:
        return None
    return np.frombuffer(data, np.float64)
