"""Whether the threads of a lane work side by side or take turns.

Work that lets go of the interpreter, decoding or waiting, gains from threads. Work of a few microseconds a
sample, opening a file that is in memory, say, only makes threads wait for the interpreter at every system
call, and takes two to four times as long as one after the other. Which it is shows in what it costs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

CHEAP_S = 25e-6
"""Processor time of a sample, alone, below which threads are not worth having: 40,000 samples a second."""
CONTENDED = 3
"""So many times as long may it look while threads are in each other's way."""
WAITS = 6
"""What takes so many times its processor time waits for something that another thread need not wait for."""
PATIENCE_S = 0.01
TRY_AFTER = 64
FIRST_TRY_AFTER = 8
"""Parts that are worked on side by side before turns are tried again."""

Start = tuple[bool, float, float]


class Turns:
    """The turns of some threads; each calls `begin` and `end` around a part of its work.

    Args:
        clock: seconds that pass.
        own_clock: seconds that the calling thread was at work.
        patience_s: how long to wait while no turn ends.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.perf_counter,
        own_clock: Callable[[], float] = time.thread_time,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._clock, self._own_clock, self._patience_s = clock, own_clock, patience_s
        self._lock = threading.Lock()
        self._in_turn = False
        self._left = FIRST_TRY_AFTER
        self._passed = 0
        """How often a turn ended."""

    def begin(self) -> Start:
        """Wait for a turn, if turns are taken and passed on: whoever has it may be stuck."""
        held, passed = False, -1
        while self._in_turn and not (held := self._lock.acquire(timeout=self._patience_s)):
            if passed == self._passed:
                self._let_all()
            passed = self._passed
        return held, self._clock(), self._own_clock()

    def pass_on(self, start: Start) -> None:
        """Pass the turn on, if there was one."""
        if start[0]:
            self._passed += 1
            self._lock.release()

    def end(self, start: Start, count: int) -> None:
        """Pass the turn on, and learn from what a part of so many samples took."""
        held, began_s, cpu_began_s = start
        cpu_s = self._own_clock() - cpu_began_s
        cheap_s = CHEAP_S * max(1, count)
        self.pass_on(start)
        if held:
            if cpu_s > 2 * cheap_s or self._clock() - began_s > WAITS * max(cpu_s, cheap_s / 2):
                self._let_all()
        elif not self._in_turn and cpu_s < CONTENDED * cheap_s:
            self._left -= 1
            if self._left <= 0:
                self._in_turn = True

    def _let_all(self) -> None:
        self._in_turn, self._left = False, TRY_AFTER
