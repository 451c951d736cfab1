"""Memory that is handed out again once nobody holds it."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np

_KEPT_BUFFERS = 8


class ReusedBuffers:
    """Arrays that are handed out again when nothing but this pool refers to them.

    The first touch of fresh memory costs far more than writing to it, so a loader that allocated
    every batch would spend much of its time in page faults. A tensor, a view or a batch in flight
    keeps its buffer out of the pool's reach by holding a reference: nothing is ever overwritten.
    """

    def __init__(self) -> None:
        self._buffers: list[np.ndarray] = []
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...], dtype: Any = np.int64) -> np.ndarray:
        """Give an array of a shape and type, contents undefined."""
        with self._lock:
            for buffer in self._buffers:
                if buffer.shape == shape and buffer.dtype == dtype and sys.getrefcount(buffer) <= _UNSHARED:
                    return buffer
            buffer = np.empty(shape, dtype)
            self._buffers.append(buffer)
            # Forgetting one frees it as soon as whoever holds it lets go.
            del self._buffers[:-_KEPT_BUFFERS]
            return buffer

    def __reduce__(self) -> tuple[object, ...]:
        return ReusedBuffers, ()


class NamedBuffers:
    """Pools of arrays, one for each thing that arrays are made for, such as a field of a batch."""

    def __init__(self) -> None:
        self._pools: dict[str, ReusedBuffers] = {}

    def take(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Give an array of a shape and type, contents undefined."""
        return self._pools.setdefault(name, ReusedBuffers()).take(shape, dtype)


def _count_unshared() -> int:
    """Measure what getrefcount says of an array that one list holds, asked as `take` asks."""
    buffers = [np.empty(1)]
    for buffer in buffers:
        return sys.getrefcount(buffer)
    raise AssertionError


_UNSHARED = _count_unshared()
