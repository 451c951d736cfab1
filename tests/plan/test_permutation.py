"""permute is a bijection for every range and key, looks random, and never changes."""

from __future__ import annotations

from collections import Counter
from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import PlanError, permute
from penstock.plan.permutation import MAX_RANGE, SMALL_RANGE, permute_each
from penstock.seeds import key

EDGES = sorted({base**k + d for base in (2, 4) for k in range(1, 23) for d in (-1, 0, 1) if base**k <= 2**22} - {0, 1})


def is_bijection(n: int, of: np.ndarray) -> bool:
    seen = np.zeros(n, dtype=bool)
    seen[permute(np.arange(n), n, of)] = True
    return bool(seen.all())


def test_every_small_range_is_permuted():
    """Each n up to 4,100, under a key of its own."""
    assert [n for n in range(1, 4101) if not is_bijection(n, key(n, "bijection"))] == []


@pytest.mark.parametrize("n", [n for n in EDGES if n > 4100])
def test_ranges_around_powers_of_two_and_four_are_permuted(n):
    assert is_bijection(n, key(0, "edge", n))


def test_tiny_ranges_are_permuted_under_many_keys():
    for n in range(1, 20):
        for seed in range(50):
            assert is_bijection(n, key(seed, "tiny"))


@given(n=st.integers(1, MAX_RANGE), seed=st.integers(0, 2**64), start=st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_distinct_positions_of_any_range_give_distinct_ids(n, seed, start):
    count = min(n, 2000)
    first = min(int(start * n), n - count)
    chosen = np.unique(
        np.concatenate([np.arange(first, first + count), np.linspace(0, n - 1, 50).astype(np.int64) % n])
    )
    ids = permute(chosen, n, key(seed, "huge"))
    assert len(np.unique(ids)) == len(chosen)
    assert ids.min() >= 0
    assert ids.max() < n


@given(n=st.integers(1, MAX_RANGE), places=st.lists(st.floats(0, 1), min_size=1, max_size=30))
@settings(deadline=None)
def test_an_id_depends_on_its_position_only(n, places):
    positions = np.array([min(int(place * n), n - 1) for place in places])
    together = permute(positions, n, key(1, "alone"))
    assert [int(permute(np.array([position]), n, key(1, "alone"))[0]) for position in positions] == together.tolist()


def test_shapes_are_kept():
    assert permute(np.zeros((0,), np.int64), 5, key(0)).shape == (0,)
    grid = np.arange(12).reshape(3, 4)
    assert permute(grid, 12, key(0)).tolist() == permute(grid.ravel(), 12, key(0)).reshape(3, 4).tolist()
    assert grid.tolist() == np.arange(12).reshape(3, 4).tolist(), "the positions given were written to"


@pytest.mark.parametrize(("positions", "n"), [([0], 0), ([0], -3), ([0], 2**62 + 1), ([5], 5), ([-1], 5), ([0, 9], 5)])
def test_what_is_outside_the_range_is_refused(positions, n):
    with pytest.raises(PlanError, match=r"2\*\*62|outside \[0, 5\)"):
        permute(np.array(positions), n, key(0))


class TestLooksRandom:
    """Fixed keys, so these pass or fail for good; bounds are about four standard deviations."""

    @pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
    def test_all_orders_of_a_few_samples_are_alike_likely(self, n):
        draws = 20 * factorial(n)
        counts = Counter(permute(np.arange(n), n, key(seed, "few")).tobytes() for seed in range(draws))
        chi_square = sum((count - 20) ** 2 / 20 for count in counts.values()) + 20 * (factorial(n) - len(counts))
        freedom = factorial(n) - 1
        assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5 + 4

    @pytest.mark.parametrize("n", [8, 13, 100, SMALL_RANGE - 1, SMALL_RANGE, 1000])
    def test_where_two_neighbours_go_is_uniform_and_independent(self, n):
        draws = 4000
        pairs = np.stack([permute(np.array([0, 1]), n, key(seed, "pair")) for seed in range(draws)])
        cells = min(n, 8)
        table = np.zeros((cells, cells))
        np.add.at(table, tuple((pairs * cells // n).T), 1)
        sizes = np.bincount(np.arange(n) * cells // n, minlength=cells)
        expected = np.outer(sizes, sizes) - np.diag(sizes)
        held = expected > 0
        expected = expected / (n * (n - 1)) * draws
        chi_square = ((table[held] - expected[held]) ** 2 / expected[held]).sum()
        freedom = held.sum() - 1
        assert not table[~held].any()
        assert abs(chi_square - freedom) < 4.5 * (2 * freedom) ** 0.5

    @pytest.mark.parametrize("n", [10_000, 65_537, 1_000_000])
    @pytest.mark.parametrize("lag", [1, 2, 3, 10, 64, 100, 1000])
    def test_successive_ids_are_uncorrelated(self, n, lag):
        ids = permute(np.arange(n), n, key(5, "lag")) / n
        correlation = np.corrcoef(ids[:-lag], ids[lag:])[0, 1]
        assert abs(correlation) < 4 / n**0.5

    def test_differences_of_successive_ids_are_those_of_a_shuffle(self):
        """The difference of two uniform places modulo n is uniform: a pattern would show as a peak."""
        n = 200_000
        ids = permute(np.arange(n), n, key(6, "steps"))
        counts = np.bincount((np.diff(ids) % n) * 256 // n, minlength=256)
        chi_square = ((counts - (n - 1) / 256) ** 2 / ((n - 1) / 256)).sum()
        assert abs(chi_square - 255) < 4 * (2 * 255) ** 0.5

    @pytest.mark.parametrize("other", [key(42, "order", 1), key(43, "order", 0), key(42, "order")])
    def test_keys_give_unrelated_orders(self, other):
        n = 100_000
        one, two = permute(np.arange(n), n, key(42, "order", 0)), permute(np.arange(n), n, other)
        assert abs(np.corrcoef(one, two)[0, 1]) < 4 / n**0.5
        # Two independent shuffles agree in one place on average.
        assert (one == two).sum() < 8

    def test_a_stretch_of_a_billion_is_spread_over_all_of_it(self):
        ids = permute(np.arange(500_000_000, 500_065_536), 10**9, key(7, "stretch"))
        counts = np.bincount(ids * 64 // 10**9, minlength=64)
        chi_square = ((counts - 1024) ** 2 / 1024).sum()
        assert abs(chi_square - 63) < 4 * (2 * 63) ** 0.5


@given(ranges=st.lists(st.integers(1, MAX_RANGE) | st.integers(257, 400), min_size=1, max_size=9), data=st.data())
@settings(deadline=None)
def test_several_bijections_in_one_call_are_the_same_ones(ranges, data):
    keys = [key(0, "each", j) for j in range(len(ranges))]
    taken = [data.draw(st.lists(st.integers(0, n - 1), max_size=5)) for n in ranges]
    positions = np.array([place for places in taken for place in places], np.int64)
    alone = [permute(np.array(places, np.int64), n, of) for places, n, of in zip(taken, ranges, keys, strict=True)]
    together = permute_each(positions, list(map(len, taken)), ranges, keys)
    assert together.tolist() == [id_ for ids in alone for id_ in ids.tolist()]


@pytest.mark.parametrize("outside", [-1, 1000])
def test_a_position_outside_its_own_range_is_refused(outside):
    with pytest.raises(PlanError, match="outside"):
        permute_each(np.array([outside, 5]), [1, 1], [1000, 2000], [key(0), key(1)])
