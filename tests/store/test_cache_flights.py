"""What is remembered of things that were wanted before: had again without a look at the database."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.store.cache import open_cache
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
        stamp, before = cache.kept.stamp(), cache.stats().hits
        *kept, unknown = cache.kept.of([wanted(urls, 0, 1), wanted(urls, 2), wanted(urls, 2, 3)])
        assert unknown is None
        again = cache.kept.again(kept, stamp)
        assert [Path(path).read_bytes()[0] for path in again] == [0, 1, 2]
        assert cache.stats().hits == before + 3
        # While they are in use nobody removes them.
        other.clear()
        assert cache.kept.again(kept, stamp) == again
        del again
        cache.stats()
        other.clear()
        assert other.stats().files == 0
        assert cache.kept.again(kept, stamp) is None
        # What could not be given is in nobody's way.
        cache.acquire(wanted(urls, 0, 1, 2))
        cache.stats()
        other.clear()
        assert other.stats().files == 0
    assert cache.kept.again(kept, stamp) is None


def test_what_is_kept_and_used_goes_last(urls, tmp_path):
    with open_cache(tmp_path, 4 * SIZE) as cache:
        had(cache, urls, 0, 1, 2, 3)
        stamp = cache.kept.stamp()
        cache.kept.again(cache.kept.of([wanted(urls, 0), wanted(urls, 1)]), stamp)
        cache.acquire(wanted(urls, 10))
        cache.acquire(wanted(urls, 11))
        cache.stats()
        assert cache.are_there([wanted(urls, number) for number in (0, 1, 2, 3)]) == [True, True, False, False]


def test_what_lies_on_this_machine_is_not_kept(tmp_path):
    (tmp_path / "x.bin").write_bytes(b"x")
    here = [Wanted(str(tmp_path / "x.bin"))]
    with open_cache(tmp_path / "cache", None) as cache:
        cache.acquire(here)
        assert cache.kept.of([here]) == [None]


def test_what_was_looked_for_goes_last(urls, tmp_path):
    with open_cache(tmp_path, 4 * SIZE) as cache:
        had(cache, urls, 0, 1, 2, 3)
        assert cache.are_there([wanted(urls, 0, 1), wanted(urls, 1, 9), wanted(urls, 1)]) == [True, False, True]
        cache.acquire(wanted(urls, 10))
        cache.acquire(wanted(urls, 11))
        cache.stats()
        assert cache.are_there([wanted(urls, number) for number in (0, 1, 2, 3)]) == [True, True, False, False]
