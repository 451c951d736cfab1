"""An index on a server that ignores ranges is read all the same: taken whole, once, and refused if it changes."""

from __future__ import annotations

import gzip
import json
import random
import re
import sqlite3
import subprocess
import sys

import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest

from penstock import ObjectChanged, StoreError, StreamingDataset, open_file
from penstock.index.build import build_index
from penstock.store import whole_copy
from penstock.store.store import open_store
from penstock.store.whole_copy import MOST, WholeCopy

COUNT = 30_000
TABLE = pa.table(
    {
        "index": [f"k{row}" for row in range(COUNT)],
        "n": list(range(COUNT)),
        "text": [f"{random.Random(row).random()} of {row}" for row in range(COUNT)],
    }
)
NAMES = ("x.csv", "x.csv.gz", "x.jsonl", "x.json", "x.parquet", "x.arrow", "x.sqlite")
PAGES = re.compile(r"http://\S+:\d+")


def write(folder, count):
    """Write the same rows in every format."""
    table, rows = TABLE[:count], TABLE[:count].to_pylist()
    pa_csv.write_csv(table, folder / "x.csv")
    (folder / "x.csv.gz").write_bytes(gzip.compress((folder / "x.csv").read_bytes(), 1))
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "x.json").write_text(json.dumps(rows))
    pq.write_table(table, folder / "x.parquet", row_group_size=1 + count // 4)
    build_index(folder / "x.parquet", folder=folder / "node").save(folder / "x.arrow")
    with sqlite3.connect(folder / "x.sqlite") as database:
        database.execute("create table x ([index] text, n integer, text text)")
        database.executemany("insert into x values (:index, :n, :text)", rows)
    database.close()


@pytest.mark.parametrize("count", [20, COUNT])
def test_an_index_is_taken_whole_once_in_any_format(web, tmp_path, count):
    write(web.folder, count)
    web.fault(path="/x", times=10_000, ignore_range=True)
    for name in NAMES:
        index = build_index(f"{web.url}/{name}", folder=tmp_path / "node")
        assert index.rows(range(count)) == TABLE[:count].to_pylist(), name
        asked = [line for line in web.requests(f"/{name}$") if line["method"] == "GET"]
        assert sum(not line["range"] for line in asked) == 1, name
        # Of what is asked for by range little more is sent than what was on its way when it was refused.
        assert len(asked) <= 4, name


def test_a_dataset_takes_its_index_once(web, tmp_path):
    write(web.folder, COUNT)
    web.fault(path="/x", times=10_000, ignore_range=True)
    for name in NAMES:
        dataset = StreamingDataset(f"{web.url}/{name}", tmp_path / "cache", columns_to_download=[])
        assert len(dataset) == COUNT, name
        again = StreamingDataset(f"{web.url}/{name}", tmp_path / "cache", columns_to_download=[])
        assert len(again) == COUNT, name
        asked = [line for line in web.requests(f"/{name}$") if line["method"] == "GET"]
        # A saved index says within itself where its samples lie, which is looked at each time.
        assert sum(not line["range"] for line in asked) == 1 + (name == "x.arrow"), name


def test_several_files_are_one_index(web, tmp_path):
    for number in range(12):
        pa_csv.write_csv(TABLE[number * 2000 : number * 2000 + 2000], tmp_path / f"{number:02d}.csv")
        web.add_files({f"{number:02d}.csv": (tmp_path / f"{number:02d}.csv").read_bytes()})
    web.fault(path=r"\.csv", times=10_000, ignore_range=True)
    index = build_index(f"{web.url}/{{00..11}}.csv", folder=tmp_path / "node")
    assert index.rows(range(24_000)) == TABLE[:24_000].to_pylist()


def test_the_server_that_comes_with_python_serves_an_index(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    write(folder, 200)
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        url = PAGES.search(server.stdout.readline())[0]
        for name in NAMES:
            dataset = StreamingDataset(f"{url}/{name}", tmp_path / "cache", columns_to_download=[])
            assert len(dataset) == 200, name
    finally:
        server.kill()
        server.communicate()


def test_an_index_that_is_read_part_by_part_needs_ranges_and_the_error_says_what_to_do(web, tmp_path):
    write(web.folder, 20)
    web.fault(path="/x", times=10_000, ignore_range=True)
    with pytest.raises(StoreError, match="serves ranges, or download the file and give its local path"):
        build_index(f"{web.url}/x.parquet", folder=tmp_path / "node", lazy_index_chunk_size=1)


@pytest.mark.parametrize("data", [b"twice as long" * 20, b"Short, as long" * 10])
def test_an_object_that_changed_since_it_was_opened_is_not_taken(web, data):
    web.add_files({"x.bin": b"short, as long" * 10})
    web.fault(path="x.bin", times=10_000, ignore_range=True)
    info = open_store(f"{web.url}/x.bin").head()
    web.add_files({"x.bin": data})
    with (
        open_file(f"{web.url}/x.bin", info=info, copy=WholeCopy()) as file,
        pytest.raises(ObjectChanged, match=r"x\.bin changed while it was read"),
    ):
        file.read()


def test_an_answer_that_is_cut_short_is_asked_for_again(web):
    data = random.Random(1).randbytes(3_000_000)
    web.add_files({"x.bin": data})
    web.fault(path="x.bin", method="GET", times=1, ignore_range=True)
    web.fault(path="x.bin", method="GET", times=2, ignore_range=True, truncate=1_500_000)
    web.fault(path="x.bin", method="GET", times=100, ignore_range=True)
    with open_file(f"{web.url}/x.bin", copy=WholeCopy()) as file:
        assert file.read() == data


def test_copies_beyond_the_most_that_are_held_are_taken_again(web):
    data = {f"{number}.bin": random.Random(number).randbytes(300_000) for number in range(MOST + 2)}
    web.add_files(data)
    web.fault(path=r"\.bin", times=10_000, ignore_range=True)
    copies = [WholeCopy() for _ in data]
    files = [open_file(f"{web.url}/{name}", copy=copy) for name, copy in zip(data, copies, strict=True)]
    for file in files:
        file.seek(100_000)
        assert file.read(1)
    assert sum(copy.taken for copy in copies) == MOST
    for file, body in zip(files, data.values(), strict=True):
        with file:
            file.seek(0)
            assert file.read() == body


def test_a_large_copy_is_not_held_in_memory(web):
    (web.folder / "x.bin").write_bytes(random.Random(2).randbytes(1 << 20) * 96)
    web.fault(path="x.bin", times=10_000, ignore_range=True)
    program = (
        "import resource, sys; from penstock.store.ranged_file import open_file;"
        "from penstock.store.whole_copy import WholeCopy;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10;"
        "open_file(sys.argv[2]).read(1); before = peak();"
        "file = open_file(sys.argv[1], copy=WholeCopy());"
        "count = sum(len(piece) for piece in iter(lambda: file.read(1 << 20), b''));"
        "print(count >> 20, peak() - before)"
    )
    web.add_files({"y": b"y"})
    command = [sys.executable, "-c", program, f"{web.url}/x.bin", f"{web.url}/y"]
    count, grown = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert count == 96
    assert grown < 64


def test_a_copy_larger_than_memory_for_it_is_the_same(web, tmp_path, monkeypatch):
    monkeypatch.setattr(whole_copy, "IN_MEMORY", 1000)
    write(web.folder, 2000)
    web.fault(path="/x", times=10_000, ignore_range=True)
    for name in ("x.csv", "x.parquet"):
        index = build_index(f"{web.url}/{name}", folder=tmp_path / "node")
        assert index.rows(range(2000)) == TABLE[:2000].to_pylist(), name
