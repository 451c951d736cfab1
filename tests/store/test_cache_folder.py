"""Folders in which a cache would find something else under its own names."""

from __future__ import annotations

import sqlite3

import pytest

from penstock.errors import StoreError
from penstock.store.cache import open_cache

MINE = b"MY DATA!" * 5000


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize("name", ["reserve", "recency", "generations", "holders", "files", "cache.db"])
@pytest.mark.parametrize("data", [b"MY DATA", MINE])
def test_a_file_of_somebody_else_that_has_a_name_of_ours_is_refused_and_stays(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (tmp_path / "reserve").touch()
    before = contents(tmp_path)
    with pytest.raises(StoreError, match=name):
        open_cache(tmp_path)
    assert {one: found for one, found in contents(tmp_path).items() if one in before} == before


@pytest.mark.parametrize("beside", ["reserve", "recency", "generations"])
def test_beside_another_programs_database_nothing_is_removed_or_written(tmp_path, beside):
    theirs = sqlite3.connect(tmp_path / "cache.db")
    theirs.execute("CREATE TABLE theirs (x)")
    theirs.close()
    (tmp_path / beside).write_bytes(bytes(256 << 10))
    before = contents(tmp_path)
    with pytest.raises(StoreError, match="not a cache of penstock") as caught:
        open_cache(tmp_path)
    assert "delete" not in str(caught.value)
    assert {one: found for one, found in contents(tmp_path).items() if one in before} == before


def test_what_is_left_of_a_cache_without_its_database_is_used_again(tmp_path):
    open_cache(tmp_path).close()
    (tmp_path / "cache.db").unlink()
    with open_cache(tmp_path) as cache:
        assert cache.stats().files == 0
