"""BlockDataset: samples by id that keep the laws in every lane, with transforms and with damage."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
import torch

from block_subjects import ids, sample, write_blocks, write_lines
from penstock import (
    BadRecord,
    BlockDataset,
    ConfigError,
    ObjectChanged,
    SampleError,
    StreamingBlockWriter,
    StreamingDataLoader,
    TokenizeText,
)
from penstock.testing import (
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_resume,
    check_state_size,
)


@pytest.fixture(params=[None, "zstd"])
def dataset(request, tmp_path):
    return BlockDataset(write_blocks(tmp_path / "water", 70, 20, compression=request.param))


@pytest.fixture
def folder(tmp_path):
    return write_blocks(tmp_path / "water", 70, 20)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["id", "txt"], r"fields has 'txt', which none of the first samples of .* has; did you mean 'text'\?"),
        (["Text"], "did you mean 'text'"),
        (["answer", "question"], "fields has 'answer', .*; they have 'id', 'text'"),
    ],
)
def test_a_field_that_no_sample_has_is_refused_with_the_one_that_was_meant(folder, fields, message):
    with pytest.raises(ConfigError, match=message):
        BlockDataset(folder, fields=fields)


def test_a_bad_first_sample_is_its_readers_to_hear_whatever_the_fields(tmp_path):
    place = tmp_path / "water" / "block_00000.jsonl"
    place.parent.mkdir()
    place.write_text("{bad\n" + json.dumps(sample(0)) + "\n")
    dataset = BlockDataset(tmp_path / "water", fields=["txt"])
    with pytest.raises(BadRecord):
        dataset[0]


IN_A_CHILD = """
import os, pickle, sys
from penstock import BadBlock, BlockDataset

dataset = BlockDataset(sys.argv[1])
assert dataset[69]["id"] == 69
block = os.path.join(sys.argv[1], "blocks", "block_00003.jsonl")
size = os.path.getsize(block)
os.truncate(block, 4)

def refused(again):
    try:
        again[69]
    except BadBlock as error:
        assert "is shorter than the manifest says" in str(error)
        return 0
    return 1

if sys.argv[2] == "fork":
    child = os.fork()
    if not child:
        os._exit(refused(dataset))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
else:
    status = refused(pickle.loads(pickle.dumps(dataset)))
