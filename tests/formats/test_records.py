"""Records of any source: one reading for all formats, from any position, and what is wrong named by its place."""

from __future__ import annotations

import csv
import datetime as dt
import decimal
import gzip
import json
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from penstock.errors import BadBlock, BadRecord, ConfigError, ObjectMissing, StateMismatch
from penstock.formats.record_tables import end_of_last_record
from penstock.formats.records import Records, open_records
from penstock.formats.streams import open_raw

ROWS = [
    {"id": str(i), "text": f'Line one of {i}\nline "two", é 漢字 😀\t\\ end' if i % 3 else f"plain {i}"}
    for i in range(60)
]
LINES = [orjson.dumps(row) + b"\n" for row in ROWS]


def as_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_bytes(b"".join(LINES[: len(rows)]))


def as_gzip(path: Path, rows: list[dict]) -> None:
    path.write_bytes(gzip.compress(b"".join(LINES)))


def as_zstd(path: Path, rows: list[dict]) -> None:
    path.write_bytes(pa.Codec("zstd").compress(b"".join(LINES), asbytes=True))


def as_array(path: Path, rows: list[dict]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def as_csv(path: Path, rows: list[dict]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)


def as_parquet(path: Path, rows: list[dict]) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=7)


def as_arrow_file(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table, max_chunksize=11)


def as_arrow_stream(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(path, table.schema) as out:
        out.write_table(table, max_chunksize=11)


FORMATS: dict[str, tuple[str, Callable[[Path, list[dict]], None]]] = {
    "jsonl": ("a.jsonl", as_jsonl),
    "gzip": ("a.jsonl.gz", as_gzip),
    "zstd": ("a.jsonl.zst", as_zstd),
    "lines called json": ("a.json", as_jsonl),
    "array": ("a.json", as_array),
    "csv": ("a.csv", as_csv),
    "tsv": ("a.tsv", as_csv),
    "parquet": ("a.parquet", as_parquet),
    "arrow file": ("a.arrow", as_arrow_file),
    "arrow stream": ("a.arrow", as_arrow_stream),
}


@pytest.fixture(params=FORMATS)
def source(request, tmp_path) -> Path:
    name, write = FORMATS[request.param]
    write(tmp_path / name, ROWS)
    return tmp_path / name


def lines_of(records: Records, start: dict | None = None) -> list[bytes]:
    found = []
    for batch in records.read(start):
        cuts = [0, *batch.ends.tolist()]
        assert cuts[-1] == len(batch.data)
        found += [batch.data[a:b].tobytes() for a, b in zip(cuts, batch.ends.tolist(), strict=False)]
    return found


def test_all_formats_hold_the_same_records(source):
    assert lines_of(open_records(source, block_bytes=500)) == LINES


def test_reading_from_any_position_gives_exactly_what_would_have_followed(source):
    records = open_records(source, block_bytes=500)
    done = 0
    for batch in records.read():
        done += len(batch.ends)
        after = json.loads(json.dumps(batch.after))
        assert lines_of(records, after) == LINES[done:]
        assert after["row"] == done
    assert done == len(LINES)


def test_a_folder_is_its_files_in_sorted_order_and_positions_go_across_them(tmp_path):
    for number in (2, 10, 1):
        (tmp_path / f"part-{number:02}.jsonl").write_text(f'{{"part":{number}}}\n' * 3)
    records = open_records(tmp_path, block_bytes=14)
    assert lines_of(records) == [b'{"part":%d}\n' % number for number in (1, 2, 10) for _ in range(3)]
    middle = [batch.after for batch in records.read()][4]
    assert lines_of(records, middle) == lines_of(records)[5:]
    assert [name for name, *_ in records.signature] == ["part-01.jsonl", "part-02.jsonl", "part-10.jsonl"]


def test_a_text_file_is_a_record_for_every_line_that_is_not_empty(tmp_path):
    (tmp_path / "a.txt").write_bytes('first "line"\r\n\n  \n second\\\né'.encode())
    found = lines_of(open_records(tmp_path / "a.txt"))
    assert list(map(orjson.loads, found)) == [{"text": 'first "line"'}, {"text": " second\\"}, {"text": "é"}]


def test_a_folder_that_datasets_saved_is_read_in_its_own_order(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved", num_shards=3)
    assert lines_of(open_records(tmp_path / "saved")) == LINES
    datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)).save_to_disk(tmp_path / "splits")
    with pytest.raises(ConfigError, match="several splits"):
        open_records(tmp_path / "splits")
    assert lines_of(open_records(tmp_path / "splits" / "train")) == LINES


