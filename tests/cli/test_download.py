"""`penstock download`, and sources that are not on this disk: what users type, against a real Hub's endpoints."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.formats.block_manifest import read_block_manifest
from penstock.formats.tokens import open_bin, verify_bin

STORIES = [f"Once upon a time there was a cat named {i}.\n\nIt said “miau”." for i in range(900)]


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def parquet(rows: list[str]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), out, row_group_size=100)
    return out.getvalue()


@pytest.fixture
def stories(hub):
    """A dataset laid out as the Hub lays out most: Parquet, a train and a validation split."""
    files = {
        "README.md": b"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/train-*\n"
        b"  - split: validation\n    path: data/validation-*\n---\n# Stories\n",
        "data/train-00000-of-00002.parquet": parquet(STORIES[:400]),
        "data/train-00001-of-00002.parquet": parquet(STORIES[400:800]),
        "data/validation-00000-of-00001.parquet": parquet(STORIES[800:]),
    }
    hub.add_dataset("org/stories", files)
    return hub


def test_a_dataset_of_the_hub_is_downloaded_into_blocks(stories, tmp_path):
    done = penstock("download", "hf://org/stories", tmp_path / "out", "--block-size", 300, "--free-space-margin", "1MB")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"800 samples in 3 blocks in {tmp_path / 'out'} (62,290 bytes)\n"
    assert "downloading" in done.stderr
    assert "samples/s, 2 blocks" in done.stderr
    assert penstock("verify", tmp_path / "out").returncode == 0
    lines = b"".join(path.read_bytes() for path in sorted((tmp_path / "out" / "blocks").glob("*.jsonl")))
    assert [orjson.loads(line)["text"] for line in lines.splitlines()] == STORIES[:800]


def test_options_reach_the_download(stories, tmp_path):
    done = penstock(
        *("download", "hf://org/stories::validation", tmp_path / "out", "--max-samples", 50, "--block-size", 20),
        *("--compression", "zstd", "--columns", "text", "--name", "tales", "--free-space-margin", "0"),
    )
    assert done.returncode == 0, done.stderr
    info = read_block_manifest(tmp_path / "out")
    assert (info.dataset_name, info.total_samples, info.total_blocks) == ("tales", 50, 3)
    assert all(block.file_path.endswith(".jsonl.zst") for block in info.blocks)


BAD = {
    "split": (["hf://org/stories::tests"], "has no split 'tests'; it has train, validation"),
    "missing": (["hf://org/nothing"], "org/nothing"),
    "scheme": (["ftp2://host/a.csv"], "is not a store that penstock knows"),
    "file": (["nowhere.jsonl"], "nowhere.jsonl does not exist"),
    "size": (["hf://org/stories", "--storage-cap", "much"], "--storage-cap must be a number of bytes like 20GB"),
    "cap": (["hf://org/stories", "--storage-cap", "10kb"], "raise it, or take fewer samples"),
    "column": (["hf://org/stories", "--columns", "body"], "has no column 'body'; its columns are 'text'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_downloaded_is_one_line_and_exit_code_two(stories, tmp_path, case):
    given, message = BAD[case]
    done = penstock("download", given[0], tmp_path / "out", *given[1:], "--free-space-margin", "0")
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_no_network_is_said_in_words(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    done = penstock("download", "hf://org/stories", tmp_path / "out")
    assert done.returncode == 2
    assert "Check the network" in done.stderr
    assert "Traceback" not in done.stderr


def documents(path) -> list[str]:
    verify_bin(path)
    opened = open_bin(path)
    cuts = np.split(opened.tokens, opened.doc_ends[:-1].astype(np.int64))
    return [bytes(row.astype(np.uint8)).decode() for row in cuts]


def test_a_dataset_of_the_hub_is_tokenized_without_a_copy_on_the_disk(stories, tmp_path):
    done = penstock("tokenize", "hf://org/stories", tmp_path / "bins", "--tokenizer", "bytes")
    assert done.returncode == 0, done.stderr
    assert documents(tmp_path / "bins" / "train.bin") == STORIES[:800]
    assert documents(tmp_path / "bins" / "validation.bin") == STORIES[800:]
    stories.forget()
    again = penstock("tokenize", "hf://org/stories", tmp_path / "bins", "--tokenizer", "bytes")
    assert again.stderr.count("nothing to do") == 2
    assert stories.bytes_sent("resolve.*parquet") == 0


def test_urls_blocks_and_disks_give_the_same_tokens(stories, tmp_path):
    (tmp_path / "disk").mkdir()
    for name in ("train-00000-of-00002", "train-00001-of-00002"):
        rows = STORIES[:400] if "00000-of" in name else STORIES[400:800]
        (tmp_path / "disk" / f"{name}.parquet").write_bytes(parquet(rows))
    for compression in ("none", "zstd"):
        options = ("--compression", compression, "--block-size", 300, "--free-space-margin", "0")
        assert penstock("download", "hf://org/stories", tmp_path / compression, *options).returncode == 0
    base = f"{stories.url}/datasets/org/stories/resolve/main/data"
    sources = {
        "disk": [tmp_path / "disk"],
        "blocks": [tmp_path / "none"],
        "packed": [tmp_path / "zstd"],
        "split": ["train=hf://org/stories"],
        "url": [f"train={base}/train-0000{number}-of-00002.parquet" for number in range(2)],
    }
    bins = {}
    for name, given in sources.items():
        done = penstock("tokenize", *given, tmp_path / "bins" / name, "--tokenizer", "bytes")
        assert done.returncode == 0, done.stderr
        bins[name] = (tmp_path / "bins" / name / "train.bin").read_bytes()
    assert len(set(bins.values())) == 1


def test_blocks_that_are_not_finished_are_no_source_yet(stories, tmp_path):
    stories.fault(path="resolve/.*00001-of", status=404, times=100)
    options = ("--block-size", 300, "--free-space-margin", "0")
    assert penstock("download", "hf://org/stories", tmp_path / "out", *options).returncode == 2
    assert read_block_manifest(tmp_path / "out").total_blocks == 1
    done = penstock("tokenize", tmp_path / "out", tmp_path / "bins", "--tokenizer", "bytes")
    assert done.returncode == 2
    assert "are not finished, there are 300 samples so far" in done.stderr


def test_what_only_the_datasets_library_reads_comes_through_it(hub, tmp_path):
    pytest.importorskip("datasets")
    card = b"---\nconfigs:\n- config_name: default\n  data_files: table.csv\n  sep: ';'\n---\n"
    rows = "".join(f"{i};story {i}\n" for i in range(1000))
    hub.add_dataset("org/settings", {"README.md": card, "table.csv": f"id;text\n{rows}".encode()})
    options = ("--block-size", 400, "--free-space-margin", "0")
    done = penstock("download", "hf://org/settings", tmp_path / "out", "--max-samples", 900, *options)
    assert done.returncode == 0, done.stderr
    lines = b"".join(path.read_bytes() for path in sorted((tmp_path / "out" / "blocks").glob("*.jsonl")))
    assert list(map(orjson.loads, lines.splitlines())) == [{"id": i, "text": f"story {i}"} for i in range(900)]
    script = (
        "import sys, threading; from penstock import download_dataset; stop = threading.Event();"
        "download_dataset('hf://org/settings', sys.argv[1], block_size=400, free_space_margin=0, cancel=stop,"
        "log_callback=lambda _: stop.set())"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "again"], check=True, timeout=120, capture_output=True)
    assert not read_block_manifest(tmp_path / "again").finished
    assert penstock("download", "hf://org/settings", tmp_path / "again", *options).returncode == 0
    lines = b"".join(path.read_bytes() for path in sorted((tmp_path / "again" / "blocks").glob("*.jsonl")))
    assert [orjson.loads(line)["id"] for line in lines.splitlines()] == list(range(1000))


def test_a_folder_of_images_becomes_blocks_and_files(hub, tmp_path):
    pytest.importorskip("datasets")
    pixel = bytes.fromhex(
        "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc000000301010018dd8db0"
        "0000000049454e44ae426082"
    )
    hub.add_dataset("org/images", {f"train/{kind}/{i}.png": pixel for kind in ("cat", "dog") for i in range(3)})
    done = penstock("download", "hf://org/images", tmp_path / "out", "--free-space-margin", "0")
    assert done.returncode == 0, done.stderr
    (block,) = (tmp_path / "out" / "blocks").glob("*.jsonl")
    rows = list(map(orjson.loads, block.read_bytes().splitlines()))
    assert [row["label"] for row in rows] == [0, 0, 0, 1, 1, 1]
    assert {(tmp_path / "out" / row["image"]["bytes"]).read_bytes() for row in rows} == {pixel}
