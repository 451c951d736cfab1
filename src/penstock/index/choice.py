"""What is wanted of a source: which rows and columns, how they are found and how they are read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from penstock.errors import ConfigError
from penstock.index.grouping import LENGTH, OFFSET
from penstock.index.lazy import Parts
from penstock.index.scan import check_names, nearest
from penstock.types import check_choice, check_int

KEY = "index"
"""The column that keys are in unless it is said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What is wanted of a source."""

    key: str = KEY
    columns: tuple[str, ...] = ()
    """Columns that have to be there, apart from the key."""
    keep: tuple[str, ...] | None = None
    """Columns to keep beside these; None: all."""
    sql_query: str | None = None
    max_size: int | None = None
    """Rows to keep, the first; None: all."""
    allow_missing_columns: bool = False
    """Whether the values of `columns` that are not there are None."""
    parts: Parts | None = field(default=None, repr=False)
    """How it is read part by part, when it is needed; None: at once. What is read is the same."""

    def __post_init__(self) -> None:
        for name, value in (("index_col_name", self.key), ("sql_query", self.sql_query)):
            if not isinstance(value, str) and not (value is None and name == "sql_query"):
                raise ConfigError(f"{name} must be a text, got {value!r}")
        check_choice("allow_missing_columns", self.allow_missing_columns, (True, False))
        if self.max_size is not None:
            check_int("max_size", self.max_size, minimum=1)
        if self.parts is not None and self.sql_query is not None:
            raise ConfigError(
                "sql_query needs all rows, a lazy index reads them when they are needed: give one of both"
            )

    def columns_of(self, schema: pa.Schema, place: str) -> pa.Schema:
        """Choose columns, the key as text, those that are allowed to be missing as null.

        Raises:
            ConfigError: a column is missing, or two have one name.
        """
        check_names(schema, place)
        if not schema.names:
            raise ConfigError(f"{place} is empty: it has neither columns nor rows. See whether all of it was written")
        if self.key not in schema.names:
            raise ConfigError(
                f"{place} has no column {self.key!r}, which index_col_name says the keys are in; "
                f"{nearest(self.key, schema.names)}"
            )
        wanted = dict.fromkeys([self.key, *self.columns, *(schema.names if self.keep is None else self.keep)])
        # Where a column's values are is said beside it, and goes with it.
        beside = [name + ending for name in wanted for ending in (OFFSET, LENGTH)]
        wanted |= dict.fromkeys(name for name in beside if name in schema.names)
        missing = [name for name in wanted if name not in schema.names]
        if missing and not self.allow_missing_columns:
            raise ConfigError(
                f"{place} has no column {missing[0]!r}; {nearest(missing[0], schema.names)}. "
                "With allow_missing_columns=True its values would be None"
            )
        order = [name for name in schema.names if name in wanted] + missing
        kinds = {field.name: field.type for field in schema}
        return pa.schema([(name, self._kind(name, kinds.get(name, pa.null()))) for name in order])

    def _kind(self, name: str, kind: pa.DataType) -> pa.DataType:
        if name == self.key and pa.types.is_nested(kind):
            raise ConfigError(
                f"the keys in column {name!r} are {kind}, and must be texts or numbers: name another column "
                "(index_col_name), or write them as text"
            )
        return kind if name != self.key or pa.types.is_large_string(kind) else pa.string()


def names_of(argument: str, given: Sequence[str]) -> tuple[str, ...]:
    """List names of columns that an argument gives.

    Raises:
        ConfigError: it gives something else.
    """
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise ConfigError(f"{argument} must be a list of names of columns, got {given!r}: write [{given!r}]")
    names = tuple(given)
    if not all(isinstance(one, str) for one in names):
        raise ConfigError(f"{argument} must be names of columns, got {list(names)!r}")
    return names
