"""A lazy index has the rows that a built one has, knows their number at once, and reads what is asked for."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from concurrent.futures import Future

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import BadBlock, ConfigError, ObjectChanged
from penstock.index.build import build_index
from penstock.plan.order import WindowShuffle


def rows_of(start, stop):
    return [
        {"index": f"k{i}", "url": f"u/{i}.jpg", "n": i if i % 5 else None, "words": ["a"] * (i % 3)}
        for i in range(start, stop)
    ]


ROWS = rows_of(0, 1000)


@pytest.fixture
def files(tmp_path):
    """Two files of 600 and 400 rows, in row groups of 100 and 30."""
    (tmp_path / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(ROWS[:600]), tmp_path / "data" / "0.parquet", row_group_size=100)
    second = pa.Table.from_pylist(ROWS[600:]).append_column("extra", pa.array(range(400)))
    pq.write_table(second, tmp_path / "data" / "1.parquet", row_group_size=30)
    return tmp_path / "data"


def lazy(src, tmp_path, **options):
    return build_index(src, folder=tmp_path / "node", lazy_index_chunk_size=100, **options)


def test_rows_are_those_of_a_built_index_in_whatever_order_they_are_asked_for(files, tmp_path):
    index, built = lazy(f"{files}/*.parquet", tmp_path), build_index(f"{files}/*.parquet", folder=tmp_path / "node")
    assert (len(index), index.columns, index.base) == (1000, built.columns, built.base)
    ids = np.random.default_rng(3).integers(0, 1000, 2000)
    assert index.rows(ids) == built.rows(ids)
    assert index.rows([]) == []
    assert index.column("url").to_pylist() == built.column("url").to_pylist()
    assert index.keys.to_pylist() == [row["index"] for row in ROWS]
    with pytest.raises(IndexError, match="1,000 was asked for"):
        index.rows([1000])


def test_parts_are_whole_row_groups_and_as_long_as_asked(files, tmp_path):
    ends = lazy(f"{files}/*.parquet", tmp_path).block_ends
    assert ends.tolist() == [100, 200, 300, 400, 500, 600, 720, 840, 960, 1000]
    assert build_index(f"{files}/*.parquet", folder=tmp_path / "node").block_ends is None


def test_only_what_is_asked_for_is_read(files, tmp_path):
    index = lazy(files / "0.parquet", tmp_path, index_cols_to_keep=["url"])
    made = lambda: sorted(path.parent.name for path in (tmp_path / "node").rglob("rows.arrow"))  # noqa: E731
    assert made() == []
    assert index.rows([250, 251]) == [{"index": f"k{i}", "url": f"u/{i}.jpg"} for i in (250, 251)]
    assert made() == ["0000002"]
    assert index.rows([0, 599])[1]["index"] == "k599"
    assert made() == ["0000000", "0000002", "0000005"]


def test_a_size_ends_the_index_within_a_part(files, tmp_path):
    index = lazy(files / "0.parquet", tmp_path, max_size=250)
    assert (len(index), index.block_ends.tolist()) == (250, [100, 200, 250])
    assert index.rows([249])[0]["index"] == "k249"
    assert index.keys.to_pylist() == [row["index"] for row in ROWS[:250]]
    index.save(tmp_path / "saved.arrow")
    assert len(build_index(tmp_path / "saved.arrow", folder=tmp_path / "node")) == 250


def test_parts_are_read_ahead_and_no_thread_is_left(files, tmp_path):
    index = lazy(files / "0.parquet", tmp_path, lazy_index_num_threads=2, lazy_index_prefetch_factor=2)
    index.prefetch(np.arange(600))
    deadline = time.monotonic() + 30
    while len(list((tmp_path / "node").rglob("rows.arrow"))) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [row["index"] for row in index.rows([0, 150, 250, 399])] == ["k0", "k150", "k250", "k399"]
    while time.monotonic() < deadline and any("lazy-index" in thread.name for thread in threading.enumerate()):
        time.sleep(0.01)
    assert not any("lazy-index" in thread.name for thread in threading.enumerate())
    assert len(list((tmp_path / "node").rglob("rows.arrow"))) == 4


def test_an_index_goes_to_other_processes_which_share_what_was_read(files, tmp_path):
    index = lazy(f"{files}/*.parquet", tmp_path)
    index.rows([0])
    read = next((tmp_path / "node").rglob("rows.arrow")).stat().st_ino
    (tmp_path / "pickled").write_bytes(pickle.dumps(index))
    program = (
        "import json, pickle, sys; index = pickle.load(open(sys.argv[1], 'rb'));"
        "print(json.dumps([index.rows([5, 999]), index.fingerprint, index.block_ends.tolist()]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "pickled")]
    said = json.loads(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert said == [index.rows([5, 999]), index.fingerprint, index.block_ends.tolist()]
    assert read in {path.stat().st_ino for path in (tmp_path / "node").rglob("rows.arrow")}


def test_processes_that_begin_at_once_read_each_part_once(web, tmp_path):
    heavy = [np.random.default_rng(row).bytes(1000) for row in range(900)]
    table = pa.table({"index": pa.array(range(900)), "n": pa.array(range(900)), "heavy": heavy})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=100)
    web.add_files({"x.parquet": (tmp_path / "x.parquet").read_bytes()})
    program = (
        "import sys, numpy as np; from penstock.index.build import build_index;"
        "index = build_index(sys.argv[1], folder=sys.argv[2], lazy_index_chunk_size=100);"
        "assert [row['n'] for row in index.rows(np.arange(900))] == [*range(900)];"
        "print({**index.rows([7])[0], 'heavy': 0})"
    )
    command = [sys.executable, "-c", program, f"{web.url}/x.parquet", str(tmp_path / "node")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert {process.communicate()[0] for process in started} == {"{'index': '7', 'n': 7, 'heavy': 0}\n"}
    metadata = pq.read_metadata(tmp_path / "x.parquet")
    starts = {metadata.row_group(group).column(0).dictionary_page_offset for group in range(9)}
    asked = [
        line["range"].removeprefix("bytes=").partition("-")[0] for line in web.requests("x.parquet") if line["range"]
    ]
    # Without a start it was the end of the file that was asked for.
    assert sorted(int(start) for start in asked if start and int(start) in starts) == sorted(starts)


def test_its_disk_holds_the_latest_parts_only_and_a_removed_one_comes_back(tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "x.parquet", row_group_size=10)
    index = build_index(tmp_path / "x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=10)
    order = WindowShuffle(index.block_ends, 7)
    ids = order.ids(0, np.arange(1000))
    seen = [row["index"] for start in range(0, 1000, 8) for row in index.rows(ids[start : start + 8])]
    assert sorted(seen) == sorted(row["index"] for row in ROWS)
    assert seen == [f"k{i}" for i in ids.tolist()]
    assert len(list((tmp_path / "node").rglob("rows.arrow"))) == 64
    assert index.rows(np.arange(1000)) == ROWS


def test_a_fingerprint_says_what_is_in_the_files_and_not_where_they_are(files, tmp_path):
    first = lazy(f"{files}/*.parquet", tmp_path).fingerprint
    files.rename(tmp_path / "elsewhere")
    assert lazy(f"{tmp_path}/elsewhere/*.parquet", tmp_path).fingerprint == first
    changed = [{**row, "url": row["url"] + "?"} for row in ROWS[:600]]
    pq.write_table(pa.Table.from_pylist(changed), tmp_path / "elsewhere" / "0.parquet", row_group_size=100)
    again = lazy(f"{tmp_path}/elsewhere/*.parquet", tmp_path)
    assert again.fingerprint != first
    assert again.rows([3])[0]["url"] == "u/3.jpg?"


def test_remote_files_are_read_group_by_group_and_only_the_columns_wanted(web, tmp_path):
    rng = np.random.default_rng(0)
    table = pa.table({"index": [f"k{i}" for i in range(4000)], "heavy": [rng.bytes(1000) for _ in range(4000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=1000)
    web.add_files({"x.parquet": (tmp_path / "x.parquet").read_bytes()})
    index = build_index(
        f"{web.url}/x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=1, index_cols_to_keep=["index"]
    )
    assert index.rows([2500]) == [{"index": "k2500"}]
    assert web.bytes_sent("x.parquet") < 1_000_000
    whole = build_index(f"{web.url}/x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=1)
    assert whole.rows([2500])[0]["heavy"] == table["heavy"][2500].as_py()
    assert web.bytes_sent("x.parquet") < 3_000_000


def test_a_remote_file_that_changes_is_not_mixed_with_what_it_was(web, tmp_path):
    for number, text in enumerate(("old", "new")):
        pq.write_table(
            pa.table({"index": [f"k{i}{text}" for i in range(100)]}), tmp_path / f"{number}", row_group_size=9
        )
    web.add_files({"x.parquet": (tmp_path / "0").read_bytes()})
    index = build_index(f"{web.url}/x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=1)
    assert index.rows([0])[0]["index"] == "k0old"
    web.add_files({"x.parquet": (tmp_path / "1").read_bytes()})
    with pytest.raises(ObjectChanged):
        index.rows([50])
    again = build_index(f"{web.url}/x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=1)
    assert again.rows([0, 50]) == [{"index": "k0new"}, {"index": "k50new"}]


def test_what_a_lazy_index_cannot_be_is_said(files, tmp_path):
    (tmp_path / "x.csv").write_text("index\na\n")
    with pytest.raises(ConfigError, match=r"x\.csv is not Parquet, and only that can be read part by part"):
        lazy(tmp_path / "x.csv", tmp_path)
    with pytest.raises(ConfigError, match="sql_query needs all rows"):
        lazy(files / "0.parquet", tmp_path, sql_query="SELECT * FROM dataframe")
    with pytest.raises(ConfigError, match="no column 'uri'; did you mean 'url'"):
        lazy(files / "0.parquet", tmp_path, columns=["uri"])
    with pytest.raises(ConfigError, match="lazy_index_chunk_size must be an integer >= 1, got 0"):
        build_index(files / "0.parquet", folder=tmp_path / "node", lazy_index_chunk_size=0)
    pq.write_table(pa.table({"index": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(ConfigError, match="no rows"):
        lazy(tmp_path / "none.parquet", tmp_path)
    (tmp_path / "cut.parquet").write_bytes((files / "0.parquet").read_bytes()[:-9])
    with pytest.raises(BadBlock, match=r"cut\.parquet cannot be read as Parquet"):
        lazy(tmp_path / "cut.parquet", tmp_path)


def test_a_child_forked_while_parts_are_read_reads_them_itself(files, tmp_path):
    index = lazy(f"{files}/*.parquet", tmp_path)
    rows = index._rows
    with rows._lock:
        # As a thread of the parent leaves it that is reading the first part.
        rows._blocks[0], rows._workers = Future(), rows.plan.threads
        child = os.fork()
        if not child:
            right = False
            try:
                right = rows._lock.acquire(timeout=5)
                rows._lock.release()
                right = right and rows._workers == 0 and index.rows([1])[0]["index"] == "k1"
            finally:
                os._exit(0 if right else 1)
        del rows._blocks[0]
        rows._workers = 0
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
