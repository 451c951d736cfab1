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
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import PenstockError
from penstock.node.turns import Door, Patience

# SQLite's shared memory grows by so much.
FULL_BELOW_BYTES = 32 << 10

_open_databases: weakref.WeakSet[Database] = weakref.WeakSet()
_beside_sqlite = threading.RLock()
"""Held while a file of a database is read beside SQLite, and when SQLite is about to open one, which a finalizer may
have it do at any moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """What a database is for, and how its errors speak."""

    noun: str
    """Such as "ledger"; stands before the path in messages."""
    application_id: int
    """Stands in the header of the file, so that no other database is taken for one of this kind."""
    format_version: int
    schema: str
    """Statements that make the tables of a new file."""
    error: type[PenstockError]
    recovery: str
    """What to do when the file is damaged; may name it as {name} and its folder as {folder}."""
    page_bytes: int = 1024
    """A transaction changes a few rows here and there, and writes a page for each: small pages write less."""
    checkpoint_pages: int = 16_000
    """Pages in the write-ahead file before they move to the main file, which costs the only two syncs there are."""


class Database:
    """A connection that opens when first used, and anew after a fork.

    Args:
        path: the file. Its folder is made; SQLite puts `-wal` and `-shm` beside it, we a `-turn`.
        kind: what it is for.
        timeout_s: how long any operation may wait for its turn.
    """

    def __init__(self, path: Path, kind: Kind, *, timeout_s: float) -> None:
        self._connection: sqlite3.Connection | None = None
        self._door: Door | None = None
        # SQLite must see one name for one file, wherever the process goes.
        self.path = path.absolute()
        self.kind = kind
        self._called = f"the {kind.noun} {self.path}"
        self._timeout_s = timeout_s
        # Lets whoever was interrupted as he got it give it back without knowing whether he had it.
        self._lock = threading.RLock()
        self._identity: tuple[int, int] | None = None
        self._closed = False
        self._in_use = False
        """Whether SQLite has the file open, or is about to."""
        self.committed = False
        """Whether the last transaction was recorded, though an interrupt came after that."""
        with _beside_sqlite:
            _open_databases.add(self)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Hold the database for one transaction: all of the block is recorded, or, on an error, nothing.

        Raises:
            PenstockError: no turn within the deadline, a full disk, a damaged or vanished file; `kind.error`.
        """
        patience = Patience(self._timeout_s, f"a turn to write to {self._called}", self.kind.error)
        with self._ours(), self._explained():
            connection, door = self._opened(patience)
            complete = self.committed = False
            try:
                _end_left_over(connection)
                with door.held(patience):
                    _run(connection, "BEGIN IMMEDIATE", patience)
                yield connection
                complete = True
                connection.execute("COMMIT")
                self.committed = True
            except sqlite3.Error:
                self.committed = False
                _end_left_over(connection)
                raise
            except BaseException:
                # Without a call, so that a second interrupt comes before this or after it.
                self.committed = complete and not connection.in_transaction
                _end_left_over(connection)
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """See the database as of one moment; waits for no writer."""
        patience = Patience(self._timeout_s, self._called, self.kind.error)
        with self._ours(), self._explained():
            connection, _ = self._opened(patience)
            try:
                _end_left_over(connection)
                connection.execute("BEGIN")
                # The first look decides which moment is seen; it alone may have to wait, for one who opens or closes.
                _run(connection, "SELECT 1 FROM sqlite_master", patience)
                yield connection
            finally:
                _end_left_over(connection)

    def save(self) -> None:
        """Move all transactions to the main file and sync it: from here on they survive a power cut as well."""
        patience = Patience(self._timeout_s, self._called, self.kind.error)
        with self._ours(), self._explained():
            connection, _ = self._opened(patience)
            while _run(connection, "PRAGMA wal_checkpoint(FULL)", patience)[0]:
                patience.pause()

    @property
    def is_lost(self) -> bool:
        """Whether its file was deleted or replaced while it was open."""
        identity = self._identity
        return identity is not None and _identity_of(self.path) != identity

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
        try:
            if not self._lock.acquire(timeout=self._timeout_s):
                raise self.kind.error(f"waited {self._timeout_s:g} s for another thread that uses {self._called}")
            yield
        finally:
            # No call before it, after which Ctrl-C could come and the lock be kept.
            try:  # noqa: SIM105
                self._lock.release()
            except RuntimeError:
                pass

    def _opened(self, patience: Patience) -> tuple[sqlite3.Connection, Door]:
        if self._closed:
            raise self.kind.error(f"{self._called} was closed; open it again")
        if self.is_lost:
            raise self.kind.error(f"{self.path} was deleted or replaced while it was in use. {self._recovery()}")
        if self._connection is None or self._door is None:
            self._open(patience)
        assert self._connection is not None
        assert self._door is not None
        return self._connection, self._door

    def _open(self, patience: Patience) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            door = Door(f"{self.path}-turn")
        except OSError as error:
            raise self.kind.error(f"cannot open {self._called}: {error.strerror}") from error
        connection = None
        try:
            # One opens at a time: the switch to WAL and the making of tables want the file for themselves.
            with door.held(patience):
                with _beside_sqlite:
                    self._in_use = True
                connection = sqlite3.connect(
                    self.path, timeout=0, isolation_level=None, check_same_thread=False, cached_statements=64
                )
                self._prepare(connection, patience)
            self._identity = _identity_of(self.path)
        except BaseException:
            if connection is not None:
                connection.close()
            self._in_use = False
            door.close()
            raise
        self._connection, self._door = connection, door

    def _prepare(self, connection: sqlite3.Connection, patience: Patience) -> None:
        # Before anything is changed, in somebody else's database.
        if _run(connection, "SELECT 1 FROM sqlite_master", patience):
            self._check_or_make_tables(connection)
        _run(connection, f"PRAGMA page_size = {self.kind.page_bytes}", patience)
        _run(connection, "PRAGMA synchronous = NORMAL", patience)
        _run(connection, f"PRAGMA wal_autocheckpoint = {self.kind.checkpoint_pages}", patience)
        _run(connection, "PRAGMA journal_mode = WAL", patience)
        try:
            _run(connection, "BEGIN IMMEDIATE", patience)
            self._check_or_make_tables(connection)
            connection.execute("COMMIT")
        finally:
            _end_left_over(connection)

    def _check_or_make_tables(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            for statement in self.kind.schema.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {self.kind.application_id}")
            connection.execute(f"PRAGMA user_version = {self.kind.format_version}")
        elif application != self.kind.application_id:
            raise self.kind.error(
                f"{self.path} is a database, but not a {self.kind.noun} of penstock: choose another path"
            )
        elif version > self.kind.format_version:
            raise self.kind.error(
                f"{self.path} has {self.kind.noun} format {version}, this penstock knows up to "
                f"{self.kind.format_version}: install a newer one"
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
            raise self.kind.error(f"cannot use {self._called} ({error}): {advice}") from error
        except sqlite3.DatabaseError as error:
            raise self.kind.error(
                f"{self.path} is damaged, or no {self.kind.noun} ({error}). {self._recovery()}"
            ) from error

    def _recovery(self) -> str:
        return self.kind.recovery.format(name=self.path.name, folder=self.path.parent)

    def _let_go(self) -> None:
        connection, door = self._connection, self._door
        # Which file it was is still known: who opens it again after a fork must find the same one.
        self._connection = self._door = None
        if connection is not None:
            connection.close()
            self._in_use = False
        if door is not None:
            door.close()

    def uses(self, path: Path) -> bool:
        """Whether SQLite has a file open through this, or is about to."""
        try:
            return self._in_use and os.path.samefile(path, self.path)
        except OSError:
            return path.absolute() == self.path


def read_head(path: Path, num_bytes: int) -> bytes | None:
    """Read the first bytes of a database's file; None if it is open in this process.

    Whoever closes a file, however he opened it, ends all locks that his process has on it, SQLite's too: from then on
    other processes take the database for one that nobody uses, and remove its log under those who do.

    Raises:
        OSError: it can't be read, or there is none.
    """
    with _beside_sqlite:
        if any(database.uses(path) for database in list(_open_databases)):
            return None
        with open(path, "rb") as file:
            return file.read(num_bytes)


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


def _end_left_over(connection: sqlite3.Connection) -> None:
    """End a transaction that is under way, such as one that an interrupt kept from its end."""
    if connection.in_transaction:
        connection.execute("ROLLBACK")


def _is_busy(error: sqlite3.OperationalError) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


_one_fork = threading.RLock()
_forker = 0
"""The thread that forks."""
_held_for_fork: list[Database] = []


def _before_fork() -> None:
    """Close all files: SQLite's locks belong to a process, and a copy of its memory in another would not know."""
    global _forker
    _one_fork.acquire()
    _forker = threading.get_ident()
    while True:
        # While it is held nobody makes a database, or has SQLite begin to open one.
        _beside_sqlite.acquire()
        others = [database for database in _open_databases if database not in _held_for_fork]
        if not others:
            return
        _beside_sqlite.release()
        for database in others:
            # First: Ctrl-C must not leave one locked that nobody knows of.
            _held_for_fork.append(database)
            database._lock.acquire()
            database._let_go()


def _after_fork() -> None:
    global _forker
    if _forker != threading.get_ident():
        # Ctrl-C ended what is done before as it began, while another thread forks, maybe.
        return
    locks = [*(database._lock for database in _held_for_fork), _beside_sqlite, _one_fork]
    _held_for_fork.clear()
    _forker = 0
    for lock in locks:
        # Ctrl-C may have ended what is done before, with some of them.
        with suppress(RuntimeError):
            lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