def test_lines_keep_their_spelling(tmp_path):
    spelled = b'{ "text" : "\\u00e9" , "n": 1.50 }\n{"text":"last without newline"}'
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + spelled)
    assert b"".join(lines_of(open_records(tmp_path / "a.jsonl"))) == spelled + b"\n"


def test_a_bad_line_is_named_or_counted_by_its_number(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(LINES[:20]) + b"\n" + b'{"text": "cut\n' + b"".join(LINES[20:40]) + b"[1]\n")
    with pytest.raises(BadRecord, match=r"line 22 of .*a\.jsonl.*malformed-json") as raised:
        lines_of(open_records(path, block_bytes=300))
    assert (raised.value.line, raised.value.reason) == (22, "malformed-json")
    records = open_records(path, on_error="skip", block_bytes=300)
    assert lines_of(records) == LINES[:40]
    listed = [row for batch in records.read() for row in batch.listed]
    assert [(row.line, row.row, row.reason) for row in listed] == [
        (22, 20, "malformed-json"),
        (43, 41, "not-an-object"),
    ]
    assert sum(sum(batch.skipped.values()) for batch in records.read()) == 2


def test_what_json_has_not_becomes_text_files_or_null(tmp_path):
    when = dt.datetime(2024, 2, 29, 12, 30, 15, 250000)
    table = pa.table(
        {
            "at": pa.array([when, None], pa.timestamp("us")),
            "utc": pa.array([when, None], pa.timestamp("ns", "Europe/Berlin")),
            "day": pa.array([when.date(), None]),
            "price": pa.array([decimal.Decimal("12.30"), None]),
            "took": pa.array([dt.timedelta(seconds=90), None]),
            "kind": pa.array(["a", None]).dictionary_encode(),
            "count": pa.array([2**53 + 1, None], pa.int64()),
            "tags": pa.array([[when, None], None], pa.list_(pa.timestamp("us"))),
            "image": pa.array([{"bytes": b"\x89PNG\r\n", "path": "x.png"}, None]),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="bytes"):
        lines_of(open_records(tmp_path / "a.parquet"))
    first, second = map(orjson.loads, lines_of(open_records(tmp_path / "a.parquet", assets=tmp_path / "assets")))
    asset = first.pop("image")
    assert (tmp_path / asset["bytes"]).read_bytes() == b"\x89PNG\r\n"
    assert asset["bytes"].startswith("assets/")
    utc = dt.datetime.fromisoformat(first.pop("utc"))
    assert utc == when.replace(tzinfo=dt.UTC)
    assert first == {
        "at": "2024-02-29T12:30:15.250000",
        "day": "2024-02-29",
        "price": "12.30",
        "took": "PT90S",
        "kind": "a",
        "count": 2**53 + 1,
        "tags": ["2024-02-29T12:30:15.250000", None],
    }
    assert set(second.values()) == {None}


def test_nan_in_tables_follows_the_policy_and_is_counted(tmp_path):
    table = pa.table({"x": [1.5, float("nan"), None], "y": [[1.0], [2.0], [float("inf"), float("-inf")]]})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(BadRecord, match=r"row 2 of .*nan"):
        lines_of(open_records(tmp_path / "a.parquet"))
    assert lines_of(open_records(tmp_path / "a.parquet", on_error="skip")) == [b'{"x":1.5,"y":[1.0]}\n']
    nulled = open_records(tmp_path / "a.parquet", on_nan="null")
    assert lines_of(nulled)[1:] == [b'{"x":null,"y":[2.0]}\n', b'{"x":null,"y":[null,null]}\n']
    assert sum(batch.nulled for batch in nulled.read()) == 3


def test_going_on_amid_a_parquet_file_touches_only_what_follows(tmp_path):
    path = tmp_path / "a.parquet"
    table = pa.table({"text": [str(i) * 2000 for i in range(100)], "other": [str(i) * 3000 for i in range(100)]})
    pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False, write_statistics=False)
    read = []

    @contextmanager
    def watched(file):
        with open_raw(file) as raw:
            yield Watched(raw, read)

    whole = open_records(path, columns=["text"], opener=watched)
    rest = lines_of(whole, {"file": 0, "offset": 75, "line": 76, "row": 75})
    assert [orjson.loads(line)["text"] for line in rest] == [str(i) * 2000 for i in range(75, 100)]
    column = sum(len(value) for value in table["text"].to_pylist()[70:])
    assert column < sum(read) < column + 80_000


