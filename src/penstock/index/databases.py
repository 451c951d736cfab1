"""A table of a database file as an index: what SQLite and DuckDB files have in common.

A database is read where it lies; one that is not on this machine's disks is copied to a temporary file while
it is read.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.formats.files import store_errors
from penstock.index.places import folder_above, name_of
from penstock.index.scan import Source
from penstock.index.sql import open_database
from penstock.index.sqlite import SqliteTable
from penstock.store.ranged_file import open_file
from penstock.store.store import open_store
from penstock.store.urls import is_url, redact
from penstock.store.whole_copy import WholeCopy

SQLITE, DUCKDB = (".sqlite", ".sqlite3", ".db3"), (".duckdb", ".ddb")
SUFFIXES = (*SQLITE, *DUCKDB, ".db")
_PIECE = 8 << 20
_SQLITE_MAGIC = b"SQLite format 3\0"


def is_database(name: str) -> bool:
    """Tell whether a file, perhaps with `#TABLE`, is a database, by its name.

    >>> is_database("x.sqlite#images"), is_database("x.csv")
    (True, False)
    """
    return name.partition("#")[0].lower().endswith(SUFFIXES)


class DatabaseSource:
    """The rows of a table or view of a database file; see `penstock.index.scan.Source`.

    Args:
        url: path or URL of the database.
        table: which table. None: the only one there is.
        storage_options: see `open_store`.
    """

    def __init__(self, url: str, table: str | None, storage_options: Mapping[str, Any]) -> None:
        self._url, self._table, self._options = url, table, storage_options
        self._schema: pa.Schema | None = None
        self._copy = WholeCopy()

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return redact(self._url) + (f"#{self._table}" if self._table else "")

    @property
    def base(self) -> str:
        """What relative locations are below: its folder."""
        return folder_above(self._url)

    def signature(self) -> list[Any]:
        """Size and etag of the file, and of what was written beside it but not merged into it yet."""
        info = open_store(self._url, **self._options).head()
        found = ["database", name_of(self._url), self._table, info.size, info.etag]
        for log in () if is_url(self._url) else (Path(f"{self._url}-wal"), Path(f"{self._url}.wal")):
            # Whoever writes to the database may merge and remove it at any moment.
            with suppress(FileNotFoundError):
                written = log.stat()
                found += [written.st_size, written.st_mtime_ns]
        return found

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; for SQLite, it takes a look at all values the first time."""
        if self._schema is None:
            with self._opened() as table:
                self._schema = table.schema
        return self._schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows in the order of the table.

        Raises:
            ConfigError: there is no such table, or several and none was named.
            BadBlock: it is no database, or a damaged one.
            StoreError: it can't be read.
        """
        with self._opened() as table:
            self._schema = table.schema
            yield from table
        self._copy.forget()

    @contextmanager
    def _opened(self) -> Iterator[Any]:
        """Open the table: an iterable of record batches that has a schema."""
        with self._local() as path:
            with open(path, "rb") as file:
                is_sqlite = file.read(len(_SQLITE_MAGIC)) == _SQLITE_MAGIC
            if is_sqlite or self._url.lower().endswith(SQLITE):
                with SqliteTable(path, self._table, redact(self._url)) as table:
                    yield table
            else:
                with open_database(Path(path), self._table, redact(self._url)) as table:
                    yield table

    @contextmanager
    def _local(self) -> Iterator[str]:
        """Give a path of the database on this machine's disks."""
        if not is_url(self._url):
            # If it is not there, the store says so in our own words.
            open_store(self._url, **self._options).head()
            yield os.path.abspath(self._url)
            return
        with tempfile.TemporaryDirectory(prefix="penstock-database-") as folder:
            path = Path(folder) / "copy"
            remote = open_file(self._url, copy=self._copy, **self._options)
            with remote, store_errors(path), path.open("wb") as file:
                while data := remote.read(_PIECE):
                    file.write(data)
            yield str(path)


def open_database_file(place: str, storage_options: Mapping[str, Any]) -> Source:
    """Open a database, or the table of it that stands behind a `#`, as a source of rows."""
    url, _, table = place.rpartition("#") if "#" in name_of(place) else (place, "", "")
    return DatabaseSource(url, table or None, storage_options)
