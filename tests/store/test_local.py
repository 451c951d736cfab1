"""A folder on a disk is listed whole, whatever its names and links are."""

from __future__ import annotations

import os

import pytest

from penstock.errors import ObjectMissing
from penstock.store.store import open_store


def listed(folder):
    return [info.path for info in open_store(folder).list()]


def test_links_are_followed_and_loops_are_not(tmp_path):
    data, other = tmp_path / "data", tmp_path / "other"
    (data / "a").mkdir(parents=True)
    other.mkdir()
    (data / "a" / "1.txt").write_text("one")
    (other / "2.txt").write_text("two")
    (data / "b").symlink_to(other)
    (data / "c.txt").symlink_to(other / "2.txt")
    (data / "a" / "up").symlink_to(data)
    (other / "self").symlink_to(other)
    (data / "to itself").symlink_to(data / "to itself")
    (data / "to nothing").symlink_to(tmp_path / "nothing")
    assert listed(data) == ["a/1.txt", "b/2.txt", "c.txt"]


def test_names_may_be_anything_but_only_files_are_listed(tmp_path):
    names = [".hidden", "a b/ü.txt", "a/x", "a.txt", "line\nbreak", "#1?2%20.txt"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    os.mkfifo(tmp_path / "pipe")
    assert sorted(listed(tmp_path)) == sorted(names)
    assert listed(tmp_path) == sorted(listed(tmp_path), key=lambda path: path.split("/"))
    assert [info.size for info in open_store(tmp_path).list("a b")] == [len("a b/ü.txt".encode())]


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(ObjectMissing, match="does not exist"):
        list(open_store(tmp_path / "nothing").list())
