"""SQL over an index, by DuckDB: one query that reads the table `dataframe` and nothing else.

Law: the same query of the same rows gives the same rows in the same order, on every node. So a query runs on
one thread, draws random numbers from a fixed seed, and sees neither files nor the network.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, StoreError

TABLE = "dataframe"
_BATCH_ROWS = 1 << 16
_SETTINGS = {
    "threads": "1",
    "enable_external_access": "false",
    "python_enable_replacements": "false",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}


@contextmanager
def run_query(query: str, rows: pa.Table, scratch: str | os.PathLike[str] | None = None) -> Iterator[Any]:
    """Run a query of the table `dataframe`.

    Args:
        query: one SELECT of DuckDB's SQL.
        rows: the table.
        scratch: folder for what does not fit in memory while rows are sorted or joined.

    Yields:
        A pyarrow RecordBatchReader of the result.

    Raises:
        ConfigError: the query is wrong; with DuckDB's message, which says where.
    """
    import duckdb

    settings = _SETTINGS if scratch is None else {**_SETTINGS, "temp_directory": os.fspath(scratch)}
    with duckdb.connect(":memory:", config=settings) as database:
        database.register(TABLE, rows)
        try:
            statements = database.extract_statements(query)
            if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
                raise ConfigError(f"sql_query must be one SELECT from the table {TABLE}, got {query!r:.500}")
            database.execute("SELECT setseed(0.5)").fetchall()
            yield database.sql(query).to_arrow_reader(_BATCH_ROWS)
        except (duckdb.Error, pa.ArrowException) as error:
            # What goes wrong while rows are fetched comes through Arrow, with the same message.
            told, table = _placed(database, query, error), database.table(TABLE)
            names = ", ".join(f"{name!r} {kind}" for name, kind in zip(table.columns, table.dtypes, strict=True))
            raise ConfigError(
                f"sql_query failed: {told}\nThe query was: {query}\nIts table is {TABLE}, with the columns {names}"
            ) from error


def _placed(database: Any, query: str, error: Exception) -> str:
    """Give the message of an error with its place in the query, which relations leave out of some."""
    import duckdb

    if "LINE " not in str(error):
        try:
            database.execute(query).fetchone()
        except duckdb.Error as placed:
            return str(placed)
    return str(error)


def with_numbers(rows: pa.Table, names: Iterable[str]) -> tuple[pa.Table, dict[str, pa.DataType]]:
    """Give columns of text that are all numbers as such, so that a query compares and orders them as numbers.

    A column stays text if the text of any of its numbers would be another, as that of 007 is.

    Returns:
        The table, and the types of the columns that are others now, as they were.
    """
    before: dict[str, pa.DataType] = {}
    for place, name in enumerate(rows.schema.names):
        text = rows.column(place)
        if name not in names or not pa.types.is_string(text.type):
            continue
        for kind in (pa.int64(), pa.float64()):
            if (numbers := _as_numbers(text, kind)) is not None:
                rows, before[name] = rows.set_column(place, name, numbers), text.type
                break
    return rows, before


def _as_numbers(text: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray | None:
    chunks = []
    for chunk in text.chunks:
        try:
            numbers = chunk.cast(kind)
        except pa.ArrowInvalid:
            return None
        if not numbers.cast(text.type).equals(chunk):
            return None
        chunks.append(numbers)
    return pa.chunked_array(chunks, kind)


@contextmanager
def open_database(path: Path, table: str | None, shown: str | None = None) -> Iterator[Any]:
    """Read a table, or a view, of a DuckDB file, in the order of its rows.

    Args:
        path: the file.
        table: which. None: the only one.
        shown: what errors call the file. None: its path.

    Yields:
        A pyarrow RecordBatchReader.

    Raises:
        ConfigError: there is no such table, or several and none was named.
        StoreError: the file is no DuckDB database, or can't be read.
    """
    import duckdb

    shown = shown or str(path)
    try:
        database = duckdb.connect(str(path), read_only=True, config={"threads": "1"})
    except duckdb.Error as error:
        raise StoreError(f"{shown} cannot be read as a DuckDB database: {error}") from error
    with database:
        kinds = dict(database.execute("SELECT table_name, table_type FROM information_schema.tables").fetchall())
        tables = [name for name, kind in kinds.items() if kind == "BASE TABLE"]
        name = choose_table(table, tables, kinds, shown).replace('"', '""')
        yield database.table(f'"{name}"').to_arrow_reader(_BATCH_ROWS)


def choose_table(table: str | None, tables: Sequence[str], names: Collection[str], shown: str) -> str:
    """Choose a table of a database.

    Args:
        table: which is wanted. None: the only one there is.
        tables: those there are.
        names: of these, and of the views.
        shown: what errors call the database.

    Raises:
        ConfigError: there is no such table, or several and none was named.
    """
    listed = ", ".join(map(repr, sorted(names))) or "none"
    if table is None and len(tables) != 1:
        raise ConfigError(f"{shown} has {len(tables)} tables: say which as {shown}#NAME; there are {listed}")
    if table is not None and table not in names:
        raise ConfigError(f"{shown} has no table {table!r}; its tables are {listed}")
    return table or tables[0]
