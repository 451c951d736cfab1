"""The process lane: for Python-bound work. The trainer's side.

Workers are started as fresh interpreters (never forked) connected by one Unix socket each. They
hold the recipe and know a cursor's ids, so a ticket is a few integers; results come back through shared
slabs. There is no manager thread and no helper process: all waiting happens in `result`, and a
worker that dies is noticed because its socket ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from penstock.errors import ConfigError, LoaderClosed, LoaderTimeout, WorkerDied
from penstock.loader.recipe import Made, Recipe
from penstock.loader.sharing import SlabReader, Wire, anonymous_file
from penstock.loader.tickets import CLOSED_MEANWHILE, Ticket
from penstock.loader.worker import HINT, NotGuarded, ShareAt
from penstock.plan.plan import Cursor, Share

CLOSE_WITHIN_S = 0.8
SEND_WITHIN_S = 30.0
LOOK_UP_EVERY_S = 1.0
MAX_OWED = 64
"""Tickets sent to one worker and not answered: few enough for its socket to take them while it sends results."""

_BOOT = "import sys, json; sys.path[:] = json.loads(sys.argv[2]); from penstock.loader.worker import main; main()"


@dataclass(kw_only=True, slots=True)
class _Worker:
    """One worker process and what it owes."""

    index: int
    process: subprocess.Popen[bytes]
    wire: Wire
    slabs: SlabReader = field(default_factory=SlabReader)
    tickets: dict[int, Ticket] = field(default_factory=dict)
    told: int = 0
    """Steps it was told of and has not been given yet."""
    over: deque[int] = field(default_factory=deque)
    """Tickets whose batches the trainer has done with, of which it does not know yet."""


class _Lease:
    """Tells a worker, by being collected, that the files of a batch are in use no longer."""

    __slots__ = ("_number", "_over")

    def __init__(self, over: deque[int], number: int) -> None:
        self._over, self._number = over, number

    def __del__(self) -> None:
        self._over.append(self._number)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a loader holds none of its batches.
        return tuple, ()


class ProcessLane:
    """Carry tickets out in `num_workers` fresh processes.

    Raises:
        ConfigError: the dataset or a transform cannot be pickled, or the script's main module is not guarded.
    """

    def __init__(self, recipe: Recipe, share_at: ShareAt, num_workers: int) -> None:
        self._name = type(recipe.dataset).__name__
        self._done: dict[int, Made | BaseException] = {}
        self._backlog: deque[Ticket] = deque()
        self._told: dict[Cursor, _Worker] = {}
        self._stale: set[int] = set()
        self._closed = False
        self._selector = selectors.DefaultSelector()
        self._workers: list[_Worker] = []
        payload = _payload(recipe, share_at)
        try:
            for index in range(num_workers):
                worker = _start(index, payload)
                self._workers.append(worker)
                self._selector.register(worker.wire, selectors.EVENT_READ, worker)
        finally:
            os.close(payload)

    def tell(self, share: Share) -> None:
        """Tell workers which steps they will be given: what one fetches ahead is of no use to the others."""
        cursors: dict[int, list[Cursor]] = {}
        for step in range(len(share.ids)):
            worker = min(self._workers, key=lambda worker: len(worker.tickets) + worker.told)
            cursor = Cursor(epoch=share.epoch, samples=share.start + step * share.taken)
            self._told[cursor] = worker
            worker.told += 1
            cursors.setdefault(worker.index, []).append(cursor)
        for index, own in cursors.items():
            self._send(self._workers[index], HINT, own)

    def submit(self, ticket: Ticket) -> None:
        """Hand a ticket to the worker that was told of it or owes least, or keep it until that one has room."""
        self._backlog.append(ticket)
        self._feed()

    def result(self, ticket: Ticket, timeout: float) -> Made:
        """Wait for a ticket, reading whatever the workers send meanwhile."""
        deadline = time.monotonic() + timeout
        self.settle()
        try:
            while ticket.number not in self._done:
                # No longer at a time than it may take to notice that another thread has closed the lane.
                events = self._selector.select(min(LOOK_UP_EVERY_S, max(0.0, deadline - time.monotonic())))
                for key, _ in events:
                    self._receive(key.data, max(1.0, deadline - time.monotonic()))
                if self._closed:
                    raise LoaderClosed(CLOSED_MEANWHILE)
                if not events and time.monotonic() >= deadline:
                    self._raise_late(ticket, timeout)
        except (OSError, ValueError, RuntimeError, WorkerDied) as error:
            if self._closed:
                raise LoaderClosed(CLOSED_MEANWHILE) from error
            raise
        made = self._done.pop(ticket.number)
        if isinstance(made, BaseException):
            raise made
        return made

    def settle(self) -> None:
        """Tell workers which batches are over that are given nothing more, with which they could be told."""
        for worker in self._workers:
            if worker.over and not worker.tickets:
                self._send(worker, HINT, [])

    def discard(self) -> None:
        """Forget all tickets; results still to come are dropped when they arrive."""
        self._done.clear()
        self._backlog.clear()
        self._told.clear()
        for worker in self._workers:
            worker.told = 0
            self._stale.update(worker.tickets)

    def close(self) -> None:
        """End the workers: politely, then firmly."""
        self._closed = True
        self.discard()
        self._selector.close()
        for worker in self._workers:
            worker.wire.close()
        deadline = time.monotonic() + CLOSE_WITHIN_S
        for end in (None, subprocess.Popen.terminate, subprocess.Popen.kill):
            alive = [worker.process for worker in self._workers if worker.process.poll() is None]
            if end is not None:
                for process in alive:
                    end(process)
            share = max(0.05, deadline - time.monotonic()) / 2
            until = time.monotonic() + share
            for process in alive:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, until - time.monotonic()) if end is not subprocess.Popen.kill else 5.0)
        self._workers = []

    def _feed(self) -> None:
        """Send what waits, as far as workers have room for it."""
        while self._backlog:
            ticket = self._backlog[0]
            told = self._told.get(ticket.cursor) if self._told else None
            worker = told or min(self._workers, key=lambda worker: len(worker.tickets))
            if len(worker.tickets) >= MAX_OWED:
                return
            self._backlog.popleft()
            if told is not None:
                del self._told[ticket.cursor]
                told.told -= 1
            worker.tickets[ticket.number] = ticket
            self._send(worker, ticket.number, ticket.cursor)

    def _send(self, worker: _Worker, number: int, content: Cursor | list[Cursor]) -> None:
        # A worker that is gone is reported by `result`, with all that it owed.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            over = [worker.over.popleft() for _ in range(len(worker.over))]
            worker.wire.send((number, content, worker.slabs.released(), over), timeout=SEND_WITHIN_S)

    def _receive(self, worker: _Worker, timeout: float) -> None:
        """Read one message of a worker."""
        try:
            (number, kind, content), fds = worker.wire.receive(timeout)
        except (EOFError, TimeoutError):
            self._raise_dead(worker)
        if kind == "not guarded":
            raise ConfigError(content)
        if kind == "broken":
            raise ConfigError(f"worker {worker.index} could not take on {self._name}:\n{content}")
        value = worker.slabs.unpack(content, fds)
        if kind == "failed":
            value, value.__cause__ = value
        if kind == "leased":
            value.leases = _Lease(worker.over, number)
        worker.tickets.pop(number, None)
        if number in self._stale:
            self._stale.remove(number)
        else:
            self._done[number] = value
        self._feed()

    def _raise_dead(self, worker: _Worker) -> None:
        self._selector.unregister(worker.wire)
        # Of several that died together, the one to hear of is the one that owes samples.
        dead = [other for other in self._workers if other is worker or other.process.poll() is not None]
        owed = {other.index: [id_ for ticket in self._owed_by(other) for id_ in ticket.ids.tolist()] for other in dead}
        worker = max(dead, key=lambda other: len(owed[other.index]))
        ids = owed[worker.index]
        try:
            code = worker.process.wait(2.0)
        except subprocess.TimeoutExpired:
            code = None
        what = f"it owed {len(ids)} samples of {self._name}: {ids[:64]}{' …' if len(ids) > 64 else ''}"
        raise WorkerDied(
            f"worker {worker.index} (pid {worker.process.pid}) {_ending(code)} while {what if ids else 'it was idle'}. "
            "The next iteration starts new workers",
            worker=worker.index,
            exit_code=code,
            ids=ids,
        )

    def _owed_by(self, worker: _Worker) -> list[Ticket]:
        return [ticket for number, ticket in worker.tickets.items() if number not in self._stale]

    def _raise_late(self, ticket: Ticket, timeout: float) -> None:
        holder = next((worker for worker in self._workers if ticket.number in worker.tickets), None)
        where = f"worker {holder.index} (pid {holder.process.pid}) has them" if holder else "they wait for a worker"
        raise LoaderTimeout(
            f"no batch after {timeout:g} s: samples {ticket.ids.tolist()} of {self._name} are not ready; {where}. "
            "Raise timeout=, or find what they wait for"
        )


def _payload(recipe: Recipe, share_at: ShareAt) -> int:
    """Put what every worker needs into an anonymous file, once; returns its descriptor."""
    try:
        job = pickle.dumps((recipe, share_at), protocol=5)
    except Exception as error:
        raise ConfigError(
            f"{type(recipe.dataset).__name__}, its transforms or its collate_fn cannot be sent to worker processes "
            f"({type(error).__name__}: {error}): define them at a module's top level, or use worker_type='thread'"
        ) from error
    main = None
    if b"__main__" in job or b"__mp_main__" in job:
        # Only then must a worker import the script, which may cost as much as importing torch. The second name is
        # the script's inside a worker: it gets here if the script is not guarded.
        main = _main_module()
    data = pickle.dumps((main, job), protocol=5)
    fd = anonymous_file(len(data))
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(data)
    return fd


def _main_module() -> dict[str, Any]:
    """Describe the script so that a worker can import what is defined in it."""
    from multiprocessing import spawn

    try:
        preparation = spawn.get_preparation_data("penstock-worker")
    except RuntimeError:
        # multiprocessing's own words speak of forking and freezing, which nobody here does.
        raise NotGuarded(
            "worker processes import your script, and it starts them again on import: put the part that trains under "
            "`if __name__ == '__main__':`"
        ) from None
    del preparation["authkey"]  # refuses to be pickled, and is of use to multiprocessing alone
    return preparation


def _start(index: int, payload: int) -> _Worker:
    """Start one interpreter, connected to us."""
    ours, theirs = socket.socketpair()
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    command = [sys.executable, *flags, "-c", _BOOT, f"{theirs.fileno()},{payload}", json.dumps(sys.path)]
    with theirs:
        # A group of its own keeps a terminal's Ctrl-C from reaching the worker, even while it starts.
        process = subprocess.Popen(
            command, pass_fds=(theirs.fileno(), payload), stdin=subprocess.DEVNULL, process_group=0
        )
    return _Worker(index=index, process=process, wire=Wire(ours))


def _ending(code: int | None) -> str:
    if code is None:
        return "stopped answering"
    if code == -9:
        return "was killed (signal 9, often the system's out-of-memory killer)"
    return f"was killed by signal {-code}" if code < 0 else f"exited with status {code}"
