"""One SQLite file that many processes, threads and forks write to, with bounded waits.

WAL with synchronous=NORMAL: a committed transaction survives the death of any process, kill -9 included;
a power cut may take the last ones but never half of one. `save` closes that gap where it matters.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from penstock.errors import LedgerError
from penstock.ledger.turns import Door, Patience

APPLICATION_ID = 0x70736C67
"""Stands in the header of the file, so that no other database is taken for a ledger."""
FORMAT_VERSION = 1
# A transaction changes a few rows here and there, and writes a page for each: small pages write less.
PAGE_BYTES = 1024
# Pages in the write-ahead file before they are moved to the main file, which costs the only two syncs there are.
CHECKPOINT_PAGES = 16_000
# SQLite's shared memory grows by so much.
FULL_BELOW_BYTES = 32 << 10

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()


class Database:
    """A connection that opens when first used, and anew after a fork.

    Args:
        path: the file. Its folder is made; SQLite puts `-wal` and `-shm` beside it, we a `-turn`.
        schema: statements that make the tables of a new file.
        timeout_s: how long any operation may wait for its turn.
    """

    def __init__(self, path: Path, *, schema: str, timeout_s: float) -> None:
        self._connection: sqlite3.Connection | None = None
        self._door: Door | None = None
        # SQLite must see one name for one file, wherever the process goes.
        self.path = path.absolute()
        self._schema = schema
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._identity: tuple[int, int] | None = None
        self._closed = False
        _open_databases.add(self)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the ledger for one transaction: all of the block is recorded, or, on an error, nothing.

        Raises:
            LedgerError: no turn within the deadline, a full disk, a damaged or vanished file.
        """
        patience = Patience(self._timeout_s, f"a turn to write to the ledger {self.path}")
        with self._ours(), self._explained():
            connection, door = self._opened(patience)
            with door.held(patience):
                _run(connection, "BEGIN IMMEDIATE", patience)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See the ledger as of one moment; waits for no writer."""
        patience = Patience(self._timeout_s, f"the ledger {self.path}")
        with self._ours(), self._explained():
            connection, _ = self._opened(patience)
            connection.execute("BEGIN")
            try:
                # The first look decides which moment is seen; it alone may have to wait, for one who opens or closes.
                _run(connection, "SELECT 1 FROM sqlite_master", patience)
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def save(self) -> None:
        """Move all transactions to the main file and sync it: from here on they survive a power cut as well."""
        patience = Patience(self._timeout_s, f"the ledger {self.path}")
        with self._ours(), self._explained():
            connection, _ = self._opened(patience)
            while _run(connection, "PRAGMA wal_checkpoint(FULL)", patience)[0]:
                patience.pause()

    def close(self) -> None:
        """Close the file; a later use is an error."""
        with self._lock:
            self._let_go()
            self._closed = True

    def __del__(self) -> None:
        self._let_go()

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """Keep the other threads of this process out."""
        if not self._lock.acquire(timeout=self._timeout_s):
            raise LedgerError(f"waited {self._timeout_s:g} s for another thread that uses the ledger {self.path}")
        try:
            yield
        finally:
            self._lock.release()

    def _opened(self, patience: Patience) -> tuple[sqlite3.Connection, Door]:
        if self._connection is None or self._door is None:
            if self._closed:
                raise LedgerError(f"the ledger {self.path} was closed; open it again")
            self._open(patience)
            assert self._connection is not None
            assert self._door is not None
        elif _identity_of(self.path) != self._identity:
            raise LedgerError(f"{self.path} was deleted or replaced while it was in use. {self._recovery()}")
        return self._connection, self._door

    def _open(self, patience: Patience) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            door = Door(f"{self.path}-turn")
        except OSError as error:
            raise LedgerError(f"cannot open the ledger {self.path}: {error.strerror}") from error
        connection = None
        try:
            # One opens at a time: the switch to WAL and the making of tables want the file for themselves.
            with door.held(patience):
                connection = sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=64
                )
                self._prepare(connection, patience)
            self._identity = _identity_of(self.path)
        except BaseException:
            if connection is not None:
                connection.close()
            door.close()
            raise
        self._connection, self._door = connection, door

    def _prepare(self, connection: sqlite3.Connection, patience: Patience) -> None:
        _run(connection, f"PRAGMA page_size = {PAGE_BYTES}", patience)
        _run(connection, "PRAGMA synchronous = NORMAL", patience)
        _run(connection, f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}", patience)
        _run(connection, "PRAGMA journal_mode = WAL", patience)
        _run(connection, "BEGIN IMMEDIATE", patience)
        try:
            self._check_or_make_tables(connection)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")

    def _check_or_make_tables(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            for statement in self._schema.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        elif application != APPLICATION_ID:
            raise LedgerError(f"{self.path} is a database, but not a ledger of penstock: choose another path")
        elif version > FORMAT_VERSION:
            raise LedgerError(
                f"{self.path} has ledger format {version}, this penstock knows up to "
                f"{FORMAT_VERSION}: install a newer one"
            )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF
            # Where SQLite can't map its shared memory for want of room it says no more than that the disk failed.
            if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _is_full(self.path.parent)):
                advice = f"no space left on the disk of {self.path.parent}; free some, then go on: nothing was recorded"
            elif code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
                advice = "choose a file in a folder you may write to, on a local disk"
            else:
                advice = f"the disk or file system refuses. {self._recovery()}"
            raise LedgerError(f"cannot use the ledger {self.path} ({error}): {advice}") from error
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} is damaged, or no ledger ({error}). {self._recovery()}") from error

    def _recovery(self) -> str:
        return (
            f"To recover: move {self.path.name}, {self.path.name}-wal and {self.path.name}-shm away, open a new ledger "
            "there and call import_json with the latest export; chunks completed since then are trained again"
        )

    def _let_go(self) -> None:
        connection, door = self._connection, self._door
        self._connection = self._door = self._identity = None
        if connection is not None:
            connection.close()
        if door is not None:
            door.close()


def _identity_of(path: Path) -> tuple[int, int] | None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _is_full(folder: Path) -> bool:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize < FULL_BELOW_BYTES


def _run(connection: sqlite3.Connection, statement: str, patience: Patience) -> Any:
    """Execute a statement that another process may be in the way of, again until it is not; give its first row."""
    while True:
        try:
            return connection.execute(statement).fetchone()
        except sqlite3.OperationalError as error:
            if not _is_busy(error):
                raise
        patience.pause()


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


_held_for_fork: list[Database] = []


def _before_fork() -> None:
    """Close all files: SQLite's locks belong to a process, and a copy of its memory in another would not know."""
    for database in list(_open_databases):
        database._lock.acquire()
        _held_for_fork.append(database)
        database._let_go()


def _after_fork() -> None:
    for database in _held_for_fork:
        database._lock.release()
    _held_for_fork.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
