"""What Ctrl-C leaves behind, wherever it comes: nothing that is lost, nothing that waits, no path without its pin."""

from __future__ import annotations

import gc
import pkgutil
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.node import database
from penstock.store.cache import open_cache
from penstock.store.cache_names import key_of
from penstock.store.wanted import Wanted

SIZE = 10_000


@pytest.fixture
def urls(web) -> list[str]:
    web.add_files({f"{number}.bin": bytes([number]) * SIZE for number in range(8)})
    return [f"{web.url}/{number}.bin" for number in range(8)]


def wanted(urls: list[str], *numbers: int) -> list[Wanted]:
    return [Wanted(urls[number]) for number in numbers]


def once(method, *, fits=lambda arguments: True):
    """Have a method raise KeyboardInterrupt, where Ctrl-C may come: at its end, the first time that it fits."""
    pending = [True]

    def interrupted(*arguments, **options):
        found = method(*arguments, **options)
        if pending and threading.current_thread() is threading.main_thread() and fits(arguments):
            pending.clear()
            raise KeyboardInterrupt
        return found

    return interrupted


def begins(arguments) -> bool:
    return arguments[1].startswith("BEGIN")


def test_ctrl_c_as_a_transaction_begins_is_raised_and_ends_nothing_else(urls, tmp_path, monkeypatch):
    with open_cache(tmp_path, None) as cache, open_cache(tmp_path, None) as other:
        cache.acquire(wanted(urls, 0))
        cache.stats()
        monkeypatch.setattr(database, "_run", once(database._run, fits=begins))
        with pytest.raises(KeyboardInterrupt):
            cache.acquire(wanted(urls, 1))
        for one in (other, cache):
            assert Path(one.acquire(wanted(urls, 1), 10)[0]).read_bytes() == bytes([1]) * SIZE


def test_ctrl_c_as_the_first_transaction_of_a_database_begins_ends_nothing_else(urls, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "_run", once(database._run, fits=begins))
    with pytest.raises(KeyboardInterrupt):
        open_cache(tmp_path, None)
    with open_cache(tmp_path, None) as cache:
        assert Path(cache.acquire(wanted(urls, 1), 10)[0]).read_bytes() == bytes([1]) * SIZE


def test_ctrl_c_as_one_begins_to_look_ends_nothing_else(urls, tmp_path, monkeypatch):
    with open_cache(tmp_path, None) as cache:
        cache.stats()
        monkeypatch.setattr(
            database, "_run", once(database._run, fits=lambda arguments: "sqlite_master" in arguments[1])
        )
        with pytest.raises(KeyboardInterrupt):
            cache.acquire(wanted(urls, 1))
        assert Path(cache.acquire(wanted(urls, 1), 10)[0]).read_bytes() == bytes([1]) * SIZE


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("penstock.store.cache_flights.Flights", "hand_out"),
        ("penstock.store.cache_flights.Flights", "join"),
        ("penstock.store.cache_recency.Recency", "generation"),
        ("penstock.store.cache_recency.Recency", "touch_same"),
        ("penstock.store.cache_flights", "unpinned_file"),
        ("penstock.store.cache_tables.OwnTable", "add"),
        ("penstock.store.cache_tables.OwnTable", "show"),
        ("penstock.store.cache_pins.Pins", "take"),
        ("penstock.store.cache_pins.Pins", "pin"),
    ],
)
@pytest.mark.parametrize("seen", [False, True])
def test_a_path_has_its_pin_wherever_ctrl_c_came_before_it_was_given(urls, tmp_path, monkeypatch, part, method, seen):
    with open_cache(tmp_path, None) as cache:
        both = wanted(urls, 0, 1)
        if seen:
            for _ in range(2):
                cache.acquire(both, 10)
                cache.stats()
        monkeypatch.setattr(f"{part}.{method}", once(pkgutil.resolve_name(f"{part}.{method}")))
        with suppress(KeyboardInterrupt):
            for _ in range(3):
                cache.acquire(both, 10)
        gc.collect()
        files = cache.acquire(both, 10)
        assert cache.stats().pinned >= 2
        cache.clear()
        assert [Path(file).read_bytes()[0] for file in files] == [0, 1]


def test_a_claim_of_which_this_process_knows_nothing_any_more_is_freed_by_who_waits_for_it(urls, tmp_path):
    with open_cache(tmp_path, None) as cache:
        (one,) = wanted(urls, 1)
        # As interrupts one after the other may leave it.
        cache._shelf.claim([(key_of(one, cache._server), ".bin", one)], [])
        (file,) = cache.acquire([one], 10)
        assert Path(file).read_bytes() == bytes([1]) * SIZE
