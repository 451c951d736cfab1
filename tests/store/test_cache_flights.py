"""What is remembered of things that were wanted before: had again without a look at the database."""

from __future__ import annotations

import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.store.cache import open_cache
from penstock.store.cache_pins import Pins
from penstock.store.cache_recency import Recency
from penstock.store.wanted import Wanted

SIZE = 10_000


@pytest.fixture
def urls(web) -> list[str]:
    web.add_files({f"{number}.bin": bytes([number]) * SIZE for number in range(30)})
    return [f"{web.url}/{number}.bin" for number in range(30)]


def wanted(urls: list[str], *numbers: int) -> list[Wanted]:
    return [Wanted(urls[number]) for number in numbers]


def had(cache, urls: list[str], *numbers: int) -> None:
    """Fetch objects, one after the other, and use each again when that has been recorded."""
    for number in numbers:
        for _ in range(2):
            cache.acquire(wanted(urls, number))
            cache.stats()


def test_what_was_given_is_given_again_and_counts_as_a_hit(urls, tmp_path):
    with open_cache(tmp_path, None) as cache:
        assert cache.again(wanted(urls, 1)) is None
        had(cache, urls, 1, 2)
        before = cache.stats().hits
        again = cache.again(wanted(urls, 2, 1, 2))
        assert [Path(path).read_bytes()[0] for path in again] == [2, 1, 2]
        assert cache.again(wanted(urls, 1, 3)) is None
        assert cache.stats().hits == before + 3


def test_what_is_given_again_stays_while_its_path_exists(urls, tmp_path):
    with open_cache(tmp_path, 2 * SIZE) as cache:
        had(cache, urls, 0)
        (kept,) = cache.again(wanted(urls, 0))
        cache.acquire(wanted(urls, *range(1, 20)))
        assert Path(kept).read_bytes() == bytes(SIZE)
        path = str(kept)
        del kept
        cache.acquire(wanted(urls, *range(20, 30)))
        cache.stats()
        assert not Path(path).exists()


def test_what_was_evicted_is_not_given_again_by_whomever_it_was_evicted(urls, tmp_path):
    with open_cache(tmp_path, None) as cache, open_cache(tmp_path, None) as other:
        had(cache, urls, 0, 1)
        other.clear()
        assert cache.are_there([wanted(urls, 0), wanted(urls, 1)]) == [False, False]
        assert cache.again(wanted(urls, 0, 1)) is None
        assert Path(cache.acquire(wanted(urls, 1))[0]).read_bytes()[0] == 1


def test_what_is_kept_is_given_again_and_counts_as_a_hit_while_nothing_goes(urls, tmp_path):
    with open_cache(tmp_path, None) as cache, open_cache(tmp_path, None) as other:
        had(cache, urls, 0, 1, 2)
        before = cache.stats().hits
        stamp, (*kept, unknown) = cache.kept.of([wanted(urls, 0, 1), wanted(urls, 2), wanted(urls, 2, 3)])
        assert unknown is None
        again = cache.kept.again(kept, stamp)
        assert [Path(path).read_bytes()[0] for path in again] == [0, 1, 2]
        assert cache.stats().hits == before + 3
        # While they are in use nobody removes them, and what others fetch changes nothing.
        other.clear()
        other.acquire(wanted(urls, 7))
        assert cache.kept.again(kept, stamp) == again
        del again
        cache.stats()
        other.clear()
        assert other.stats().files == 0
        assert cache.kept.again(kept, stamp) is None
        assert not cache.kept.touch(kept, stamp)
        # What could not be given is in nobody's way.
        cache.acquire(wanted(urls, 0, 1, 2))
        cache.stats()
        other.clear()
        assert other.stats().files == 0
    assert cache.kept.again(kept, stamp) is None


@pytest.mark.parametrize("used_by", ["touch", "again"])
def test_what_is_kept_and_used_goes_last(urls, tmp_path, used_by):
    with open_cache(tmp_path, 4 * SIZE) as cache:
        had(cache, urls, 0, 1, 2, 3)
        stamp, kept = cache.kept.of([wanted(urls, 0), wanted(urls, 1)])
        assert getattr(cache.kept, used_by)(kept, stamp)
        cache.acquire(wanted(urls, 10))
        cache.acquire(wanted(urls, 11))
        cache.stats()
        assert cache.are_there([wanted(urls, number) for number in (0, 1, 2, 3)]) == [True, True, False, False]


def test_what_lies_on_this_machine_is_not_kept(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"x")
    here = [Wanted(str(tmp_path / "x.bin"))]
    with open_cache(tmp_path / "cache", None) as cache:
        cache.acquire(here)
        assert cache.kept.of([here])[1] == [None]


