"""Stacking says the same as torch's default collate, or refuses; it never changes what values mean."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from penstock import Collate, ConfigError, StreamingDataLoader
from penstock.loader.transfer import as_tensors
from penstock.transforms.collate import stack
from penstock.transforms.reused_buffers import NamedBuffers

Pair = namedtuple("Pair", "left right")

SAMPLES = {
    "arrays": [np.arange(3), np.arange(3) + 1],
    "ints": [1, 2],
    "bools": [True, False],
    "floats": [0.5, 1],
    "tensors": [torch.zeros(2), torch.ones(2)],
    "dicts": [{"x": np.zeros(2), "n": 1}, {"x": np.ones(2), "n": 2}],
    "tuples": [(1, np.zeros(2)), (2, np.ones(2))],
    "named tuples": [Pair(1, 2.0), Pair(3, 4.0)],
    "nested": [{"a": [1, {"b": np.zeros(1)}]}, {"a": [2, {"b": np.ones(1)}]}],
    "texts": ["a", "b"],
    "numpy numbers": [np.float32(1), np.float32(2)],
}


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(equal, one, other))
    return one == other


@pytest.mark.parametrize("samples", SAMPLES.values(), ids=SAMPLES)
def test_it_makes_of_samples_what_torch_makes_of_them(samples):
    assert equal(as_tensors(stack(samples)), default_collate(samples))


@pytest.mark.parametrize(
    ("samples", "said"),
    [
        ([1, "a"], r"samples are of types \['int', 'str'\]"),
        ([1, None], "NoneType"),
        ([0.5, "x"], "float"),
        ([2**63, -1], "too large"),
        ([{"n": 1}, {"n": "b"}], r"samples\['n'\] are of types"),
        ([np.zeros(2), np.zeros(3)], r"shapes \[\(2,\), \(3,\)\]"),
        ([{"x": 1}, {"y": 1}], "has no 'x'"),
        ([{"x": 1}, {"x": 1, "y": 1}], r"some of samples have \['y'\], the first one has not"),
        ([{"x": {"a": 1}}, {"x": {"a": 1, "b": 2}}], r"some of samples\['x'\] have \['b'\]"),
        ([(1, 2), (1,)], r"have \[1, 2\] elements"),
    ],
)
def test_what_does_not_go_together_is_refused_and_said_where(samples, said):
    with pytest.raises(ValueError, match=said):
        stack(samples)


def test_a_field_is_padded_on_every_axis_with_its_own_value():
    images = [np.full((2, 3), 1.0, np.float32), np.full((4, 1), 2.0, np.float32)]
    batch = Collate(pad={"image": -1})([{"image": image, "id": k} for k, image in enumerate(images)])
    assert batch["image"].shape == (2, 4, 3)
    assert batch["image_shape"].tolist() == [[2, 3], [4, 1]]
    for row, image in zip(batch["image"], images, strict=True):
        inside = row[: image.shape[0], : image.shape[1]]
        assert (inside == image).all()
        assert row.sum() == image.sum() - (row.size - image.size)
    assert batch["id"].tolist() == [0, 1]


def test_ragged_fields_are_joined_and_said_where_each_begins():
    boxes = [np.ones((2, 4)), np.zeros((0, 4)), np.full((3, 4), 7)]
    batch = Collate(ragged=["boxes"])([{"boxes": np.asarray(box, np.float32)} for box in boxes])
    assert batch["boxes"].shape == (5, 4)
    offsets = batch["boxes_offsets"].tolist()
    assert offsets == [0, 2, 2, 5]
    for k, box in enumerate(boxes):
        assert (batch["boxes"][offsets[k] : offsets[k + 1]] == box).all()


def test_texts_fields_that_are_kept_and_those_with_gaps_stay_lists():
    samples = [{"text": "a", "x": np.zeros(2), "y": np.zeros(2)}, {"text": "b", "x": np.zeros(3), "y": None}]
    batch = Collate(keep=["x"])(samples)
    assert batch["text"] == ["a", "b"]
    assert [x.shape for x in batch["x"]] == [(2,), (3,)]
    assert batch["y"][1] is None


def test_groups_part_a_batch_and_lose_no_sample():
    samples = [{"bucket": k % 3, "image": np.full((2 + k % 3, 4), k)} for k in range(10)]
    batch = Collate(groups="bucket")(samples)
    assert list(batch) == [0, 1, 2]
    assert {key: part["image"].shape for key, part in batch.items()} == {0: (4, 2, 4), 1: (3, 3, 4), 2: (3, 4, 4)}
    assert sorted(int(row[0, 0]) for part in batch.values() for row in part["image"]) == list(range(10))


def test_memory_is_used_again_only_when_nobody_holds_the_batch():
    collate = Collate()
    samples = [{"x": np.full((100, 100), k)} for k in range(4)]
    held = [as_tensors(collate(samples))["x"] for _ in range(3)]
    assert len({tensor.data_ptr() for tensor in held}) == 3
    part = held[0][2, 5:]
    addresses = {tensor.data_ptr() for tensor in held}
    kept = held[0].data_ptr()
    del held
    for _ in range(10):
        batch = collate([{"x": np.full((100, 100), 9)}] * 4)["x"]
        assert batch.ctypes.data in addresses - {kept}
        del batch
    assert (part == 2).all()


@pytest.mark.parametrize(
    ("collate", "samples", "said"),
    [
        (Collate(), [{"x": np.zeros(2)}, {"x": np.zeros(3)}], "which do not stack"),
        (Collate(), [{"x": 1}, {"y": 1}], "has no 'x'"),
        (Collate(), [{"x": 1}, {"x": 1, "y": 1}], r"some of samples have \['y'\]"),
        (Collate(pad={"x": 0}), [{"x": np.zeros(2)}, {"x": np.zeros((3, 3))}], "can't be padded"),
        (Collate(ragged=["x"]), [{"x": np.zeros((2, 3))}, {"x": np.zeros((2, 4))}], "can't be joined"),
        (Collate(ragged=["x"]), [{"x": 1}, {"x": 2}], "can't be joined"),
        (Collate(groups="g"), [{"x": 1}], "has no 'g'"),
    ],
)
def test_fields_that_do_not_go_together_are_refused(collate, samples, said):
    with pytest.raises(ValueError, match=said):
        collate(samples)


def test_a_field_is_treated_in_one_way():
    with pytest.raises(ConfigError, match="one of them"):
        Collate(pad={"x": 0}, keep=["x"])
    with pytest.raises(ConfigError, match="lists of fields"):
        Collate(keep="x")


def test_a_loader_makes_tensors_of_what_it_collates():
    rows = [{"x": np.arange(k + 1), "name": str(k)} for k in range(4)]
    with StreamingDataLoader(rows, 2, collate_fn=Collate(pad={"x": -1})) as loader:
        batches = list(loader)
    assert torch.equal(batches[1]["x"], torch.tensor([[0, 1, 2, -1], [0, 1, 2, 3]]))
    assert batches[1]["name"] == ["2", "3"]


@pytest.mark.parametrize("workers", [{"num_workers": 0}, {"num_workers": 2, "worker_type": "thread"}])
def test_a_loader_without_a_collate_stacks_into_memory_that_nobody_holds(workers):
    rows = [{"x": np.full((100, 100), k), "name": str(k)} for k in range(96)]
    with StreamingDataLoader(rows, 4, shuffle=True, **workers) as loader:
        kept = next(iter(loader))["x"]
        want = kept.clone()
        addresses = [batch["x"].data_ptr() for _ in range(3) for batch in loader]
        # The batches after the first, and those of two whole epochs.
        assert len(addresses) == 23 + 2 * 24
        assert len(set(addresses)) <= 8
        assert kept.data_ptr() not in addresses
        assert torch.equal(kept, want)


def test_arrays_of_unequal_types_are_stacked_as_without_memory_to_use_again():
    samples = [{"x": np.zeros(100_000, np.float32)}, {"x": np.ones(100_000, np.float64)}]
    batch = stack(samples, NamedBuffers())["x"]
    assert (batch.dtype, batch[:, 0].tolist()) == (np.float64, [0.0, 1.0])


def test_lists_of_unequal_length_are_refused_with_what_would_take_them():
    samples = [{"tags": [1, 2]}, {"tags": [3]}]
    with pytest.raises(ValueError, match=r"\[1, 2\] elements.*Collate\(ragged=\[…\]\)"):
        Collate()(samples)
    assert Collate(ragged=["tags"])(samples)["tags"].tolist() == [1, 2, 3]