sys.exit(status)
"""


@pytest.mark.parametrize("how", ["fork", "pickle"])
def test_a_mapped_block_that_was_cut_is_refused_by_whoever_gets_the_dataset_by_fork_or_pickle(folder, how):
    done = subprocess.run([sys.executable, "-c", IN_A_CHILD, str(folder), how], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_says_what_it_holds(dataset):
    assert len(dataset) == 70
    assert dataset.blocks == (20, 20, 20, 10)
    assert dataset.block_ends.tolist() == [20, 40, 60, 70]
    assert dataset[69] == dataset[-1] == sample(69)
    assert dataset.text_column == "text"
    assert repr(dataset).endswith("70 samples in 4 blocks)")
    with pytest.raises(IndexError, match="it has 70"):
        dataset[70]
    for index in (70, -1):
        with pytest.raises(IndexError, match="it has 70"):
            dataset.fetch(np.array([0, index]))


def test_fetch_is_row_pure(dataset):
    check_fetch(dataset)


@pytest.mark.parametrize("shuffle", [True, "window"])
def test_all_lanes_give_the_same_batches(dataset, shuffle):
    check_lanes(dataset, workers=(0, 2), batch_size=8, shuffle=shuffle, window=2)


def test_order_resume_worlds_and_closing_keep_their_laws(folder):
    def loader(world=None, batch_size=8, shuffle="window"):
        return StreamingDataLoader(BlockDataset(folder), batch_size, shuffle=shuffle, window=2, world=world)

    check_resume(loader, at=(0, 3, 8, 9))
    check_epoch_is_permutation(lambda world: loader(world), 70, world_sizes=(1, 3))
    check_elastic(lambda world, size: loader(world, size), 70, saved_on=(2,), resumed_on=(1, 4))
    check_close(loader)
    check_state_size(loader())


def test_texts_stay_texts_and_numbers_become_tensors(folder):
    with closing(StreamingDataLoader(BlockDataset(folder), 4)) as loader:
        batch = next(iter(loader))
    assert torch.equal(batch["id"], torch.arange(4))
    assert batch["text"] == [sample(number)["text"] for number in range(4)]


def test_fields_are_chosen_and_those_that_are_missing_are_none(folder):
    dataset = BlockDataset(folder, fields=["text", "title"])
    assert dataset[3] == {"text": sample(3)["text"], "title": None}
    assert BlockDataset(folder, fields=("id",)).fetch(np.array([5, 2])) == [{"id": 5}, {"id": 2}]
    assert dataset.fingerprint != BlockDataset(folder).fingerprint


class Bytes:
    """A tokenizer that knows bytes."""

    def encode(self, text):
        return list(text.encode())


@pytest.mark.parametrize("lane", [{}, {"num_workers": 2}, {"num_workers": 1, "worker_type": "process"}])
@pytest.mark.parametrize("padded", [True, False])
def test_texts_are_tokenized_on_the_way(folder, lane, padded):
    transform = TokenizeText(Bytes(), 16, pad_to_length=padded)
    with closing(StreamingDataLoader(BlockDataset(folder), 4, transform=transform, **lane)) as loader:
        batch = next(iter(loader))
    assert batch["input_ids"].shape == (4, 16)
    assert bytes(batch["input_ids"][2].tolist()[:9]) == b"sample 2,"
    inside = batch["attention_mask"][:, 1:] == 1
    assert torch.equal(batch["input_ids"][:, 1:][inside], batch["labels"][:, :-1][inside])


@pytest.mark.parametrize("lane", [{}, {"num_workers": 2}])
def test_a_malformed_line_follows_the_policy(folder, lane):
    path = folder / "blocks" / "block_00001.jsonl"
    content = path.read_bytes()
    path.write_bytes(content.replace(b'{"id":25,', b'{"id":2x,'))
    os.utime(path.with_suffix(".idx"))
    with closing(StreamingDataLoader(BlockDataset(folder), 10, on_error="skip", **lane)) as loader:
        found = [id_ for batch in loader for id_ in batch["id"].tolist()]
        assert found == [number for number in range(70) if number != 25]
        assert loader.stats.skipped == {"malformed-json": 1}
    with closing(StreamingDataLoader(BlockDataset(folder), 10, **lane)) as loader:
        with pytest.raises(SampleError, match=r"sample 25 .*line 6 of .*block_00001\.jsonl") as raised:
            list(loader)
        assert isinstance(raised.value.__cause__, BadRecord)


@pytest.mark.parametrize("lane", [{}, {"num_workers": 2}, {"num_workers": 1, "worker_type": "process"}])
def test_what_is_not_ascii_is_left_out_and_moves_nothing(tmp_path, lane):
    def make(number):
        return {"id": number, "text": "süß" if number % 10 == 3 else "plain"}

    dataset = BlockDataset(write_blocks(tmp_path, 40, 15, make=make), ascii_only=True)
    assert dataset[13] is None
    assert dataset.fetch(np.array([3, 4]))[1]["id"] == 4
    with closing(StreamingDataLoader(dataset, 10, **lane)) as loader:
        batches = [batch["id"].tolist() for batch in loader]
        assert batches == [[10 * k + j for j in range(10) if j != 3] for k in range(4)]
        assert loader.stats.skipped == Counter(filtered=4)


def test_torch_s_own_loader_takes_it(folder):
    loader = torch.utils.data.DataLoader(BlockDataset(folder), batch_size=7)
    assert [id_ for batch in loader for id_ in batch["id"].tolist()] == list(range(70))


def test_it_travels_as_a_path_and_refuses_other_data(folder):
    dataset = BlockDataset(folder)
    packed = pickle.dumps(dataset)
    assert len(packed) < 1_000
    assert ids(pickle.loads(packed).fetch(np.array([61, 4]))) == [61, 4]
    for path in folder.rglob("*"):
        if path.is_file():
            path.unlink()
    write_blocks(folder, 70, 20, make=lambda number: sample(number + 1))
    with pytest.raises(ObjectChanged, match="other blocks"):
        pickle.loads(packed)


OPEN_FILES = """
import glob, os, sys
from penstock import BlockDataset
dataset = BlockDataset(sys.argv[1])
opened = [os.path.realpath(link) for link in glob.glob("/proc/self/fd/*")]
print(len(dataset), "torch" in sys.modules, [name for name in opened if "/blocks/" in name])
"""


def test_opening_touches_no_block_and_no_torch(folder):
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    done = subprocess.run([sys.executable, "-c", OPEN_FILES, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "70 False []\n"


@pytest.mark.parametrize("mapped_bytes", [0, 1 << 20])
def test_a_script_that_ends_with_blocks_open_says_nothing(folder, mapped_bytes):
    script = f"import sys, penstock; data = penstock.BlockDataset(sys.argv[1], mapped_bytes={mapped_bytes}); data[0]"
    done = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fields": "text"}, "fields must be a list of names"),
        ({"pad_id": -1}, "pad_id must be"),
        ({"mapped_bytes": "1gb"}, "mapped_bytes must be"),
    ],
)
def test_arguments_that_cannot_work_are_named(folder, arguments, said):
    with pytest.raises(ConfigError, match=said):
        BlockDataset(folder, **arguments)


def test_a_folder_without_samples_is_refused(tmp_path):
    write_lines(tmp_path / "block_0.jsonl", [])
    with pytest.raises(ConfigError, match="holds no samples"):
        BlockDataset(tmp_path)


def test_a_relative_path_stays_true_wherever_the_process_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(write_blocks(tmp_path / "water", 250, 100))
    dataset = BlockDataset(".")
    monkeypatch.chdir(tmp_path)
    assert dataset[150] == pickle.loads(pickle.dumps(dataset))[150] == sample(150)


def test_a_folder_that_is_not_finished_says_how_much_is_there(tmp_path):
    with StreamingBlockWriter(tmp_path / "water", "water", 10) as writer:
        for number in range(25):
            writer.add_sample(sample(number))
        writer.close()
    with pytest.warns(RuntimeWarning, match="is not finished: these are the 20 samples"):
        assert len(BlockDataset(tmp_path / "water")) == 20
