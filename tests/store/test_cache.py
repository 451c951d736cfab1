"""Objects as local files: fetched once, kept below a limit, whole or not there, in place while in use."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import pkgutil
import shutil
import sqlite3
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from penstock.errors import ConfigError, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from penstock.node.database import Database
from penstock.store import cache_rows, cache_shelf
from penstock.store.cache import open_cache
from penstock.store.cache_names import key_of
from penstock.store.cache_recency import Recency
from penstock.store.cache_room import LOOK_S
from penstock.store.wanted import Wanted

KB = 1 << 10
SIZE = 10 * KB


def content(number: int, size: int = SIZE) -> bytes:
    return (b"%06d " % number) * (size // 7) + b"." * (size % 7)


@pytest.fixture
def site(web):
    """A web server with sixty files of 10 kB."""
    web.add_files({f"{number}.bin": content(number) for number in range(60)})
    return web


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def opened(folder):
    """Opens caches in `folder`, and closes them at the end."""
    caches = []

    def open_(limit=None, where=folder, **options):
        caches.append(open_cache(where, limit, **options))
        return caches[-1]

    yield open_
    for cache in caches:
        cache.close()


def wanted(site, *numbers: int, **facts) -> list[Wanted]:
    return [Wanted(f"{site.url}/{number}.bin", **facts) for number in numbers]


def files_of(folder: Path) -> list[Path]:
    return [Path(root, name) for root, _, names in os.walk(folder / "files") for name in names]


def bytes_of(folder: Path) -> int:
    total = 0
    for path in files_of(folder):
        with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
            total += path.stat().st_size
    return total


def wait_until(holds, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def test_an_object_is_fetched_once_and_its_path_has_its_bytes_and_its_extension(site, opened):
    cache = opened()
    for _ in range(3):
        files = cache.acquire(wanted(site, 1, 2, 1))
        assert [Path(file).read_bytes() for file in files] == [content(1), content(2), content(1)]
        assert all(file.endswith(".bin") for file in files)
    assert len(site.requests()) == 2
    found = cache.stats()
    assert (found.files, found.bytes, found.misses, found.downloaded_bytes) == (2, 2 * SIZE, 2, 2 * SIZE)


def test_files_of_an_earlier_run_are_served_and_counted(site, opened):
    with opened() as cache:
        cache.acquire(wanted(site, *range(5)))
    site.forget()
    cache = opened()
    assert [Path(file).read_bytes() for file in cache.acquire(wanted(site, *range(5)))] == [
        content(n) for n in range(5)
    ]
    assert site.requests() == []
    assert cache.stats().bytes == 5 * SIZE


def test_a_hint_fetches_ahead_and_holds_its_results_until_they_are_acquired(site, folder, opened):
    cache = opened(limit=2 * SIZE)
    cache.begin(wanted(site, *range(8)))
    wait_until(lambda: cache.stats().files == 8)
    site.forget()
    for number in range(8):
        (file,) = cache.acquire(wanted(site, number))
        assert Path(file).read_bytes() == content(number)
    assert site.requests() == []
    del file
    wait_until(lambda: bytes_of(folder) <= 2 * SIZE)


def test_what_is_forgotten_may_go(site, folder, opened):
    cache = opened(limit=SIZE)
    cache.begin(wanted(site, *range(8)))
    wait_until(lambda: cache.stats().files == 8)
    cache.forget(wanted(site, 0, 1))
    cache.forget()
    wait_until(lambda: bytes_of(folder) <= SIZE)
    assert cache.stats().pinned == 0


def test_what_is_forgotten_in_the_moment_it_is_wanted_again_still_comes(site, opened):
    site.latency(0.003)
    cache, stop = opened(limit=0), threading.Event()

    def waver():
        while not stop.is_set():
            cache.begin(wanted(site, *range(6)))
            cache.forget()

    thread = threading.Thread(target=waver)
    thread.start()
    try:
        for _ in range(30):
            files = cache.acquire(wanted(site, 1, 3, 5))
            assert [Path(file).read_bytes() for file in files] == [content(1), content(3), content(5)]
            del files
    finally:
        stop.set()
        thread.join()


def test_the_least_recently_used_go_first(site, opened):
    cache = opened(limit=4 * SIZE)
    for number in (0, 1, 2, 3):
        cache.acquire(wanted(site, number))
        cache.stats()
    cache.acquire(wanted(site, 0))
    cache.acquire(wanted(site, 10, 11))
    site.forget()
    cache.acquire(wanted(site, 0, 3))
    assert site.requests() == []
    cache.acquire(wanted(site, 1))
    assert len(site.requests()) == 1


@pytest.mark.parametrize("limit", [0, 1, SIZE - 1, SIZE, 3 * SIZE + 5, "35kb"])
def test_files_stay_below_the_limit_but_for_those_in_use(site, folder, opened, limit):
    cache = opened(limit=limit)
    for number in range(12):
        (file,) = cache.acquire(wanted(site, number))
        assert Path(file).read_bytes() == content(number)
        del file
        wait_until(lambda: bytes_of(folder) <= cache.limit)
    assert cache.stats().limit == cache.limit


def test_a_file_in_use_survives_eviction_for_as_long_as_its_path(site, folder, opened):
    cache = opened(limit=2 * SIZE)
    kept = cache.acquire(wanted(site, 0))[0]
    for number in range(1, 20):
        cache.acquire(wanted(site, number))
    assert Path(kept).read_bytes() == content(0)
    path = str(kept)
    del kept
    for number in range(20, 25):
        cache.acquire(wanted(site, number))
    assert not os.path.exists(path)
    assert bytes_of(folder) <= 2 * SIZE


def test_a_smaller_limit_shrinks_what_an_earlier_run_left(site, folder, opened):
    with opened() as cache:
        cache.acquire(wanted(site, *range(10)))
    assert bytes_of(folder) == 10 * SIZE
    opened(limit=3 * SIZE)
    assert bytes_of(folder) <= 3 * SIZE


def test_of_several_limits_the_smallest_holds_while_its_owner_lives(site, folder, opened):
    large, small = opened(limit=20 * SIZE), opened(limit=2 * SIZE)
    assert large.stats().limit == 2 * SIZE
    large.acquire(wanted(site, *range(10)))
    wait_until(lambda: bytes_of(folder) <= 2 * SIZE)
    small.close()
    large.acquire(wanted(site, *range(10)))
    wait_until(lambda: large.stats().bytes == 10 * SIZE)


def test_a_path_outlives_its_cache_and_pins_its_file_for_the_next(site, opened):
    with opened() as cache:
        kept = cache.acquire(wanted(site, 0))[0]
        cache.acquire(wanted(site, 1))
    other = opened(limit=0)
    assert Path(kept).read_bytes() == content(0)
    assert other.stats().files == 1
    del kept
    wait_until(lambda: other.stats().files == 0)


def test_a_path_that_is_sent_is_pinned_on_its_way_and_where_it_arrives(site, folder, opened):
    cache = opened(limit=0)
    file = cache.acquire(wanted(site, 0))[0]
    path, sent = str(file), pickle.dumps(file)
    del file
    cache.acquire(wanted(site, 1))
    time.sleep(0.1)
    assert Path(path).read_bytes() == content(0)
    arrived = pickle.loads(sent)
    cache.acquire(wanted(site, 2))
    time.sleep(0.1)
    assert Path(arrived).read_bytes() == content(0)
    del arrived
    wait_until(lambda: not os.path.exists(path))


def test_any_number_of_paths_may_be_on_their_way_at_once(site, opened):
    cache = opened(limit=0)
    first, other = cache.acquire(wanted(site, 0, 1))
    sent = [pickle.dumps(first), *[pickle.dumps(other) for _ in range(5000)]]
    path = str(first)
    del first, other
    cache.clear()
    assert Path(path).read_bytes() == content(0)
    arrived = [pickle.loads(one) for one in sent]
    cache.clear()
    assert [Path(one).read_bytes() for one in arrived[:2]] == [content(0), content(1)]


def test_two_caches_of_one_folder_fetch_each_object_once(site, opened):
    site.latency(0.05)
    caches = [opened(), opened()]
    results = {}

    def acquire(number):
        results[number] = [Path(file).read_bytes() for file in caches[number].acquire(wanted(site, *range(30)))]

    threads = [threading.Thread(target=acquire, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results[0] == results[1] == [content(number) for number in range(30)]
    assert len(site.requests()) == 30


def test_many_threads_want_the_same_at_once(site, opened):
    site.latency(0.02)
    cache = opened(limit=5 * SIZE)
    wrong = []

    def read(offset):
        for number in range(40):
            number = (number + offset) % 40
            for file in cache.acquire(wanted(site, number, (number + 1) % 40)):
                if Path(file).read_bytes() not in (content(number), content((number + 1) % 40)):
                    wrong.append(file)

    threads = [threading.Thread(target=read, args=[offset % 3]) for offset in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    gc.collect()
    wait_until(lambda: cache.stats().pinned == 0)


def test_one_that_fails_does_not_hold_up_the_others(site, opened):
    cache = opened()
    missing = Wanted(f"{site.url}/nowhere.bin?token=secret")
    first, failed, last = cache.acquire([*wanted(site, 1), missing, *wanted(site, 2)])
    assert (Path(first).read_bytes(), Path(last).read_bytes()) == (content(1), content(2))
    assert isinstance(failed, ObjectMissing)
    assert "nowhere.bin" in str(failed)
    assert "secret" not in str(failed)
    assert cache.stats().files == 2
    site.add_files({"nowhere.bin": content(7)})
    assert Path(cache.acquire([missing])[0]).read_bytes() == content(7)


def test_an_object_that_does_not_come_in_time_is_an_error_that_says_so(site, opened):
    site.fault(path="3", delay_s=30, times=10)
    cache = opened()
    started = time.monotonic()
    good, late = cache.acquire(wanted(site, 1, 3), timeout_s=0.5)
    assert Path(good).read_bytes() == content(1)
    assert isinstance(late, StoreUnavailable)
    assert "within 0.5 s" in str(late)
    started = time.monotonic()
    cache.close()
    assert time.monotonic() - started < 5
    with pytest.raises(StoreError, match="was closed"):
        cache.acquire(wanted(site, 1))


def test_closing_while_another_thread_waits_ends_its_wait(site, opened):
    site.fault(path="3", delay_s=30, times=10)
    cache = opened()
    results = []
    thread = threading.Thread(target=lambda: results.extend(cache.acquire(wanted(site, 3))))
    thread.start()
    wait_until(lambda: cache.stats().in_flight == 1)
    cache.close()
    thread.join(10)
    assert isinstance(results[0], StoreError)


def test_closing_while_another_process_fetches_what_one_waits_for_ends_the_wait(site, opened):
    site.fault(path="3", delay_s=30, times=10)
    slow, cache = opened(), opened()
    slow.begin(wanted(site, 3))
    wait_until(lambda: slow.stats().in_flight == 1)
    results = []
    thread = threading.Thread(target=lambda: results.extend(cache.acquire(wanted(site, 3), 20)))
    thread.start()
    wait_until(lambda: cache._finder.poll_s is not None)
    cache.close()
    thread.join(10)
    assert "was closed" in str(results)


def test_a_cache_collected_while_its_thread_writes_to_the_folder_is_closed_by_another(site, folder, opened):
    lost, cache = open_cache(folder), opened()
    assert Path(lost.acquire(wanted(site, 1))[0]).read_bytes() == content(1)
    lost.itself = lost
    del lost
    with cache._book.changing():
        gc.collect()
    wait_until(lambda: len(list(folder.joinpath("holders").iterdir())) == 1)
    site.forget()
    assert Path(cache.acquire(wanted(site, 1))[0]).read_bytes() == content(1)
    assert site.requests() == []


@pytest.mark.parametrize("fault", [{"truncate": 500}, {"reset": 500}, {"status": 503}])
def test_a_broken_download_is_repeated_and_never_served(site, opened, fault):
    site.fault(path="3", times=2, **fault)
    assert Path(opened().acquire(wanted(site, 3))[0]).read_bytes() == content(3)


def test_another_version_of_an_object_is_fetched_when_its_etag_is_asked_for(site, opened):
    cache = opened()
    old = cache.acquire(wanted(site, 1))[0]
    site.add_files({"1.bin": content(77)})
    from penstock import open_store

    etag = open_store(site.url).head("1.bin").etag
    new = cache.acquire(wanted(site, 1, etag=etag))[0]
    assert Path(new).read_bytes() == content(77)
    assert Path(old).read_bytes() == content(1), "who reads the old one keeps it"
    site.forget()
    assert Path(cache.acquire(wanted(site, 1))[0]).read_bytes() == content(77)
    assert site.requests() == []
    (changed,) = cache.acquire(wanted(site, 2, etag='"another"'))
    assert isinstance(changed, ObjectChanged)


def test_an_object_of_another_size_than_the_index_says_has_changed(site, opened):
    (changed,) = opened().acquire(wanted(site, 1, size=SIZE + 1))
    assert isinstance(changed, ObjectChanged)
    assert f"{SIZE:,}" in str(changed)


def test_ranges_of_one_object_are_files_of_their_own(site, opened):
    cache = opened()
    parts = [Wanted(f"{site.url}/1.bin", start, start + 700) for start in (0, 700, 1400, 0)]
    for _ in range(2):
        files = cache.acquire(parts)
        assert [Path(file).read_bytes() for file in files] == [content(1)[part.start : part.stop] for part in parts]
        assert len({str(file) for file in files}) == 3
    empty = cache.acquire([Wanted(f"{site.url}/1.bin", 5, 5)])[0]
    assert Path(empty).read_bytes() == b""


def test_a_long_object_arrives_whole(web, opened):
    data = os.urandom(3 << 20) * 7
    web.add_files({"long.bin": data})
    cache = opened()
    assert Path(cache.acquire([Wanted(f"{web.url}/long.bin")])[0]).read_bytes() == data
    assert cache.verify().damaged == ()


def test_local_files_are_given_as_they_are_and_never_deleted(tmp_path, folder, opened):
    path = tmp_path / "mine.bin"
    path.write_bytes(content(1))
    cache = opened(limit=0)
    for url in (str(path), path.as_uri()):
        assert cache.acquire([Wanted(url)]) == [str(path)]
        cache.discard([Wanted(url)])
    part = Wanted(str(path), 7, 14)
    assert Path(cache.acquire([part])[0]).read_bytes() == content(1)[7:14]
    path.write_bytes(content(2, SIZE + 7))
    assert Path(cache.acquire([part])[0]).read_bytes() == content(2)[7:14]
    cache.clear()
    assert path.read_bytes() == content(2, SIZE + 7)
    wait_until(lambda: files_of(folder) == [])


@pytest.mark.parametrize(
    "name", ["../../escape.bin", "a\x00b.bin", "x" * 3000, "ü/ñ.tar.gz", "a b?.b/../c%2F.jpg", "..."]
)
def test_no_key_becomes_a_path(folder, tmp_path, opened, name):
    from penstock.store.cache_names import key_of, suffix_of
    from penstock.store.cache_rows import Claimed

    cache = opened(storage_options={"retries": 0, "timeout_s": 1})
    one = Wanted(f"http://127.0.0.1:9/{name}")
    path = Path(cache._book.path_of(Claimed(1, key_of(one, ""), suffix_of(one))))
    assert path.resolve().is_relative_to(folder / "files")
    assert len(path.name) < 80
    before = set(tmp_path.rglob("*"))
    assert isinstance(cache.acquire([one])[0], Exception)
    assert {path for path in set(tmp_path.rglob("*")) - before if folder not in path.parents} == set()


def test_a_file_that_does_not_decode_is_discarded_and_fetched_again(site, folder, opened):
    cache = opened()
    (file,) = cache.acquire(wanted(site, 1))
    Path(file).write_bytes(b"rubbish")
    assert cache.discard(wanted(site, 1)) == 1
    again = cache.acquire(wanted(site, 1))[0]
    assert Path(again).read_bytes() == content(1)
    assert cache.discard(wanted(site, 50)) == 0
    del file, again
    cache.clear()
    assert files_of(folder) == []


def test_files_from_before_a_crash_of_the_system_are_compared_with_their_checksums(site, folder, opened):
    with opened() as cache:
        paths = [str(file) for file in cache.acquire(wanted(site, *range(4)))]
    database = sqlite3.connect(folder / "cache.db")
    database.execute("UPDATE entry SET boot = 'another'")
    database.commit()
    database.close()
    Path(paths[0]).write_bytes(b"")
    Path(paths[1]).write_bytes(content(8))
    os.unlink(paths[2])
    site.forget()
    cache = opened()
    for _ in range(2):
        assert [Path(file).read_bytes() for file in cache.acquire(wanted(site, *range(4)))] == list(
            map(content, range(4))
        )
    assert sorted(line["path"] for line in site.requests()) == ["/0.bin", "/1.bin", "/2.bin"]


@pytest.mark.parametrize("how", ["changed", "cut", "removed", "touched"])
def test_a_file_that_somebody_changed_is_fetched_again_by_the_next_process_that_looks(site, folder, opened, how):
    with opened() as cache:
        path = Path(cache.acquire(wanted(site, 0, 1))[0])
    if how == "changed":
        path.write_bytes(b"#" * SIZE)
    elif how == "cut":
        os.truncate(path, 100)
    elif how == "removed":
        path.unlink()
    else:
        path.touch()
    files = opened().acquire(wanted(site, 0, 1))
    assert [Path(file).read_bytes() for file in files] == [content(0), content(1)]
    assert len(site.requests(r"/0\.bin")) == (1 if how == "touched" else 2)
    assert len(site.requests(r"/1\.bin")) == 1


@pytest.mark.parametrize("step_ns", [100, 1_000, 10_000_000, 1_000_000_000])
def test_files_whose_times_were_kept_in_coarse_steps_are_not_read_again(site, folder, opened, monkeypatch, step_ns):
    with opened() as cache:
        cache.acquire(wanted(site, *range(5)))
    for path in files_of(folder):
        os.utime(path, ns=(0, path.stat().st_mtime_ns // step_ns * step_ns))
    read, real = [], cache_shelf.checksum_of_file
    monkeypatch.setattr(cache_shelf, "checksum_of_file", lambda path: read.append(path) or real(path))
    with opened() as cache:
        cache.acquire(wanted(site, *range(5)))
    assert read == []
    assert len(site.requests()) == 5


def test_verify_finds_and_removes_what_is_damaged(site, folder, opened):
    cache = opened()
    paths = [str(file) for file in cache.acquire(wanted(site, *range(5)))]
    Path(paths[1]).write_bytes(content(8))
    os.unlink(paths[2])
    (folder / "files" / "0000" / f"{'0' * 32}-7.bin").write_bytes(b"of no entry")
    (folder / "files" / "notes.txt").write_text("not ours")
    report = cache.verify()
    assert (report.files, sorted(report.damaged), report.strays) == (5, sorted(paths[1:3]), 1)
    assert cache.verify().damaged == ()
    assert (folder / "files" / "notes.txt").exists()
    assert [Path(file).read_bytes() for file in cache.acquire(wanted(site, *range(5)))] == list(map(content, range(5)))


def test_without_its_database_nothing_that_lies_there_is_served(site, folder, opened):
    with opened() as cache:
        path = str(cache.acquire(wanted(site, 1))[0])
    Path(path).write_bytes(b"who knows")
    for name in folder.glob("cache.db*"):
        name.unlink()
    cache = opened()
    assert files_of(folder) == []
    assert Path(cache.acquire(wanted(site, 1))[0]).read_bytes() == content(1)


def test_clear_removes_all_that_nobody_uses(site, folder, opened):
    cache = opened()
    kept = cache.acquire(wanted(site, *range(5)))[0]
    assert cache.clear() == 4 * SIZE
    assert [str(path) for path in files_of(folder)] == [kept]


def test_the_same_name_at_another_server_is_another_object(s3, opened):
    from penstock import open_store

    s3.create_bucket("cache-one")
    open_store("s3://cache-one", **s3.options).put("x.bin", b"here")
    one = Wanted("s3://cache-one/x.bin")
    assert Path(opened(storage_options=s3.options).acquire([one])[0]).read_bytes() == b"here"
    elsewhere = {**s3.options, "endpoint": "http://127.0.0.1:9", "retries": 0, "timeout_s": 1}
    assert isinstance(opened(storage_options=elsewhere).acquire([one])[0], StoreError)


def test_no_secret_is_in_a_name_or_the_database(site, folder, opened):
    url = site.url.replace("http://", "http://user:hunter2@") + "/1.bin?X-Amz-Signature=geheim&part=3"
    cache = opened(storage_options={"headers": {"Authorization": "Bearer verysecret"}})
    cache.acquire([Wanted(url)])
    cache.close()
    for path in folder.rglob("*"):
        text = path.name.encode() + (path.read_bytes() if path.is_file() else b"")
        assert not any(secret in text for secret in (b"hunter2", b"geheim", b"verysecret"))
    assert "verysecret" not in repr(cache)


def test_a_url_signed_anew_is_the_same_object_and_another_query_another_one():
    from penstock.store.cache_names import key_of

    def key(query):
        return key_of(Wanted(f"https://host/x.jpg?{query}"), "")

    assert key("versionId=1&X-Amz-Signature=a&X-Amz-Date=1") == key("X-Amz-Signature=b&versionId=1&X-Amz-Date=2")
    assert key("sv=1&sig=a&se=2") == key("sv=1&sig=b&se=3")
    assert len({key("id=1"), key("id=2"), key("se=1"), key("se=2"), key("versionId=1&X-Amz-Date=2")}) == 5


def test_a_full_disk_is_a_clear_error_and_breaks_nothing(web, small_disk, opened):
    web.add_files({f"{number}.bin": content(number, 150 * KB) for number in range(30)})
    cache = opened(where=small_disk / "cache")
    found = cache.acquire(wanted(web, *range(30)))
    errors = [one for one in found if isinstance(one, Exception)]
    assert errors
    assert all(isinstance(one, StoreError) for one in errors)
    assert "no space left" in str(errors[0])
    good = [number for number, one in enumerate(found) if isinstance(one, str)]
    assert [Path(found[number]).read_bytes() for number in good] == [content(number, 150 * KB) for number in good]
    del found
    cache.clear()
    assert Path(cache.acquire(wanted(web, 29))[0]).read_bytes() == content(29, 150 * KB)
    assert cache.verify().damaged == ()


def test_a_cache_on_a_full_disk_is_opened_with_a_smaller_limit(web, small_disk, opened):
    web.add_files({f"{number}.bin": content(number, 50 * KB) for number in range(20)})
    with opened(where=small_disk / "cache") as cache:
        cache.acquire(wanted(web, *range(20)))
    with open(small_disk / "other", "wb", buffering=0) as other, suppress(OSError):
        while other.write(bytes(512)):
            pass
    with opened(limit=100 * KB, where=small_disk / "cache") as cache:
        assert cache.stats().bytes <= 100 * KB
        assert Path(cache.acquire(wanted(web, 3))[0]).read_bytes() == content(3, 50 * KB)


def test_closing_on_a_full_disk_takes_nothing_back(web, small_disk, opened, caplog):
    web.add_files({f"{number}.bin": content(number, 50 * KB) for number in range(20)})
    with opened(where=small_disk / "cache") as cache:
        cache.acquire(wanted(web, *range(10)))
        cache.stats()
        with open(small_disk / "other", "wb", buffering=0) as other, suppress(OSError):
            while other.write(bytes(512)):
                pass
        cache._book.hits += 1000
    assert cache.closed
    assert "could not record all that it holds" in caplog.text


def test_a_folder_that_cannot_be_a_cache_is_refused(tmp_path, opened):
    taken = tmp_path / "file"
    taken.write_bytes(b"")
    with pytest.raises(StoreError, match="cannot write"):
        opened(where=taken)
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    sqlite3.connect(foreign / "cache.db").execute("CREATE TABLE theirs (x)").connection.close()
    with pytest.raises(StoreError, match="not a cache of penstock"):
        opened(where=foreign)
    with pytest.raises(ConfigError, match="size"):
        opened(limit="lots")


def test_an_option_that_cannot_be_is_raised_and_not_returned(site, opened):
    with pytest.raises(ConfigError):
        opened().acquire([Wanted("gopher://host/x")])
    with pytest.raises(ConfigError, match="range"):
        opened().acquire([Wanted(f"{site.url}/1.bin", 7, 3)])


def test_a_cache_that_is_let_go_of_leaves_no_thread_and_no_holder(site, folder):
    before = threading.active_count()
    cache = open_cache(folder)
    cache.acquire(wanted(site, *range(5)))
    del cache
    gc.collect()
    wait_until(lambda: not any(folder.joinpath("holders").iterdir()))
    wait_until(lambda: not any("penstock-cache" in thread.name for thread in threading.enumerate()))
    assert threading.active_count() <= before + 1
    assert sorted(path.name for path in folder.iterdir()) == [
        "cache.db",
        "cache.db-turn",
        "files",
        "generations",
        "holders",
        "recency",
        "reserve",
    ]


def test_a_copy_in_another_process_opens_the_same_folder(site, opened):
    cache = opened(limit="1mb")
    cache.acquire(wanted(site, 1))
    with pickle.loads(pickle.dumps(cache)) as copy:
        site.forget()
        assert Path(copy.acquire(wanted(site, 1))[0]).read_bytes() == content(1)
        assert (copy.limit, site.requests()) == (1 << 20, [])


def test_a_folder_that_can_only_be_read_is_refused(site, small_disk):
    with open_cache(small_disk / "cache") as cache:
        cache.acquire(wanted(site, 1))
    del cache
    gc.collect()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(StoreError, match=r"cannot write.*choose a folder you may write to"):
        open_cache(small_disk / "cache")
    with pytest.raises(StoreError, match="cannot write"):
        open_cache(small_disk / "another")


def interrupting(method):
    """Have a method raise KeyboardInterrupt at its end, where Ctrl-C may come, one time."""
    pending = [True]

    def interrupted(*arguments, **options):
        found = method(*arguments, **options)
        if pending.pop() if pending else False:
            raise KeyboardInterrupt
        return found

    return interrupted


def test_a_local_file_that_is_missing_is_an_error_of_its_own_and_lets_go_of_nothing_else(tmp_path, opened):
    parts = [tmp_path / f"{number}.bin" for number in range(3)]
    for number in (0, 2):
        parts[number].write_bytes(content(number))
    ranged = [Wanted(str(path), 7, 21) for path in parts]
    cache = opened(limit=0)
    kept = cache.acquire([ranged[0]])[0]
    for _ in range(3):
        first, missing, last = cache.acquire(ranged)
        assert isinstance(missing, ObjectMissing)
        assert str(parts[1]) in str(missing)
        assert [Path(file).read_bytes() for file in (first, last)] == [content(0)[7:21], content(2)[7:21]]
    del first, last
    cache.clear()
    assert Path(kept).read_bytes() == content(0)[7:21]
    assert cache.stats().pinned == 1


def test_holders_that_are_removed_while_they_are_in_use_are_an_error_that_says_so(site, folder, opened):
    cache = open_cache(folder, SIZE)
    cache.acquire(wanted(site, 1))
    shutil.rmtree(folder / "holders")
    time.sleep(LOOK_S + 0.1)
    (failed,) = cache.acquire(wanted(site, 2), 10)
    assert isinstance(failed, StoreError)
    assert "holders was removed" in str(failed)
    assert cache._keeper.is_alive()
    with suppress(StoreError):
        cache.close()
    with opened() as again:
        assert Path(again.acquire(wanted(site, 3))[0]).read_bytes() == content(3)


def test_what_of_a_holders_table_is_lost_counts_as_in_use_until_it_is_written_anew(site, folder, opened):
    cache, other = opened(), opened()
    kept = cache.acquire(wanted(site, 0))[0]
    wait_until(lambda: cache.stats().files == other.stats().files == 1)
    for size in (0, 100, 5000):
        os.truncate(folder / "holders" / cache._pins.name, size)
        other.clear()
        assert Path(kept).read_bytes() == content(0)
    cache.acquire(wanted(site, 1))
    assert cache.stats().pinned == 1
    other.clear()
    assert Path(kept).read_bytes() == content(0)
    assert other.stats().files == 1
    assert other.stats().limit is None
    path = str(kept)
    del kept
    cache.stats()
    other.clear()
    assert not os.path.exists(path)


@pytest.mark.parametrize("size", [0, 100, 20000])
@pytest.mark.parametrize("cut", [1, 2])
def test_a_table_that_is_lost_again_while_it_is_written_anew_is_in_use(site, folder, opened, monkeypatch, size, cut):
    """Truncated behind the first or second write of the mending: nobody takes bits that are lost for unset ones."""
    cache, other = opened(), opened()
    kept = cache.acquire(wanted(site, 0))[0]
    wait_until(lambda: cache.stats().files == other.stats().files == 1)
    table, write, written = folder / "holders" / cache._pins.name, os.pwrite, []

    def write_then_truncate(file, data, at):
        write(file, data, at)
        written.append(at)
        if len(written) == cut:
            os.truncate(table, size)

    os.truncate(table, size)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", write_then_truncate)
        cache._pins.settle()
    assert len(written) == 2
    other.clear()
    assert Path(kept).read_bytes() == content(0)


def test_lost_times_and_generations_cost_a_look_and_nothing_else(site, folder, opened):
    cache, other = opened(limit=5 * SIZE), opened()
    for name in ("recency", "generations"):
        assert cache.acquire(wanted(site, 0, 1, 2))
        os.truncate(folder / name, 0)
        files = cache.acquire(wanted(site, 0, 1, 2))
        assert [Path(file).read_bytes() for file in files] == [content(0), content(1), content(2)]
        del files
        other.acquire(wanted(site, *range(10, 20)))
        files = cache.acquire(wanted(site, 0, 1, 2))
        assert [Path(file).read_bytes() for file in files] == [content(0), content(1), content(2)]
        wait_until(lambda: cache.stats().bytes <= 5 * SIZE)
        del files


@pytest.mark.parametrize(
    ("part", "method"),
    [
        ("penstock.store.cache_shelf.Shelf", "find"),
        ("penstock.store.cache_shelf.Shelf", "claim"),
        ("penstock.store.cache_downloads.Downloads", "begin"),
        ("penstock.store.cache_finder.Finder", "look"),
        ("penstock.store.cache_rows", "claim"),
        ("penstock.store.many.Fetcher", "get_many"),
    ],
)
@pytest.mark.parametrize("call", ["acquire", "begin"])
@pytest.mark.parametrize("others_first", [False, True])
def test_what_ctrl_c_interrupts_can_be_had_again_here_and_by_others(
    site, opened, monkeypatch, part, method, call, others_first
):
    cache, others = opened(), opened()
    monkeypatch.setattr(f"{part}.{method}", interrupting(pkgutil.resolve_name(f"{part}.{method}")))
    with pytest.raises(KeyboardInterrupt):
        getattr(cache, call)(wanted(site, 1, 2))
    for one in (others, cache) if others_first else (cache, others):
        files = one.acquire(wanted(site, 1, 2), 10)
        assert [Path(file).read_bytes() for file in files] == [content(1), content(2)]
    del files
    gc.collect()
    wait_until(lambda: cache.stats().pinned == 0)


def test_what_was_recorded_before_an_interrupt_is_recorded_once(site, opened, monkeypatch):
    cache = opened()
    files = cache.acquire(wanted(site, 0, 1, 2))
    before, real = cache.stats(), Database.writing

    @contextlib.contextmanager
    def interrupted(database):
        with real(database) as db:
            yield db
        raise KeyboardInterrupt

    monkeypatch.setattr(Database, "writing", interrupted)
    book = cache._book
    book.hits += 5
    row = next(iter(cache._shelf.find([key_of(wanted(site, 0)[0], "")]).values()))
    with pytest.raises(KeyboardInterrupt), book.changing() as db:
        cache_rows.doom(db, [row], cache._pins.name)
    book.spared(row)
    with pytest.raises(KeyboardInterrupt):
        book.flush()
    monkeypatch.undo()
    after = cache.stats()
    assert (after.files, after.bytes, after.hits) == (before.files, before.bytes, before.hits + 5)
    assert [Path(file).read_bytes() for file in files] == [content(0), content(1), content(2)]


def test_times_of_use_that_were_closed_first_are_no_error_at_the_end(tmp_path):
    """The collector may end the parts of a cache that nobody closed in any order."""
    recency = Recency(tmp_path)
    recency.close()
    recency.line_up()
    assert recency.next_oldest(1) == []
