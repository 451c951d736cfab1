from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, PlanError
from penstock.plan.mixture import ENDLESS, Mixture, Part
from penstock.plan.order import GlobalShuffle, Sequential
from penstock.plan.plan import Cursor, Plan
from penstock.seeds import uniform
from penstock.types import World


def parts_of(sizes, seed=0):
    firsts = [0, *np.cumsum(list(sizes.values())).tolist()]
    return [
        Part(name=name, order=GlobalShuffle(size, uniform(seed, "stream", name)), first_id=first)
        for (name, size), first in zip(sizes.items(), firsts, strict=False)
    ]


def streams_of(mixture, ids, sizes):
    """Name the stream of each id."""
    ends = np.cumsum(list(sizes.values()))
    return [list(sizes)[j] for j in np.searchsorted(ends, ids, side="right")]


mixtures = st.dictionaries(
    st.text("abcdef", min_size=1, max_size=3),
    st.tuples(st.integers(1, 40), st.floats(1e-3, 0.9)),
    min_size=1,
    max_size=6,
)


@given(mixtures, st.integers(0, 2**32))
@settings(deadline=None)
def test_each_stream_is_used_up_before_any_of_it_comes_again(streams, seed):
    sizes = {name: size for name, (size, _) in streams.items()}
    weights = {name: weight for name, (_, weight) in streams.items()}
    mixture = Mixture(parts_of(sizes, seed), weights, stop="never", seed=seed)
    ids, passes = mixture.places(0, np.arange(400))
    first = 0
    for size in sizes.values():
        mine = (ids >= first) & (ids < first + size)
        for number in np.unique(passes[mine]):
            seen = ids[mine & (passes == number)]
            assert len(set(seen.tolist())) == len(seen)
            assert len(seen) == size or number == passes[mine].max()
        first += size


@given(mixtures, st.integers(0, 2**32), st.integers(1, 300))
@settings(deadline=None)
def test_proportions_are_exact_at_every_beginning_though_picks_are_stirred(streams, seed, picks):
    sizes = {name: size for name, (size, _) in streams.items()}
    mixture = Mixture(parts_of(sizes), {name: w for name, (_, w) in streams.items()}, stop="never", seed=seed)
    total = sum(mixture.weights.values())
    named = streams_of(mixture, mixture.ids(0, np.arange(picks)), sizes)
    for name, weight in mixture.weights.items():
        assert abs(named.count(name) - picks * weight / total) < 4


def test_adding_a_stream_does_not_reorder_the_others():
    sizes = {"web": 50, "code": 30}
    more = {"math": 20, **sizes}
    before = Mixture(parts_of(sizes), {"web": 0.7, "code": 0.3}, stop="never", seed=1)
    after = Mixture(parts_of(more), {"web": 0.5, "code": 0.3, "math": 0.2}, stop="never", seed=1)
    old, new = before.ids(0, np.arange(500)), after.ids(0, np.arange(500)) - 20
    for start, stop in ((0, 50), (50, 80)):
        was = old[(old >= start) & (old < stop)]
        now = new[(new >= start) & (new < stop)]
        common = min(len(was), len(now))
        assert common > 50
        assert np.array_equal(was[:common], now[:common])


@given(mixtures, st.integers(0, 3), st.integers(0, 2**32))
@settings(deadline=None)
def test_any_position_is_found_without_those_before(streams, epoch, seed):
    sizes = {name: size for name, (size, _) in streams.items()}
    mixture = Mixture(parts_of(sizes), None, seed=seed)
    every, passes = mixture.places(epoch, np.arange(mixture.num_samples))
    for offset in range(0, mixture.num_samples, 7):
        one, its_pass = mixture.places(epoch, np.array([[offset]]))
        assert one.shape == (1, 1)
        assert (one.item(), its_pass.item()) == (every[offset], passes[offset])


@given(mixtures, st.integers(0, 3))
@settings(deadline=None)
def test_without_weights_an_epoch_is_one_pass_over_everything(streams, epoch):
    sizes = {name: size for name, (size, _) in streams.items()}
    mixture = Mixture(parts_of(sizes), None, seed=3)
    ids, passes = mixture.places(epoch, np.arange(mixture.num_samples))
    assert sorted(ids.tolist()) == list(range(sum(sizes.values())))
    assert set(passes.tolist()) == {epoch}


class TestTheEndOfAnEpoch:
    sizes = {"small": 10, "large": 1000}  # noqa: RUF012
    weights = {"small": 0.5, "large": 0.5}  # noqa: RUF012

    def test_first_ends_before_any_sample_comes_again(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="first", seed=0)
        ids = mixture.ids(0, np.arange(mixture.num_samples))
        assert 20 <= mixture.num_samples <= 21
        assert len(set(ids.tolist())) == len(ids)
        assert set(range(10)) <= set(ids.tolist())

    def test_the_next_epoch_goes_on_where_the_large_stream_was(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="first", seed=0)
        ids = np.concatenate([mixture.ids(epoch, np.arange(mixture.num_samples)) for epoch in range(30)])
        large = ids[ids >= 10]
        assert len(set(large.tolist())) == len(large)

    def test_all_ends_when_the_last_is_used_up(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="all", seed=0)
        ids = mixture.ids(0, np.arange(mixture.num_samples))
        assert 1999 <= mixture.num_samples <= 2000
        assert set(ids.tolist()) == set(range(1010))

    def test_never_goes_on_and_on(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="never", seed=0)
        assert mixture.num_samples == ENDLESS
        _, passes = mixture.places(0, np.array([ENDLESS - 1, ENDLESS - 2]))
        assert passes.max() > 10**12

    def test_beyond_all_numbers_there_is_nothing(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="never", seed=0)
        with pytest.raises(PlanError, match="more than 2\\*\\*62 positions"):
            mixture.ids(2**14, np.array([0]))


