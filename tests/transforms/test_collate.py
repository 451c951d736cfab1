"""Stacking says the same as torch's default collate, or refuses; it never changes what values mean."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from penstock.loader.transfer import as_tensors
from penstock.transforms.collate import stack

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
        ([(1, 2), (1,)], r"have \[1, 2\] elements"),
    ],
)
def test_what_does_not_go_together_is_refused_and_said_where(samples, said):
    with pytest.raises(ValueError, match=said):
        stack(samples)
