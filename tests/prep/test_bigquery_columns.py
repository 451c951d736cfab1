"""What BigQuery sends keeps its type: cell by cell as the API writes it, nested and repeated too."""

from __future__ import annotations

import base64
import datetime
from decimal import Decimal

import pyarrow as pa
import pytest

from penstock import ConfigError, FormatError
from penstock.prep.bigquery_columns import batch_of, schema_of

UTC = datetime.UTC
CELLS = [
    ("STRING", "naïve ✓", "naïve ✓", pa.string()),
    ("BYTES", base64.b64encode(b"\x00\xff").decode(), b"\x00\xff", pa.binary()),
    ("INTEGER", "-9223372036854775808", -(2**63), pa.int64()),
    ("INT64", "7", 7, pa.int64()),
    ("FLOAT", "0.1", 0.1, pa.float64()),
    ("FLOAT64", "-Infinity", float("-inf"), pa.float64()),
    ("BOOLEAN", "true", True, pa.bool_()),
    ("BOOL", "false", False, pa.bool_()),
    ("NUMERIC", "-12345678901234567890.000000001", Decimal("-12345678901234567890.000000001"), pa.decimal128(38, 9)),
    ("BIGNUMERIC", "1e-38", Decimal("1e-38"), pa.decimal256(76, 38)),
    ("TIMESTAMP", "-1", datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, UTC), pa.timestamp("us", "UTC")),
    ("DATETIME", "2020-02-29T12:00:00.5", datetime.datetime(2020, 2, 29, 12, 0, 0, 500000), pa.timestamp("us")),
    ("DATE", "0001-01-01", datetime.date(1, 1, 1), pa.date32()),
    ("TIME", "23:59:59.999999", datetime.time(23, 59, 59, 999999), pa.time64("us")),
    ("JSON", '{"a": [1, null]}', '{"a": [1, null]}', pa.string()),
    ("GEOGRAPHY", "POINT(1 2)", "POINT(1 2)", pa.string()),
    ("INTERVAL", "0-0 1 0:0:0", "0-0 1 0:0:0", pa.string()),
]


def rows_of(*columns):
    return [{"f": [{"v": cell} for cell in row]} for row in zip(*columns, strict=True)]


def read(rows, fields):
    return batch_of(rows, fields, schema_of(fields))


@pytest.mark.parametrize(("kind", "cell", "value", "type_"), CELLS, ids=[cell[0] for cell in CELLS])
def test_each_type_is_kept_alone_repeated_and_missing(kind, cell, value, type_):
    fields = [
        {"name": "one", "type": kind, "mode": "NULLABLE"},
        {"name": "many", "type": kind, "mode": "REPEATED"},
    ]
    batch = read(rows_of([cell, None, cell], [[{"v": cell}, {"v": cell}], [], None]), fields)
    assert batch.schema.field("one").type == type_
    assert batch.schema.field("many").type == pa.list_(type_)
    assert batch.column("one").to_pylist() == [value, None, value]
    assert batch.column("many").to_pylist() == [[value, value], [], []]


def test_not_a_number_is_one():
    batch = read(rows_of(["NaN", "Infinity"]), [{"name": "x", "type": "FLOAT"}])
    assert [str(value) for value in batch.column("x").to_pylist()] == ["nan", "inf"]


def test_records_within_records_and_lists_of_them():
    inner = {"name": "at", "type": "RECORD", "fields": [{"name": "x", "type": "FLOAT"}]}
    tags = {"name": "tags", "type": "STRING", "mode": "REPEATED"}
    fields = [
        {"name": "box", "type": "STRUCT", "fields": [{"name": "n", "type": "INTEGER"}, inner, tags]},
        {"name": "boxes", "type": "RECORD", "mode": "REPEATED", "fields": [{"name": "n", "type": "INTEGER"}, inner]},
    ]

    def record(*cells):
        return {"f": [{"v": cell} for cell in cells]}

    box = record("1", record("0.5"), [{"v": "a"}, {"v": "b"}])
    boxes = [{"v": record("2", None)}, {"v": record(None, record(None))}]
    batch = read(rows_of([box, None], [boxes, []]), fields)
    assert batch.to_pylist() == [
        {
            "box": {"n": 1, "at": {"x": 0.5}, "tags": ["a", "b"]},
            "boxes": [{"n": 2, "at": None}, {"n": None, "at": {"x": None}}],
        },
        {"box": None, "boxes": []},
    ]
    batch.validate(full=True)


def test_what_arrow_has_no_type_for_says_what_it_was():
    schema = schema_of([{"name": "doc", "type": "JSON"}, {"name": "text", "type": "STRING"}])
    assert schema.field("doc").metadata == {b"penstock.bigquery": b"JSON"}
    assert schema.field("text").metadata is None


def test_a_narrow_number_has_its_own_precision():
    assert schema_of([{"name": "n", "type": "NUMERIC", "precision": "10", "scale": "2"}]).types == [
        pa.decimal128(10, 2)
    ]


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        ("INTEGER", "1.5"),
        ("BIGNUMERIC", "5" * 39 + ".0"),
        ("DATE", "yesterday"),
        ("TIME", "25:00"),
        ("BYTES", "!!!"),
        ("TIMESTAMP", str(2**63)),
        ("RECORD", {}),
        ("RECORD", {"f": []}),
        ("RECORD", {"f": [{"v": "a"}, {"v": "b"}]}),
        ("RECORD", "x"),
    ],
)
def test_a_value_of_another_type_is_told_with_its_column(kind, cell):
    fields = [{"name": "odd", "type": kind, "fields": [{"name": "a", "type": "STRING"}]}]
    with pytest.raises(FormatError, match=f"no {kind} in the column 'odd'.*cast it in the query"):
        read(rows_of([cell]), fields)


@pytest.mark.parametrize(
    "rows",
    [None, {}, "ab", [None], [{}], [{"f": None}], [{"f": [{}, {}]}], rows_of(["1"]), rows_of(["1"], ["2"], ["3"])],
    ids=repr,
)
def test_what_are_no_rows_of_the_columns_is_told(rows):
    fields = [{"name": "a", "type": "INTEGER"}, {"name": "b", "type": "INTEGER"}]
    with pytest.raises(FormatError, match="no rows of its 2 columns"):
        read(rows, fields)


@pytest.mark.parametrize(
    "field", [{"type": "INTEGER"}, {"name": "a"}, {"name": "a", "type": "STRUCT", "fields": []}], ids=repr
)
def test_what_is_no_column_is_told(field):
    with pytest.raises(FormatError, match="BigQuery describes"):
        schema_of([field])


def test_two_columns_of_one_name_are_refused_within_records_too():
    pair = [{"name": "a", "type": "INTEGER"}, {"name": "a", "type": "STRING"}]
    with pytest.raises(ConfigError, match="two columns called 'a': give one another name, by AS"):
        schema_of(pair)
    with pytest.raises(ConfigError, match="two fields of 'box' called 'a'"):
        schema_of([{"name": "box", "type": "RECORD", "fields": pair}])
