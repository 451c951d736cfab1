"""The queue of a lane's threads: they work side by side, or one works and the others sleep.

Work that lets go of the interpreter, decoding or waiting, gains from threads. Work of a few microseconds a
sample, opening a file that is in memory, say, only makes threads wait for the interpreter at every system
call, and takes two to four times as long as one after the other. Where it lies between, on this machine and
today, is measured: both ways are tried, and the faster one is kept until it is tried again.

    put ──▶ tasks ──take──▶ any thread, or while one works alone that one, until nothing is left
                                 └──begin, end──▶ time a sample in this way ──▶ the way from now on
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

CHEAP_S = 10e-6
"""Processor time of a sample, alone, below which threads are not worth trying."""
DEAR_S = 100e-6
"""From which on one thread is not worth trying."""
CONTENDED = 3
"""So many times as long may it look while threads are in each other's way."""
WAITS = 6
"""What takes so many times its processor time waits for something that another thread need not wait for."""
NOTHING_S = 10e-6
"""A task that takes less is no sign of anything."""
PATIENCE_S = 0.01
"""How long one that works alone may take for a task."""
SURE = 32
"""Tasks from which the mean cost is believed: the first ones find nothing in the processor's caches."""
TRIAL = 16
"""Tasks from which it is learned how long a sample takes in one way of working; a quarter do where that is plain."""
KEPT, KEPT_LONGEST = 64, 1024
"""Tasks until the other way is tried again: first, or after a wait, and where it has turned out slower each time."""
GAIN, LOSS = 0.8, 1.5
"""The other way must take less than so much of the time of this one; with more than that it is plainly slower."""
FADES = 0.97
"""What a task weighs beside the next one, where it is told how long samples take."""

Start = tuple[float, float]
T = TypeVar("T")


