"""What an index names is there and is what it says, or each file that is not is named with its sample."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.datasets.sample_check import verify_samples
from penstock.errors import ConfigError
from penstock.index.build import build_index
from penstock.index.saved import open_index
from penstock.store.store import open_store

FILES = {f"f/{number:03}.{end}": f"{end} {number}".encode() * 50 for number in range(103) for end in ("jpg", "txt")}


def folder_of(tmp_path):
    for name, data in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    return tmp_path / "f"


def saved_index(src, tmp_path, **options):
    build_index(src, folder=tmp_path / "node", **options).save(tmp_path / "saved.arrow")
    return open_index(tmp_path / "saved.arrow")


def test_a_folder_that_is_as_it_was_is_fine(tmp_path):
    index = saved_index(folder_of(tmp_path), tmp_path)
    report = verify_samples(index)
    assert (report.ok, report.samples, report.files, report.bytes_read) == (True, 103, 206, 0)
    read = verify_samples(index, contents=True, at_a_time=3)
    assert (read.ok, read.bytes_read, read.digests) == (True, sum(map(len, FILES.values())), 0)
    assert not [thread for thread in threading.enumerate() if "verify" in thread.name]


def test_what_is_missing_or_has_another_size_is_named_with_its_sample(tmp_path):
    folder = folder_of(tmp_path)
    index = saved_index(folder, tmp_path)
    (folder / "007.jpg").unlink()
    (folder / "050.txt").write_bytes(b"short")
    report = verify_samples(index)
    assert report.counts == {"missing": 1, "size": 1}
    assert [(each.key, each.column, each.reason) for each in report.problems] == [
        ("007", "jpg", "missing"),
        ("050", "txt", "size"),
    ]
    assert "007.jpg does not exist" in report.problems[0].message
    assert "050.txt has 5 bytes, the index says 300: one of them is old" in report.problems[1].message


def test_digests_that_the_index_has_are_compared_when_contents_are_read(tmp_path):
    folder_of(tmp_path)
    rows = [
        {
            "index": name,
            "file": name,
            "file__sha256": hashlib.sha256(data).hexdigest() if "jpg" in name else None,
            "file__md5": hashlib.md5(data).hexdigest().upper(),
            "file__blake2b": hashlib.blake2b(data, digest_size=16).hexdigest(),
        }
        for name, data in FILES.items()
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    index = build_index(tmp_path / "x.parquet", folder=tmp_path / "node")
    assert verify_samples(index, ["file"], contents=True).digests == 206
    (tmp_path / "f" / "003.txt").write_bytes(b"X" + FILES["f/003.txt"][1:])
    assert verify_samples(index, ["file"]).ok
    (problem,) = verify_samples(index, ["file"], contents=True).problems
    assert (problem.key, problem.reason) == ("f/003.txt", "digest")
    assert "003.txt has the md5" in problem.message


def test_an_archive_is_asked_for_once_and_must_hold_all_of_its_samples(web, tmp_path):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name, content in FILES.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    web.add_files({"x.tar": data.getvalue()})
    index = saved_index(f"{web.url}/x.tar", tmp_path)
    web.forget()
    assert verify_samples(index, at_a_time=1).ok
    assert len(web.requests("x.tar")) == 1
    web.add_files({"x.tar": data.getvalue()[:100_000]})
    report = verify_samples(index)
    assert set(report.counts) == {"size"}
    ends = index.rows(range(len(index)))
    cut = sum(row[f"{end}__offset"] + row[f"{end}__length"] > 100_000 for row in ends for end in ("jpg", "txt"))
    assert report.counts["size"] == cut > 0


@pytest.mark.parametrize("place", ["s3", "web", "hub"])
def test_remote_files_are_asked_for_side_by_side(place, request, tmp_path):
    server, options = request.getfixturevalue(place), {}
    there = {name: data for name, data in FILES.items() if name != "f/011.jpg"}
    if place == "s3":
        server.create_bucket("sample-check")
        base, options = "s3://sample-check", server.options
        store = open_store(base, **options)
        for name, data in there.items():
            store.put(name, data)
    elif place == "web":
        server.add_files(there)
        base = server.url
    else:
        server.add_dataset("org/name", there)
        base = "hf://org/name"
    table = pa.table({"index": [*FILES], "file": [f"{base}/{name}" for name in FILES]})
    pq.write_table(table, tmp_path / "x.parquet")
    index = build_index(tmp_path / "x.parquet", folder=tmp_path / "node")
    report = verify_samples(index, ["file"], **options)
    assert (report.files, report.counts) == (206, {"missing": 1})
    assert report.problems[0].key == "f/011.jpg"
    read = verify_samples(index, ["file"], contents=True, **options)
    assert read.bytes_read == sum(map(len, there.values()))


def test_locations_that_are_none_and_values_that_are_missing(tmp_path):
    folder_of(tmp_path)
    rows = [{"index": "a", "file": "f/000.jpg"}, {"index": "b", "file": None}, {"index": "c", "file": "no\0path"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "x.parquet")
    report = verify_samples(build_index(tmp_path / "x.parquet", folder=tmp_path / "node"), ["file"])
    assert (report.files, report.counts) == (2, {"location": 1})


def test_columns_that_name_files_must_be_known(tmp_path):
    pq.write_table(pa.table({"index": ["a"], "file": ["x"]}), tmp_path / "x.parquet")
    index = build_index(tmp_path / "x.parquet", folder=tmp_path / "node")
    with pytest.raises(ConfigError, match=r"does not say which of its columns name files.*it has 'index', 'file'"):
        verify_samples(index)
    with pytest.raises(ConfigError, match="no column 'nothing'"):
        verify_samples(index, ["nothing"])
