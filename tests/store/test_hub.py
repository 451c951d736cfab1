"""Reading from the Hub: who may, what is pinned, where tokens go, and that the Hub of the tests is like it."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import AccessDenied, BadManifest, ObjectMissing
from penstock.store.hub import card_metadata
from penstock.store.store import open_store
from servers.hub_process import Hub

LINE = b'{"text": "a"}\n'


def parquet(rows: int) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table({"text": [f"row {number}" for number in range(rows)]}), file, row_group_size=100)
    return file.getvalue()


@pytest.fixture
def guarded(hub):
    hub.add_dataset("org/gated", {"x.txt": b"gated"}, gated="manual", readers=("hf_member",))
    hub.add_dataset("org/private", {"x.txt": b"private"}, private=True, readers=("hf_member",))
    hub.add_token("hf_stranger")
    return hub


def test_a_token_opens_what_is_gated_or_private(guarded, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert open_store("hf://org/gated").get("x.txt") == b"gated"
    assert open_store("hf://org/private/x.txt").get() == b"private"
    monkeypatch.delenv("HF_TOKEN")
    assert open_store("hf://org/gated", token="hf_member").get("x.txt") == b"gated"


@pytest.mark.parametrize(
    ("name", "token", "kind", "words"),
    [
        ("org/gated", None, AccessDenied, ["is gated", "no token was given; set HF_TOKEN", "Ask for access at http"]),
        ("org/gated", "hf_stranger", AccessDenied, ["is gated", "has no access to it", "Ask for access at http"]),
        ("org/gated", "hf_wrong", AccessDenied, ["401", "the token (HF_TOKEN) is not valid here"]),
        ("org/private", None, ObjectMissing, ["does not exist", "or it is private and needs HF_TOKEN"]),
        ("org/private", "hf_stranger", ObjectMissing, ["does not exist", "or the token may not read it"]),
        ("org/nothing", None, ObjectMissing, ["the dataset org/nothing does not exist", "check its name"]),
    ],
)
def test_a_refusal_says_what_to_do(guarded, name, token, kind, words):
    store = open_store(f"hf://{name}", **({"token": token} if token else {}))
    with pytest.raises(kind) as caught:
        store.get("x.txt")
    for word in words:
        assert word in str(caught.value)
    assert "hf_" not in str(caught.value).replace("hf://", "")


def test_missing_files_and_revisions_are_told_apart(hub):
    hub.add_dataset("org/name", {"x.txt": b"x"})
    with pytest.raises(ObjectMissing, match=r"y\.txt does not exist in the dataset org/name at revision"):
        open_store("hf://org/name").get("y.txt")
    with pytest.raises(ObjectMissing, match="has no revision v2"):
        open_store("hf://org/name@v2").get("x.txt")
    with pytest.raises(ObjectMissing):
        open_store("hf://org/name").head("y.txt")


def test_a_store_is_one_commit_whatever_is_pushed_meanwhile(hub):
    first = hub.add_dataset("org/name", {"x.txt": b"old"})
    store = open_store("hf://datasets/org/name@main")
    info = store.head("x.txt")
    assert info.version == first
    hub.add_dataset("org/name", {"x.txt": b"new"})
    assert store.get("x.txt") == b"old"
    assert pickle.loads(pickle.dumps(store)).get("x.txt") == b"old"
    assert open_store("hf://org/name").get("x.txt") == b"new"
    assert open_store(f"hf://org/name@{first}").get("x.txt") == b"old"


def test_an_old_name_leads_to_the_new_one(hub):
    sha = hub.add_dataset("new/name", {"x.txt": b"x" * 10}, private=True, readers=("hf_member",))
    hub.move("old/name", "new/name")
    for url in ("hf://old/name", f"hf://old/name@{sha}"):
        store = open_store(url, token="hf_member")
        assert store.get("x.txt") == b"x" * 10
        assert (store.head("x.txt").size, store.head("x.txt").version) == (10, sha)
        assert [info.path for info in store.list()] == [".gitattributes", "x.txt"]


def test_a_description_and_a_listing_agree(hub):
    hub.add_dataset("org/name", {"a/x.txt": b"x", "a/y.parquet": parquet(10)})
    store = open_store("hf://org/name/a")
    listed = {info.path: info for info in store.list()}
    assert listed == {name: store.head(name) for name in ("x.txt", "y.parquet")}


def test_long_listings_come_in_pages(tmp_path, monkeypatch):
    hub = Hub(tmp_path, page=7)
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        hub.add_dataset("org/name", {f"d/{number:03}.txt": b"x" for number in range(30)})
        assert len(list(open_store("hf://org/name/d").list())) == 30
        assert len(hub.requests("/tree/")) == 5
    finally:
        hub.kill()


def test_the_endpoint_and_the_token_are_read_when_a_store_is_opened(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    hub.add_dataset("org/name", {"x.txt": b"x"}, readers=("hf_member",))
    assert open_store("hf://org/name", endpoint=hub.url).get("x.txt") == b"x"
    assert not any(line["auth"] for line in hub.requests())
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", "hf_member")
    assert open_store("hf://org/name").get("x.txt") == b"x"
    hub.forget()
    assert open_store("hf://org/name", token=False).get("x.txt") == b"x"
    assert not any(line["auth"] for line in hub.requests())


def test_a_token_is_not_sent_to_the_host_that_large_files_come_from(tmp_path, monkeypatch):
    hub = Hub(tmp_path, cdn=True)
    try:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        data = parquet(1000)
        hub.add_dataset("org/name", {"x.parquet": data}, private=True, readers=("hf_member",))
        store = open_store("hf://org/name", token="hf_member")
        assert store.get("x.parquet") == data
        assert store.get_range("x.parquet", 10, 500) == data[10:500]
        assert store.head("x.parquet").size == len(data)
        elsewhere = hub.requests(origin="cdn")
        assert len(elsewhere) == 2
        assert not any(line["auth"] for line in elsewhere)
        assert all(line["auth"] for line in hub.requests(origin="hub"))
    finally:
        hub.kill()


@pytest.mark.parametrize(
    ("text", "configs"),
    [
        ("---\nconfigs:\n- config_name: a\n---\n# x", [{"config_name": "a"}]),
        ("# no head", None),
        ("", None),
    ],
)
def test_the_head_of_a_card_is_read(text, configs):
    assert card_metadata(text).get("configs") == configs


def test_a_broken_head_of_a_card_is_not_taken_for_none():
    with pytest.raises(BadManifest, match="is not YAML"):
        card_metadata("---\n: broken: [yaml\n---\n")


def run(program: str, *arguments: str) -> str:
    """Run a program in a fresh process, which has the Hub's variables from the start, and give what it prints."""
    command = [sys.executable, "-c", textwrap.dedent(program), *arguments]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()[-1]


