"""How long requests to one place take, and so which are stragglers: arithmetic, no clock.

A request that takes far longer than its peers has probably met a bad server behind the address, or a
lost packet; a second one beside it is answered in the usual time. Doubling is bounded, so that a place
that is slow altogether does not get twice the load.
Source: Dean & Barroso, "The Tail at Scale", Communications of the ACM 56(2), 2013.
"""

from __future__ import annotations

from collections import deque

PEERS = 256
ENOUGH_PEERS = 24
QUANTILE = 0.95
FAR = 3.0
FLOOR_S = 0.25
SHARE = 0.03
SPARE = 2


class Pace:
    """The durations of recent requests of one kind."""

    __slots__ = ("_counted", "_doubled", "_finished", "_recent", "_slow_s")

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=PEERS)
        self._finished = 0
        self._doubled = 0
        self._counted = 0
        self._slow_s = float("inf")

    def finished(self, seconds: float) -> None:
        """Note how long a request took."""
        self._recent.append(seconds)
        self._finished += 1

    def slow_s(self) -> float:
        """Seconds from which on a request is a straggler; infinite while too few peers are known."""
        if self._finished != self._counted and len(self._recent) >= ENOUGH_PEERS:
            self._counted = self._finished
            ordered = sorted(self._recent)
            self._slow_s = max(FAR * ordered[int(QUANTILE * (len(ordered) - 1))], FLOOR_S)
        return self._slow_s

    def may_double(self) -> bool:
        """Tell whether one more request may be doubled, and count it if so."""
        if self._doubled >= SPARE + SHARE * self._finished:
            return False
        self._doubled += 1
        return True
