from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.plan.quota import MAX_SUM, QuotaTree
from penstock.plan.ratios import whole_numbers

weights = st.lists(st.floats(1e-4, 0.9), min_size=2, max_size=12)


def tree_of(floats):
    whole = whole_numbers(floats, MAX_SUM)
    return QuotaTree(whole, [str(number) for number in range(len(whole))]), np.array(whole) / sum(whole)


def worst_of(floats, picks):
    """Count the picks of every stream at every prefix, one by one, and give how far off the worst is."""
    tree, parts = tree_of(floats)
    picked, _ = tree.pick(np.arange(picks))
    steps = np.arange(1, picks + 1)
    return max(float(np.abs(np.cumsum(picked == stream) - part * steps).max()) for stream, part in enumerate(parts))


@given(weights)
@settings(deadline=None, max_examples=40)
def test_every_stream_has_its_part_of_every_beginning(floats):
    assert worst_of(floats, 2000) < 1.7


@pytest.mark.slow
@pytest.mark.parametrize("streams", [2, 3, 8, 17, 60, 150, 300])
@pytest.mark.parametrize("seed", range(3))
def test_a_hundred_thousand_picks_of_many_streams_stay_exact(streams, seed):
    drawn = np.random.default_rng(seed).uniform(np.log(1e-4), np.log(0.9), streams)
    assert worst_of(np.exp(drawn).tolist(), 100_000) < 4
    assert worst_of([0.9, *[1e-4] * (streams - 1)], 100_000) < 4


@given(weights, st.integers(0, 2**61))
@settings(deadline=None)
def test_any_place_is_found_without_those_before(floats, start):
    tree, _ = tree_of(floats)
    picked, ordinals = tree.pick(start + np.arange(50))
    before = tree.counts(start)
    for stream, ordinal in zip(picked.tolist(), ordinals.tolist(), strict=True):
        assert ordinal == before[stream]
        before[stream] += 1
    assert before == tree.counts(start + 50)


@given(weights, st.integers(1, 10**12), st.data())
@settings(deadline=None)
def test_the_fewest_picks_until_a_count_are_those(floats, count, data):
    tree, _ = tree_of(floats)
    stream = data.draw(st.integers(0, len(floats) - 1))
    picks = tree.picks_until(stream, count)
    assert tree.counts(picks)[stream] == count
    assert tree.counts(picks - 1)[stream] == count - 1


@given(weights, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_the_order_in_which_streams_are_named_does_not_matter(floats, random):
    whole = whole_numbers(floats, MAX_SUM)
    turned = list(range(len(whole)))
    random.shuffle(turned)
    here, _ = QuotaTree(whole, [str(j) for j in range(len(whole))]).pick(np.arange(300))
    there, _ = QuotaTree([whole[j] for j in turned], [str(j) for j in turned]).pick(np.arange(300))
    assert [turned[j] for j in there.tolist()] == here.tolist()


def test_a_stream_alone_is_every_pick():
    streams, ordinals = QuotaTree([7], ["only"]).pick(np.array([0, 5, 10**15]))
    assert streams.tolist() == [0, 0, 0]
    assert ordinals.tolist() == [0, 5, 10**15]


def test_40_and_60_of_a_hundred_are_400_and_600_of_a_thousand():
    tree, _ = tree_of([0.4, 0.6])
    assert all(tree.counts(1000 * k) == [400 * k, 600 * k] for k in (1, 2, 10**9))


@given(st.lists(st.integers(1, 3000), min_size=2, max_size=6), st.integers(0, 2**61))
@settings(deadline=None)
def test_looking_up_and_dividing_give_the_same_picks(whole, start):
    names = [str(j) for j in range(len(whole))]
    # Weights many times as large divide; at multiples of the round they stand where the small ones do.
    small, large = QuotaTree(whole, names), QuotaTree([w * 2**14 for w in whole], names)
    assert [small.counts(start), *small.pick(start + np.arange(30))[0].tolist()] == [
        large.counts(start),
        *large.pick(start + np.arange(30))[0].tolist(),
    ]
