"""One cache for all in a process that read from one folder."""

from __future__ import annotations

import os
import time

from penstock.store.cache_sharing import SharedCache
from penstock.store.wanted import Wanted

SIZE = 10_000


def test_limits_of_their_own_are_one_cache_in_which_the_smallest_holds(web, tmp_path):
    web.add_files({f"{number}.bin": bytes(SIZE) for number in range(12)})
    wanted = [Wanted(f"{web.url}/{number}.bin") for number in range(12)]
    large, small, endless = (SharedCache(tmp_path, limit, {}) for limit in (10 * SIZE, 3 * SIZE, None))
    assert large.cache is small.cache is endless.cache
    assert large.cache.stats().limit == 3 * SIZE
    large.cache.acquire(wanted)
    small.close()
    assert large.cache.stats().limit == 10 * SIZE
    large.cache.acquire(wanted)
    assert large.cache.stats().files > 3
    SharedCache(tmp_path, 2 * SIZE, {}).close()
    again = SharedCache(tmp_path, 2 * SIZE, {})
    deadline = time.monotonic() + 20
    while sum(len(names) for _, _, names in os.walk(tmp_path / "files")) > 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for one in (again, large, endless):
        assert not one.cache.closed
        one.close()
    assert endless.cache.closed


def test_another_way_to_read_is_another_cache(tmp_path):
    one, other = SharedCache(tmp_path, None, {}), SharedCache(tmp_path, None, {"retries": 1})
    assert one.cache is not other.cache
    one.close()
    other.close()
