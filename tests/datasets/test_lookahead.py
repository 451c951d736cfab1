"""Hints: what they begin, that it fits, and that none is held for ever."""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest

from penstock.datasets import lookahead as module
from penstock.datasets.lookahead import Lookahead
from penstock.store.wanted import Wanted


class Held:
    """What is begun and not let go of or taken."""

    def __init__(self, limit, *, landed=1_000_000):
        self.begun: Counter = Counter()
        self.ahead = Lookahead(limit, self.begun.update, self.begun.subtract)
        self.ahead.land(landed)

    def hint(self, ids, epoch=0):
        self.ahead.add([((epoch, id_), f"plan {id_}", [wanted(id_)]) for id_ in ids])

    def take(self, ids, epoch=0, *, in_turn=True):
        """Fetch, as the cache does: what was begun is not held any more."""
        plans = self.ahead.take([(epoch, id_) for id_ in ids], in_turn=in_turn)
        for id_, plan in zip(ids, plans, strict=True):
            if plan is not self.ahead and self.begun[wanted(id_)]:
                self.begun[wanted(id_)] -= 1
        return [None if plan is self.ahead else plan for plan in plans]

    @property
    def count(self):
        return sum(self.begun.values())


def wanted(id_, size=1000):
    return Wanted(f"s3://bucket/{id_}", size=size)


@pytest.mark.parametrize("limit", [None, 4_000_000])
def test_a_hint_is_begun_at_once_and_taken_once(limit):
    held = Held(limit)
    held.hint(range(100))
    assert held.count == 100
    assert held.take([3, 4]) == ["plan 3", "plan 4"]
    assert held.count == 98
    assert held.take([3]) == [None]


def test_until_a_first_batch_has_landed_no_more_than_that_is_begun():
    held, first = Held(None, landed=0), module.FIRST_SAMPLES
    held.hint(range(first + 200))
    assert held.count == first
    assert None not in held.take(range(first))
    held.hint(range(first + 200, first + 210))
    held.ahead.land(first // 4)
    held.ahead.go_on()
    assert held.count == 0
    held.ahead.land(first - first // 4)
    assert held.count == 0, "what the first batch still needs comes first"
    held.ahead.go_on()
    assert held.count == 210


def test_the_rest_is_begun_soon_after_a_batch_that_is_smaller_though_nobody_asks_for_more():
    held = Held(None, landed=0)
    held.hint(range(300))
    assert None not in held.take(range(4))
    held.ahead.land(4)
    deadline = time.monotonic() + 10
    while held.count < 296 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert held.count == 296


def test_what_was_closed_begins_nothing_later(monkeypatch):
    monkeypatch.setattr(module, "SOON_S", 0.2)
    held = Held(None, landed=0)
    held.hint(range(300))
    held.take(range(4))
    held.ahead.land(4)
    held.ahead.clear()
    time.sleep(0.3)
    assert held.count == 0


def test_hints_that_nobody_reads_in_turn_are_begun_at_once():
    held = Held(None, landed=0)
    held.ahead.add([((0, id_), id_, [wanted(id_)]) for id_ in range(300)], in_turn=False)
    assert held.count == 300


def test_no_more_is_begun_than_a_part_of_the_limit_and_the_rest_follows():
    held = Held(40_000)
    held.hint(range(100))
    assert held.count == 10
    for first in range(0, 100, 5):
        assert None not in held.take(range(first, first + 5))
        held.ahead.go_on()
        assert held.count <= 10
    assert held.count == 0


def test_a_limit_of_nothing_begins_nothing_and_loses_nothing():
    held = Held(0)
    held.hint(range(10))
    assert held.count == 0
    assert held.take([7]) == ["plan 7"]


def test_sizes_nobody_knows_are_those_of_what_arrived():
    held = Held(64 * module.FIRST_GUESS_BYTES)
    held.ahead.add([((0, id_), id_, [Wanted(f"s3://bucket/{id_}")]) for id_ in range(200)])
    assert held.count == 16
    for _ in range(50):
        held.ahead.land(1, module.FIRST_GUESS_BYTES // 4)
    assert held.count > 40


def test_a_hint_that_comes_after_its_fetch_is_dropped():
    held = Held(None)
    assert held.take([5]) == [None]
    held.hint([5, 6])
    assert held.begun == {wanted(6): 1}
    held.hint([5], epoch=1)
    assert held.count == 2


def test_what_is_read_by_hand_is_hinted_all_the_same():
    held = Held(None)
    held.take([5], in_turn=False)
    held.hint([5])
    assert held.count == 1


def test_what_a_reader_left_behind_is_let_go_of_by_the_next():
    held = Held(4 * 1000 * 50)
    held.hint(range(50))
    held.hint(range(1000, 3000))
    assert held.count == 50
    for first in range(1000, 3000, 10):
        held.take(range(first, first + 10))
        held.ahead.go_on()
    assert held.count == 0


def test_hints_that_nobody_follows_are_bounded():
    held = Held(None)
    for first in range(0, 20_000, 100):
        held.hint(range(first, first + 100))
    assert held.count == module.MOST_HINTED


def test_an_object_larger_than_the_room_waits_for_its_fetch_and_holds_up_nobody_for_good():
    held = Held(40_000)
    held.ahead.add([((0, 0), "large", [wanted(0, 99_000)])])
    held.hint(range(1, 5))
    assert held.count == 0
    held.take([0])
    held.ahead.go_on()
    assert held.count == 4


def test_a_child_forked_while_a_thread_gives_hints_begins_without_them():
    held = Held(None)
    held.hint(range(3))
    with held.ahead._lock:
        child = os.fork()
        if not child:
            right = False
            try:
                right = held.ahead._lock.acquire(timeout=5)
                held.ahead._lock.release()
                right = right and held.take([0]) == [None]
            finally:
                os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
