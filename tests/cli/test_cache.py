"""`penstock cache`: what is kept of remote objects can be counted, verified and removed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from penstock.store.cache import open_cache
from penstock.store.wanted import Wanted


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def folder(web, tmp_path) -> Path:
    """A cache with three files, of 1000 bytes each."""
    web.add_files({f"{number}.bin": bytes([number]) * 1000 for number in range(3)})
    place = tmp_path / "dst" / "cache"
    with open_cache(place) as cache:
        cache.acquire([Wanted(f"{web.url}/{number}.bin") for number in range(3)])
        cache.acquire([Wanted(f"{web.url}/1.bin")])
    return place


def test_stats_counts_files_and_hits(folder):
    done = penstock("cache", "stats", folder)
    assert done.returncode == 0, done.stderr
    assert "3 files, 3,000 bytes" in done.stdout
    assert "4 objects, 25.0%" in done.stdout
    found = json.loads(penstock("cache", "stats", folder, "--json").stdout)
    assert (found["files"], found["hits"], found["misses"], found["limit"]) == (3, 1, 3, None)


def test_stats_counts_no_object_that_never_came_as_downloaded(web, folder):
    with open_cache(folder) as cache:
        cache.acquire([Wanted(f"{web.url}/none.bin")])
    done = penstock("cache", "stats", folder)
    assert "5 objects, 20.0%" in done.stdout
    assert "downloaded   3,000 bytes\n" in done.stdout


def test_verify_names_and_removes_what_is_damaged(folder):
    assert "3 of 3 files" in penstock("cache", "verify", folder).stdout
    path = next(path for path in (folder / "files").rglob("*.bin"))
    path.write_bytes(b"something else")
    done = penstock("cache", "verify", folder)
    assert (done.returncode, path.exists()) == (1, False)
    assert str(path) in done.stdout
    assert json.loads(penstock("cache", "verify", folder, "--json").stdout)["ok"] is True


def test_clear_leaves_what_is_in_use(web, folder):
    with open_cache(folder) as cache:
        kept = cache.acquire([Wanted(f"{web.url}/2.bin")])[0]
        done = penstock("cache", "clear", folder)
        assert "2,000 bytes removed; 1 files of 1,000 bytes are in use" in done.stdout, done.stderr
        assert Path(kept).read_bytes() == bytes([2]) * 1000


def test_a_folder_that_is_no_cache_is_refused_and_left_alone(folder, tmp_path):
    done = penstock("cache", "clear", folder.parent)
    assert done.returncode == 2
    assert f"{folder} is" in done.stderr
    before = sorted(os.listdir(tmp_path))
    assert penstock("cache", "stats", tmp_path / "nowhere").returncode == 2
    assert sorted(os.listdir(tmp_path)) == before
