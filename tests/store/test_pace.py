"""Stragglers: those far slower than their peers, and only a few of them."""

from __future__ import annotations

import math

import pytest

from penstock.store.pace import ENOUGH_PEERS, FLOOR_S, Pace


def after(*seconds):
    pace = Pace()
    for each in seconds:
        pace.finished(each)
    return pace


def test_nothing_is_a_straggler_while_there_are_few_peers():
    assert after(*[0.1] * (ENOUGH_PEERS - 1)).slow_s() == math.inf


@pytest.mark.parametrize("usual_s", [0.001, 0.03, 0.1, 0.5, 2.0])
def test_a_straggler_takes_three_times_as_long_as_nearly_all_peers(usual_s):
    assert after(*[usual_s] * 100).slow_s() == pytest.approx(max(3 * usual_s, FLOOR_S))


def test_a_place_that_becomes_slow_has_slow_peers():
    assert after(*[0.1] * 1000, *[1.0] * 256).slow_s() == pytest.approx(3.0)


def test_few_requests_are_doubled_however_many_would_be():
    pace = after(*[0.1] * 1000)
    assert sum(pace.may_double() for _ in range(1000)) == pytest.approx(30, abs=3)
