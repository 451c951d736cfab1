"""Cheap work is done by one thread, dear work by all, the rest as is faster; who is stuck is helped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from penstock.loader.turns import KEPT, PATIENCE_S, SURE, TRIAL, Turns

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

    def work(self, rounds: int, *, alone_s: float, beside_s: float) -> int:
        """Let whoever may work do so, one or four side by side; give how many parts one made alone."""
        made_alone = 0
        for _ in range(rounds):
            crew, cost_s = (1, alone_s) if self.turns.alone else (4, beside_s)
            starts = [self.turns.begin() for _ in range(crew)]
            self.worked += cost_s
            self.now += cost_s
            made_alone += crew == 1
            for start in starts:
                self.turns.end(start, 16)
        return made_alone


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


CHEAP, BETWEEN, DEAR = 0.0001, 0.0008, 0.01
"""Seconds of 16 samples."""


def test_cheap_work_is_done_by_one_and_nothing_else_is_tried(clocks) -> None:
    assert clocks.parts(3000, cost_s=CHEAP) == 3000


def test_dear_work_is_done_by_all_once_that_is_sure(clocks) -> None:
    assert clocks.parts(SURE, cost_s=DEAR) == SURE - 1
    assert clocks.parts(3000, cost_s=DEAR) == 0


def test_one_dear_part_at_the_beginning_changes_nothing(clocks) -> None:
    clocks.part(cost_s=DEAR)
    assert clocks.parts(40, cost_s=CHEAP) == 40


@pytest.mark.parametrize("others", [1, 2, 3])
def test_dear_parts_between_trivial_ones_are_done_by_all(clocks, others) -> None:
    alone = sum(clocks.part(cost_s=DEAR) + clocks.parts(others) for _ in range(400))
    assert alone < 0.15 * 400 * (1 + others)


def test_work_that_waits_is_done_by_all_from_the_first_part_on_but_for_a_trial_now_and_then(clocks) -> None:
    clocks.parts(10, cost_s=CHEAP)
    assert clocks.parts(3000, cost_s=CHEAP, wait_s=0.003) < 60
    clocks.parts(KEPT, cost_s=CHEAP)
    assert clocks.part(cost_s=CHEAP), "it waits no more"


def test_cheap_work_that_waits_now_and_then_is_done_by_all(clocks) -> None:
    rounds = 200
    alone = sum(clocks.part(cost_s=CHEAP, wait_s=0.005) + clocks.parts(7, cost_s=CHEAP) for _ in range(rounds))
    assert alone < rounds


def test_where_threads_gain_all_work(clocks) -> None:
    """Each takes half as long again beside three others."""
    clocks.work(KEPT + TRIAL, alone_s=BETWEEN, beside_s=1.5 * BETWEEN)
    assert clocks.work(2000, alone_s=BETWEEN, beside_s=1.5 * BETWEEN) < 600, "only to see whether it is still so"


def test_where_threads_are_in_each_others_way_one_works_and_seldom_tries_again(clocks) -> None:
    """Each takes eight times as long beside three others, all together twice as long as one alone."""
    rounds = 5000
    made_alone = clocks.work(rounds, alone_s=BETWEEN, beside_s=8 * BETWEEN)
    assert 0.98 * rounds < made_alone < rounds


def test_what_was_true_of_the_work_before_is_not_held_against_it(clocks) -> None:
    clocks.work(2000, alone_s=BETWEEN, beside_s=8 * BETWEEN)
    assert clocks.work(3000, alone_s=BETWEEN, beside_s=BETWEEN) < 1500


def test_all_that_is_put_is_done_once_however_often_the_way_changes(clocks, crew) -> None:
    done: list[int] = []
    for number in range(2000):
        clocks.turns.put(lambda number=number: done.append(number))
        if number % 50 == 0:
            clocks.part(wait_s=0.003)
        elif number % 3 == 0:
            clocks.parts(KEPT)
    deadline = time.monotonic() + 10
    while len(done) < 2000 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(done) == list(range(2000))


def test_alone_one_thread_works_at_a_time_and_in_order(clocks, crew) -> None:
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
    begun, let_go, done = threading.Event(), threading.Event(), threading.Event()
    clocks.turns.put(lambda: (begun.set(), let_go.wait(10)))
    assert begun.wait(10)
    clocks.turns.put(done.set)
    assert not done.wait(0.05)
    clocks.turns.hurry()
    assert not done.wait(0.05), "it has only begun"
    clocks.now += 2 * PATIENCE_S
    if helped_by == "who waits":
        clocks.turns.hurry()
    else:
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