class Watched:
    """A file that adds up what is read of it."""

    def __init__(self, raw, read: list[int]) -> None:
        self._raw, self._read = raw, read

    def __getattr__(self, name: str):
        return getattr(self._raw, name)

    def read(self, size: int = -1) -> bytes:
        data = self._raw.read(size)
        self._read.append(len(data))
        return data


CSV = 'id,text\n1,"two\nlines, a ""quote"""\n2,\n3,""\n'


def test_csv_values_are_the_texts_that_stand_there(tmp_path):
    (tmp_path / "a.csv").write_text(CSV + "007,1e3\r\n")
    found = list(map(orjson.loads, lines_of(open_records(tmp_path / "a.csv"))))
    assert found == [
        {"id": "1", "text": 'two\nlines, a "quote"'},
        {"id": "2", "text": None},
        {"id": "3", "text": ""},
        {"id": "007", "text": "1e3"},
    ]


def test_csv_records_that_fit_no_columns_are_named_by_their_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(CSV + "4,a,b\n5,ok\n6\n")
    with pytest.raises(BadRecord, match=r"line 6 of .*3 fields, the columns are 2"):
        lines_of(open_records(path))
    records = open_records(path, on_error="skip")
    assert [orjson.loads(line)["id"] for line in lines_of(records)] == ["1", "2", "3", "5"]
    assert [row.line for batch in records.read() for row in batch.listed] == [6, 8]


def test_csv_whose_records_end_nobody_knows_where_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text('id,text\n1,a 5" disk\n2,b\n')
    with pytest.raises(BadBlock, match=r"the quote in .* is neither at the edge"):
        lines_of(open_records(tmp_path / "a.csv", on_error="skip"))
    (tmp_path / "b.csv").write_text("id,id\n1,2\n")
    with pytest.raises(ConfigError, match="twice"):
        lines_of(open_records(tmp_path / "b.csv"))


def test_a_block_of_csv_ends_outside_quotes():
    text = np.frombuffer(b'a,"b\nc"\nd,"e\n', np.uint8)
    assert end_of_last_record(text) == len(b'a,"b\nc"\n')


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.json", "a.jsonl.gz"])
def test_a_damaged_file_is_named(tmp_path, name):
    write = next(write for known, write in FORMATS.values() if known == name and write is not as_jsonl)
    write(tmp_path / name, ROWS)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(BadBlock, match=name.replace(".", r"\.")):
        lines_of(open_records(tmp_path / name))


def test_what_cannot_work_is_refused(tmp_path):
    as_parquet(tmp_path / "a.parquet", ROWS)
    with pytest.raises(ConfigError, match="no column 'body'; its columns are 'id', 'text'"):
        lines_of(open_records(tmp_path / "a.parquet", columns=["body"]))
    as_csv(tmp_path / "b.csv", ROWS)
    with pytest.raises(ConfigError, match="no column 'body'; its columns are 'id', 'text'"):
        lines_of(open_records(tmp_path / "b.csv", columns=["body"]))
    as_jsonl(tmp_path / "c.jsonl", ROWS)
    with pytest.raises(ConfigError, match=r"columns .*c\.jsonl is of another kind"):
        open_records(tmp_path / "c.jsonl", columns=["text"])
    (tmp_path / "c.jsonl").unlink()
    for wrong in ({"on_error": "ignore"}, {"on_nan": "skip"}, {"columns": "text"}, {"columns": []}, {"block_bytes": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            open_records(tmp_path / "a.parquet", **wrong)
    with pytest.raises(ObjectMissing):
        open_records(tmp_path / "none.jsonl")
    for position in ({"file": 7}, {"block": 1}):
        with pytest.raises(StateMismatch, match="position"):
            lines_of(open_records(tmp_path / "a.parquet"), position)
    with pytest.raises(ConfigError, match="several kinds"):
        open_records(tmp_path)