SLOW_EVICTOR = """
import sys
from penstock.store.cache import open_cache
from penstock.store.cache_room import Room
doom, take_away = Room._doom, Room._take_away
def say(word):
    print(word, flush=True)
    sys.stdin.readline()
def slow_doom(room, db, chosen):
    doomed = doom(room, db, chosen)
    say("said that they go, recorded nothing")
    return doomed
def slow_take_away(room, doomed):
    if doomed:
        say("recorded, has not looked at pins again")
    return take_away(room, doomed)
Room._doom, Room._take_away = slow_doom, slow_take_away
cache = open_cache(sys.argv[1], None)
cache.clear()
print("done", flush=True)
"""


def test_what_is_used_while_somebody_takes_it_away_is_not_kept(urls, tmp_path):
    """It is still recorded as ready when the stamp has changed already."""
    ids = range(8)
    with open_cache(tmp_path, None) as cache:
        had(cache, urls, *ids)
        command = [sys.executable, "-c", SLOW_EVICTOR, str(tmp_path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as evictor:
            assert evictor.stdout.readline().startswith("said")
            paths = cache.acquire(wanted(urls, *ids))
            in_use, kept_in_use = cache.kept.of([wanted(urls, number) for number in ids])
            assert [Path(path).read_bytes()[0] for path in paths] == [*ids]
            del paths
            stamp, kept = cache.kept.of([wanted(urls, number) for number in ids])
            evictor.stdin.write("\n\n")
            evictor.stdin.close()
            assert evictor.stdout.read().endswith("done\n")
        for one_stamp, files in ((in_use, kept_in_use), (stamp, kept)):
            found = [file for file in files if file is not None]
            assert all(Path(path).is_file() for path in cache.kept.again(found, one_stamp) or ())
        assert [Path(path).read_bytes()[0] for path in cache.acquire(wanted(urls, *ids))] == [*ids]


@pytest.mark.parametrize(("owner", "name"), [(Recency, "stamp"), (Recency, "touch"), (Pins, "pin"), (Pins, "_show")])
def test_an_interrupt_leaves_nothing_pinned_that_nobody_holds(urls, tmp_path, monkeypatch, owner, name):
    with open_cache(tmp_path, None) as cache:
        had(cache, urls, 0, 1, 2)
        stamp, kept = cache.kept.of([wanted(urls, 0, 1), wanted(urls, 2)])
        done, real = threading.Event(), getattr(owner, name)

        def interrupted(*arguments):
            result = real(*arguments)
            if not done.is_set() and threading.current_thread() is threading.main_thread():
                done.set()
                raise KeyboardInterrupt
            return result

        monkeypatch.setattr(owner, name, interrupted)
        for ask in (lambda: cache.kept.again(kept, stamp), lambda: cache.again(wanted(urls, 0, 1, 2))):
            done.clear()
            with suppress(KeyboardInterrupt):
                ask()
            done.set()
            assert cache.stats().pinned == 0
        assert len(cache.kept.again(kept, stamp)) == 3


def test_two_caches_of_one_folder_in_a_process_leave_the_database_to_each_other(urls, tmp_path):
    """Whoever closes a file ends its process's locks on it: others then took the log for nobody's, and removed it."""
    look = "import sys; from penstock.store.cache import open_cache as o; print(o(sys.argv[1], None).stats().files)"

    def files_that_others_see() -> int:
        done = subprocess.run([sys.executable, "-c", look, str(tmp_path)], capture_output=True, text=True, check=True)
        return int(done.stdout)

    with open_cache(tmp_path, None) as cache:
        cache.acquire(wanted(urls, *range(4)))
        cache.stats()
        with open_cache(tmp_path, "1gb") as other:
            assert files_that_others_see() == 4
            cache.acquire(wanted(urls, *range(4, 8)))
            other.acquire(wanted(urls, *range(8, 10)))
            for one in (cache, other):
                one.stats()
            assert other.stats().files == cache.stats().files == files_that_others_see() == 10
        assert files_that_others_see() == 10


def test_what_was_looked_for_goes_last(urls, tmp_path):
    with open_cache(tmp_path, 4 * SIZE) as cache:
        had(cache, urls, 0, 1, 2, 3)
        assert cache.are_there([wanted(urls, 0, 1), wanted(urls, 1, 9), wanted(urls, 1)]) == [True, False, True]
        cache.acquire(wanted(urls, 10))
        cache.acquire(wanted(urls, 11))
        cache.stats()
        assert cache.are_there([wanted(urls, number) for number in (0, 1, 2, 3)]) == [True, True, False, False]
