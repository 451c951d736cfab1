"""Processes take turns: whoever waits longest for a database is not overtaken forever.

SQLite lets one process write at a time and leaves the others to try again, so one that writes in a loop
can shut out all others. In front of it stands a door that one may pass at a time:

    door ──▶ wait for the database ──▶ leave the door open, write

Who waits for the database holds the door, so the process that has just written can't be next if anyone
waits. The lock is the system's, on an open file: it ends with its owner, killed or not.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from penstock.errors import PenstockError

# A transaction takes about 50 µs: who comes next soon sees it end, if the system lets the others run meanwhile.
NUM_YIELDS = 20
SHORTEST_S = 20e-6
LONGEST_S = 1e-3


class Patience:
    """The pauses between attempts, up to a deadline: none at first, then up to a millisecond, never longer.

    Nobody's pauses become long, so that who has waited for a while tries as often as who just came.

    Args:
        timeout_s: how long all pauses together may last.
        waiting_for: what for, in words.
        error: what is raised at the deadline.
    """

    def __init__(self, timeout_s: float, waiting_for: str, error: type[PenstockError]) -> None:
        self._deadline = time.monotonic() + timeout_s
        self._timeout_s = timeout_s
        self._waiting_for = waiting_for
        self._error = error
        self._num_pauses = 0
        self._pause_s = SHORTEST_S

    def pause(self) -> None:
        """Wait a little.

        Raises:
            PenstockError: the deadline has passed; of the kind that was asked for.
        """
        if time.monotonic() >= self._deadline:
            raise self._error(
                f"waited {self._timeout_s:g} s for {self._waiting_for}: another process holds it and does not go on. "
                "Look for one that is stopped or hangs on its disk, end it, and try again"
            )
        self._num_pauses += 1
        if self._num_pauses <= NUM_YIELDS:
            os.sched_yield()
            return
        time.sleep(self._pause_s)
        self._pause_s = min(self._pause_s * 1.5, LONGEST_S)


class Door:
    """A file that one process at a time holds open; it is made beside the database and stays there."""

    def __init__(self, path: str) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    @contextmanager
    def held(self, patience: Patience) -> Iterator[None]:
        """Hold the door for the length of the block."""
        self._take(patience.pause)
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def _take(self, pause: Callable[[], None]) -> None:
        while True:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pause()
            else:
                return

    def close(self) -> None:
        """Close the file, and so let go."""
        os.close(self._file)
