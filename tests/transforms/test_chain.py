"""Transforms in turn: fan-out, filters, and randomness that is keyed to the sample."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.transforms.chain import Chain, takes


def draw(sample, rng):
    return (*sample, rng.integers(1 << 60))


def test_an_empty_chain_gives_the_sample_itself():
    sample = {"x": np.arange(4)[1:]}
    assert Chain([])(sample, 0, 0) == [sample]
    assert Chain([])(sample, 0, 0)[0] is sample
    assert not Chain([])


def test_a_transform_may_give_none_one_or_several():
    chain = Chain([lambda n: range(n).__iter__(), lambda n: [n, n] if n % 2 else n, lambda n: n or None])
    assert chain(4, 0, 0) == [1, 1, 2, 3, 3]
    assert chain(0, 0, 0) == []


def test_randomness_belongs_to_seed_stream_epoch_sample_and_place():
    def drawn(seed=0, stream="transform", epoch=0, id_=0):
        (numbers,) = Chain([lambda _: (), lambda s, rng: draw(s, rng), draw], seed=seed, stream=stream)(0, epoch, id_)
        return numbers

    assert drawn() == drawn()
    others = [drawn(), drawn(seed=1), drawn(stream="before"), drawn(epoch=1), drawn(id_=1)]
    assert len({number for numbers in others for number in numbers}) == 10


def test_a_transform_may_change_arrays_in_place():
    shared = np.arange(5)

    def negate(sample):
        sample["labels"] *= -1
        return sample

    (changed,) = Chain([negate])({"input_ids": shared[:-1], "labels": shared[1:]}, 0, 0)
    assert changed["labels"].tolist() == [-1, -2, -3, -4]
    assert shared.tolist() == [0, 1, 2, 3, 4]


def test_errors_of_a_transform_are_its_own():
    with pytest.raises(ZeroDivisionError):
        Chain([lambda n: 1 / n])(0, 0, 0)


def test_a_callable_without_a_signature_takes_nothing_by_name():
    assert takes(draw, "rng")
    assert not takes(dict.fromkeys, "rng")
    assert not takes(type, "rng")
