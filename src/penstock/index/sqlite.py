"""Tables of SQLite databases as record batches.

SQLite's columns have no types, their values do. So a column is of integers if all its values are, of numbers
if all are, of bytes if all are bytes or text, and of text otherwise. Rows come in the order of their row ids.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from types import TracebackType
from typing import Any
from urllib.parse import quote

import pyarrow as pa

from penstock.errors import BadBlock
from penstock.index.sql import choose_table

BATCH_ROWS = 65_536
_KINDS = {
    frozenset({"integer"}): pa.int64(),
    frozenset({"real"}): pa.float64(),
    frozenset({"integer", "real"}): pa.float64(),
    frozenset({"blob"}): pa.binary(),
    frozenset({"blob", "text"}): pa.binary(),
}
_CASTS = {pa.string(): "TEXT", pa.float64(): "REAL", pa.binary(): "BLOB"}


class SqliteTable:
    """A table or view, open for reading: iterable over record batches of its `schema`.

    Args:
        path: the database's file.
        table: which table. None: the only one there is.
        shown: what errors call the file.

    Raises:
        ConfigError: there is no such table, or several and none was named.
        BadBlock: it is no database, or a damaged one; also while it is read.
    """

    def __init__(self, path: str, table: str | None, shown: str) -> None:
        self._shown = shown
        # A database that nobody writes to is read as it is even where no file may be made beside it.
        frozen = "" if os.path.exists(f"{path}-wal") else "&immutable=1"
        with self._reported():
            self._connection = sqlite3.connect(f"file:{quote(path)}?mode=ro{frozen}", uri=True)
            try:
                self._table = self._chosen(table)
                self.schema = self._found_schema()
            except BaseException:
                self._connection.close()
                raise

    def __enter__(self) -> SqliteTable:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        columns = ", ".join(_expression(field) for field in self.schema)
        with (
            self._reported(),
            closing(self._connection.execute(f"SELECT {columns} FROM {_quoted(self._table)}{self._order()}")) as rows,
        ):
            while some := rows.fetchmany(BATCH_ROWS):
                values = zip(zip(*some, strict=True), self.schema.types, strict=True)
                yield pa.RecordBatch.from_arrays([pa.array(v, kind) for v, kind in values], schema=self.schema)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise BadBlock(f"{self._shown} cannot be read as an SQLite database: {error}") from error

    def _chosen(self, table: str | None) -> str:
        found = self._connection.execute("SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view')")
        kinds = {name: kind for name, kind in found if not name.startswith("sqlite_")}
        return choose_table(table, [name for name, kind in kinds.items() if kind == "table"], kinds, self._shown)

    def _found_schema(self) -> pa.Schema:
        """Find out of what types the values of each column are, in one pass over the table."""
        table = _quoted(self._table)
        names = [name for _, name, *_ in self._connection.execute(f"PRAGMA table_info({table})")]
        asked = ", ".join(f"group_concat(DISTINCT typeof({_quoted(name)}))" for name in names)
        found = self._connection.execute(f"SELECT {asked} FROM {table}").fetchone()
        kinds = [frozenset((types or "").split(",")) - {"null", ""} for types in found]
        return pa.schema([(name, _KINDS.get(kind, pa.string())) for name, kind in zip(names, kinds, strict=True)])

    def _order(self) -> str:
        """Order by row id; a view, and a table that was made without, have an order of their own."""
        try:
            self._connection.execute(f"SELECT rowid FROM {_quoted(self._table)} LIMIT 0")
        except sqlite3.OperationalError:
            return ""
        return " ORDER BY rowid"


def _expression(field: pa.Field) -> str:
    """Select a column as values of its one type."""
    name: Any = _quoted(field.name)
    cast = _CASTS.get(field.type)
    return f"CAST({name} AS {cast}) AS {name}" if cast else name


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
