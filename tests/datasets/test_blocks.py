"""BlockManager: chunks of blocks, and what of them is kept, read ahead and filtered."""

from __future__ import annotations

import gc
import json
import threading
import time

import numpy as np
import pytest

from block_subjects import ids, sample, write_blocks
from penstock import BadRecord, BlockManager, ConfigError, LoaderClosed, StreamingBlockWriter
from penstock.datasets.blocks import KEPT_CHUNKS, DataBlock
from penstock.testing import Footprint


@pytest.fixture
def folder(tmp_path):
    return write_blocks(tmp_path / "water", 250, 100)


def test_blocks_are_described_without_being_read(folder):
    for block in (folder / "blocks").glob("*.jsonl"):
        block.unlink()
    with BlockManager(folder) as manager:
        assert manager.get_total_blocks() == 3
        assert manager.samples_per_block == 100  # the manifest's, not the argument's
        assert manager.get_block(0) == DataBlock(block_id=0, total_samples=100, is_last_block=False)
        assert manager.get_block(2) == DataBlock(block_id=2, total_samples=50, is_last_block=True)
        assert manager.get_block(3) is None
        assert [manager.is_last_block(number) for number in range(4)] == [False, False, True, False]
        assert manager.get_block(2).chunk_count(20) == 3


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize("ahead", [True, False])
def test_chunks_cover_every_sample_once(tmp_path, compression, ahead):
    folder = write_blocks(tmp_path, 250, 100, compression=compression)
    with BlockManager(folder, dataset_chunk_size=30, enable_prefetch=ahead) as manager:
        found = []
        for number in range(manager.get_total_blocks()):
            block = manager.get_block(number)
            for chunk in range(block.chunk_count(30)):
                found += manager.get_chunk(number, chunk)
            assert manager.get_chunk(number, block.chunk_count(30)) is None
        assert found == [sample(number) for number in range(250)]
        assert manager.get_chunk(3, 0) is None


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_nothing_outside_a_chunk_is_parsed(tmp_path, compression):
    with StreamingBlockWriter(tmp_path, "water", 100, compression=compression) as writer:
        lines = [
            b"{bad\n" if number in (9, 20) else json.dumps(sample(number)).encode() + b"\n" for number in range(40)
        ]
        writer.add_lines(b"".join(lines), np.cumsum([len(line) for line in lines]))
    with BlockManager(tmp_path, dataset_chunk_size=10, enable_prefetch=False) as manager:
        assert ids(manager.get_chunk(0, 1)) == list(range(10, 20))
        assert ids(manager.get_chunk(0, 3)) == list(range(30, 40))
        for chunk, line in ((0, 10), (2, 21)):
            with pytest.raises(BadRecord) as caught:
                manager.get_chunk(0, chunk)
            assert caught.value.line == line


def test_a_chunk_of_another_size_is_another_chunk(folder):
    with BlockManager(folder, dataset_chunk_size=10) as manager:
        assert ids(manager.get_chunk(0, 1)) == list(range(10, 20))
        assert ids(manager.get_chunk(0, 1, 25)) == list(range(25, 50))
        assert ids(manager.get_chunk(0, 1)) == list(range(10, 20))


def test_the_last_chunks_are_kept_and_no_more(folder):
    with BlockManager(folder, dataset_chunk_size=5, enable_prefetch=False) as manager:
        first = manager.get_chunk(0, 0)
        for chunk in range(1, KEPT_CHUNKS):
            manager.get_chunk(0, chunk)
        (folder / "blocks" / "block_00000.jsonl").write_bytes(b"")
        manager.free_block(1)
        again = manager.get_chunk(0, 0)
        assert again == first
        again.clear()
        assert manager.get_chunk(0, 0) == first
        manager.get_chunk(1, 0)
        manager.free_block(0)
        with pytest.raises(Exception, match="shorter than the manifest says"):
            manager.get_chunk(0, 0)


