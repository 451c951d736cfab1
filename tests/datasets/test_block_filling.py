"""Raw data in blocks on demand, and blocks in a store: what is fetched, when, and by whom."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from block_subjects import ids, sample, write_blocks
from penstock import BadBlock, BlockDataset, BlockManager, ObjectChanged, ObjectMissing, StreamingDataLoader
from penstock.testing import Footprint, check_fetch

NAME = "org/water"
URL = f"hf://{NAME}"


def lines(start: int, stop: int) -> bytes:
    return "".join(json.dumps(sample(number)) + "\n" for number in range(start, stop)).encode()


def upload(hub, folder) -> None:
    """Put a folder of blocks on the Hub."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    hub.add_dataset(NAME, files)


def gets(hub, name: str) -> list[dict]:
    return [line for line in hub.requests(name) if line["method"] == "GET" and line["status"] in (200, 206)]


@pytest.fixture
def raw(hub):
    """A Hub with 250 samples in two files."""
    hub.add_dataset(NAME, {"data/train-0.jsonl": lines(0, 130), "data/train-1.jsonl": lines(130, 250)})
    return hub


def test_raw_data_is_cut_into_blocks_as_they_are_asked_for(raw, tmp_path):
    with BlockManager(URL, samples_per_block=100, dataset_chunk_size=40, cache_dir=tmp_path / "cache") as manager:
        found, number = [], 0
        while (block := manager.get_block(number)) is not None:
            for chunk in range(block.chunk_count(40)):
                found += manager.get_chunk(number, chunk)
            number += 1
        assert found == [sample(number) for number in range(250)]
        assert (number, block, manager.get_total_blocks()) == (3, None, 3)
        assert manager.is_last_block(2)
        assert manager.text_column == "text"


def test_what_is_there_is_read_without_the_network(raw, tmp_path):
    def read() -> list[int]:
        with BlockManager(URL, samples_per_block=100, cache_dir=tmp_path / "cache") as manager:
            return [id_ for block in range(3) for id_ in ids(manager.get_chunk(block, 0))]

    assert read() == list(range(250))
    raw.kill()
    assert read() == list(range(250))


READ = """
import sys
from penstock import BlockManager
with BlockManager(sys.argv[1], samples_per_block=100, cache_dir=sys.argv[2]) as manager:
    print([len(manager.get_chunk(block, 0)) for block in range(3)], manager.get_chunk(3, 0))
"""


def test_processes_share_one_download(raw, tmp_path):
    command = [sys.executable, "-c", READ, URL, str(tmp_path / "cache")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0] for process in started] == ["[100, 100, 50] None\n"] * 3
    assert len(gets(raw, "train-1.jsonl")) <= 2


def test_predownload_runs_ahead_and_stops_where_it_was_told(hub, tmp_path):
    hub.add_dataset(
        NAME, {f"data/train-{number:02d}.jsonl": lines(100 * number, 100 * number + 100) for number in range(20)}
    )
    cache = tmp_path / "cache"
    with BlockManager(URL, samples_per_block=100, cache_dir=cache, enable_prefetch=False) as manager:
        manager.start_predownload(3)
        deadline = time.monotonic() + 60
        while len(list(cache.rglob("*.jsonl"))) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert manager.get_block(2).total_samples == 100
        assert manager.get_total_blocks() is None
        assert len(list(cache.rglob("*.jsonl"))) <= 5


def test_a_download_that_fails_says_so_and_goes_on_when_asked_again(raw, tmp_path):
    raw.fault(path="train-1.jsonl", status=404, times=100)
    with BlockManager(URL, samples_per_block=100, dataset_chunk_size=100, cache_dir=tmp_path / "cache") as manager:
        assert ids(manager.get_chunk(0, 0)) == list(range(100))
        with pytest.raises(ObjectMissing):
            manager.get_chunk(1, 0)
        raw.heal()
        assert ids(manager.get_chunk(2, 0)) == list(range(200, 250))


