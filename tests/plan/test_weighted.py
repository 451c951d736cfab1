"""Chunks by weight: in exact proportion, and every sample within a known number of cycles."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, PlanError
from penstock.plan.weighted import WeightedChunks

orders = st.integers(1, 60).flatmap(
    lambda size: st.builds(
        WeightedChunks,
        st.just(size),
        st.lists(st.sampled_from([0, 1, 2, 0.5, 7.25]), min_size=1, max_size=min(size, 8)).filter(any),
        floor=st.sampled_from([0.05, 0.25, 0.5, 1]),
        seed=st.one_of(st.none(), st.integers(0, 3)),
    )
)


def stream(order, cycles):
    return np.concatenate([order.ids(cycle, np.arange(order.num_samples)) for cycle in range(cycles)])


@given(orders)
@settings(deadline=None)
def test_every_sample_comes_within_the_cycles_that_are_promised(order):
    seen = stream(order, order.cycles_to_see_all)
    assert set(seen.tolist()) == set(range(order.num_samples))


@given(orders)
@settings(deadline=None)
def test_a_pass_over_a_chunk_is_complete_before_any_of_it_comes_again(order):
    cycles = 3
    ids = stream(order, cycles)
    passes = np.concatenate([order.places(cycle, np.arange(order.num_samples))[1] for cycle in range(cycles)])
    assert len({*zip(ids.tolist(), passes.tolist(), strict=True)}) == len(ids)
    counts = np.bincount(ids, minlength=order.num_samples)
    starts = np.cumsum([0, *order.chunk_sizes])
    for start, stop in itertools.pairwise(starts):
        assert counts[start:stop].max() - counts[start:stop].min() <= 1


def test_chunks_come_in_exact_proportion():
    # 0.2 + 0.8 · (0, 1, 3) / mean 4/3: 0.2, 0.8 and 2 times a cycle.
    order = WeightedChunks(3000, [0, 1, 3], floor=0.2, seed=5)
    for cycles in (1, 2, 7):
        found = np.bincount(stream(order, cycles) // 1000)
        assert np.abs(found - cycles * np.array([200, 800, 2000])).max() <= 4
    assert order.cycles_to_see_all in (5, 6)
    assert len(set(stream(order, 5)[: 5 * 3000].tolist())) > 2990


def test_equal_weights_and_a_floor_of_one_are_a_permutation_a_cycle():
    for order in (
        WeightedChunks(40, [2, 2, 2, 2], floor=0.1, seed=1),
        WeightedChunks(40, [0, 9, 1, 2], floor=1.0, seed=1),
    ):
        for cycle in range(3):
            assert sorted(order.ids(cycle, np.arange(40)).tolist()) == list(range(40))
        assert order.ids(0, np.arange(40)).tolist() != order.ids(1, np.arange(40)).tolist()


def test_any_place_is_found_alone_and_the_weights_are_part_of_the_name():
    order = WeightedChunks(100, [1, 5], floor=0.1, seed=1)
    whole = order.ids(3, np.arange(100))
    assert [int(order.ids(3, np.array([place]))[0]) for place in range(100)] == whole.tolist()
    others = [
        WeightedChunks(100, [1, 5], floor=0.2, seed=1),
        WeightedChunks(100, [5, 1], floor=0.1, seed=1),
        WeightedChunks(100, [1, 5, 5], floor=0.1, seed=1),
        WeightedChunks(101, [1, 5], floor=0.1, seed=1),
    ]
    assert len({order.name, *(other.name for other in others)}) == 5


def test_weights_may_come_one_by_one_or_as_an_array():
    expected = WeightedChunks(10, [1, 2], floor=0.1, seed=0).ids(0, np.arange(10)).tolist()
    for weights in (iter([1, 2]), np.array([1, 2]), (1, 2)):
        assert WeightedChunks(10, weights, floor=0.1, seed=0).ids(0, np.arange(10)).tolist() == expected


def test_bad_settings_are_refused():
    for weights, said in (([], "number of chunk_weights"), ([1] * 11, "number of chunk_weights"), ([0, 0], "above 0")):
        with pytest.raises(ConfigError, match=said):
            WeightedChunks(10, weights, floor=0.1, seed=0)
    for weight in (-1, float("nan"), float("inf"), "2", None, True):
        with pytest.raises(ConfigError, match="chunk_weights of 'chunk 1' must be"):
            WeightedChunks(10, [1, weight], floor=0.1, seed=0)
    for weights in (3, "12", {"a": 1, "b": 2}, None):
        with pytest.raises(ConfigError, match="chunk_weights must be a list"):
            WeightedChunks(10, weights, floor=0.1, seed=0)
    with pytest.raises(ConfigError, match="number of chunk_weights"):
        WeightedChunks(10, itertools.repeat(1), floor=0.1, seed=0)
    for floor in (0, -0.1, 1.1, float("nan"), "a", None, True):
        with pytest.raises(ConfigError, match="weight_floor"):
            WeightedChunks(10, [1, 2], floor=floor, seed=0)
    with pytest.raises(PlanError, match="beyond"):
        WeightedChunks(10, [1, 2], floor=0.1, seed=0).ids(2**46, np.arange(3))