def test_reset_forgets_what_was_read(folder):
    with BlockManager(folder, dataset_chunk_size=5) as manager:
        first = manager.get_chunk(0, 0)
        manager.reset()
        assert manager.get_chunk(0, 0)[0] is not first[0]


def test_the_next_chunk_is_read_while_this_one_is_worked_on(folder):
    with BlockManager(folder, dataset_chunk_size=50) as manager:
        for asked, following in (((0, 0), (0, 1, 50)), ((0, 1), (1, 0, 50))):
            manager.get_chunk(*asked)
            deadline = time.monotonic() + 30
            while following not in manager._kept and time.monotonic() < deadline:
                time.sleep(0.01)
            assert following in manager._kept


def test_filtered_samples_are_absent_and_the_others_keep_their_chunks(tmp_path):
    texts = {3: "süß", 4: "", 5: "  \n", 6: None, 13: "naïve"}

    def make(number):
        return {"id": number, "text": texts.get(number, "plain")}

    folder = write_blocks(tmp_path, 30, 20, make=make)
    with BlockManager(folder, dataset_chunk_size=10) as manager:
        assert ids(manager.get_chunk(0, 0)) == [0, 1, 2, 3, 7, 8, 9]
        assert manager.text_of(manager.get_chunk(0, 0)[3]) == "süß"
    with BlockManager(folder, dataset_chunk_size=10, ascii_only=True) as manager:
        assert [ids(manager.get_chunk(0, chunk)) for chunk in (0, 1)] == [
            [0, 1, 2, 7, 8, 9],
            [10, 11, 12, 14, 15, 16, 17, 18, 19],
        ]
        assert ids(manager.get_chunk(1, 0)) == list(range(20, 30))
    with BlockManager(folder, text_column="id") as manager:
        assert ids(manager.get_chunk(1, 0, 5)) == [20, 21, 22, 23, 24]
        with pytest.raises(ConfigError, match="'id' of the sample is a int"):
            manager.text_of({"id": 3})


def test_many_threads_read_each_chunk_as_if_alone(folder):
    with BlockManager(folder, dataset_chunk_size=10) as manager:
        wrong = []

        def work(start: int) -> None:
            for turn in range(40):
                block, chunk = divmod((start + turn) % 25, 10)
                if ids(manager.get_chunk(block, chunk)) != list(
                    range(100 * block + 10 * chunk, 100 * block + 10 * chunk + 10)
                ):
                    wrong.append((block, chunk))

        threads = [threading.Thread(target=work, args=(start,)) for start in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert wrong == []


def test_closing_leaves_nothing_behind(folder):
    before = Footprint.now()
    manager = BlockManager(folder, dataset_chunk_size=10)
    manager.get_chunk(0, 0)
    manager.close()
    with pytest.raises(LoaderClosed):
        manager.get_chunk(0, 0)
    del manager
    gc.collect()
    assert not before.leftovers()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"samples_per_block": 0}, "samples_per_block must be"),
        ({"dataset_chunk_size": "4000"}, "dataset_chunk_size must be"),
        ({"ascii_only": "yes"}, "ascii_only must be one of"),
        ({"timeout": 0}, "timeout must be"),
    ],
)
def test_arguments_that_cannot_work_are_named(folder, arguments, said):
    with pytest.raises(ConfigError, match=said):
        BlockManager(folder, **arguments)
    with pytest.raises(ConfigError, match="block_id must be"):
        BlockManager(folder).get_chunk(-1, 0)


def test_what_is_done_to_a_chunk_is_not_done_to_the_next_reader_of_it(folder):
    with BlockManager(folder, dataset_chunk_size=30) as manager:
        changed = manager.get_chunk(0, 0)
        changed[0]["text"] = ["tokens"]
        del changed[1]["id"], changed[2]
        assert manager.get_chunk(0, 0) == [sample(number) for number in range(30)]


def test_a_relative_path_stays_true_wherever_the_process_goes(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    with BlockManager(".", enable_prefetch=False) as manager:
        monkeypatch.chdir(tmp_path)
        assert manager.get_chunk(1, 0)[0] == sample(100)
