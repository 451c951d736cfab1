"""What is kept between runs is found by content, made once, and never half-made."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from penstock.datasets import cache
from penstock.datasets.cache import built_once, content_digest, open_cache
from penstock.errors import ObjectMissing, StoreError
from penstock.formats.files import read_json, write_json


def digest_of(path: Path) -> str:
    return content_digest(path, path.parent, timeout=10)


def test_digests_tell_contents_not_names(tmp_path):
    a, b, c = (tmp_path / name for name in "abc")
    a.write_bytes(b"water" * 1000)
    b.write_bytes(b"water" * 1000)
    c.write_bytes(b"wates" * 1000)
    assert digest_of(a) == digest_of(b) != digest_of(c)
    with pytest.raises(ObjectMissing):
        digest_of(tmp_path / "absent")


def test_a_digest_is_remembered_once_the_file_has_settled(tmp_path, monkeypatch):
    path = tmp_path / "data"
    path.write_bytes(b"water")
    right = digest_of(path)
    (note,) = tmp_path.rglob(cache.NOTE)
    write_json(note, {**read_json(note), "digest": "remembered"})
    assert digest_of(path) == right, "a file changed just now may change again unseen"
    write_json(note, {**read_json(note), "digest": "remembered"})
    monkeypatch.setattr(cache, "SETTLED_NS", -1)
    assert digest_of(path) == "remembered"
    note.write_text("{")
    assert digest_of(path) == right


def test_a_change_that_keeps_size_and_time_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "SETTLED_NS", -1)
    path = tmp_path / "data"
    path.write_bytes(b"water")
    before, status = digest_of(path), path.stat()
    path.write_bytes(b"weter")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert digest_of(path) != before


def test_one_of_many_builds_and_a_failure_is_nobody_elses(tmp_path):
    builders, results, errors = [], [], []
    start = threading.Barrier(6)

    def build(path: Path, gets_on) -> None:
        gets_on()
        builders.append(path)
        if len(builders) == 1:
            raise StoreError("the disk is full")
        # Published by renaming, as built_once asks: those who come meanwhile must not find half a file.
        part = path.with_suffix(".part")
        part.write_text("built")
        part.rename(path)

    def ask() -> None:
        start.wait()
        try:
            results.append(built_once(tmp_path / "entry", "file", build, timeout=60).read_text())
        except StoreError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(builders) == 2
    assert results == ["built"] * 5
    assert errors == ["the disk is full"]
    assert [found.name for found in (tmp_path / "entry").iterdir()] == ["file"]


def test_the_cache_lies_beside_the_data_or_where_it_is_told_to(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    data = tmp_path / "data"
    data.mkdir()
    assert open_cache(data) == data / ".penstock"
    assert open_cache(data, tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert open_cache(Path("/proc")) == tmp_path / "user" / "penstock"
    with pytest.raises(StoreError, match="cannot write"):
        open_cache(data, "/proc/cache")
