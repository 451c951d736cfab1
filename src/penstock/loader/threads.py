"""The thread lane: for work that releases the GIL, such as waiting, decoding and numpy.

The first steps are cut into parts of a few samples, so that the threads work on one batch together and
it comes after one round trip; whoever finishes a step's last part collates it. Threads
are daemons: one stuck in a user's code can be abandoned, never waited for.
"""

from __future__ import annotations

import threading
import time
import warnings
from dataclasses import dataclass, field

import numpy as np

from penstock.errors import LoaderClosed, LoaderTimeout
from penstock.loader.hints import Hints, HintThread
from penstock.loader.recipe import Made, Part, Recipe
from penstock.loader.tickets import CLOSED_MEANWHILE, Ticket
from penstock.loader.turns import PATIENCE_S, Turns
from penstock.plan.plan import Share

PART_SIZE = 16
CLOSE_WITHIN_S = 0.8
LONGEST_PATIENCE_S = 0.1
"""How often it is looked at the most whether a lane is stuck that a batch is waited for, for long."""
KEPT_BYTES = 16 << 20
"""Twice as much freed memory a thread is let keep for its next batches, see `_keep_what_is_freed`."""


@dataclass(kw_only=True, slots=True)
class _Job:
    """A ticket being worked on by several threads."""

    ticket: Ticket
    parts: list[Part | None]
    size: int
    missing: int
    done: threading.Event = field(default_factory=threading.Event)
    made: Made | None = None
    errors: dict[int, BaseException] = field(default_factory=dict)
    """By part: whichever failed first in time, the trainer sees the one that comes first in the batch."""
    dropped: bool = False
    begun: set[int] = field(default_factory=set)
    """Parts that a thread has taken up."""