def test_closing_in_the_middle_of_a_download_leaves_nothing_running(raw, tmp_path):
    before = Footprint.now()
    with BlockManager(URL, samples_per_block=100, cache_dir=tmp_path / "cache") as manager:
        manager.get_block(0)
    assert not [name for name in before.leftovers() if "penstock-blocks" in name or "penstock-chunks" in name]


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_remote_blocks_are_read_by_range(hub, tmp_path, compression):
    def long(number: int) -> dict:
        return {"id": number, "text": f"{number} " * 500}

    upload(hub, write_blocks(tmp_path / "water", 2_000, 1_000, compression=compression, make=long))
    with BlockManager(URL, dataset_chunk_size=100, enable_prefetch=False, cache_dir=tmp_path / "cache") as manager:
        assert manager.get_block(1).is_last_block
        assert not gets(hub, "block_0000")
        assert ids(manager.get_chunk(0, 3)) == list(range(300, 400))
        first = len(gets(hub, "block_00000.jsonl"))
        assert ids(manager.get_chunk(0, 4)) == list(range(400, 500))
        assert len(gets(hub, "block_00000.jsonl")) == first + 1
        assert not gets(hub, "block_00001")
    assert not (tmp_path / "cache").exists()
    dataset = BlockDataset(URL)
    check_fetch(dataset, range(0, 2_000, 97))
    with StreamingDataLoader(dataset, 50, shuffle="window", num_workers=2) as loader:
        found = np.sort(np.concatenate([batch["id"].numpy() for batch in loader]))
    assert found.tolist() == list(range(2_000))


def test_remote_damage_is_named(hub, tmp_path):
    folder = write_blocks(tmp_path / "water", 300, 100)
    (folder / "blocks" / "block_00001.jsonl").unlink()
    (folder / "blocks" / "block_00002.idx").unlink()
    path = folder / "blocks" / "block_00000.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    upload(hub, folder)
    dataset = BlockDataset(URL)
    # A table that is missing is made by reading the block.
    assert dataset[250] == sample(250)
    with pytest.raises(BadBlock, match=r"block_00001\.jsonl is missing"):
        dataset[150]
    with pytest.raises(Exception, match=r"block_00000\.jsonl"):
        dataset[99]


def test_a_url_that_holds_nothing_is_refused(hub, tmp_path):
    manager = BlockManager("hf://org/nothing", cache_dir=tmp_path / "cache", timeout=20)
    with manager, pytest.raises(ObjectMissing, match="org/nothing"):
        manager.get_block(0)
    hub.add_dataset(NAME, {"data/train.jsonl": lines(0, 5)})
    with pytest.raises(ObjectMissing, match=r"has no block_manifest\.json"):
        BlockDataset(URL)


def test_files_of_one_name_in_two_folders_have_blocks_of_their_own(tmp_path, monkeypatch):
    for number, name in enumerate(("a", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "raw.jsonl").write_bytes(lines(number, number + 3))
        monkeypatch.chdir(tmp_path / name)
        with BlockManager("raw.jsonl", cache_dir=tmp_path / "cache") as manager:
            assert ids(manager.get_chunk(0, 0)) == [number, number + 1, number + 2]


@pytest.mark.parametrize("samples_per_block", [2, 100])
def test_blocks_of_a_file_that_changed_are_refused(tmp_path, samples_per_block):
    source = tmp_path / "raw.jsonl"
    source.write_bytes(lines(0, 5))
    options = {"samples_per_block": samples_per_block, "cache_dir": tmp_path / "cache"}
    for _ in range(2):
        with BlockManager(source, **options) as manager:
            assert manager.get_chunk(0, 0)[0] == sample(0)
    source.write_bytes(lines(7, 12))
    with pytest.raises(ObjectChanged, match=r"raw\.jsonl has changed since blocks were made of it: source\.files"):
        BlockManager(source, **options)
