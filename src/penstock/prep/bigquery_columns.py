"""Rows as BigQuery sends them in JSON → columns of Arrow, types kept.

    {"f": [{"v": "7"}, {"v": null}]}, … ──▶ RecordBatch: int64, string, …

Whole columns are converted at a time, by Arrow's own parsers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import time
from functools import partial
from itertools import accumulate
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, FormatError

Field = Mapping[str, Any]
"""A column as the REST API describes it: name, type, mode, and fields of a record."""

_NAMED = "penstock.bigquery"
_TYPES = {
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "INTEGER": pa.int64(),
    "FLOAT": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", "UTC"),
    "DATETIME": pa.timestamp("us"),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
}
_OTHER_NAMES = {"INT64": "INTEGER", "FLOAT64": "FLOAT", "BOOL": "BOOLEAN", "STRUCT": "RECORD"}
_DECIMALS: dict[str, tuple[Callable[[int, int], pa.DataType], int, int]] = {
    "NUMERIC": (pa.decimal128, 38, 9),
    "BIGNUMERIC": (pa.decimal256, 76, 38),
}
_PARSERS: dict[str, Callable[[str], Any]] = {
    "BYTES": partial(base64.b64decode, validate=True),
    "TIME": time.fromisoformat,
    "TIMESTAMP": int,
}


def schema_of(fields: Sequence[Field]) -> pa.Schema:
    """Give the Arrow schema of BigQuery's columns.

    What Arrow has no type for (JSON, GEOGRAPHY, INTERVAL, RANGE) is text, as BigQuery writes it, and its field's
    metadata says what it was.

    Raises:
        ConfigError: two columns, or two fields of a record, are of one name.
        FormatError: what is described is no column.

    >>> schema_of([{"name": "n", "type": "NUMERIC"}, {"name": "at", "type": "DATE", "mode": "REPEATED"}])
    n: decimal128(38, 9)
    at: list<item: date32[day]>
      child 0, item: date32[day]
    """
    return pa.schema(_fields(fields, "columns"))


def batch_of(rows: Sequence[Mapping[str, Any]], fields: Sequence[Field], schema: pa.Schema) -> pa.RecordBatch:
    """Turn rows of JSON into a batch.

    Args:
        rows: a page of them; times are microseconds since 1970.
        fields: the columns.
        schema: of these, by `schema_of`.

    Raises:
        FormatError: a value is not of its column's type, or what was sent are no rows of these columns.
    """
    try:
        if not isinstance(rows, list):
            raise TypeError(f"a {type(rows).__name__} of rows")
        cells = [_cells(row, fields) for row in rows]
    except (ValueError, TypeError, LookupError) as error:
        raise FormatError(f"BigQuery sent what are no rows of its {len(fields)} columns ({_said(error)})") from error
    columns = []
    for place, field in enumerate(fields):
        try:
            columns.append(_column([row[place] for row in cells], field))
        except (pa.ArrowException, ValueError, TypeError, LookupError, OverflowError) as error:
            raise FormatError(
                f"BigQuery sent what is no {field['type']} in the column {field['name']!r} ({_said(error)}): cast it "
                "in the query, to STRING for example"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _cells(row: Any, fields: Sequence[Field]) -> list[Any]:
    cells = [cell["v"] for cell in row["f"]]
    if len(cells) != len(fields):
        raise ValueError(f"{len(cells)} cells")
    return cells


def _said(error: Exception) -> str:
    return f"it lacks {error}" if isinstance(error, KeyError) else str(error)


def _kind(field: Field) -> str:
    kind = field["type"].upper()
    return _OTHER_NAMES.get(kind, kind)


def _is_list(field: Field) -> bool:
    return (field.get("mode") or "").upper() == "REPEATED"


def _type(field: Field) -> pa.DataType:
    """Give a column's type, of one item if it is repeated."""
    kind = _kind(field)
    if kind == "RECORD":
        return pa.struct(_fields(field.get("fields"), f"fields of {field['name']!r}"))
    if kind in _DECIMALS:
        make, precision, scale = _DECIMALS[kind]
        if field.get("precision"):
            precision, scale = int(field["precision"]), int(field.get("scale") or 0)
        return make(precision, scale)
    return _TYPES.get(kind, pa.string())


def _fields(fields: Any, what: str) -> list[pa.Field]:
    """Give the Arrow fields of columns, or of a record's fields."""
    names: set[str] = set()
    for field in fields or ():
        name = field.get("name")
        if not isinstance(name, str) or not isinstance(field.get("type"), str):
            raise FormatError(f"BigQuery describes {what} without name or type: {dict(field)}")
        if name in names:
            raise ConfigError(f"sql_query gives two {what} called {name!r}: give one another name, by AS")
        names.add(name)
    if not names:
        raise FormatError(f"BigQuery describes no {what}")
    return [_field(field) for field in fields]


def _field(field: Field) -> pa.Field:
    kind, inner = _kind(field), _type(field)
    known = kind in _TYPES or kind in _DECIMALS or kind == "RECORD"
    return pa.field(
        field["name"], pa.list_(inner) if _is_list(field) else inner, metadata=None if known else {_NAMED: kind}
    )


def _column(values: Sequence[Any], field: Field) -> pa.Array:
    if not _is_list(field):
        return _items(values, field)
    counts = [len(value or ()) for value in values]
    ends = pa.array([0, *accumulate(counts)], pa.int32())
    items = _items([item["v"] for value in values for item in value or ()], field)
    return pa.ListArray.from_arrays(ends, items)


def _items(values: Sequence[Any], field: Field) -> pa.Array:
    kind, wanted = _kind(field), _type(field)
    if kind == "RECORD":
        parts = field["fields"]
        cells = [[None] * len(parts) if value is None else _cells(value, parts) for value in values]
        inner = [_column([row[place] for row in cells], part) for place, part in enumerate(parts)]
        empty = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(inner, fields=list(wanted), mask=empty)
    parse = _PARSERS.get(kind)
    if parse is not None:
        return pa.array([None if value is None else parse(value) for value in values], wanted)
    return pa.array(values, pa.string()).cast(wanted)
