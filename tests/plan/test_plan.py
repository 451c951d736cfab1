"""A plan cuts an order into global batches: every remainder, on every world."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock import ConfigError, Cursor, Plan, PlanError, World
from penstock.plan.order import GlobalShuffle, Sequential


def walked(plan: Plan, size: int, cursor: Cursor | None = None) -> list[list[list[int]]]:
    """Each rank's batches from the cursor to the epoch's end."""
    ranks = []
    for rank in range(size):
        shares = plan.walk(cursor or Cursor(), World(dp_rank=rank, dp_size=size), max_steps=2)
        ranks.append([row for share in shares for row in share.ids.tolist()])
    return ranks


# 10 samples in global batches of 4: what ranks are handed.
TABLE = {
    ("short", 1): [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]],
    ("short", 2): [[[0, 2], [4, 6], [8]], [[1, 3], [5, 7], [9]]],
    ("short", 4): [[[0], [4], [8]], [[1], [5], [9]], [[2], [6], [8]], [[3], [7], [9]]],
    ("drop", 1): [[[0, 1, 2, 3], [4, 5, 6, 7]]],
    ("drop", 2): [[[0, 2], [4, 6]], [[1, 3], [5, 7]]],
    ("pad", 1): [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]],
    ("pad", 2): [[[0, 2], [4, 6], [8, 0]], [[1, 3], [5, 7], [9, 1]]],
    ("carry", 1): [[[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 0, 1]]],
    ("carry", 4): [[[0], [4], [8]], [[1], [5], [9]], [[2], [6], [0]], [[3], [7], [1]]],
}


@pytest.mark.parametrize(("remainder", "size"), TABLE)
def test_what_each_rank_is_handed(remainder, size):
    assert walked(Plan(order=Sequential(10), global_batch=4, remainder=remainder), size) == TABLE[remainder, size]


@given(
    num_samples=st.integers(1, 60),
    rows=st.integers(1, 7),
    size=st.sampled_from([1, 2, 3, 4, 8]),
    remainder=st.sampled_from(["short", "drop", "pad", "carry"]),
    start=st.integers(0, 60),
)
@settings(max_examples=300, deadline=None)
def test_ranks_together_read_the_rest_once(num_samples, rows, size, remainder, start):
    batch = rows * size
    if remainder == "drop" and num_samples < batch:
        return
    plan = Plan(order=GlobalShuffle(num_samples, 3), global_batch=batch, remainder=remainder)
    cursor = Cursor(samples=min(start, num_samples))
    left = num_samples - cursor.samples
    expected = GlobalShuffle(num_samples, 3).ids(0, np.arange(cursor.samples, num_samples)).tolist()
    fresh, repeats, counts = [], 0, set()
    for rank in range(size):
        shares = list(plan.walk(cursor, World(dp_rank=rank, dp_size=size)))
        counts.add(sum(len(share.ids) for share in shares))
        for share in shares:
            assert share.ids.shape[1] >= 1
            ids = share.ids.ravel().tolist()
            fresh.extend(ids[: len(ids) - share.repeats])
            repeats += share.repeats
    assert counts == {plan.num_batches(cursor.samples)}, "ranks are not in step"
    if remainder == "drop":
        expected = expected[: left // batch * batch]
    if remainder == "carry" and left % batch:
        following = [plan.order.ids(1 + j, np.arange(num_samples)) for j in range(batch // num_samples + 1)]
        expected += np.concatenate(following)[: batch - left % batch].tolist()
    assert Counter(fresh) == Counter(expected)
    if remainder == "pad":
        assert repeats == -left % batch
    if remainder == "short":
        assert repeats == (max(0, size - left % batch) if left % batch else 0)
    if remainder in ("drop", "carry"):
        assert repeats == 0


@given(num_samples=st.integers(2, 40), batch=st.integers(1, 90), steps=st.integers(1, 12))
@settings(max_examples=50, deadline=None)
def test_carry_reads_an_endless_stream_without_a_seam(num_samples, batch, steps):
    """Every epoch in full, in its own order, whatever the batch; one larger than the dataset too."""
    order = GlobalShuffle(num_samples, 1)
    plan = Plan(order=order, global_batch=batch, remainder="carry")
    epochs = steps * batch // num_samples + 2
    stream = np.concatenate([order.ids(epoch, np.arange(num_samples)) for epoch in range(epochs)])
    read: list[int] = []
    cursor = Cursor()
    for _ in range(steps):
        while (share := plan.share(cursor, World())) is None:
            cursor = plan.next_epoch(cursor)
        assert share.ids.shape == (1, batch)
        read.extend(share.ids[0].tolist())
        cursor = share.after(0)
    assert read == stream[: len(read)].tolist()


def test_carry_starts_the_next_epoch_where_the_last_batch_stopped():
    plan = Plan(order=Sequential(10), global_batch=4, remainder="carry")
    assert plan.next_epoch(Cursor(epoch=3, samples=12)) == Cursor(epoch=4, samples=2)
    assert plan.next_epoch(Cursor(epoch=3, samples=10)) == Cursor(epoch=4)
    assert plan.next_epoch(Cursor(epoch=3, samples=31)) == Cursor(epoch=6, samples=1)


@pytest.mark.parametrize("remainder", ["short", "drop", "pad"])
def test_other_remainders_start_the_next_epoch_at_its_start(remainder):
    plan = Plan(order=Sequential(10), global_batch=4, remainder=remainder)
    assert plan.next_epoch(Cursor(epoch=3, samples=10)) == Cursor(epoch=4)
    assert plan.next_epoch(Cursor(epoch=3, samples=8)) == Cursor(epoch=4)
    *_, last = plan.walk(Cursor(), World())
    assert last.after(len(last.ids) - 1).samples <= 10, "only carried samples may move a cursor past its epoch"


@pytest.mark.parametrize("remainder", ["short", "drop", "pad"])
def test_what_was_carried_over_is_not_repeated_under_another_remainder(remainder):
    plan = Plan(order=Sequential(10), global_batch=4, remainder=remainder)
    assert plan.next_epoch(Cursor(epoch=3, samples=12)) == Cursor(epoch=4, samples=2)


def test_a_rank_that_would_get_nothing_repeats_one_and_says_so():
    plan = Plan(order=Sequential(9), global_batch=4)
    shares = [list(plan.walk(Cursor(), World(dp_rank=rank, dp_size=4)))[-1] for rank in range(4)]
    assert [share.ids.tolist() for share in shares] == [[[8]]] * 4
    assert [share.repeats for share in shares] == [0, 1, 1, 1]
    # The cursor counts samples, so a repeat does not move it.
    assert {share.after(0) for share in shares} == {Cursor(samples=9)}


def test_pad_flags_what_it_repeats():
    plan = Plan(order=Sequential(9), global_batch=4, remainder="pad")
    shares = [list(plan.walk(Cursor(), World(dp_rank=rank, dp_size=2)))[-1] for rank in range(2)]
    assert [(share.ids.tolist(), share.repeats) for share in shares] == [([[8, 1]], 1), ([[0, 2]], 2)]


@pytest.mark.parametrize("size", [1, 2, 4, 8])
def test_a_global_batch_is_the_same_positions_on_any_world(size):
    plan = Plan(order=GlobalShuffle(100, 4), global_batch=16)
    for step in range(plan.num_batches()):
        rows = [walked(plan, size)[rank][step] for rank in range(size)]
        dealt = [rows[j % size][j // size] for j in range(sum(map(len, rows)))]
        assert dealt[: len(plan.batch(step))] == plan.batch(step).tolist()


def test_several_steps_asked_at_once_are_those_asked_one_by_one():
    plan = Plan(order=GlobalShuffle(1000, 4), global_batch=6)
    world = World(dp_rank=1, dp_size=2)
    share = plan.share(Cursor(epoch=2, samples=13), world, max_steps=50)
    assert share is not None
    assert share.ids.shape == (50, 3)
    cursor = Cursor(epoch=2, samples=13)
    for step, ids in enumerate(share.ids):
        one = plan.share(cursor, world)
        assert one is not None
        assert one.ids[0].tolist() == ids.tolist()
        assert one.after(0) == share.after(step)
        cursor = one.after(0)


def test_a_walk_ends_in_one_step_at_a_billion():
    plan = Plan(order=GlobalShuffle(10**9, 0), global_batch=4)
    shares = list(plan.walk(Cursor(samples=10**9 - 6), World()))
    assert [share.ids.shape for share in shares] == [(1, 4), (1, 2)]
    assert list(plan.walk(Cursor(samples=10**9), World())) == []


class TestErrors:
    @pytest.mark.parametrize("size", [0, -2, 1.5, "8", True, None])
    def test_a_global_batch_is_a_positive_integer(self, size):
        with pytest.raises(ConfigError, match="global_batch must be an integer >= 1"):
            Plan(order=Sequential(4), global_batch=size)

    def test_an_unknown_remainder_names_those_there_are(self):
        with pytest.raises(ConfigError, match="remainder must be one of 'short', 'drop', 'pad', 'carry'; got 'wrap'"):
            Plan(order=Sequential(4), global_batch=2, remainder="wrap")

    def test_dropping_everything_is_refused(self):
        with pytest.raises(ConfigError, match="3 samples do not fill one global batch of 4"):
            Plan(order=Sequential(3), global_batch=4, remainder="drop")

    @pytest.mark.parametrize("step", [-1, 3])
    def test_a_step_outside_the_epoch_is_refused(self, step):
        with pytest.raises(PlanError, match="it has 3 global batches"):
            Plan(order=Sequential(10), global_batch=4).batch(step)

    def test_a_batch_that_cannot_be_dealt_evenly_is_refused(self):
        with pytest.raises(PlanError, match="a global batch of 4 cannot be dealt evenly to 3 ranks"):
            Plan(order=Sequential(10), global_batch=4).share(Cursor(), World(dp_size=3))

    @pytest.mark.parametrize("place", [{"epoch": -1}, {"samples": -1}, {"samples": 0.5}, {"epoch": "0"}])
    def test_a_cursor_holds_counts(self, place):
        with pytest.raises(ConfigError, match="must be an integer >= 0"):
            Cursor(**place)
