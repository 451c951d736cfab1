"""The event loop of requests: what other threads hand over to it is run, each once."""

from __future__ import annotations

import threading

import pytest

from penstock.store.requests import _OnceWoken

THREADS, CALLS = 8, 5000


@pytest.fixture
def loop():
    loop = _OnceWoken()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def in_threads(work, count=THREADS):
    threads = [threading.Thread(target=work, args=[number]) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)


def test_all_that_many_threads_hand_over_at_once_is_run_once_and_in_each_ones_order(loop):
    seen: list[tuple[int, int]] = []
    done = threading.Event()

    def note(thread, call):
        seen.append((thread, call))
        if len(seen) == THREADS * CALLS:
            done.set()

    def work(thread):
        for call in range(CALLS):
            loop.call_soon_threadsafe(note, thread, call)

    in_threads(work)
    assert done.wait(10), f"{THREADS * CALLS - len(seen)} calls were lost"
    for number in range(THREADS):
        assert [call for thread, call in seen if thread == number] == list(range(CALLS))


def test_a_call_that_fails_or_is_taken_back_leaves_the_others(loop):
    failed: list[dict] = []
    seen: list[str] = []
    done = threading.Event()
    loop.set_exception_handler(lambda _, context: failed.append(context))

    def work(_):
        # Held up so that all of these are handed over together.
        loop.call_soon_threadsafe(threading.Event().wait, 0.05)
        loop.call_soon_threadsafe(seen.append, "taken back").cancel()
        loop.call_soon_threadsafe(int, "no number")
        loop.call_soon_threadsafe(seen.append, "run")
        loop.call_soon_threadsafe(done.set)

    in_threads(work, count=1)
    assert done.wait(10)
    assert seen == ["run"]
    assert [type(context["exception"]) for context in failed] == [ValueError]