class TestBatches:
    sizes = {"a": 100, "b": 100, "c": 100}  # noqa: RUF012
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}  # noqa: RUF012

    @pytest.mark.parametrize("batch", [4, 10, 16])
    def test_stratified_batches_all_hold_the_same_counts(self, batch):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="never", batches="stratified", batch=batch, seed=0)
        for epoch, step in ((0, 0), (0, 1), (0, 77), (3, 5)):
            named = streams_of(mixture, mixture.ids(epoch, step * batch + np.arange(batch)), self.sizes)
            assert {name: named.count(name) for name in self.sizes} == mixture.weights
        assert sum(mixture.weights.values()) == batch
        assert mixture.num_samples % batch == 0

    def test_per_stream_batches_are_of_one_stream_each_in_exact_proportion(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop="never", batches="per_stream", batch=16, seed=0)
        named = streams_of(mixture, mixture.ids(0, np.arange(1600)), self.sizes)
        batches = [set(named[start : start + 16]) for start in range(0, 1600, 16)]
        assert all(len(batch) == 1 for batch in batches)
        assert [sum(batch == {name} for batch in batches) for name in self.sizes] == [50, 30, 20]
        assert mixture.counts(1600) == {"a": 800, "b": 480, "c": 320}

    @pytest.mark.parametrize("batches", ["stratified", "per_stream"])
    @pytest.mark.parametrize("stop", ["first", "all"])
    def test_epochs_end_with_whole_batches(self, batches, stop):
        mixture = Mixture(parts_of(self.sizes), self.weights, stop=stop, batches=batches, batch=16, seed=0)
        ids = mixture.ids(0, np.arange(mixture.num_samples)).tolist()
        assert mixture.num_samples % 16 == 0
        assert len(set(ids)) == (len(ids) if stop == "first" else 300)

    def test_a_loader_with_another_batch_is_told(self):
        mixture = Mixture(parts_of(self.sizes), self.weights, batches="per_stream", batch=16, seed=0)
        mixture.check_batch(16)
        with pytest.raises(ConfigError, match="made for batches of 16 samples over all ranks"):
            mixture.check_batch(8)


@pytest.mark.parametrize("ranks", [2, 4])
def test_no_rank_is_left_with_one_stream(ranks):
    """Two streams at half each would fall on two ranks by turns if picks were not stirred."""
    sizes = {"a": 4000, "b": 4000}
    mixture = Mixture(parts_of(sizes), None, seed=5)
    for rank in range(ranks):
        share = Plan(order=mixture, global_batch=8).share(Cursor(), World(dp_rank=rank, dp_size=ranks), 500)
        named = streams_of(mixture, share.ids.ravel(), sizes)
        assert 0.4 < named.count("a") / len(named) < 0.6


def test_as_stored_means_untouched():
    parts = [Part(name="a", order=Sequential(4), first_id=0), Part(name="b", order=Sequential(4), first_id=4)]
    assert Mixture(parts, None, seed=None).ids(0, np.arange(8)).tolist() == [4, 0, 5, 1, 6, 2, 7, 3]


def test_a_share_says_which_pass_of_its_stream_every_sample_is_of():
    sizes = {"small": 3, "large": 30}
    mixture = Mixture(parts_of(sizes), {"small": 1, "large": 1}, stop="all", seed=0)
    plan = Plan(order=mixture, global_batch=6)
    ids, passes = mixture.places(0, np.arange(mixture.num_samples))
    shares = list(plan.walk(Cursor(), World(dp_rank=1, dp_size=2), max_steps=4))
    assert np.concatenate([share.ids.ravel() for share in shares]).tolist() == ids[1::2].tolist()
    got = np.concatenate([share.epochs(0, len(share.ids)) for share in shares])
    assert got.tolist() == passes[1::2].tolist()
    assert got.max() > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": "sometimes"}, "stop must be one of 'first', 'all', 'never'"),
        ({"batches": "wild"}, "batches must be one of 'mixed', 'stratified', 'per_stream'"),
        ({"batches": "stratified"}, "needs batch_size="),
        ({"batch": 4}, "no meaning with batches='mixed'"),
        ({"batches": "stratified", "batch": 1}, "no room for a sample of each of 2 streams"),
        ({"batches": "per_stream", "batch": 64}, "the stream 'a' has 10 samples, too few"),
    ],
)
def test_what_cannot_work_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Mixture(parts_of({"a": 10, "b": 100}), {"a": 1, "b": 1}, **options)