def test_the_hub_of_the_tests_is_one_to_the_hubs_own_client(guarded):
    sha = guarded.add_dataset(
        "org/name", {"a/x.txt": b"x" * 10, "y.parquet": parquet(1000)}, tags=("modality:text",), downloads=5
    )
    told = run(
        """
        import json
        from huggingface_hub import HfApi, HfFileSystem, hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        api = HfApi()

        def refused(call):
            try:
                call()
            except HfHubHTTPError as error:
                return type(error).__name__

        info = api.dataset_info("org/name")
        tree = list(api.list_repo_tree("org/name", repo_type="dataset", recursive=True, expand=True))
        paths = api.get_paths_info("org/name", ["y.parquet", "none"], repo_type="dataset")
        found = api.list_datasets(search="name", filter="modality:text", sort="downloads", limit=3)
        files = HfFileSystem()
        print(json.dumps({
            "sha": info.sha,
            "siblings": sorted(one.rfilename for one in info.siblings),
            "tree": sorted(one.path for one in tree),
            "lfs": [one.path for one in paths if one.lfs],
            "found": [one.id for one in found],
            "file": open(hf_hub_download("org/name", "a/x.txt", repo_type="dataset")).read(),
            "tail": files.cat_file("datasets/org/name/y.parquet", start=-4).decode(),
            "glob": sorted(files.glob("datasets/org/name/**/*.txt")),
            "gated": refused(lambda: hf_hub_download("org/gated", "x.txt", repo_type="dataset")),
            "no repo": refused(lambda: api.dataset_info("org/none")),
            "no revision": refused(lambda: api.dataset_info("org/name", revision="v9")),
            "no file": refused(lambda: hf_hub_download("org/name", "none", repo_type="dataset")),
        }))
        """
    )
    assert json.loads(told) == {
        "sha": sha,
        "siblings": [".gitattributes", "a/x.txt", "y.parquet"],
        "tree": [".gitattributes", "a", "a/x.txt", "y.parquet"],
        "lfs": ["y.parquet"],
        "found": ["org/name"],
        "file": "x" * 10,
        "tail": "PAR1",
        "glob": ["datasets/org/name/a/x.txt"],
        "gated": "GatedRepoError",
        "no repo": "RepositoryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "no file": "RemoteEntryNotFoundError",
    }


def test_the_hub_of_the_tests_is_one_to_the_datasets_library(hub):
    hub.add_dataset("org/name", {"data/train-00000-of-00001.parquet": parquet(1000), "data/test.jsonl": LINE})
    hub.add_dataset("org/lines", {"train.jsonl": LINE * 50, "test.jsonl": LINE * 7})
    told = run(
        """
        import json
        from datasets import load_dataset

        rows = [row["text"] for row in load_dataset("org/name", split="train", streaming=True)]
        lines = load_dataset("org/lines", streaming=True)
        print(json.dumps([len(rows), rows[-1], {split: len(list(stream)) for split, stream in lines.items()}]))
        """
    )
    assert json.loads(told) == [1000, "row 999", {"train": 50, "test": 7}]
