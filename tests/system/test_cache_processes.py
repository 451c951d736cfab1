"""Several processes on one cache: each object fetched once, the limit kept, nothing wrong after any kill."""

from __future__ import annotations

import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cache_worker import content, size_of
from penstock.errors import StoreUnavailable
from penstock.store import cache_pins
from penstock.store.cache import open_cache
from penstock.store.cache_room import LOOK_S
from penstock.store.wanted import Wanted

WORKER = Path(__file__).resolve().parents[1] / "cache_worker.py"
COUNT = 160
TOTAL = sum(size_of(number) for number in range(COUNT))
LARGEST = max(size_of(number) for number in range(COUNT))
DEADLINE_S = 120


@pytest.fixture
def site(web):
    web.add_files({f"{number}.bin": content(number, size_of(number)) for number in range(COUNT)})
    return web


@pytest.fixture
def start(site, tmp_path):
    """Starts workers on the cache in `tmp_path / "cache"`; ends those that are left."""
    started = []

    def start_(job, *, limit="none", seed=0, count=COUNT):
        command = [
            sys.executable,
            str(WORKER),
            job,
            str(tmp_path / "cache"),
            str(limit),
            site.url,
            str(count),
            str(seed),
        ]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield start_
    for process in started:
        process.kill()
        process.communicate()


def bytes_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder / "files"):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                continue
    return total


def check_done(process) -> None:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert (process.returncode, out.split()[-1:]) == (0, ["done"]), err


def test_four_processes_fetch_each_object_once(site, start):
    site.latency(0.01)
    for process in [start("read", seed=seed) for seed in range(4)]:
        check_done(process)
    paths = [line["path"] for line in site.requests(r"\.bin$")]
    assert len(paths) == len(set(paths)) == COUNT


