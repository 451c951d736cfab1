"""Packed documents: no token lost, nothing predicted across documents, and the laws of all datasets."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import ConfigError, PackedDataset, StreamingDataLoader, tokenize
from penstock.datasets.packed import cu_seqlens
from penstock.errors import BadBlock
from penstock.testing import (
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_resume,
)
from text_subjects import TEXTS, write_jsonl

COLUMNS = ["input_ids", "labels", "position_ids", "document_ids"]


def write_bin(folder: Path, lengths: list[int], dtype: str = "<u2") -> Path:
    """A bare bin whose token ids are all different, so a token tells where it was."""
    path = folder / "train.bin"
    np.arange(sum(lengths), dtype=dtype).tofile(path)
    np.cumsum(lengths, dtype="<u8").tofile(path.with_suffix(".docs"))
    return path


@pytest.fixture
def corpus(tmp_path):
    return write_bin(tmp_path, [7, 2, 1, 0, 4, 20, 3])


@pytest.fixture
def many(tmp_path):
    return write_bin(tmp_path, np.random.default_rng(0).integers(0, 30, 120).tolist())


def test_a_sample_is_documents_side_by_side(tmp_path):
    dataset = PackedDataset(write_bin(tmp_path, [4, 2, 3]), 10, pad_id=50)
    [row] = [{name: values.tolist() for name, values in dataset[i].items()} for i in range(len(dataset))]
    assert row == {
        "input_ids": [0, 1, 2, 3, 4, 5, 6, 7, 8, 50],
        "labels": [1, 2, 3, -100, 5, -100, 7, 8, -100, -100],
        "position_ids": [0, 1, 2, 3, 0, 1, 0, 1, 2, 0],
        "document_ids": [0, 0, 0, 0, 1, 1, 2, 2, 2, 3],
    }
    assert dataset.fill == 0.9


def test_a_long_document_is_cut_and_still_predicts_its_next_token(tmp_path):
    dataset = PackedDataset(write_bin(tmp_path, [7, 1]), 3, pad_id=99)
    rows = dataset.fetch(np.arange(len(dataset)))
    assert rows["input_ids"].tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 99]]
    assert rows["labels"].tolist() == [[1, 2, 3], [4, 5, 6], [-100, -100, -100]]
    assert rows["position_ids"].tolist() == [[0, 1, 2], [0, 1, 2], [0, 0, 0]]


documents = st.lists(st.integers(0, 40), min_size=1, max_size=30).filter(any)


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(1, 15), st.integers(1, 40), st.randoms())
def test_every_token_is_an_input_once_and_a_target_once_unless_first(lengths, seq_len, window, random):
    with tempfile.TemporaryDirectory() as folder:
        dataset = PackedDataset(write_bin(Path(folder), lengths), seq_len, window=window, pad_id=60_000)
        ids = list(range(len(dataset)))
        random.shuffle(ids)
        rows = dataset.fetch(np.array(ids))
    assert list(rows) == COLUMNS
    assert {values.dtype for values in rows.values()} == {np.dtype(np.int64)}
    inputs, labels = rows["input_ids"], rows["labels"]
    real = inputs != 60_000
    assert sorted(inputs[real].tolist()) == list(range(sum(lengths)))
    firsts = np.cumsum([0, *lengths])[:-1][np.array(lengths) > 0].tolist()
    targets = labels[labels != -100]
    assert sorted(targets.tolist()) == [token for token in range(sum(lengths)) if token not in firsts]
    assert (targets - inputs[labels != -100] == 1).all()
    assert (labels[~real] == -100).all()
    # Inside a document positions go up by one with the tokens; each document's places are together, numbered in turn.
    for token_row, place_row, document_row in zip(inputs, rows["position_ids"], rows["document_ids"], strict=True):
        begins = place_row == 0
        begins[1:] |= document_row[1:] != document_row[:-1]
        assert (np.cumsum(begins) - 1 == document_row).all()
        assert (place_row == np.arange(seq_len) - np.maximum.accumulate(np.where(begins, np.arange(seq_len), 0))).all()
        jumps = (token_row[1:] - token_row[:-1] != 1) & (token_row[1:] != 60_000)
        assert (~jumps | begins[1:]).all()


def test_it_keeps_the_laws(many):
    dataset = PackedDataset(many, 16, window=40)
    check_fetch(dataset)
    check_lanes(dataset, batch_size=7, shuffle=True, workers=(0, 2), prefetch=(2,))
    for options in ({"shuffle": True}, {"shuffle": "window", "window": 2}):
        check_resume(lambda options=options: StreamingDataLoader(dataset, 9, seed=3, **options))

        def make(world, batch_size=3, options=options):
            return StreamingDataLoader(dataset, batch_size, world=world, **options)

        check_epoch_is_permutation(make, len(dataset), world_sizes=(1, 3))
        check_elastic(make, len(dataset), saved_on=(1, 2), resumed_on=(1, 3))


def test_a_batch_in_the_trainers_hands_stays_as_it_is(many):
    loader = StreamingDataLoader(PackedDataset(many, 16), 4)
    kept = [(batch, {name: values.clone() for name, values in batch.items()}) for batch in loader]
    assert all(torch.equal(batch[name], copy[name]) for batch, copy in kept for name in COLUMNS)


def test_runs_for_attention_are_those_of_the_documents(many):
    dataset = PackedDataset(many, 16)
    [batch] = StreamingDataLoader(dataset, len(dataset))
    ends = cu_seqlens(batch["position_ids"])
    assert ends.dtype == torch.int32
    keys = (torch.arange(len(dataset))[:, None] * 1000 + batch["document_ids"]).flatten()
    lengths = torch.unique_consecutive(keys, return_counts=True)[1]
    assert ends.diff().tolist() == lengths.tolist()
    assert (int(ends[0]), int(ends[-1])) == (0, batch["input_ids"].numel())


def test_a_real_bin_loses_no_text(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    tokenize(source, tmp_path / "bins", tokenizer="bytes", splits=["train"], show_progress=False)
    dataset = PackedDataset(tmp_path / "bins" / "train.bin", 64)
    texts = set()
    for row in dataset.fetch(np.arange(len(dataset)))["input_ids"]:
        texts.update(bytes(row.astype(np.uint8)).rstrip(b"\0").decode(errors="replace").split("Document ")[1:])
    assert len(texts) == len(TEXTS)
    assert "samples, " in repr(dataset)
    assert "% full)" in repr(dataset)


def test_opening_a_bin_of_any_size_reads_no_token(tmp_path):
    """A file of 64 GiB, nearly all of it a hole, opens at once; the last token is there."""
    path, size = tmp_path / "train.bin", 1 << 35
    with path.open("wb") as file:
        file.seek(2 * size - 2)
        file.write(b"\x07\x00")
    np.array([size - 3, size], "<u8").tofile(path.with_suffix(".docs"))
    dataset = PackedDataset(path, 1 << 20)
    assert len(dataset) == 1 << 15
    assert dataset[-1]["input_ids"][-4:].tolist() == [0, 0, 0, 7]
    assert dataset[-1]["labels"][-4:].tolist() == [-100, 0, 7, -100]


def test_it_travels_as_a_path(corpus):
    dataset = PackedDataset(corpus, 4, window=3, pad_id=5)
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert (copy.fingerprint, len(copy), copy.pad_id) == (dataset.fingerprint, len(dataset), 5)


def test_fingerprints_tell_documents_and_packing_apart(tmp_path, corpus):
    other = tmp_path / "other"
    other.mkdir()
    same_tokens = write_bin(other, [37])
    options = [{}, {"seq_len": 5}, {"window": 2}, {"pad_id": 1}]
    marks = {PackedDataset(corpus, **{"seq_len": 4, **option}).fingerprint for option in options}
    assert len(marks | {PackedDataset(same_tokens, 4).fingerprint}) == 5


def test_it_indexes_like_a_sequence_and_torch_takes_it(corpus):
    dataset = PackedDataset(corpus, 4)
    assert dataset[-1]["input_ids"].dtype == torch.int64
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match="it has"):
            dataset[index]
    for ids in ([len(dataset)], [-1]):
        with pytest.raises(IndexError, match="it has"):
            dataset.fetch(np.array(ids))
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=3))
    assert sum(len(batch["labels"]) for batch in batches) == len(dataset)
    assert [len(values) for values in dataset.fetch(np.array([], np.int64)).values()] == [0, 0, 0, 0]


@pytest.mark.parametrize("options", [{"seq_len": 0}, {"seq_len": 4, "window": 0}, {"seq_len": 4, "pad_id": -1}])
def test_values_that_cannot_work_are_refused(corpus, options):
    with pytest.raises(ConfigError, match="must be an integer"):
        PackedDataset(corpus, **options)


def test_bins_without_documents_or_tokens_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no token, so there is nothing to pack"):
        PackedDataset(write_bin(tmp_path, [0, 0]), 4)
    path = write_bin(tmp_path, [5, 5])
    np.array([8, 5, 10], "<u8").tofile(path.with_suffix(".docs"))
    with pytest.raises(BadBlock, match=r"train.docs: document ends go down, from 8 to 5; rebuild the bin"):
        PackedDataset(path, 4)
    path.with_suffix(".docs").unlink()
    with pytest.raises(ConfigError, match=r"has no train.docs"):
        PackedDataset(path, 4)
