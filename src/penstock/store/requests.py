"""How a request is carried out: on one thread, with a deadline, again if that can help.

All requests of a process run on one event loop in a background thread. The caller waits for its
answer and stays interruptible: Ctrl-C cancels what is in flight. At most MAX_REQUESTS are in flight.

A failure that may pass (no connection, time-out, 408, 429, 5xx, a body cut short) is tried again
after a growing, jittered wait, or after the time the server asks for. Everything else fails at once.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from dataclasses import dataclass
from random import SystemRandom
from typing import Any, TypeVar, TypeVarTuple

from penstock.errors import StoreError, StoreUnavailable
from penstock.types import check_int

MAX_REQUESTS = 256
STOP_S = 1.0
MANY_UNANSWERED = 20
"""Requests without an answer after which it is said, once in a process, what that may be."""

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
F = TypeVar("F")
_jitter = SystemRandom()
_log = logging.getLogger("penstock.store")
_unanswered = itertools.count(1)
_MAIN = threading.main_thread().ident
_FORKED = (
    "this process was forked from one that had read from a store, and such a child cannot: start it "
    'with multiprocessing.get_context("spawn") or "forkserver"'
)


class Transient(Exception):
    """A failure that may pass.

    Attributes:
        status: the HTTP status, 0 where there was no answer.
    """

    def __init__(self, reason: str, status: int = 0) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """How long a request is worth trying."""

    retries: int = 6
    """Attempts after the first."""
    first_wait_s: float = 0.2
    longest_wait_s: float = 15.0
    deadline_s: float = 180.0
    """Seconds from the first attempt after which no other is begun."""

    def __post_init__(self) -> None:
        check_int("retries", self.retries, minimum=0)

    def wait_s(self, attempt: int) -> float:
        """Seconds to wait after an attempt (from 1): doubling, and at random so that clients do not march in step."""
        longest = min(self.first_wait_s * 2 ** (attempt - 1), self.longest_wait_s)
        return longest * _jitter.uniform(0.5, 1.0)


class Tries:
    """The attempts at one request: what to do after each that failed.

    Args:
        what: the request in words, for errors.
        patience: how often and how long.
    """

    def __init__(self, what: str, patience: Patience) -> None:
        self.what = what
        self._patience = patience
        self._started = time.monotonic()
        self._count = 0

    def failed(self, failure: Transient, asked_s: float | None) -> float:
        """Count a failed attempt and say how many seconds to wait before the next.

        Args:
            failure: why it failed.
            asked_s: how long the server asks to wait.

        Raises:
            StoreUnavailable: there is no next; says how often, how long, and why the last time.
        """
        self._count += 1
        wait = max(self._patience.wait_s(self._count), asked_s or 0.0)
        elapsed = time.monotonic() - self._started
        if self._count <= self._patience.retries and elapsed + wait <= self._patience.deadline_s:
            _log.info("%s: %s; trying again in %.1f s", self.what, failure, wait)
            if isinstance(failure, Transient) and not failure.status and next(_unanswered) == MANY_UNANSWERED:
                _log.warning(
                    "%d requests had no answer and are tried again, the last one: %s: %s. A server that takes few "
                    "connections at once loses some: storage_options={'max_requests': 4} asks it for less",
                    *(MANY_UNANSWERED, self.what, failure),
                )
            return wait
        tries = f"{self._count} attempts in {elapsed:.1f} s" if self._count > 1 else "one attempt"
        asked = f" and asks to wait {asked_s:,.0f} s" if asked_s else ""
        raise StoreUnavailable(
            f"{self.what} failed after {tries}: {failure}{asked}. Check the network and the address, then try again; "
            "more retries bridge a longer gap"
        ) from failure


async def persist(
    what: str,
    request: Callable[[], Awaitable[T]],
    patience: Patience,
    asked_wait_s: Callable[[], Awaitable[float | None]],
) -> T:
    """Carry out a request, and again while its failures may pass.

    Args:
        what: the request in words, for errors.
        request: makes one attempt; raises Transient for what may pass.
        patience: how often and how long.
        asked_wait_s: finds out how long the server wants us to wait; asked after a 429 or a 503.

    Raises:
        StoreUnavailable: it kept failing.
    """
    tries = Tries(what, patience)
    while True:
        try:
            return await request()
        except Transient as failure:
            asked_s = await asked_wait_s() if failure.status in (429, 503) else None
            wait_s = tries.failed(failure, asked_s)
        await asyncio.sleep(wait_s)


class Slots:
    """The places for requests in flight; used on the background thread only.

    A coroutine holds one with `async with`; who works with callbacks uses `take` and `give`, and is told
    through `on_free` that a place which nobody waits for has become free.
    """

    def __init__(self, count: int) -> None:
        self.free = count
        self.on_free: Callable[[], None] | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()

    def take(self) -> bool:
        """Take a place if one is free."""
        if not self.free:
            return False
        self.free -= 1
        return True

    def give(self, *, quietly: bool = False) -> None:
        """Give a place back: to the first who waits, else to whoever comes; `quietly` where the giver comes next."""
        while self._waiting:
            first = self._waiting.popleft()
            if not first.done():
                first.set_result(None)
                return
        self.free += 1
        if self.on_free is not None and not quietly:
            self.on_free()

    async def __aenter__(self) -> None:
        if self.take():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.give()
            raise

    async def __aexit__(self, *_: object) -> None:
        self.give()


class _OnceWoken(asyncio.SelectorEventLoop):
    """An event loop that is woken once for all that other threads have it call meanwhile.

    obstore's threads hand results over by the thousand, and a wake-up each, a byte through a socket, would cost as
    much as the rest of the way.
    """

    def __init__(self) -> None:
        super().__init__()
        self._handed_over: deque[asyncio.Handle] = deque()
        self._is_woken = False

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: Context | None = None
    ) -> asyncio.Handle:
        """Call a function soon, from any thread."""
        if threading.get_ident() == _MAIN:
            # Ctrl-C may come between any two lines: a wake-up that is only noted would be the last.
            return super().call_soon_threadsafe(callback, *args, context=context)
        handle = asyncio.Handle(callback, args, self, context)
        self._handed_over.append(handle)
        if not self._is_woken:
            self._is_woken = True
            super().call_soon_threadsafe(self._take_over)
        return handle

    def _take_over(self) -> None:
        # First: what is handed over from now on is either seen below, or wakes the loop again.
        self._is_woken = False
        for _ in range(len(self._handed_over)):
            handle = self._handed_over.popleft()
            if not handle.cancelled():
                handle._run()


class _Loop:
    """The event loop that carries out this process's requests, begun at its first."""

    def __init__(self) -> None:
        # Reentrant: a finalizer that cancels what is left may run while this thread holds it.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._forked = False
        self._slots = Slots(MAX_REQUESTS)
        self._on_stop: list[Callable[[], None]] = []

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._forked:
            work.close()
        return asyncio.run_coroutine_threadsafe(work, self.running())

    def call_if_begun(self, function: Callable[..., object], *args: object) -> None:
        with self._lock:
            if self._loop is not None and not self._forked:
                self._loop.call_soon_threadsafe(function, *args)

    def running(self) -> asyncio.AbstractEventLoop:
        if self._forked:
            raise StoreError(_FORKED)
        with self._lock:
            if self._loop is None:
                self._start()
            assert self._loop is not None
            return self._loop

    def _start(self) -> None:
        loop = _OnceWoken()
        thread = threading.Thread(target=_run, args=[loop], name="penstock-requests", daemon=True)
        atexit.register(self.stop)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        thread.start()
        # Last, and without a call: a loop that an interrupt kept from being run would answer nobody for ever.
        self._thread, self._loop = thread, loop

    def _after_fork(self) -> None:
        self._forked = True

    def stop(self) -> None:
        """Cancel what is in flight and end the thread, so that none of it outlives the interpreter."""
        with self._lock:
            loop, thread = self._loop, self._thread
            self._loop = None
        if self._forked or loop is None or thread is None:
            return
        for hook in self._on_stop:
            loop.call_soon_threadsafe(hook)
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).add_done_callback(
            lambda _: loop.call_soon_threadsafe(loop.stop)
        )
        thread.join(STOP_S)

    def slots(self) -> Slots:
        return self._slots

    def on_stop(self, hook: Callable[[], None]) -> None:
        self._on_stop.append(hook)