def test_two_jobs_with_two_limits_of_their_own_both_read_the_right_bytes(start, tmp_path):
    large, small = start("read", limit=TOTAL), start("read", limit=TOTAL // 4, seed=1)
    check_done(large)
    check_done(small)
    with open_cache(tmp_path / "cache", TOTAL // 4):
        assert bytes_of(tmp_path / "cache") <= TOTAL // 4


@pytest.mark.parametrize("share", [3, 20])
def test_the_limit_holds_at_every_moment_under_four_processes(site, start, tmp_path, share):
    """Sampled every 10 ms: the limit, and what each process may have in use and on its way: two tickets of eight."""
    limit = TOTAL // share
    site.latency(0.002)
    processes = [start("read", limit=limit, seed=seed) for seed in range(4)]
    in_use = 4 * 2 * 8 * LARGEST
    sampled = []
    while any(process.poll() is None for process in processes):
        sampled.append(bytes_of(tmp_path / "cache"))
        time.sleep(0.01)
    for process in processes:
        check_done(process)
    assert len(sampled) > 20
    assert max(sampled) <= limit + in_use
    with open_cache(tmp_path / "cache", limit) as cache:
        assert bytes_of(tmp_path / "cache") == cache.stats().bytes <= limit


def crash_and_look(start, tmp_path, *, moments: int, limit: object, order: random.Random) -> None:
    folder = tmp_path / "cache"
    for moment in range(moments):
        process = start("forever", limit=limit, seed=moment)
        assert process.stdout.readline() == "open\n", process.stderr.read()
        time.sleep(order.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        assert process.returncode == -signal.SIGKILL, err
    check_done(start("read", limit=limit))
    with open_cache(folder) as cache:
        report = cache.verify()
        assert (report.damaged, report.strays) == ((), 0)
        assert bytes_of(folder) == cache.stats().bytes
        assert [path.name for path in (folder / "holders").iterdir()] == [cache._pins.name]


def test_after_a_kill_at_random_moments_only_right_bytes_are_served(start, tmp_path):
    crash_and_look(start, tmp_path, moments=6, limit=TOTAL // 5, order=random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["none", TOTAL // 5])
def test_after_a_kill_at_fifty_random_moments_only_right_bytes_are_served(start, tmp_path, limit):
    crash_and_look(start, tmp_path, moments=50, limit=limit, order=random.Random(1))


def test_what_a_killed_process_was_fetching_is_fetched_by_who_waits_for_it_at_once(site, start, tmp_path):
    site.fault(path="/0.bin", delay_s=600)
    process = start("hold")
    assert process.stdout.readline() == "open\n"
    deadline = time.monotonic() + DEADLINE_S
    with open_cache(tmp_path / "cache") as cache:
        one = [Wanted(f"{site.url}/0.bin")]
        while not (tmp_path / "cache" / "cache.db").exists() or not loading(tmp_path / "cache"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        cache.begin(one)
        (late,) = cache.acquire(one, 0.3)
        assert isinstance(late, StoreUnavailable)
        assert "another process fetches it" in str(late)
        process.kill()
        (file,) = cache.acquire(one, 30)
        assert Path(file).read_bytes() == content(0, size_of(0))


def test_what_a_stopped_process_was_fetching_is_fetched_by_who_waits_for_it(site, start, tmp_path, monkeypatch):
    """Stopped, or out of reach of its processor: it lives, its lock is its own, and nobody knows for how long."""
    site.fault(path="/0.bin", delay_s=600)
    process = start("hold")
    assert process.stdout.readline() == "open\n"
    deadline = time.monotonic() + DEADLINE_S
    with open_cache(tmp_path / "cache") as cache:
        one = [Wanted(f"{site.url}/0.bin")]
        while not loading(tmp_path / "cache"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        (late,) = cache.acquire(one, 2)
        assert isinstance(late, StoreUnavailable), "one that gets on is waited for"
        process.send_signal(signal.SIGSTOP)
        monkeypatch.setattr(cache_pins, "STALLED_S", 1.0)
        site.heal()
        (file,) = cache.acquire(one, 60)
        assert Path(file).read_bytes() == content(0, size_of(0))
        rest = cache.acquire([Wanted(f"{site.url}/{number}.bin") for number in range(1, 40)], 60)
        assert not any(isinstance(one, Exception) for one in rest)
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        # Then it is seen to be gone, while what replaced its file is in use.
        time.sleep(LOOK_S)
        assert cache.verify().damaged == ()
        assert bytes_of(tmp_path / "cache") == cache.stats().bytes


def test_a_process_that_goes_on_after_others_did_not_wait_for_it_does_no_harm(site, start, tmp_path, monkeypatch):
    monkeypatch.setattr(cache_pins, "STALLED_S", 1.0)
    site.fault(path="/0.bin", delay_s=6)
    process = start("hold")
    assert process.stdout.readline() == "open\n"
    deadline = time.monotonic() + DEADLINE_S
    with open_cache(tmp_path / "cache") as cache:
        while not loading(tmp_path / "cache"):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        (file,) = cache.acquire([Wanted(f"{site.url}/0.bin")], 60)
        process.send_signal(signal.SIGCONT)
        path = process.stdout.readline().strip()
        assert Path(path).read_bytes() == Path(file).read_bytes() == content(0, size_of(0))
        time.sleep(0.5)
        process.kill()
        process.wait()
        open_cache(tmp_path / "cache").close()
        report = cache.verify()
        assert (report.damaged, report.strays) == ((), 0)
        assert bytes_of(tmp_path / "cache") == cache.stats().bytes
        del file
        cache.clear()
        assert bytes_of(tmp_path / "cache") == 0


def loading(folder: Path) -> bool:
    import sqlite3

    with sqlite3.connect(folder / "cache.db") as database:
        return bool(database.execute("SELECT count(*) FROM entry WHERE state = 1").fetchone()[0])


def test_a_path_pins_its_file_in_the_sight_of_other_processes_until_its_process_ends(site, start, tmp_path):
    process = start("hold", limit=0)
    assert process.stdout.readline() == "open\n"
    path = Path(process.stdout.readline().strip())
    with open_cache(tmp_path / "cache", 0) as cache:
        cache.acquire([Wanted(f"{site.url}/{number}.bin") for number in range(1, 20)])
        assert path.read_bytes() == content(0, size_of(0))
        process.kill()
        process.wait()
        deadline = time.monotonic() + DEADLINE_S
        while path.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_forked_child_serves_what_is_there_and_lets_go_of_nothing_of_its_parents(site, tmp_path):
    with open_cache(tmp_path / "cache", 0) as cache:
        kept = cache.acquire([Wanted(f"{site.url}/0.bin")])[0]
        child = os.fork()
        if not child:
            try:
                again = cache.acquire([Wanted(f"{site.url}/0.bin")])[0]
                right = Path(again).read_bytes() == content(0, size_of(0))
                failed = cache.acquire([Wanted(f"{site.url}/1.bin")])[0]
                right = right and "forked" in str(failed)
                del again
                cache.close()
            except BaseException:  # noqa: BLE001 - a child must not run on as a test
                right = False
            os._exit(0 if right else 1)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        cache.acquire([Wanted(f"{site.url}/2.bin")])
        assert Path(kept).read_bytes() == content(0, size_of(0))


def test_a_forked_child_keeps_nothing_pinned_for_what_its_parent_has_under_way(site, tmp_path):
    with open_cache(tmp_path / "cache", 0) as cache:
        one = [Wanted(f"{site.url}/0.bin")]
        sent = pickle.dumps(cache.acquire(one)[0])
        cache.begin([Wanted(f"{site.url}/1.bin")])
        assert cache.stats().pinned > 1
        child = os.fork()
        if not child:
            pinned = -1
            try:
                pinned = cache.stats().pinned
            finally:
                os._exit(pinned)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert Path(pickle.loads(sent)).read_bytes() == content(0, size_of(0))


@pytest.mark.parametrize("limit", ["none", TOTAL // 5])
def test_whoever_truncates_the_files_of_a_folder_ends_no_process(start, tmp_path, limit):
    folder, order = tmp_path / "cache", random.Random(3)
    processes = [start("read", limit=limit, seed=seed) for seed in range(2)]
    cut = 0
    while any(process.poll() is None for process in processes):
        for path in [folder / "recency", folder / "generations", *folder.glob("holders/[0-9]*")]:
            try:
                os.truncate(path, order.choice([0, 8, 64, 4000]))
                cut += 1
            except FileNotFoundError:
                continue
        time.sleep(0.002)
    for process in processes:
        check_done(process)
    assert cut > 20
    with open_cache(folder, TOTAL // 5) as cache:
        assert cache.verify().damaged == ()
        assert bytes_of(folder) == cache.stats().bytes <= TOTAL // 5


def test_a_stalled_server_does_not_hold_up_the_end_of_a_process(site, tmp_path):
    site.fault(path="bin", stall=10, times=100)
    program = (
        "import sys, time\n"
        "from penstock.store.cache import open_cache\n"
        "from penstock.store.wanted import Wanted\n"
        "cache = open_cache(sys.argv[1])\n"
        "cache.begin([Wanted(f'{sys.argv[2]}/{n}.bin') for n in range(50)])\n"
        "time.sleep(0.5)\n"
        "began = time.monotonic(); cache.close(); print(time.monotonic() - began)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache"), site.url],
        capture_output=True, text=True, timeout=DEADLINE_S, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 10
    assert list((tmp_path / "cache" / "holders").iterdir()) == []
    assert bytes_of(tmp_path / "cache") == 0
