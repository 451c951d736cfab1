"""Threads with cheap work take turns; those that wait or compute do not, and one that is stuck holds up nobody."""

from __future__ import annotations

import threading
import time

import pytest

from penstock.loader.turns import FIRST_TRY_AFTER, TRY_AFTER, Turns


class Clocks:
    """Time as it passes for whoever works."""

    def __init__(self, patience_s: float = 0.01) -> None:
        self.now = self.worked = 0.0
        self.turns = Turns(lambda: self.now, lambda: self.worked, patience_s)

    def part(self, *, cost_s: float = 0.0, wait_s: float = 0.0) -> bool:
        """Work on 16 samples; tell whether in turn."""
        start = self.turns.begin()
        self.worked += cost_s
        self.now += cost_s + wait_s
        self.turns.end(start, 16)
        return start[0]

    def parts(self, count: int, *, cost_s: float = 0.0, wait_s: float = 0.0) -> int:
        """Work on so many parts; give how many were in turn."""
        return sum(self.part(cost_s=cost_s, wait_s=wait_s) for _ in range(count))


def test_cheap_work_is_done_in_turns_from_the_first_parts_on() -> None:
    clocks = Clocks()
    assert clocks.parts(FIRST_TRY_AFTER, cost_s=0.0003) == 0
    assert clocks.parts(50, cost_s=0.0003) == 50


def test_expensive_work_is_never_done_in_turns() -> None:
    assert Clocks().parts(3 * FIRST_TRY_AFTER, cost_s=0.003) == 0


@pytest.mark.parametrize("dear", [{"cost_s": 0.003}, {"wait_s": 0.003}], ids=["computes", "waits"])
def test_work_that_becomes_expensive_or_waits_goes_side_by_side_after_one_part(dear: dict[str, float]) -> None:
    clocks = Clocks()
    clocks.parts(FIRST_TRY_AFTER)
    assert clocks.parts(10, **dear) == 1


def test_turns_are_tried_again_later() -> None:
    clocks = Clocks()
    clocks.parts(FIRST_TRY_AFTER)
    assert clocks.part(cost_s=0.003)
    assert clocks.parts(TRY_AFTER) == 0
    assert clocks.part()


def test_in_turns_no_two_work_at_a_time() -> None:
    clocks, busy, most = Clocks(patience_s=60), 0, 0
    clocks.parts(FIRST_TRY_AFTER)

    def work() -> None:
        nonlocal busy, most
        for _ in range(20):
            start = clocks.turns.begin()
            busy += 1
            most = max(most, busy)
            time.sleep(0)
            busy -= 1
            clocks.turns.end(start, 16)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_who_is_stuck_in_his_turn_keeps_nobody_from_working() -> None:
    clocks, begun, let_go = Clocks(), threading.Event(), threading.Event()
    clocks.parts(FIRST_TRY_AFTER)

    def get_stuck() -> None:
        start = clocks.turns.begin()
        begun.set()
        let_go.wait()
        clocks.turns.end(start, 16)

    stuck = threading.Thread(target=get_stuck)
    stuck.start()
    begun.wait()
    assert clocks.parts(5) == 0
    let_go.set()
    stuck.join()
