"""Cheap work is done by one thread while others sleep, other work by all; who is stuck is helped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from penstock.loader.turns import FIRST_TRY_AFTER, PATIENCE_S, TRY_AFTER, Turns

Work = Callable[[], object]


class Clocks:
    """Time as it passes for whoever works."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.turns: Turns[Work] = Turns(lambda: self.now, lambda: self.worked)

    def part(self, *, cost_s: float = 0.0, wait_s: float = 0.0) -> bool:
        """Work on 16 samples; tell whether one works alone after that."""
        start = self.turns.begin()
        self.worked += cost_s
        self.now += cost_s + wait_s
        self.turns.end(start, 16)
        return self.turns.alone

    def parts(self, count: int, *, cost_s: float = 0.0, wait_s: float = 0.0) -> int:
        """Work on so many parts; give after how many of them one worked alone."""
        return sum(self.part(cost_s=cost_s, wait_s=wait_s) for _ in range(count))


class Crew:
    """Four threads that do what is put."""

    def __init__(self, turns: Turns[Work]) -> None:
        self.turns = turns
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(4)]
        for thread in self.threads:
            thread.start()

    def work(self) -> None:
        for task in self.turns.tasks():
            task()

    def end(self) -> None:
        for _ in self.threads:
            self.turns.end_thread()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


@pytest.fixture
def clocks():
    return Clocks()


@pytest.fixture
def crew(clocks):
    crew = Crew(clocks.turns)
    yield crew
    crew.end()


def test_cheap_work_is_done_by_one_from_the_first_parts_on(clocks) -> None:
    assert clocks.parts(FIRST_TRY_AFTER - 1, cost_s=0.0003) == 0
    assert clocks.parts(50, cost_s=0.0003) == 50


def test_expensive_work_is_never_done_by_one(clocks) -> None:
    assert clocks.parts(3 * FIRST_TRY_AFTER, cost_s=0.003) == 0


@pytest.mark.parametrize("dear", [{"cost_s": 0.003}, {"wait_s": 0.003}], ids=["computes", "waits"])
def test_work_that_becomes_expensive_or_waits_is_done_side_by_side_after_one_part(clocks, dear) -> None:
    clocks.parts(FIRST_TRY_AFTER)
    assert clocks.parts(10, **dear) == 0


def test_one_thread_is_tried_again_later(clocks) -> None:
    clocks.parts(FIRST_TRY_AFTER)
    assert not clocks.part(cost_s=0.003)
    assert clocks.parts(TRY_AFTER - 1) == 0
    assert clocks.part()


def test_all_that_is_put_is_done_once_however_often_the_way_changes(clocks, crew) -> None:
    done: list[int] = []
    for number in range(2000):
        clocks.turns.put(lambda number=number: done.append(number))
        if number % 50 == 0:
            clocks.part(cost_s=0.003)
        elif number % 3 == 0:
            clocks.parts(FIRST_TRY_AFTER)
    deadline = time.monotonic() + 10
    while len(done) < 2000 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(done) == list(range(2000))


def test_alone_one_thread_works_at_a_time_and_in_order(clocks, crew) -> None:
    clocks.parts(FIRST_TRY_AFTER)
    done: list[int] = []
    busy, most, over = 0, 0, threading.Event()

    def work(number: int) -> None:
        nonlocal busy, most
        busy += 1
        most = max(most, busy)
        time.sleep(0)
        done.append(number)
        busy -= 1

    for number in range(200):
        clocks.turns.put(lambda number=number: work(number))
    clocks.turns.put(over.set)
    assert over.wait(10)
    assert done == list(range(200))
    assert most == 1


@pytest.mark.parametrize("helped_by", ["the next task", "who waits"])
def test_who_is_stuck_keeps_nobody_from_working(clocks, crew, helped_by) -> None:
    clocks.parts(FIRST_TRY_AFTER)
    begun, let_go, done = threading.Event(), threading.Event(), threading.Event()
    clocks.turns.put(lambda: (begun.set(), let_go.wait(10)))
    assert begun.wait(10)
    clocks.turns.put(done.set)
    assert not done.wait(0.05)
    if helped_by == "who waits":
        clocks.turns.hurry()
    else:
        clocks.now += 2 * PATIENCE_S
        clocks.turns.put(lambda: None)
    assert done.wait(10)
    let_go.set()


def test_wakes_do_not_pile_up_while_threads_are_busy(clocks, crew):
    """A thread that never runs out of work was told of each piece of it, and had all that to hear before it ended."""
    over = threading.Event()
    for _ in range(5000):
        clocks.turns.put(lambda: None)
    clocks.turns.put(over.set)
    assert over.wait(10)
    assert clocks.turns._wakes.qsize() <= len(crew.threads)