class Turns(Generic[T]):
    """Tasks for some threads, each of which iterates over `tasks()` and tells what each took.

    Args:
        clock: seconds that pass.
        own_clock: seconds that the calling thread was at work.
    """

    def __init__(
        self, clock: Callable[[], float] = time.perf_counter, own_clock: Callable[[], float] = time.thread_time
    ) -> None:
        self._clock, self._own_clock = clock, own_clock
        self._lock = threading.Lock()
        self._tasks: deque[T] = deque()
        self._wakes: SimpleQueue[bool] = SimpleQueue()
        self._asleep = 0
        """Threads that nobody has woken yet: only for them is there a wake to put, so that wakes never pile up."""
        self._alone = True
        self._leader: int | None = None
        self._begun_s = 0.0
        """When the leader began its task."""
        self._pace = _Pace()
        self._rival_s: float | None = None
        """What a sample took in the other way, while this one is on trial."""
        self._left = self._kept = KEPT
        self._changed_s = 0.0
        """Since when it is done in this way."""

    @property
    def alone(self) -> bool:
        """Whether one thread works while the others sleep."""
        return self._alone

    def put(self, task: T) -> None:
        """Queue a task."""
        with self._lock:
            self._tasks.append(task)
            if self._alone and self._leader is not None:
                if self._clock() - self._begun_s < PATIENCE_S:
                    # It comes to this task without being told, and nobody else need wake up.
                    return
                self._let_all()
            elif self._asleep:
                self._wake()

    def tasks(self) -> Iterator[T]:
        """Give a thread its tasks, until `end_thread`."""
        while True:
            while (task := self._take()) is not None:
                yield task
                # A waiting thread must not keep a task, and what came of it, alive.
                del task
            if not self._wakes.get():
                return

    def _take(self) -> T | None:
        me = threading.get_ident()
        with self._lock:
            if not self._alone or self._leader in (None, me):
                self._leader = me if self._alone and self._tasks else None
                self._begun_s = self._clock()
                if self._tasks:
                    return self._tasks.popleft()
            self._asleep += 1
            return None

    def begin(self) -> Start:
        """Say that the calling thread begins a task."""
        now = self._clock()
        with self._lock:
            self._pace.begin(now)
        return now, self._own_clock()

    def end(self, start: Start, count: int) -> None:
        """Learn from what a task of so many samples took."""
        began_s, cpu_began_s = start
        cpu_s, now = self._own_clock() - cpu_began_s, self._clock()
        took_s, count = now - began_s, max(1, count)
        with self._lock:
            side_by_side = self._pace.end(now, count, cpu_s)
            if began_s < self._changed_s:
                return
            cost_s = self._pace.cost_s
            if not self._alone:
                if self._rival_s is not None or cost_s < CONTENDED * DEAR_S:
                    self._count_down()
            elif cost_s > DEAR_S and self._pace.tasks >= SURE:
                self._let_all(self._longer())
            elif took_s > max(WAITS * side_by_side * cpu_s, NOTHING_S):
                self._let_all()
            elif cost_s > CHEAP_S:
                self._count_down()

    def hurry(self) -> None:
        """Let all threads work if the one that works may be stuck; whatever others still do, it does what is left."""
        with self._lock:
            if self._alone and self._leader is not None and self._clock() - self._begun_s >= PATIENCE_S:
                self._let_all()

    def end_thread(self) -> None:
        """Let one thread end, after what is queued."""
        self._wakes.put(False)

    def _count_down(self) -> None:
        """Come closer to a verdict on the way of working, or to trying the other one."""
        self._left -= 1
        own_s, rival_s = self._pace.sample_s, self._rival_s
        plain = rival_s is not None and self._left <= TRIAL * 3 // 4 and own_s > LOSS * rival_s
        if self._left > 0 and not plain:
            return
        if rival_s is None:
            self._change(TRIAL, own_s)
        elif own_s < GAIN * rival_s:
            self._left = self._kept = KEPT
            self._rival_s, self._pace = None, self._pace.fresh()
        else:
            self._change(self._longer())

    def _longer(self) -> int:
        """Give after how many tasks to try the other way again, which has turned out slower."""
        self._kept = min(2 * self._kept, KEPT_LONGEST)
        return self._kept

    def _change(self, tasks: int, rival_s: float | None = None) -> None:
        """Work in the other way, for so many tasks at least."""
        if self._alone:
            self._let_all(tasks, rival_s)
        else:
            self._alone, self._leader = True, None
            self._begin_anew(tasks, rival_s)

    def _let_all(self, tasks: int = KEPT, rival_s: float | None = None) -> None:
        """Have all threads work, for so many tasks at least; while they are dear they do not count."""
        self._alone, self._leader = False, None
        self._begin_anew(tasks, rival_s)
        for _ in range(min(len(self._tasks), self._asleep)):
            self._wake()

    def _begin_anew(self, tasks: int, rival_s: float | None) -> None:
        self._left, self._rival_s, self._pace = tasks, rival_s, self._pace.fresh()
        self._changed_s = self._clock()

    def _wake(self) -> None:
        self._asleep -= 1
        self._wakes.put(True)


class _Pace:
    """How long samples take while anybody works on any, and what each costs; those of late weigh more."""

    __slots__ = ("_active", "_busy_s", "_counted", "_since_s", "_spent_s", "tasks")

    def __init__(self, active: int = 0, since_s: float = 0.0) -> None:
        self._active, self._since_s = active, since_s
        self._busy_s = self._spent_s = self._counted = 0.0
        self.tasks = 0

    def begin(self, now: float) -> None:
        """One more works from now on."""
        if not self._active:
            self._since_s = now
        self._active += 1

    def end(self, now: float, count: int, cpu_s: float) -> int:
        """One has made so many samples; tells how many were at work."""
        active = self._active
        self._busy_s = self._busy_s * FADES + now - self._since_s
        self._spent_s = self._spent_s * FADES + cpu_s
        self._counted = self._counted * FADES + count
        self._since_s = now
        self._active -= 1
        self.tasks += 1
        return active

    @property
    def sample_s(self) -> float:
        """Seconds that pass for a sample."""
        return self._busy_s / self._counted

    @property
    def cost_s(self) -> float:
        """Processor time of a sample, in whatever thread."""
        return self._spent_s / self._counted

    def fresh(self) -> _Pace:
        """Begin anew, while those who work do."""
        return _Pace(self._active, self._since_s)
