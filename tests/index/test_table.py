"""An index is parted, selected from, sent to processes and saved, and stays what it is."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest

from index.conftest import ROWS
from penstock.errors import BadBlock, ConfigError, FormatError, ObjectMissing
from penstock.index.build import build_index
from penstock.index.saved import open_index

KINDS = ["rows.csv", "rows.parquet"]


@pytest.fixture(params=KINDS)
def index(request, table_of, tmp_path):
    return build_index(table_of(request.param), folder=tmp_path / "node")


def all_rows(index):
    return index.rows(np.arange(len(index)))


def test_a_split_parts_the_rows_and_says_the_same_each_time(index):
    train, val = index.split(0.25, seed=3)
    assert (len(train), len(val)) == (45, 15)
    keys = train.keys.to_pylist(), val.keys.to_pylist()
    assert sorted(keys[0] + keys[1]) == [row["index"] for row in ROWS]
    assert all(part == sorted(part) for part in keys)
    assert index.split(0.25, seed=3)[1].keys.to_pylist() == keys[1]
    assert index.split(0.25, seed=4)[1].keys.to_pylist() != keys[1]
    assert [len(part) for part in index.split(val_count=7)] == [53, 7]
    assert [len(part) for part in index.split(val_count=700)] == [0, 60]
    assert [row["index"] for row in all_rows(val)] == keys[1]


@pytest.mark.parametrize("arguments", [{}, {"val_ratio": 0.1, "val_count": 3}, {"val_ratio": 1.5}, {"val_ratio": True}])
def test_a_split_that_cannot_be_made_is_refused(index, arguments):
    with pytest.raises(ConfigError, match="val_ratio"):
        index.split(**arguments)


def test_rows_are_taken_in_the_order_given(index):
    ids = np.random.default_rng(1).permutation(60)[:20]
    taken = index.take(ids)
    assert all_rows(taken) == [ROWS[number] for number in ids]
    assert taken.column("width").to_pylist() == [ROWS[number]["width"] for number in ids]
    assert all_rows(taken.take([3, 1])) == [ROWS[ids[3]], ROWS[ids[1]]]
    with pytest.raises(ConfigError, match="twice"):
        index.take([1, 1])
    with pytest.raises(IndexError, match="row -1 was asked for; the index has 20 rows"):
        taken.rows([-1])
    with pytest.raises(ConfigError, match=r"no column 'widht': did you mean 'width'\?"):
        index.column("widht")


def test_a_query_of_an_index_gives_an_index(index):
    part = index.take(range(10, 40)).select("SELECT index, score FROM dataframe WHERE score >= 9 ORDER BY score DESC")
    assert all_rows(part) == [{"index": f"k{number:03}", "score": number / 4} for number in range(39, 35, -1)]
    for sql, told in [
        ("SELECT url FROM dataframe", "no column 'index'"),
        ("SELECT * FROM dataframe LIMIT 0", "no rows"),
    ]:
        with pytest.raises(ConfigError, match=told):
            index.select(sql)
    with pytest.raises(FormatError, match="twice"):
        index.select("SELECT 'a' AS index FROM dataframe")


@pytest.mark.parametrize("part", ["whole", "train", "taken", "selected"])
def test_a_saved_index_is_the_same_index(index, part, tmp_path):
    saved = {
        "whole": index,
        "train": index.split(0.5)[0],
        "taken": index.take([5, 50, 3]),
        "selected": index.select("SELECT * FROM dataframe WHERE width > 100"),
    }[part]
    saved.save(tmp_path / "deep" / "saved.arrow")
    opened = open_index(tmp_path / "deep" / "saved.arrow")
    assert (opened.fingerprint, opened.key, opened.base) == (saved.fingerprint, "index", index.base)
    assert all_rows(opened) == all_rows(saved)
    # As a source it is what it says it is, with the locations it had.
    built = build_index(tmp_path / "deep" / "saved.arrow", folder=tmp_path / "other")
    assert (built.fingerprint, built.base) == (saved.fingerprint, index.base)
    assert all_rows(built) == all_rows(saved)


def test_a_saved_index_knows_its_key_wherever_it_is_a_source(table_of, web, tmp_path):
    table = table_of("rows.csv", [{"id": row["index"], "url": row["url"]} for row in ROWS])
    index = build_index(table, folder=tmp_path / "node", index_col_name="id")
    for part, saved in zip(index.split(0.5), ("train.arrow", "val.arrow"), strict=True):
        part.save(web.folder / saved)
    for src in (web.folder / "val.arrow", f"{web.url}/val.arrow"):
        built = build_index(src, folder=tmp_path / "other")
        assert (built.key, all_rows(built)) == ("id", all_rows(index.split(0.5)[1]))
        assert built.fingerprint == index.split(0.5)[1].fingerprint
    both = build_index([web.folder / "train.arrow", web.folder / "val.arrow"], folder=tmp_path / "other")
    assert (both.key, len(both)) == ("id", len(ROWS))
    by_url = build_index(web.folder / "val.arrow", folder=tmp_path / "other", index_col_name="url")
    assert by_url.key == "url"


def test_an_index_saved_to_a_store_is_opened_from_there(index, tmp_path, s3):
    s3.create_bucket("saved-indexes")
    url, options = f"s3://saved-indexes/{tmp_path.name}", s3.options
    index.save(f"{url}/a/saved.arrow", **options)
    opened = open_index(f"{url}/a/saved.arrow", folder=tmp_path / "other", storage_options=options)
    assert (opened.fingerprint, opened.base) == (index.fingerprint, index.base)
    assert all_rows(opened) == ROWS
    with pytest.raises(ConfigError, match="has to be fetched"):
        open_index(f"{url}/a/saved.arrow", storage_options=options)
    with pytest.raises(ObjectMissing):
        open_index(f"{url}/b/saved.arrow", folder=tmp_path / "other", storage_options=options)


def test_what_is_no_saved_index_is_refused(index, table_of, tmp_path):
    for name in ("other.arrow", "other.csv"):
        with pytest.raises(ConfigError, match="not an index that was saved"):
            open_index(table_of(name))
    with pytest.raises(ConfigError, match=r"let the name end in \.arrow"):
        index.save(tmp_path / "index.parquet")
    (tmp_path / "cut.arrow").write_bytes(table_of("other.arrow").read_bytes()[:-50])
    with pytest.raises(BadBlock, match=r"cut\.arrow cannot be read"):
        open_index(tmp_path / "cut.arrow")


def test_a_pickled_index_is_small_and_opens_in_another_process(index, tmp_path):
    part = index.split(0.5)[1]
    data = pickle.dumps(part)
    assert len(data) < 4000
    (tmp_path / "pickled").write_bytes(data)
    program = "import pickle, sys; i = pickle.load(open(sys.argv[1], 'rb')); print(i.fingerprint, i.rows([3]))"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "pickled")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{part.fingerprint} {part.rows([3])}\n"


def test_rows_hold_whatever_arrow_holds(tmp_path):
    rows = [
        {
            "index": f"k{i}",
            "list": [i] * i,
            "struct": {"a": i, "b": None},
            "bytes": bytes([i]),
            "none": None,
            "f": i / 3,
        }
        for i in range(9)
    ]
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as writer:
        writer.write_table(table[2:7])
    index = build_index(tmp_path / "a.arrow", folder=tmp_path / "node")
    assert all_rows(index) == rows[2:7]