class ThreadLane:
    """Carry tickets out in `num_workers` threads of this process."""

    def __init__(self, recipe: Recipe, num_workers: int) -> None:
        _keep_what_is_freed()
        self._recipe = recipe
        self._jobs: dict[int, _Job] = {}
        self._lock = threading.Lock()
        self._splits = True
        self._turns: Turns[tuple[_Job, int]] = Turns()
        self._hinting: HintThread | None = None
        self._threads = [
            threading.Thread(target=self._work, name=f"penstock-{j}", daemon=True) for j in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    def tell(self, share: Share) -> None:
        """Pass a hint on to the dataset, in a thread that there is for it from the first hint on."""
        if self._hinting is None:
            self._hinting = HintThread(Hints(self._recipe.dataset))
        self._hinting.tell(share)

    def submit(self, ticket: Ticket) -> None:
        """Queue the parts of a ticket."""
        count = len(ticket.ids)
        # Where there are enough batches to work on, a thread makes one alone: many that make small parts wait for the
        # interpreter, and for each other.
        size = PART_SIZE if self._splits and len(self._jobs) < len(self._threads) else count
        parts = -(-count // size)
        job = self._jobs[ticket.number] = _Job(ticket=ticket, parts=[None] * parts, size=size, missing=parts)
        for part in range(parts):
            self._turns.put((job, part))

    def result(self, ticket: Ticket, timeout: float) -> Made:
        """Wait for a ticket."""
        job = self._jobs.get(ticket.number)
        if job is not None and not self._is_done(job, timeout):
            raise LoaderTimeout(self._lateness(job, timeout))
        if job is None or job.dropped:
            raise LoaderClosed(CLOSED_MEANWHILE)
        del self._jobs[ticket.number]
        if job.errors:
            raise job.errors[min(job.errors)]
        made, job.made = job.made, None
        assert made is not None
        return made

    def settle(self) -> None:
        """Threads keep nothing for the trainer: batches do so themselves."""

    def _is_done(self, job: _Job, timeout: float) -> bool:
        """Wait for a job; tell whether it was done in time."""
        deadline, patience_s = time.monotonic() + timeout, PATIENCE_S
        while not job.done.wait(min(patience_s, max(0.0, deadline - time.monotonic()))):
            if time.monotonic() >= deadline:
                return False
            # Each time anew: one that works alone may be stuck, and so may the next one.
            self._turns.hurry()
            patience_s = min(2 * patience_s, LONGEST_PATIENCE_S)
        return True

    def discard(self) -> None:
        """Forget all tickets; parts that have not begun never will."""
        for job in self._jobs.values():
            job.dropped = True
            job.done.set()
        self._jobs.clear()
        if self._hinting is not None:
            self._hinting.discard()

    def close(self) -> None:
        """Ask the threads to end; after a moment, leave those that are stuck behind."""
        self.discard()
        for _ in self._threads:
            self._turns.end_thread()
        if self._hinting is not None:
            self._threads.append(self._hinting.end())
        deadline = time.monotonic() + CLOSE_WITHIN_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        stuck = [thread.name for thread in self._threads if thread.is_alive()]
        self._threads = []
        if stuck:
            warnings.warn(
                f"threads {', '.join(stuck)} are stuck in {type(self._recipe.dataset).__name__} and were left behind; "
                "they end with this process",
                RuntimeWarning,
                stacklevel=2,
            )

    def _lateness(self, job: _Job, timeout: float) -> str:
        """Say which samples a batch still waits for."""
        late = [j for j, part in enumerate(job.parts) if part is None]
        begun, waiting = ([j for j in late if (j in job.begun) is has_begun] for has_begun in (True, False))
        name = type(self._recipe.dataset).__name__
        where = []
        if begun:
            where.append(f"samples {_ids_of(job, begun)} of {name} are still in fetch or transform, in a thread")
        if waiting:
            where.append(f"no thread was free for samples {_ids_of(job, waiting)} of {name}")
        said = (
            "; ".join(where)
            or f"{name}'s batch is still put together, in collate or with samples for those that failed"
        )
        return f"no batch after {timeout:g} s: {said}. Raise timeout=, or find what they wait for"

    def _work(self) -> None:
        """Take parts from the queue until told to end."""
        for job, part in self._turns.tasks():
            if not job.dropped:
                self._make(job, part)
            # A waiting thread must not keep a batch, and with it its buffers, alive.
            del job

    def _make(self, job: _Job, part: int) -> None:
        """Make one part, and the batch if it was the last one missing."""
        ticket, start = job.ticket, self._turns.begin()
        job.begun.add(part)
        try:
            if not any(failed < part for failed in tuple(job.errors)):
                mine = slice(part * job.size, (part + 1) * job.size)
                epochs = ticket.epochs if isinstance(ticket.epochs, int) else ticket.epochs[mine]
                job.parts[part] = self._recipe.part(epochs, ticket.ids[mine], lambda: not job.dropped)
        except BaseException as error:  # noqa: BLE001 - it travels with its ticket and is raised in the trainer's thread
            # Kept by a job that nobody asks for, it would keep that, its frames and all they hold: a cycle.
            if not job.dropped:
                job.errors[part] = error
        finally:
            self._turns.end(start, min(job.size, len(ticket.ids) - part * job.size))
        with self._lock:
            job.missing -= 1
            last = job.missing == 0
        if last and not job.dropped:
            self._finish(job)

    def _finish(self, job: _Job) -> None:
        """Collate a job whose parts are all there, or leave it to its errors."""
        parts = [part for part in job.parts if part is not None]
        try:
            if not job.errors:
                # A dict of arrays is one gather for all ids: cutting it up would only cost.
                self._splits = self._splits and not isinstance(parts[0].rows, dict)
                ticket = job.ticket
                job.made = self._recipe.assemble(ticket.epochs, ticket.ids, parts, lambda: not job.dropped)
        except BaseException as error:  # noqa: BLE001 - as above
            job.errors[len(job.parts)] = error
        job.done.set()


def _ids_of(job: _Job, parts: list[int]) -> list[int]:
    return [id_ for j in parts for id_ in job.ticket.ids[j * job.size : (j + 1) * job.size].tolist()]


def _keep_what_is_freed() -> None:
    """Let glibc keep the memory of finished batches for the next ones, where nobody has told it what to do.

    It gives the pages of freed buffers back at once, and asks for them anew with the next batch, which costs as much
    as reading a file of 20 KB, until it has seen a block freed that is larger: from then on it keeps twice its size.
    """
    np.empty(KEPT_BYTES, np.uint8)
