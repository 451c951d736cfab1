"""The queue of a lane's threads: they work side by side, or one works and the others sleep.

Work that lets go of the interpreter, decoding or waiting, gains from threads. Work of a few microseconds a
sample, opening a file that is in memory, say, only makes threads wait for the interpreter at every system
call, and takes two to four times as long as one after the other. Which it is shows in what it costs.

    put ──▶ tasks ──take──▶ any thread, or while turns are taken the one that leads, until nothing is left
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

CHEAP_S = 25e-6
"""Processor time of a sample, alone, below which threads are not worth having: 40,000 samples a second."""
CONTENDED = 3
"""So many times as long may it look while threads are in each other's way."""
WAITS = 6
"""What takes so many times its processor time waits for something that another thread need not wait for."""
PATIENCE_S = 0.01
TRY_AFTER = 64
FIRST_TRY_AFTER = 8
"""Tasks that are worked on side by side before it is tried again with one thread."""

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
        self._left = FIRST_TRY_AFTER
        self._alone = False
        self._leader: int | None = None
        self._begun_s = 0.0
        """When the leader began its task."""

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
        return self._clock(), self._own_clock()

    def end(self, start: Start, count: int) -> None:
        """Learn from what a task of so many samples took."""
        began_s, cpu_began_s = start
        cheap_s = CHEAP_S * max(1, count)
        if self._alone and self._clock() - began_s <= 2 * cheap_s:
            # It neither worked nor waited for longer than it may.
            return
        cpu_s = self._own_clock() - cpu_began_s
        with self._lock:
            if self._alone:
                if cpu_s > 2 * cheap_s or self._clock() - began_s > WAITS * max(cpu_s, cheap_s / 2):
                    self._let_all()
            elif cpu_s < CONTENDED * cheap_s:
                self._left -= 1
                if self._left <= 0:
                    self._alone, self._leader = True, None

    def hurry(self) -> None:
        """Let all threads work: the one that works may be stuck."""
        with self._lock:
            if self._alone:
                self._let_all()

    def end_thread(self) -> None:
        """Let one thread end, after what is queued."""
        self._wakes.put(False)

    def _let_all(self) -> None:
        self._alone, self._left, self._leader = False, TRY_AFTER, None
        for _ in range(min(len(self._tasks), self._asleep)):
            self._wake()

    def _wake(self) -> None:
        self._asleep -= 1
        self._wakes.put(True)
