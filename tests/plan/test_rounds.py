"""Rounds: stretches of the endless stream, which change nothing of which sample stands where."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, PlanError
from penstock.plan.order import GlobalShuffle, Sequential
from penstock.plan.plan import Cursor, Plan
from penstock.plan.rounds import Rounds, WithinRounds, check_boundary
from penstock.types import World

SIZES = {"num_samples": st.integers(1, 40), "batch": st.integers(1, 5), "num_batches": st.integers(1, 12)}
boundaries = st.sampled_from(["carry", "short", "pad", "drop"])


def rounds_of(num_samples, batch, num_batches, boundary="carry", order=None, ranks=1):
    order = order or GlobalShuffle(num_samples, seed=3)
    plan = Plan(order=order, global_batch=batch * ranks, remainder=boundary)
    return Rounds(plan=plan, num_batches=num_batches, boundary=boundary)


def read(rounds, count, world=None, max_steps=7):
    """Walk some rounds; give the ids and the number of repeats of each."""
    world = world or World()
    cursor, found = Cursor(), []
    for _ in range(count):
        cursor = rounds.settle(cursor)
        left = rounds.length(cursor)
        ids, repeats = [], 0
        for share in rounds.walk(cursor, world, max_steps):
            for step in range(min(left, len(share.ids))):
                ids += share.ids[step].tolist()
                repeats += share.repeats
                cursor = share.after(step)
            left -= min(left, len(share.ids))
            if not left:
                break
        found.append((ids, repeats))
    return found


def test_ten_samples_in_rounds_of_four_are_two_exact_cycles_in_five_rounds():
    found = read(rounds_of(10, 1, 4), 5)
    assert [len(ids) for ids, _ in found] == [4] * 5
    stream = [id_ for ids, _ in found for id_ in ids]
    assert sorted(stream[:10]) == sorted(stream[10:]) == list(range(10))
    assert stream[:10] != stream[10:]


def test_a_round_larger_than_the_dataset_goes_through_it_several_times():
    found = read(rounds_of(4, 1, 10), 1)[0][0]
    assert [sorted(found[:4]), sorted(found[4:8])] == [[0, 1, 2, 3]] * 2
    assert len(set(found[8:])) == 2


@given(**SIZES)
@settings(deadline=None)
def test_carried_rounds_are_of_one_length_and_cycles_are_permutations(num_samples, batch, num_batches):
    rounds = rounds_of(num_samples, batch, num_batches)
    found = read(rounds, 2 * rounds.total + 2)
    assert {len(ids) for ids, _ in found} == {batch * num_batches}
    stream = [id_ for ids, _ in found for id_ in ids]
    for start in range(0, len(stream) - num_samples + 1, num_samples):
        assert sorted(stream[start : start + num_samples]) == list(range(num_samples))


@given(**SIZES)
@settings(deadline=None)
def test_short_rounds_make_up_a_cycle(num_samples, batch, num_batches):
    rounds = rounds_of(num_samples, batch, num_batches, "short")
    found = read(rounds, 2 * rounds.total)
    for cycle in (found[: rounds.total], found[rounds.total :]):
        assert sorted(id_ for ids, _ in cycle for id_ in ids) == list(range(num_samples))
        assert all(len(ids) == batch * num_batches for ids, _ in cycle[:-1])


@given(**SIZES)
@settings(deadline=None)
def test_padded_rounds_are_of_one_length_and_flag_what_they_repeat(num_samples, batch, num_batches):
    rounds = rounds_of(num_samples, batch, num_batches, "pad")
    found = read(rounds, 2 * rounds.total)
    for cycle in (found[: rounds.total], found[rounds.total :]):
        assert {len(ids) for ids, _ in cycle} == {batch * num_batches}
        stream = [id_ for ids, _ in cycle for id_ in ids]
        repeats = sum(count for _, count in cycle)
        assert repeats == len(stream) - num_samples
        assert sorted(stream[:num_samples]) == list(range(num_samples))
        assert stream[num_samples:] == [stream[place % num_samples] for place in range(repeats)]


@given(**SIZES)
@settings(deadline=None)
def test_dropped_rounds_leave_out_only_what_does_not_fill_one(num_samples, batch, num_batches):
    if num_samples < batch * num_batches:
        with pytest.raises(ConfigError, match="there would be none"):
            rounds_of(num_samples, batch, num_batches, "drop")
        return
    rounds = rounds_of(num_samples, batch, num_batches, "drop")
    found = read(rounds, 2 * rounds.total)
    for cycle in (found[: rounds.total], found[rounds.total :]):
        stream = [id_ for ids, _ in cycle for id_ in ids]
        assert {len(ids) for ids, _ in cycle} == {batch * num_batches}
        assert len(set(stream)) == len(stream) > num_samples - batch * num_batches


@given(**SIZES, boundary=boundaries, ranks=st.integers(1, 4))
@settings(deadline=None)
def test_ranks_are_disjoint_and_make_up_the_round(num_samples, batch, num_batches, boundary, ranks):
    if boundary == "drop" and num_samples < batch * ranks * num_batches:
        return
    rounds = rounds_of(num_samples, batch, num_batches, boundary, ranks=ranks)
    whole = read(rounds, 3)
    shares = [read(rounds, 3, World(dp_rank=rank, dp_size=ranks)) for rank in range(ranks)]
    for number, (ids, repeats) in enumerate(whole):
        together = [share[number] for share in shares]
        extra = sum(count for _, count in together) - repeats
        # A "short" batch may have fewer samples than there are ranks; then some repeat one, and say so.
        assert boundary == "short" or extra == 0
        assert sum(len(found) for found, _ in together) == len(ids) + extra
        assert set(ids) == {id_ for found, _ in together for id_ in found}


@given(**SIZES, boundary=boundaries, number=st.integers(0, 9))
@settings(deadline=None)
def test_where_a_round_begins_is_arithmetic(num_samples, batch, num_batches, boundary, number):
    if boundary == "drop" and num_samples < batch * num_batches:
        return
    rounds = rounds_of(num_samples, batch, num_batches, boundary)
    cursor = Cursor()
    for _ in range(number):
        cursor = rounds.settle(cursor)
        walked = itertools.islice(rounds.walk(cursor, World(), 1), rounds.length(cursor))
        for share in walked:
            cursor = share.after(0)
    assert rounds.settle(cursor) == rounds.begin(number)


@given(num_samples=st.integers(1, 50), size=st.integers(1, 30), epoch=st.integers(0, 3), across=st.booleans())
@settings(deadline=None)
def test_shuffling_within_rounds_keeps_who_is_in_which(num_samples, size, epoch, across):
    order = WithinRounds(num_samples, size, seed=1, across=across)
    ids, epochs = order.places(epoch, np.arange(num_samples))
    stream = (ids + num_samples * (epoch if epochs is None else epochs)).tolist()
    start = epoch * num_samples
    for place, value in enumerate(stream, start):
        if across:
            assert value // size == place // size
        else:
            assert value // num_samples == epoch
            assert (value - start) // size == (place - start) // size
    assert len(set(stream)) == num_samples


def test_shuffling_within_rounds_differs_from_cycle_to_cycle_and_by_seed():
    def stream(seed, epoch):
        return WithinRounds(40, 10, seed=seed, across=True).ids(epoch, np.arange(40)).tolist()

    assert WithinRounds(40, 10, seed=0, across=True).ids(0, np.zeros((2, 0), np.int64)).shape == (2, 0)
    assert len({str(stream(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


def test_rounds_are_found_at_positions_beyond_64_bits():
    epoch, size, chunk = 2**62, 10**9, 4096
    order = WithinRounds(size, chunk, seed=0, across=True)
    begun = -(epoch * size) % chunk
    ids, epochs = order.places(epoch, np.arange(begun, begun + chunk))
    assert sorted(ids.tolist()) == list(range(begun, begun + chunk))
    assert epochs is None
    rounds = rounds_of(size, 1, chunk, order=Sequential(size))
    number = 2**79 + 3
    assert rounds.begin(number) == Cursor(epoch=number * chunk // size, samples=number * chunk % size)


@pytest.mark.parametrize("boundary", ["carry", "pad"])
def test_rounds_of_cycles_that_cannot_be_counted_are_refused(boundary):
    size, chunk = 10, 2**61
    order = WithinRounds(size, chunk, seed=0, across=boundary == "carry")
    rounds = rounds_of(size, 1, chunk, boundary, order=order)
    last = 2**62 * size // chunk if boundary == "carry" else 2**62
    cursor = rounds.begin(last)
    assert cursor.epoch == 2**62
    assert rounds.share(cursor, World()).ids.shape == (1, 1)
    with pytest.raises(ConfigError, match=rf"round {10**30} begins in cycle \d+, .* 2\*\*62"):
        rounds.begin(10**30)


def test_bad_settings_are_refused():
    plan = Plan(order=Sequential(10), global_batch=2, remainder="carry")
    for num_batches in (0, -1, 1.0, True, 2**63):
        with pytest.raises(ConfigError, match="round_batches"):
            Rounds(plan=plan, num_batches=num_batches, boundary="carry")
    assert check_boundary("boundary", "wrap") == "pad"
    with pytest.raises(ConfigError, match="boundary must be one of"):
        check_boundary("boundary", "cut")
    with pytest.raises(ConfigError, match="samples of a round"):
        WithinRounds(10, 2**63, seed=0, across=True)
    for boundary in ("carry", "pad"):
        with pytest.raises(PlanError, match="evenly"):
            rounds_of(3, 1, 2, boundary, ranks=2).share(Cursor(samples=2), World(dp_size=3))
