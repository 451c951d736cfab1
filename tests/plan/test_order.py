"""Shuffle policies: each is a permutation of an epoch, and keeps what its name promises."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import ConfigError
from penstock.plan.order import GlobalShuffle, LengthBuckets, Order, Sequential, WindowShuffle

BLOCKS = st.lists(st.integers(0, 12), min_size=1, max_size=20).filter(lambda sizes: sum(sizes) > 0)


def epoch_of(order: Order, epoch: int = 0) -> np.ndarray:
    return order.ids(epoch, np.arange(order.num_samples))


@given(
    sizes=BLOCKS, window=st.integers(1, 25), bucket=st.integers(1, 6), seed=st.integers(0, 99), epoch=st.integers(0, 9)
)
@settings(deadline=None)
def test_every_order_is_a_permutation_with_random_access(sizes, window, bucket, seed, epoch):
    total = sum(sizes)
    lengths = np.arange(total) % 5
    windowed = WindowShuffle(np.cumsum(sizes), seed, window)
    orders = [
        Sequential(total),
        GlobalShuffle(total, seed),
        windowed,
        LengthBuckets(windowed, lengths, bucket=bucket, window=3 * bucket, seed=seed),
        LengthBuckets(GlobalShuffle(total, seed), lengths, bucket=bucket, window=bucket, seed=seed),
    ]
    for order in orders:
        whole = epoch_of(order, epoch)
        assert sorted(whole.tolist()) == list(range(total)), order.name
        backwards = np.arange(total)[::-1]
        assert order.ids(epoch, backwards).tolist() == whole[::-1].tolist(), order.name
        assert order.ids(epoch, backwards[:1].reshape(1, 1)).shape == (1, 1)
        assert order.ids(epoch, np.empty(0, np.int64)).shape == (0,)


@pytest.mark.parametrize(
    "make",
    [
        lambda seed: GlobalShuffle(1000, seed),
        lambda seed: WindowShuffle(np.arange(10, 1001, 10), seed, 4),
        lambda seed: LengthBuckets(GlobalShuffle(1000, seed), np.arange(1000) % 9, bucket=10, window=200, seed=seed),
    ],
    ids=["global", "window", "buckets"],
)
class TestEpochsAndSeeds:
    def test_the_next_epoch_differs(self, make):
        order = make(42)
        assert (epoch_of(order, 0) == epoch_of(order, 1)).mean() < 0.05

    def test_the_next_epoch_is_not_the_next_seed(self, make):
        assert (epoch_of(make(42), 1) == epoch_of(make(43), 0)).mean() < 0.05

    def test_the_same_seed_and_epoch_agree_in_another_process(self, make):
        order = make(7)
        one = epoch_of(order, 3)
        assert epoch_of(pickle.loads(pickle.dumps(order)), 3).tolist() == one.tolist()
        assert epoch_of(make(7), 3).tolist() == one.tolist()

    def test_an_order_asked_out_of_turn_answers_the_same(self, make):
        """Tables of a few epochs are remembered; what was asked before must not show."""
        order, fresh = make(1), make(1)
        for epoch in (0, 5, 1, 6, 2, 7, 3, 8, 0):
            fresh.ids(epoch, np.arange(10))
        assert epoch_of(order, 4).tolist() == epoch_of(fresh, 4).tolist()


class TestWindow:
    SIZES = (10, 3, 0, 7, 10, 1, 5, 0, 0, 9, 2, 6)

    def blocks_of(self, ids):
        return np.searchsorted(np.cumsum(self.SIZES), ids, side="right")

    @pytest.mark.parametrize("window", [1, 2, 5, 12, 100])
    def test_groups_of_blocks_are_disjoint_and_consecutive(self, window):
        """Once a group is left, none of its blocks is ever needed again."""
        order = WindowShuffle(np.cumsum(self.SIZES), 5, window)
        blocks = self.blocks_of(epoch_of(order))
        first = {block: int(np.argmax(blocks == block)) for block in set(blocks.tolist())}
        last = {block: len(blocks) - 1 - int(np.argmax(blocks[::-1] == block)) for block in first}
        open_at = [sum(first[block] <= place <= last[block] for block in first) for place in range(len(blocks))]
        assert max(open_at) <= window
        changes = sorted(set(first.values()))
        assert len(changes) == len(first)

    def test_samples_of_a_group_are_shuffled_across_its_blocks(self):
        order = WindowShuffle(np.arange(100, 1001, 100), 5, 5)
        ids = epoch_of(order)
        group = set((ids[:500] // 100).tolist())
        assert len(group) == 5
        assert set((ids[:50] // 100).tolist()) == group

    def test_blocks_take_turns_in_another_order_each_epoch(self):
        order = WindowShuffle(np.arange(10, 501, 10), 5, 1)
        one, two = (epoch_of(order, epoch)[::10] // 10 for epoch in (0, 1))
        assert one.tolist() != two.tolist()
        assert one.tolist() != sorted(one.tolist())

    def test_a_window_of_all_blocks_shuffles_everything(self):
        ids = epoch_of(WindowShuffle(np.arange(10, 1001, 10), 5, 100))
        assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.13

    def test_the_layout_belongs_to_the_name(self):
        names = {
            WindowShuffle(np.array([3, 8]), 0, 2).name,
            WindowShuffle(np.array([4, 8]), 0, 2).name,
            WindowShuffle(np.array([3, 8]), 0, 3).name,
        }
        assert len(names) == 3
        assert WindowShuffle(np.array([3, 8], dtype=np.int32), 9, 2).name in names

    @pytest.mark.parametrize("ends", [[], [0], [3, 2], [-1, 4], [[1, 2]]])
    def test_block_ends_that_are_none_are_refused(self, ends):
        with pytest.raises(ConfigError, match="block_ends must be ascending"):
            WindowShuffle(np.array(ends, dtype=np.int64), 0)


class TestLengthBuckets:
    def test_a_bucket_holds_like_lengths(self):
        lengths = np.random.default_rng(0).integers(1, 1000, 4096)
        order = LengthBuckets(GlobalShuffle(4096, 3), lengths, bucket=16, window=1024, seed=3)
        ids = epoch_of(order)
        bucketed = lengths[ids].reshape(-1, 16)
        plain = lengths[epoch_of(GlobalShuffle(4096, 3))].reshape(-1, 16)

        def padding(batches):
            return (batches.max(axis=1, keepdims=True) - batches).sum() / batches.sum()

        assert padding(bucketed) < padding(plain) / 10

    def test_buckets_are_not_sorted_by_length(self):
        lengths = np.arange(1000)
        ids = epoch_of(LengthBuckets(Sequential(1000), lengths, bucket=10, window=1000, seed=3))
        means = lengths[ids].reshape(-1, 10).mean(axis=1)
        assert abs(np.corrcoef(np.arange(100), means)[0, 1]) < 0.4

    def test_a_window_holds_the_samples_that_the_base_order_puts_there(self):
        base = GlobalShuffle(100, 3)
        order = LengthBuckets(base, np.arange(100) % 7, bucket=5, window=20, seed=3)
        for start in range(0, 100, 20):
            places = np.arange(start, start + 20)
            assert sorted(order.ids(2, places).tolist()) == sorted(base.ids(2, places).tolist())

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"bucket": 0, "window": 4}, "bucket must be an integer >= 1, got 0"),
            ({"bucket": 4, "window": 2}, "window must be an integer >= 4, got 2"),
            ({"bucket": 4, "window": 10}, r"window \(10\) must be a multiple of bucket \(4\)"),
        ],
    )
    def test_sizes_that_do_not_fit_are_refused(self, settings, said):
        with pytest.raises(ConfigError, match=said):
            LengthBuckets(Sequential(20), np.arange(20), seed=0, **settings)

    def test_one_length_per_sample_is_needed(self):
        with pytest.raises(ConfigError, match="19 entries for 20 samples"):
            LengthBuckets(Sequential(20), np.arange(19), bucket=2, window=4, seed=0)


@pytest.mark.parametrize("make", [Sequential, lambda size: GlobalShuffle(size, 0)])
@pytest.mark.parametrize("size", [0, -1, 2.5, "7", True])
def test_an_order_needs_samples(make, size):
    with pytest.raises(ConfigError, match="num_samples must be an integer >= 1"):
        make(size)
