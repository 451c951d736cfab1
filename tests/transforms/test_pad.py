"""Ragged samples become rectangular batches, and nothing of them is lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.transforms.pad import pad

ragged = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=9), min_size=1, max_size=6)


@given(ragged, st.integers(0, 3))
def test_the_mask_tells_tokens_from_padding(rows, more):
    width = max(map(len, rows)) + more
    batch = pad([{"input_ids": np.array(row), "labels": np.array(row) + 1} for row in rows], pad_id=7, length=width)
    mask = batch["attention_mask"] == 1
    assert batch["input_ids"].shape == batch["labels"].shape == mask.shape == (len(rows), width)
    assert [batch["input_ids"][j][mask[j]].tolist() for j in range(len(rows))] == rows
    assert (batch["labels"][mask] == batch["input_ids"][mask] + 1).all()
    assert (batch["input_ids"][~mask] == 7).all()
    assert (batch["labels"][~mask] == -100).all()


def test_tensors_give_tensors_and_other_fields_are_stacked():
    samples = [{"input_ids": torch.tensor([1, 2]), "name": "a"}, {"input_ids": torch.tensor([3]), "name": "b"}]
    batch = pad(samples)
    assert batch["input_ids"].tolist() == [[1, 2], [3, 0]]
    assert isinstance(batch["input_ids"], torch.Tensor)
    assert batch["name"] == ["a", "b"]
    assert "labels" not in batch


def test_padding_that_samples_have_already_stays_padding():
    samples = [{"input_ids": np.array([1, 0]), "attention_mask": np.array([1, 0])}, {"input_ids": np.array([2, 3, 4])}]
    samples[1]["attention_mask"] = np.ones(3, np.int64)
    assert pad(samples)["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_samples_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="cut it first"):
        pad([{"input_ids": np.arange(4)}], length=3)
    with pytest.raises(ValueError, match="4 input_ids and 3 labels"):
        pad([{"input_ids": np.arange(4), "labels": np.arange(3)}])
