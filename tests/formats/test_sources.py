"""A source names its files in one order everywhere, and splits are never mixed by a guess."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigError, ObjectMissing
from penstock.formats.sources import by_split, find_files, source_file, split_of


def make(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x\n")


def names(source):
    return [file.name for file in find_files(source)]


def test_a_folder_gives_its_files_in_sorted_order_without_hidden_ones(tmp_path):
    make(tmp_path, "b.jsonl", "a/z.jsonl.gz", "a/b.ndjson", ".cache/c.jsonl", ".d.jsonl", "README.md")
    assert names(tmp_path) == ["a/b.ndjson", "a/z.jsonl.gz", "b.jsonl"]


def test_json_files_that_describe_a_folder_are_not_its_data(tmp_path):
    make(tmp_path, "dataset_info.json", "data.jsonl")
    assert names(tmp_path) == ["data.jsonl"]
    make(tmp_path / "only", "a.json")
    assert names(tmp_path / "only") == ["a.json"]


def test_a_folder_of_several_kinds_is_refused(tmp_path):
    make(tmp_path, "LICENSE.txt", "data.jsonl")
    with pytest.raises(ConfigError, match=r"several kinds \(.jsonl, .txt\): say which by a glob like .*/\*\.jsonl$"):
        find_files(tmp_path)
    assert names(f"{tmp_path}/*.jsonl") == ["data.jsonl"]


@pytest.mark.parametrize(
    ("name", "is_hub"), [("org/name", True), ("org/na-me@v1:en:train", True), ("data/rows.jsonl", False), ("x", False)]
)
def test_a_name_on_the_hub_without_its_scheme_is_told_how_it_is_written(name, is_hub):
    with pytest.raises(ObjectMissing, match=f"{name} does not exist") as refused:
        find_files(name)
    assert (f"hf://{name}" in str(refused.value)) is is_hub


def test_a_glob_and_a_list_keep_what_they_say(tmp_path):
    make(tmp_path, "x/b.txt", "x/a.txt", "y/c.txt")
    assert names(f"{tmp_path}/**/*.txt") == ["x/a.txt", "x/b.txt", "y/c.txt"]
    assert names([tmp_path / "y/c.txt", tmp_path / "x"]) == ["c.txt", "a.txt", "b.txt"]


def test_a_folder_of_a_web_server_is_read_where_the_server_shows_it(nginx):
    nginx.add_files({"data/b.jsonl": b"{}", "data/a.jsonl": b"{}", "data/note.txt": b"x", "data/.hidden.jsonl": b"{}"})
    for source in (f"{nginx.url}/data/*.jsonl", f"{nginx.url}/json/data/[ab].jsonl"):
        assert [file.name for file in find_files(source, remote=True)] == ["a.jsonl", "b.jsonl"]
    nginx.add_files({"only/deep/x.txt": b"x"})
    assert [file.name for file in find_files(f"{nginx.url}/only/", remote=True)] == ["deep/x.txt"]
    with pytest.raises(ConfigError, match="which has no listing of it"):
        find_files(f"{nginx.url}/closed/*.jsonl", remote=True)


def test_a_name_with_brackets_that_exists_is_a_file_and_no_glob(tmp_path):
    make(tmp_path, "a[1].txt")
    assert names(tmp_path / "a[1].txt") == ["a[1].txt"]


@pytest.mark.parametrize("name", ["nowhere.txt", "*.nothing"])
def test_what_is_not_there_is_named(tmp_path, name):
    with pytest.raises(ObjectMissing, match=name.replace("*", r"\*")):
        find_files(tmp_path / name)


@pytest.mark.parametrize("name", ["a.csv", "a.parquet.gz", "a"])
def test_unknown_kinds_say_which_are_known(tmp_path, name):
    make(tmp_path, name)
    with pytest.raises(ConfigError, match=r"penstock reads .txt, .jsonl"):
        find_files(tmp_path / name)
    assert source_file(tmp_path / "a", kind="jsonl").kind == "jsonl" if name == "a" else True


@pytest.mark.parametrize("source", ["s3://bucket/a.jsonl", [], 3, "empty"])
def test_sources_that_cannot_work_are_refused(tmp_path, source):
    if source == "empty":
        source = tmp_path
    with pytest.raises(ConfigError):
        find_files(source)


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("data/train-00001-of-00002.parquet", "train"),
        ("validation/part-3.txt", "validation"),
        ("TinyStoriesV2-GPT4-valid.txt.gz", "validation"),
        ("val.json", "validation"),
        ("dev_2.jsonl.zst", "validation"),
        ("test-0.parquet", "test"),
        ("training_set.txt", "train"),
        ("trains.txt", None),
        ("latest.txt", None),
        ("my.evaluation.txt", None),
    ],
)
def test_names_speak_of_splits(name, split):
    assert split_of(name) == split


def test_files_without_a_split_are_all_train_and_never_beside_named_ones(tmp_path):
    make(tmp_path, "a/one.txt", "a/two-test.txt", "b/train.txt", "b/val.txt", "b/extra.txt")
    assert {split: len(files) for split, files in by_split(find_files(tmp_path / "a")).items()} == {"train": 2}
    with pytest.raises(ConfigError, match=r"train.txt names a split, extra.txt does not"):
        by_split(find_files(tmp_path / "b"))