def _run(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_forever()
    loop.close()


async def _cancel_all() -> None:
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    tasks.clear()
    deadline = time.monotonic() + STOP_S / 2
    while _held and time.monotonic() < deadline:
        await asyncio.sleep(0.001)


_held: set[weakref.ref[Any]] = set()


def held(future: F) -> F:
    """Let the interpreter not end before a thread that is not Python's has let go of a future.

    Such a thread gives the future its result, and forgets it a moment later. If it finds the interpreter
    gone by then, the process is aborted.
    """
    _held.add(weakref.ref(future, _held.discard))
    return future


_loop = _Loop()


def begin(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Begin to carry out requests on the background thread; cancelling the future cancels them.

    Raises:
        StoreError: this process was forked from one that had made requests.
    """
    return _loop.submit(work)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Carry out requests and wait for their result; Ctrl-C cancels them. Raises as `begin`."""
    future = begin(work)
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def call(function: Callable[..., object], *args: object) -> None:
    """Call a function on the background thread, soon. Raises as `begin`."""
    _loop.running().call_soon_threadsafe(function, *args)


def call_if_begun(function: Callable[..., object], *args: object) -> None:
    """Call a function on the background thread, soon, if this process has begun one and not ended it."""
    _loop.call_if_begun(function, *args)


def slots() -> Slots:
    """The places for requests in flight, to be held by each while it is; only on the background thread."""
    return _loop.slots()


def on_stop(hook: Callable[[], None]) -> None:
    """Have a function called on the background thread before it ends with the interpreter."""
    _loop.on_stop(hook)
