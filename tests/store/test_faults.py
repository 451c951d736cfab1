"""What goes wrong on the way: it is tried again where that may help, and said at once where not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from itertools import pairwise

import pytest

from penstock.errors import AccessDenied, ObjectMissing, StoreError, StoreUnavailable
from penstock.store.store import open_store

DATA = random.Random(7).randbytes(200_000)


@pytest.fixture
def web(hub):
    """A store on a plain web server that can be broken."""
    sha = hub.add_dataset("org/name", {"x.bin": DATA})
    hub.forget()
    return open_store(f"{hub.url}/datasets/org/name/resolve/{sha}", timeout_s=2)


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 502},
        {"status": 503},
        {"status": 408},
        {"truncate": 1000},
        {"truncate": 0},
        {"reset": 1000},
        {"delay_s": 3},
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again_until_the_data_is_right(hub, web, fault):
    hub.fault(path=r"x\.bin", method="GET", times=2, **fault)
    assert web.get_range("x.bin", 100, 150_000) == DATA[100:150_000]
    assert sum(line["method"] == "GET" for line in hub.requests(r"x\.bin")) >= 2


def test_waits_grow_and_are_not_the_same_for_everyone(hub, web):
    hub.fault(path=r"x\.bin", method="GET", times=4, status=500)
    web.get("x.bin")
    times = [line["start"] for line in hub.requests(r"x\.bin") if line["method"] == "GET"]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert len(waits) == 4
    for number, wait in enumerate(waits):
        assert wait >= 0.1 * 2**number


def test_a_server_that_asks_to_wait_is_left_alone_for_so_long(hub, web):
    hub.fault(path=r"x\.bin", times=2, status=429, headers={"Retry-After": "2"})
    assert web.get("x.bin") == DATA
    asked = hub.requests(r"x\.bin")
    assert [(line["method"], line["status"]) for line in asked] == [("GET", 429), ("HEAD", 429), ("GET", 200)]
    # A server that is kept from working notes the end of its answer a little late.
    assert asked[2]["start"] - asked[1]["end"] >= 1.8


def test_a_server_that_asks_to_wait_too_long_is_given_up_with_its_words(hub, web):
    hub.fault(path=r"x\.bin", times=2, status=429, headers={"Retry-After": "3600"})
    with pytest.raises(StoreUnavailable, match=r"x\.bin failed after one attempt: the server says 429 .* 3,600 s"):
        web.get("x.bin")


@pytest.mark.parametrize(
    ("status", "kind"), [(401, AccessDenied), (403, AccessDenied), (404, ObjectMissing), (400, StoreError)]
)
def test_what_will_not_pass_is_not_tried_again(hub, web, status, kind):
    hub.fault(path=r"x\.bin", times=10, status=status)
    with pytest.raises(kind, match=r"x\.bin"):
        web.get("x.bin")
    assert sum(line["method"] == "GET" for line in hub.requests(r"x\.bin")) == 1


def test_a_server_that_ignores_ranges_is_said_to(hub, web):
    hub.fault(path=r"x\.bin", times=10, ignore_range=True)
    with pytest.raises(StoreError, match="answers a request for a range with the whole object"):
        web.get_range("x.bin", 5, 10)


def test_a_server_that_keeps_failing_is_given_up_with_count_and_reason(hub):
    sha = hub.add_dataset("org/name", {"x.bin": DATA})
    hub.fault(path=r"x\.bin", times=100, status=500)
    store = open_store(f"{hub.url}/datasets/org/name/resolve/{sha}", retries=2)
    with pytest.raises(StoreUnavailable, match=r"GET http://.*x\.bin failed after 3 attempts in .* says 500"):
        store.get("x.bin")


def test_a_server_that_is_silent_is_given_up_within_its_time(hub):
    sha = hub.add_dataset("org/name", {"x.bin": DATA})
    store = open_store(f"{hub.url}/datasets/org/name/resolve/{sha}", retries=1, timeout_s=0.5)
    hub.fault(path=r"x\.bin", times=100, delay_s=60)
    started = time.monotonic()
    with pytest.raises(StoreUnavailable, match="no answer within the time-out"):
        store.get("x.bin")
    assert time.monotonic() - started < 20


def test_a_slow_body_is_no_failure(hub, web):
    hub.fault(path=r"x\.bin", method="GET", rate=100_000)
    assert web.get_range("x.bin", 0, 40_000) == DATA[:40_000]
    assert len(hub.requests(r"x\.bin")) == 1


def test_a_server_that_dies_and_returns_is_found_again(hub, web):
    hub.fault(path=r"x\.bin", die=5000)
    returned = threading.Thread(target=lambda: (hub.wait(), time.sleep(0.5), hub.start()))
    returned.start()
    try:
        assert web.get_range("x.bin", 0, 200_000) == DATA
    finally:
        returned.join()


def test_many_ranges_are_in_flight_together_and_fail_alone(hub, web):
    wide = open_store(web.url, timeout_s=10)
    hub.fault(path=r"x\.bin", times=20, delay_s=0.5)
    # Far enough apart that none are joined.
    apart = [(start, start + 10) for start in (0, 70_000, 140_000)]
    assert wide.get_ranges("x.bin", *zip(*apart, strict=True)) == [DATA[a:b] for a, b in apart]
    lines = hub.requests(r"x\.bin")
    assert len(lines) == len(apart) == 3
    assert max(line["start"] for line in lines) < min(line["end"] for line in lines)
    hub.heal()
    hub.forget()
    hub.fault(path=r"x\.bin", method="GET", status=500)
    assert wide.get_ranges("x.bin", *zip(*apart, strict=True)) == [DATA[a:b] for a, b in apart]
    assert [line["status"] for line in hub.requests(r"x\.bin")].count(206) == 3


def script(text: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(text), *arguments]


def test_ctrl_c_ends_a_wait_at_once(hub, web):
    hub.fault(path=r"x\.bin", times=100, delay_s=60)
    command = script(
        """
        import sys
        from penstock import open_store
        store = open_store(sys.argv[1], timeout_s=100)
        print("asking", flush=True)
        store.get("x.bin")
        """,
        web.url,
    )
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "asking\n"
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in errors


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_is_told_what_to_do_instead_of_hanging(web):
    done = subprocess.run(
        script(
            """
            import os, sys
            from penstock import PenstockError, open_store
            open_store(sys.argv[1]).get_range("x.bin", 0, 10)
            child = os.fork()
            if child == 0:
                try:
                    open_store(sys.argv[1]).get_range("x.bin", 0, 10)
                except PenstockError as error:
                    print(error, flush=True)
                os._exit(0)
            os.waitpid(child, 0)
            print(len(open_store(sys.argv[1]).get_range("x.bin", 0, 10)))
            """,
            web.url,
        ),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert 'multiprocessing.get_context("spawn")' in done.stdout
    assert done.stdout.endswith("\n10\n")


def test_a_process_ends_at_once_with_a_request_in_flight(hub, web):
    hub.fault(path=r"x\.bin", times=100, delay_s=60)
    command = script(
        """
        import sys, threading, time
        from penstock import open_store
        store = open_store(sys.argv[1], timeout_s=100)
        threading.Thread(target=store.get, args=["x.bin"], daemon=True).start()
        time.sleep(1)
        """,
        web.url,
    )
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def test_when_many_requests_get_no_answer_it_is_said_once_what_that_may_be(hub):
    hub.add_dataset("org/many", {f"{number}.bin": DATA[:1000] for number in range(60)})
    base = f"{hub.url}/datasets/org/many/resolve/main"
    hub.fault(path=r"\.bin", method="GET", times=60, reset=10)
    program = (
        "import sys\n"
        "from penstock.store.many import Fetcher\n"
        "from penstock.store.wanted import Wanted\n"
        "pieces = Fetcher().get_many([Wanted(f'{sys.argv[1]}/{n}.bin') for n in range(60)])\n"
        "print(sum(len(piece.data) for piece in pieces))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, base], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "60000\n"), done.stderr
    (told,) = done.stderr.splitlines()
    assert told.startswith(f"20 requests had no answer and are tried again, the last one: GET {hub.url}")
    assert "storage_options={'max_requests': 4} asks it for less" in told
