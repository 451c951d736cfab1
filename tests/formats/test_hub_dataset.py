"""Which files a split of a Hub dataset has: the same as the `datasets` library finds, or a reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from penstock.errors import ConfigError, ObjectMissing
from penstock.formats.hub_dataset import find_hub_split, parse_hub_reference

LINE = b'{"text": "a"}\n'


def card(yaml: str) -> bytes:
    return f"---\n{yaml}\n---\n# A dataset\n".encode()


DEFAULTS = card(
    "configs:\n- config_name: en\n  data_files: en/*.jsonl\n- config_name: de\n  default: true\n  data_files:\n"
    "  - split: train\n    path: [de/b.jsonl, de/a.jsonl]\n  - split: dev\n    path: 'de/sub/**'"
)
LAYOUTS = {
    "lay/one-file": {"rows.jsonl": LINE},
    "lay/by-name": {"train.jsonl": LINE, "test.jsonl": LINE, "dev.jsonl": LINE, "README.md": b"# no card"},
    "lay/numbered": {"data/train_1.jsonl": LINE, "data/train_0.jsonl": LINE, "data/my-valid-x.jsonl": LINE},
    "lay/by-folder": {"train/b.jsonl": LINE, "train/a/c.jsonl": LINE, "test/x.jsonl": LINE, "other/y.jsonl": LINE},
    "lay/folder-before-file": {"data-train/one.jsonl": LINE, "test.jsonl": LINE, "train.jsonl": LINE},
    "lay/sharded": {
        "data/train-00001-of-00002.jsonl": LINE,
        "data/train-00000-of-00002.jsonl": LINE,
        "data/extra-00000-of-00001-abc.jsonl": LINE,
        "data/test.jsonl": LINE,
    },
    "lay/hidden": {
        ".cache/train.jsonl": LINE,
        "__pycache__/train.jsonl": LINE,
        "train.jsonl": LINE,
        "a/.b.jsonl": LINE,
    },
    "lay/contest": {"contest.jsonl": LINE, "trainer.jsonl": LINE},
    "lay/mixed": {"train.csv": b"text\na\n", "train.jsonl": LINE, "train-2.jsonl": LINE, "train.log": b"x"},
    "lay/gzip": {"train.jsonl.gz": b"\x1f\x8b", "validation.jsonl.gz": b"\x1f\x8b"},
    "lay/card": {"README.md": DEFAULTS, "en/a.jsonl": LINE, "en/b.txt": b"x", "de/a.jsonl": LINE, "de/b.jsonl": LINE}
    | {"de/sub/c.jsonl": LINE, "de/sub/d/e.jsonl": LINE},
    "lay/card-folder": {
        "README.md": card("configs:\n- config_name: x\n  data_dir: sub"),
        "sub/train.jsonl": LINE,
        "sub/deep/test.jsonl": LINE,
        "train.jsonl": LINE,
    },
    "lay/tie": {"train.csv": b"text\na\n", "train.parquet": b"PAR1"},
}
# Asks the library itself for the files of each split; it reads no rows for that.
ORACLE = """
import json, sys
import datasets
found = {}
for name, config in json.loads(sys.argv[1]):
    files = datasets.load_dataset_builder(name, config).config.data_files
    paths = {str(split): [url.partition("@")[2].partition("/")[2] for url in urls] for split, urls in files.items()}
    found[f"{name}:{config or ''}"] = paths
print(json.dumps(found))
"""


def test_the_files_of_each_split_are_those_that_the_datasets_library_finds(hub):
    for name, files in LAYOUTS.items():
        hub.add_dataset(name, files)
    asked = [(name, None) for name in LAYOUTS] + [("lay/card", "en"), ("lay/card", "de")]
    command = [sys.executable, "-c", ORACLE, json.dumps(asked)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    expected = json.loads(done.stdout.splitlines()[-1])
    assert len(expected) == len(asked)
    for key, splits in expected.items():
        for split, paths in splits.items():
            found = find_hub_split(f"hf://{key}:{split}")
            assert [file.path for file in found.files] == paths, (key, split)


def test_a_split_is_pinned_to_the_commit_it_was_found_at(hub):
    first = hub.add_dataset("org/name", {"train.jsonl": LINE})
    found = find_hub_split("hf://org/name")
    hub.add_dataset("org/name", {"train.jsonl": LINE * 2})
    assert found.commit == first
    assert found.urls == (f"hf://datasets/org/name@{first}/train.jsonl",)
    assert found.size_bytes == len(LINE)
    assert find_hub_split(f"hf://org/name@{first}") == found
    assert find_hub_split("hf://org/name").commit != first
    assert find_hub_split("hf://org/name").files[0].etag != found.files[0].etag


def test_finding_a_split_takes_three_requests(hub):
    hub.add_dataset("lay/card", LAYOUTS["lay/card"])
    find_hub_split("hf://lay/card")
    assert len(hub.requests()) == 3, hub.requests()


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("hf://org/name", ("org/name", "main", None, "train")),
        ("hf://datasets/org/na.me-2", ("org/na.me-2", "main", None, "train")),
        ("hf://org/name:en", ("org/name", "main", "en", "train")),
        ("hf://org/name:en:test", ("org/name", "main", "en", "test")),
        ("hf://org/name::test", ("org/name", "main", None, "test")),
        ("hf://org/name@refs/convert/parquet:en:test", ("org/name", "refs/convert/parquet", "en", "test")),
    ],
)
def test_a_reference_names_repository_revision_configuration_and_split(uri, parts):
    found = parse_hub_reference(uri)
    assert (found.repo, found.revision, found.config, found.split) == parts


@pytest.mark.parametrize("uri", ["hf://", "hf://name/", "hf://a/b/c", "s3://a/b", "hf://a/b:c:d:e"])
def test_what_names_no_dataset_is_refused(uri):
    with pytest.raises(ConfigError, match="write hf://ORG/NAME"):
        parse_hub_reference(uri)


@pytest.mark.parametrize(
    ("uri", "files", "message"),
    [
        ("hf://a/b:fr", LAYOUTS["lay/card"], "no configuration 'fr'; there are en, de"),
        ("hf://a/b:fr", LAYOUTS["lay/one-file"], "has no configuration 'fr'"),
        ("hf://a/b::test", LAYOUTS["lay/one-file"], "no split 'test'; it has train"),
        (
            "hf://a/b",
            {"README.md": DEFAULTS.replace(b"  default: true\n", b"")},
            "several configurations and no default",
        ),
        (
            "hf://a/b",
            {"train-0.tar": b"x", "train-1.tar": b"y"},
            "holds .tar files, which the `datasets` library reads",
        ),
        (
            "hf://a/b",
            {"README.md": card("configs:\n- config_name: x\n  sep: ';'\n  data_files: a.csv"), "a.csv": b"t\n"},
            "to be read with sep",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_with_what_there_is(hub, uri, files, message):
    hub.add_dataset("a/b", files)
    with pytest.raises(ConfigError, match=message):
        find_hub_split(uri)


def test_a_dataset_without_data_is_missing_its_files(hub):
    hub.add_dataset("a/b", {"README.md": b"# soon"})
    with pytest.raises(ObjectMissing, match="no data files"):
        find_hub_split("hf://a/b")
