"""A remote object as a file: the bytes of the object at every position, few requests, bounded memory."""

from __future__ import annotations

import gzip
import io
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, ObjectChanged, ObjectMissing, StoreError
from penstock.store.ranged_file import FIRST_WINDOW, open_file
from penstock.store.store import open_store

DATA = random.Random(11).randbytes(3_000_000)


@pytest.fixture(scope="module")
def url():
    open_store("memory://ranged-file").put("x.bin", DATA)
    return "memory://ranged-file/x.bin"


steps = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 400_000)),
    st.tuples(st.just("seek"), st.integers(0, len(DATA) + 10)),
    st.tuples(st.just("skip"), st.integers(0, 100_000)),
    st.tuples(st.just("at"), st.integers(0, len(DATA) - 1)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(steps, max_size=25), st.sampled_from([FIRST_WINDOW, 1 << 20, 8 << 20]))
def test_any_reads_give_what_a_file_in_memory_gives(url, walk, read_ahead):
    theirs = io.BytesIO(DATA)
    with open_file(url, read_ahead=read_ahead) as ours:
        for verb, number in walk:
            if verb == "read":
                assert ours.read(number) == theirs.read(number)
            elif verb == "seek":
                assert ours.seek(number) == theirs.seek(number)
            elif verb == "skip":
                assert ours.seek(number, io.SEEK_CUR) == theirs.seek(number, io.SEEK_CUR)
            else:
                stop = min(len(DATA), number + 70_000)
                assert ours.read_at(number, stop) == DATA[number:stop]
            assert ours.tell() == theirs.tell()


def test_it_is_a_file_to_whoever_takes_files(url):
    store = open_store("memory://ranged-file")
    store.put("x.gz", gzip.compress(b"line\n" * 1000))
    with open_file("memory://ranged-file/x.gz") as file, gzip.open(file) as lines:
        assert len(lines.readlines()) == 1000
    with open_file(url) as file:
        assert file.size == len(DATA)
        buffered = io.BufferedReader(file)
        assert buffered.read(10) == DATA[:10]
        assert buffered.detach() is file
        buffer = bytearray(7)
        file.seek(-3, io.SEEK_END)
        assert file.readinto(buffer) == 3
        assert file.readinto(buffer) == 0
        assert pa.PythonFile(file, mode="r").size() == len(DATA)


def test_a_row_group_costs_its_own_bytes_and_one_request(hub):
    table = pa.table({"text": [random.Random(n).randbytes(100).hex() for n in range(20_000)], "n": range(20_000)})
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=2000)
    hub.add_dataset("org/name", {"x.parquet": file.getvalue()})
    metadata = pq.ParquetFile(file).metadata.row_group(4)
    size = sum(metadata.column(number).total_compressed_size for number in range(2))

    with open_file("hf://org/name/x.parquet") as opened:
        parquet = pq.ParquetFile(opened)
        footer = hub.bytes_sent(r"x\.parquet")
        assert footer == FIRST_WINDOW
        hub.forget()
        assert parquet.read_row_group(4).equals(table.slice(8000, 2000))
    gets = hub.requests(r"x\.parquet")
    assert len(gets) <= 2
    assert hub.bytes_sent(r"x\.parquet") <= size + FIRST_WINDOW


def test_a_scan_reads_every_byte_once_in_few_requests(hub):
    hub.add_dataset("org/name", {"x.txt": DATA})
    with open_file("hf://org/name/x.txt") as file:
        pieces = list(iter(lambda: file.read(10_000), b""))
    assert b"".join(pieces) == DATA
    gets = [line for line in hub.requests(r"x\.txt") if line["method"] == "GET"]
    assert sum(line["sent"] for line in gets) == len(DATA)
    assert len(gets) <= 8


def test_what_is_held_stays_below_the_limit(url):
    with open_file(url, read_ahead=FIRST_WINDOW) as file:
        while file.read(5000):
            held = len(file._window) + (len(file._next[1].result()) if file._next else 0)
            assert held <= 2 * FIRST_WINDOW


def test_an_object_known_already_is_not_asked_for_again(hub):
    sha = hub.add_dataset("org/name", {"x.txt": DATA})
    (info,) = [info for info in open_store("hf://org/name").list() if info.path == "x.txt"]
    hub.forget()
    with open_file(f"hf://org/name@{sha}/x.txt", info=info) as file:
        assert file.read(10) == DATA[:10]
    assert [line["method"] for line in hub.requests()] == ["GET"]


def test_a_missing_object_is_said_at_once():
    with pytest.raises(ObjectMissing, match=r"memory://ranged-file/none does not exist"):
        open_file("memory://ranged-file/none")


def test_an_object_that_changes_under_its_reader_is_not_mixed_up(tmp_path):
    store = open_store(f"memory://{tmp_path.name}")
    store.put("x", DATA)
    with open_file(f"memory://{tmp_path.name}/x") as file:
        assert file.read(10) == DATA[:10]
        store.put("x", DATA[::-1])
        file.seek(2_000_000)
        with pytest.raises(ObjectChanged, match="changed while it was read"):
            file.read(10)


def test_a_local_file_opens_the_same_way(tmp_path):
    (tmp_path / "x.bin").write_bytes(DATA)
    with open_file(tmp_path / "x.bin") as file:
        file.seek(1_000_000)
        assert file.read(20) == DATA[1_000_000:1_000_020]


def test_misuse_is_named(url):
    with pytest.raises(ConfigError, match="read_ahead"):
        open_file(url, read_ahead=10)
    file = open_file(url)
    with pytest.raises(ConfigError, match="cannot seek"):
        file.seek(-1)
    with pytest.raises(StoreError, match="which has 3,000,000"):
        file.read_at(5, 4_000_000)
    file.close()
    with pytest.raises(StoreError, match="is closed"):
        file.read(1)
