"""What a process holds of its machine, counted from outside the code that should let go of it."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What this process holds of its machine. Children, descriptors and shared memory are counted on Linux only."""

    threads: frozenset[str]
    processes: frozenset[str]
    descriptors: frozenset[str]
    shared: frozenset[str]

    @staticmethod
    def now() -> Footprint:
        """Count what there is."""
        return Footprint(
            threads=frozenset(f"thread {thread.name} ({thread.ident})" for thread in threading.enumerate()),
            processes=frozenset(f"process {pid}" for pid in _children()),
            descriptors=frozenset(f"descriptor {number} → {target}" for number, target in _descriptors()),
            shared=frozenset(f"shared memory {name}" for name in _names("/dev/shm")),
        )

    def leftovers(self, *, patience_s: float = 3.0) -> list[str]:
        """List what is there now beyond this, once it has had a moment to go."""
        deadline = time.monotonic() + patience_s
        while (left := self._beyond(Footprint.now())) and time.monotonic() < deadline:
            time.sleep(0.05)
        return left

    def _beyond(self, later: Footprint) -> list[str]:
        kinds = (
            later.threads - self.threads,
            later.processes - self.processes,
            later.descriptors - self.descriptors,
            later.shared - self.shared,
        )
        return sorted(itertools.chain(*kinds))


def _children() -> Iterator[int]:
    """Yield the ids of this process's children, ended ones that nobody waited for included."""
    me = os.getpid()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        # A process may end between being listed and being read.
        with contextlib.suppress(OSError):
            # The name, in parentheses, may hold anything; behind it come state and parent.
            if int(entry.read_text().rpartition(")")[2].split()[1]) == me:
                yield int(entry.parent.name)


def _descriptors() -> Iterator[tuple[str, str]]:
    """Yield the open descriptors and what they lead to."""
    for name in _names("/proc/self/fd"):
        # The descriptor of the listing itself is closed by now.
        with contextlib.suppress(OSError):
            yield name, os.readlink(f"/proc/self/fd/{name}")


def _names(folder: str) -> list[str]:
    return os.listdir(folder) if os.path.isdir(folder) else []
