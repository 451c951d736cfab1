"""CSV and JSON have no types: those found hold every value, and nothing is lost for them."""

from __future__ import annotations

import gzip
import json

import pytest

from penstock.datasets.streaming import StreamingDataset
from penstock.errors import BadBlock, BadRecord, FormatError
from penstock.index import text_tables
from penstock.index.build import build_index


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Cut files of a few hundred bytes into many blocks."""
    monkeypatch.setattr(text_tables, "BLOCK_BYTES", 200)


def rows_of(path, tmp_path, **options):
    index = build_index(path, folder=tmp_path / "node", **options)
    return index.rows(range(len(index)))


def test_a_type_that_a_later_value_does_not_fit_is_widened_for_all_rows(tmp_path):
    lines = ["index,a,b,c,d"]
    lines += [f"k{i},{i},{i},true,{'' if i < 90 else i}" for i in range(100)]
    lines[81] = "k80,80.5,eighty,true,"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows = rows_of(tmp_path / "a.csv", tmp_path)
    assert [row["a"] for row in rows[79:82]] == [79.0, 80.5, 81.0]
    assert [row["b"] for row in rows[79:82]] == ["79", "eighty", "81"]
    assert rows[5]["c"] is True
    assert [row["d"] for row in rows[88:92]] == [None, None, 90, 91]
    assert [row["index"] for row in rows] == [f"k{i}" for i in range(100)]


def test_fields_over_several_lines_with_quotes_and_separators_stay_whole(tmp_path):
    texts = [f'line one of {i}\nline "two", and\r\nthree' * (i % 4) + f"end {i}" for i in range(200)]
    body = "".join('k{},"{}"\n'.format(i, text.replace('"', '""')) for i, text in enumerate(texts))
    (tmp_path / "a.csv").write_bytes(("index,text\n" + body).encode())
    assert [row["text"] for row in rows_of(tmp_path / "a.csv", tmp_path)] == texts


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_the_last_line_make_no_difference(end, last, tmp_path):
    text = "index,n" + end + end.join(f"k{i},{i}" for i in range(100)) + end * last
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows_of(tmp_path / "a.csv", tmp_path) == [{"index": f"k{i}", "n": i} for i in range(100)]


def test_dates_words_for_nothing_and_quoted_nothing_are_the_text_that_stands_there(tmp_path):
    (tmp_path / "a.csv").write_text('index,day,word,empty\na,2024-01-02,NA,""\nb,2024-01-03,null,\n')
    assert rows_of(tmp_path / "a.csv", tmp_path) == [
        {"index": "a", "day": "2024-01-02", "word": "NA", "empty": ""},
        {"index": "b", "day": "2024-01-03", "word": "null", "empty": None},
    ]
    (tmp_path / "a.jsonl").write_text('{"index": "a", "day": "2024-01-02"}\n')
    assert rows_of(tmp_path / "a.jsonl", tmp_path) == [{"index": "a", "day": "2024-01-02"}]


def test_columns_to_download_are_text_even_where_they_are_digits(tmp_path):
    (tmp_path / "a.csv").write_text("index,file,n\na,007,007\n")
    assert rows_of(tmp_path / "a.csv", tmp_path, columns=["file"]) == [{"index": "a", "file": "007", "n": 7}]


def test_records_with_too_few_fields_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("index,n\n" + "".join(f"k{i},{i}\n" for i in range(99)) + "k99\n")
    with pytest.raises(BadBlock, match=r"a.csv is not CSV with .* Expected 2 columns, got 1"):
        rows_of(tmp_path / "a.csv", tmp_path)


def test_a_quote_that_is_out_of_place_does_not_swallow_the_file(tmp_path):
    lines = [f'k{i},{i}" pipe' if i == 40 else f'k{i},"{i}"' for i in range(4000)]
    (tmp_path / "a.csv").write_text("index,n\n" + "\n".join(lines) + "\n")
    with pytest.raises(BadBlock, match="neither at the edge of its field nor doubled"):
        rows_of(tmp_path / "a.csv", tmp_path)


def test_bytes_that_are_not_utf8_are_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"index,n\na,\xff\xfe\n")
    with pytest.raises(BadBlock, match="not UTF-8, in column 'n'"):
        rows_of(tmp_path / "a.csv", tmp_path)


def test_fields_that_only_some_objects_have_are_none_elsewhere(tmp_path):
    rows = [{"index": f"k{i}", "n": i, **({"late": [i]} if i > 90 else {})} for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert rows_of(tmp_path / "a.jsonl", tmp_path) == [{"late": None, **row} for row in rows]


def test_a_line_that_is_no_json_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"index": "a"}\n{"index": \n')
    with pytest.raises(BadRecord) as raised:
        rows_of(tmp_path / "a.jsonl", tmp_path)
    assert raised.value.line == 2


def test_a_field_with_values_of_several_kinds_is_refused(tmp_path):
    lines = [{"index": f"k{i}", "n": [i] if i == 90 else i} for i in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(FormatError, match=r"one type"):
        rows_of(tmp_path / "a.jsonl", tmp_path)


def test_compressed_text_is_read_as_it_was(tmp_path):
    text = "index,n\n" + "".join(f"k{i},{i}\n" for i in range(500))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(text.encode()))
    assert rows_of(tmp_path / "a.csv.gz", tmp_path) == [{"index": f"k{i}", "n": i} for i in range(500)]


def test_integers_that_no_float_holds_stay_exact_as_text(tmp_path):
    big, odd = 2**64 + 1, 2**53 + 1
    lines = ["index,a,b,c,d"] + [f"k{i},{i},{odd},1e300,{i}.5" for i in range(100)]
    lines[60] = f"k59,{big},2.5,1e301,9007199254740994.0"
    (tmp_path / "a.csv").write_text("\n".join(lines))
    rows = rows_of(tmp_path / "a.csv", tmp_path)
    assert [row["a"] for row in rows[58:61]] == ["58", str(big), "60"]
    assert [row["b"] for row in rows[58:61]] == [str(odd), "2.5", str(odd)]
    assert [row["c"] for row in rows[58:61]] == [1e300, 1e301, 1e300]
    assert [row["d"] for row in rows[58:61]] == [58.5, 9007199254740994.0, 60.5]


@pytest.mark.parametrize(("value", "other"), [(2**64 + 1, 5), (2**53 + 1, 2.5), (-(2**53) - 1, 1e300)])
def test_json_integers_that_would_be_rounded_are_refused(tmp_path, value, other):
    lines = [json.dumps({"index": f"k{i}", "n": value if i == 3 else other, "m": i}) for i in range(60)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    with pytest.raises(BadBlock, match=rf"field 'n' holds the integer {value} .*write this field as text"):
        rows_of(tmp_path / "a.jsonl", tmp_path)
    lines = [json.dumps({"index": f"k{i}", "n": 2**53 + i}) for i in range(60)]
    (tmp_path / "b.jsonl").write_text("\n".join(lines))
    assert rows_of(tmp_path / "b.jsonl", tmp_path)[1]["n"] == 2**53 + 1


@pytest.mark.parametrize("on_error", [None, "skip"])
def test_a_row_that_was_cut_off_is_to_be_repaired_since_no_row_of_an_index_is_passed_over(on_error, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"index": "a", "n": 1}\n{"index": "b", "n')
    with pytest.raises(BadRecord, match="repair this row in the index, or take it out") as caught:
        StreamingDataset(tmp_path / "a.jsonl", tmp_path / "dst", columns_to_download=[], on_error=on_error)
    assert caught.value.line == 2
    assert "--on-error" not in str(caught.value)
    (tmp_path / "a.jsonl").write_text('{"index": "a", "n": 1}\n')
    assert len(StreamingDataset(tmp_path / "a.jsonl", tmp_path / "dst", columns_to_download=[])) == 1
