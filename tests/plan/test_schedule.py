from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.plan.schedule import Schedule

KINDS = ["random", "consecutive", "consecutive_interleaved", "random_order", "fixed_random_order"]
schedules = st.builds(
    Schedule,
    st.lists(st.integers(1, 9), min_size=1, max_size=5).map(lambda counts: dict(zip("abcde", counts, strict=False))),
    st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
)


def text_of(schedule, rounds=1, start=0):
    places = np.arange(start * schedule.length, (start + rounds) * schedule.length)
    return "".join(map(str, schedule.picks(places).tolist()))


@pytest.mark.parametrize(("kind", "expected"), [("consecutive", "001112222"), ("consecutive_interleaved", "012012122")])
def test_counts_of_2_3_and_4(kind, expected):
    assert text_of(Schedule({"a": 2, "b": 3, "c": 4}, kind), rounds=2) == expected * 2


@pytest.mark.parametrize("kind", ["random", "random_order"])
def test_a_random_order_is_another_in_each_round(kind):
    schedule = Schedule({"a": 5, "b": 5}, kind, seed=1)
    assert len({text_of(schedule, start=start) for start in range(20)}) > 15


def test_a_fixed_random_order_is_the_same_in_each_round():
    schedule = Schedule({"a": 5, "b": 5}, "fixed_random_order", seed=1)
    assert len({text_of(schedule, start=start) for start in range(20)}) == 1
    assert text_of(schedule) not in ("0000011111", "0101010101")
    assert text_of(schedule) != text_of(Schedule({"a": 5, "b": 5}, "fixed_random_order", seed=2))


@given(schedules, st.integers(0, 10**12))
@settings(deadline=None)
def test_every_round_holds_the_counts(schedule, number):
    picked = schedule.picks(np.arange(number * schedule.length, (number + 1) * schedule.length))
    assert np.bincount(picked, minlength=len(schedule.items)).tolist() == list(schedule.counts.values())


@given(schedules, st.integers(0, 10**12), st.integers(0, 60))
@settings(deadline=None)
def test_what_came_before_is_known_without_counting(schedule, start, picks):
    counted = np.bincount(schedule.picks(start + np.arange(picks)), minlength=len(schedule.items))
    assert (schedule.before(start + picks) - schedule.before(start)).tolist() == counted.tolist()
    assert schedule.before(start).sum() == start


@pytest.mark.parametrize("kind", KINDS)
def test_40_and_60_of_a_hundred_are_400_and_600_of_a_thousand(kind):
    schedule = Schedule({"a": 0.4, "b": 0.6}, kind)
    assert schedule.counts == {"a": 2, "b": 3}
    assert np.bincount(schedule.picks(np.arange(1000))).tolist() == [400, 600]


def test_six_decimals_are_kept_and_nothing_collapses():
    schedule = Schedule({"a": 0.999999, "b": 0.000001}, "consecutive")
    assert schedule.counts == {"a": 999_999, "b": 1}
    assert Schedule({"a": 1.0, "b": 1e-12}, "consecutive").counts == {"a": 999_999, "b": 1}


def test_what_has_no_part_is_never_picked():
    schedule = Schedule({"a": 1, "none": 0, "less": -2.5, "b": 1}, "consecutive")
    assert schedule.items == ("a", "b")
    assert text_of(schedule) == "01"


@pytest.mark.parametrize(
    ("ratios", "kind", "message"),
    [
        ({"a": 0}, "random", "the ratio must be above 0 for one stream"),
        ({"a": "half"}, "random", "the ratio of 'a' must be a finite number"),
        ({"a": float("nan")}, "random", "the ratio of 'a' must be a finite number"),
        ({"a": 1}, "by_mood", "schedule must be one of 'random', 'consecutive'"),
    ],
)
def test_what_cannot_work_is_refused(ratios, kind, message):
    with pytest.raises(ConfigError, match=message):
        Schedule(ratios, kind)
