"""Rows as BigQuery sends them in JSON → columns of Arrow, types kept.

    {"f": [{"v": "7"}, {"v": null}]}, … ──▶ RecordBatch: int64, string, …

Whole columns are converted at a time, by Arrow's own parsers.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import time
from itertools import accumulate
from typing import Any

import pyarrow as pa

from penstock.errors import FormatError

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
_PARSERS: dict[str, Callable[[str], Any]] = {"BYTES": base64.b64decode, "TIME": time.fromisoformat, "TIMESTAMP": int}


def schema_of(fields: Sequence[Field]) -> pa.Schema:
    """Give the Arrow schema of BigQuery's columns.

    What Arrow has no type for (JSON, GEOGRAPHY, INTERVAL, RANGE) is text, as BigQuery writes it, and its field's
    metadata says what it was.

    >>> schema_of([{"name": "n", "type": "NUMERIC"}, {"name": "at", "type": "DATE", "mode": "REPEATED"}])
    n: decimal128(38, 9)
    at: list<item: date32[day]>
      child 0, item: date32[day]
    """
    return pa.schema([_field(field) for field in fields])


def batch_of(rows: Sequence[Mapping[str, Any]], fields: Sequence[Field], schema: pa.Schema) -> pa.RecordBatch:
    """Turn rows of JSON into a batch.

    Args:
        rows: a page of them; times are microseconds since 1970.
        fields: the columns.
        schema: of these, by `schema_of`.

    Raises:
        FormatError: a value is not of its column's type.
    """
    columns = []
    for place, field in enumerate(fields):
        values = [row["f"][place]["v"] for row in rows]
        try:
            columns.append(_column(values, field))
        except (pa.ArrowException, ValueError, TypeError) as error:
            raise FormatError(
                f"BigQuery sent what is no {field['type']} in the column {field['name']!r} ({error}): cast it in the "
                "query, to STRING for example"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _kind(field: Field) -> str:
    kind = field["type"].upper()
    return _OTHER_NAMES.get(kind, kind)


def _is_list(field: Field) -> bool:
    return (field.get("mode") or "").upper() == "REPEATED"


def _type(field: Field) -> pa.DataType:
    """Give a column's type, of one item if it is repeated."""
    kind = _kind(field)
    if kind == "RECORD":
        return pa.struct([_field(inner) for inner in field["fields"]])
    if kind in _DECIMALS:
        make, precision, scale = _DECIMALS[kind]
        if field.get("precision"):
            precision, scale = int(field["precision"]), int(field.get("scale") or 0)
        return make(precision, scale)
    return _TYPES.get(kind, pa.string())


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
        inner = [
            _column([None if value is None else value["f"][place]["v"] for value in values], part)
            for place, part in enumerate(field["fields"])
        ]
        empty = pa.array([value is None for value in values], pa.bool_())
        return pa.StructArray.from_arrays(inner, fields=list(wanted), mask=empty)
    parse = _PARSERS.get(kind)
    if parse is not None:
        return pa.array([None if value is None else parse(value) for value in values], wanted)
    return pa.array(values, pa.string()).cast(wanted)
