"""Windows that respect documents: no token lost, none crossed, padded where they end."""

from __future__ import annotations

import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import ConfigError, StreamingDataLoader
from penstock.datasets.documents import DocumentDataset
from penstock.errors import BadBlock


def write_bin(folder: Path, lengths: list[int], dtype: str = "<u2") -> Path:
    """A bare bin whose token ids are all different, so a token tells where it was."""
    path = folder / "train.bin"
    np.arange(sum(lengths), dtype=dtype).tofile(path)
    np.cumsum(lengths, dtype="<u8").tofile(path.with_suffix(".docs"))
    return path


@pytest.fixture
def corpus(tmp_path):
    return write_bin(tmp_path, [7, 2, 1, 0, 4, 20, 3])


documents = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: max(lengths) > 1)


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(1, 12))
def test_every_token_after_the_first_of_its_document_is_a_target_exactly_once(lengths, seq_len):
    with tempfile.TemporaryDirectory() as folder:
        dataset = DocumentDataset(write_bin(Path(folder), lengths), seq_len)
        seen = np.concatenate([row["labels"] for row in dataset.fetch(np.arange(len(dataset)))])
    starts = np.cumsum([0, *lengths])
    expected = [t for start, size in zip(starts, lengths, strict=False) for t in range(start + 1, start + size)]
    assert seen.tolist() == expected


@settings(max_examples=150, deadline=None)
@given(documents, st.integers(2, 12), st.data())
def test_windows_stay_inside_a_document_and_overlap_as_asked(lengths, seq_len, data):
    overlap = data.draw(st.integers(0, seq_len - 1))
    with tempfile.TemporaryDirectory() as folder:
        dataset = DocumentDataset(write_bin(Path(folder), lengths), seq_len, overlap=overlap)
        rows = dataset.fetch(np.arange(len(dataset)))
        stored = dataset.lengths.tolist()
    ends = np.cumsum(lengths)
    previous, before = -1, np.empty(0)
    for row in rows:
        assert (row["labels"] - row["input_ids"] == 1).all()
        first, last = int(row["input_ids"][0]), int(row["labels"][-1])
        home = int(np.searchsorted(ends, first, side="right"))
        assert last < ends[home]
        if home == previous:
            assert np.intersect1d(before, row["input_ids"]).size == overlap
        previous, before = home, row["input_ids"]
    targets = {t for row in rows for t in row["labels"].tolist()}
    starts = np.cumsum([0, *lengths])
    assert targets == {t for s, n in zip(starts, lengths, strict=False) for t in range(s + 1, s + n)}
    assert stored == [len(row["input_ids"]) for row in rows]


def test_a_batch_is_padded_to_its_longest_sample(corpus):
    dataset = DocumentDataset(corpus, 4, pad_id=9)
    batch = dataset.collate(dataset.fetch(np.array([1, 2])))
    assert batch["input_ids"].tolist() == [[4, 5], [7, 9]]
    assert batch["labels"].tolist() == [[5, 6], [8, -100]]
    assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]
    assert {values.dtype for values in batch.values()} == {np.dtype(np.int64)}


def test_the_loader_hands_out_padded_tensors_and_resumes(corpus):
    def loader() -> StreamingDataLoader:
        return StreamingDataLoader(DocumentDataset(corpus, 4), 2, shuffle=True, seed=3)

    whole = list(loader())
    assert all(isinstance(values, torch.Tensor) for batch in whole for values in batch.values())
    half = loader()
    batches = iter(half)
    first = [next(batches) for _ in range(2)]
    fresh = loader()
    fresh.load_state_dict(half.state_dict())
    rest = [*first, *fresh]
    assert len(rest) == len(whole)
    for left, right in zip(whole, rest, strict=True):
        assert {name: values.tolist() for name, values in left.items()} == {
            name: values.tolist() for name, values in right.items()
        }


def test_length_buckets_waste_less_padding(tmp_path):
    lengths = np.random.default_rng(0).integers(2, 200, 400).tolist()
    dataset = DocumentDataset(write_bin(tmp_path, lengths, "<u2"), 256)

    def padding(**options: int) -> int:
        with StreamingDataLoader(dataset, 8, shuffle=True, **options) as loader:
            return sum(int((batch["attention_mask"] == 0).sum()) for batch in loader)

    assert padding(length_bucket=8) < 0.2 * padding()


def test_torch_dataloader_takes_it(corpus):
    dataset = DocumentDataset(corpus, 4)
    batches = list(torch.utils.data.DataLoader(dataset, batch_size=3, collate_fn=dataset.collate))
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == 31
    assert isinstance(batches[0]["labels"], torch.Tensor)


def test_it_indexes_like_a_sequence(corpus):
    dataset = DocumentDataset(corpus, 4)
    assert dataset[-1]["labels"].tolist() == [35, 36]
    assert dataset[0]["input_ids"].dtype == torch.int64
    for index in (len(dataset), -len(dataset) - 1):
        with pytest.raises(IndexError, match="it has"):
            dataset[index]
    for index in (len(dataset), -1):
        with pytest.raises(IndexError, match="it has"):
            dataset.fetch(np.array([0, index]))


def test_it_travels_as_a_path(corpus):
    dataset = DocumentDataset(corpus, 4, overlap=1, pad_id=5)
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    copy = pickle.loads(sent)
    assert (copy.fingerprint, len(copy), copy.pad_id) == (dataset.fingerprint, len(dataset), 5)


def test_fingerprints_tell_documents_and_windows_apart(tmp_path, corpus):
    other = tmp_path / "other"
    other.mkdir()
    same_tokens = write_bin(other, [37])
    marks = {DocumentDataset(corpus, 4).fingerprint, DocumentDataset(corpus, 5).fingerprint}
    marks |= {DocumentDataset(corpus, 4, overlap=1).fingerprint, DocumentDataset(same_tokens, 4).fingerprint}
    assert len(marks) == 4


@pytest.mark.parametrize("options", [{"seq_len": 0}, {"seq_len": 4, "overlap": 4}, {"seq_len": 4, "pad_id": -1}])
def test_values_that_cannot_work_are_refused(corpus, options):
    with pytest.raises(ConfigError, match="must be an integer"):
        DocumentDataset(corpus, **options)


def test_a_bin_without_documents_is_refused(tmp_path):
    path = write_bin(tmp_path, [5])
    path.with_suffix(".docs").unlink()
    with pytest.raises(ConfigError, match=r"has no train.docs"):
        DocumentDataset(path, 4)


def test_documents_of_one_token_have_nothing_to_predict(tmp_path):
    with pytest.raises(ConfigError, match="nothing to predict"):
        DocumentDataset(write_bin(tmp_path, [1, 1, 0, 1]), 4)


def test_document_ends_that_go_down_are_refused(tmp_path):
    path = write_bin(tmp_path, [5, 5])
    np.array([8, 5, 10], "<u8").tofile(path.with_suffix(".docs"))
    with pytest.raises(BadBlock, match="go down"):
        DocumentDataset(path, 4)
