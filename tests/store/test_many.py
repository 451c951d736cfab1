"""Many objects at once: each ends in one last piece, right or with its error, whatever the others do."""

from __future__ import annotations

import gc
import itertools
import os
import random
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter

import pytest

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from penstock.store.many import Fetcher
from penstock.store.ranges import PIECE_BYTES
from penstock.store.store import open_store
from penstock.store.wanted import Wanted

DRAW = random.Random(11)
FILES = {f"{number:03}.bin": DRAW.randbytes(DRAW.randrange(1, 3000)) for number in range(103)}
LONG = DRAW.randbytes(PIECE_BYTES) * 2 + DRAW.randbytes(1_234_567)


def gathered(pieces, count):
    """Put pieces together: bytes or an error for each Wanted, after checking that each ends once."""
    data, ended = [bytearray() for _ in range(count)], [0] * count
    found = [None] * count
    for piece in pieces:
        if piece.error is not None:
            found[piece.number] = piece.error
        else:
            have = data[piece.number]
            have.extend(b"\0" * (piece.offset + len(piece.data) - len(have)))
            have[piece.offset : piece.offset + len(piece.data)] = piece.data
            assert len(have) <= piece.size
            assert len(piece.data) <= PIECE_BYTES
        ended[piece.number] += piece.last
    assert ended == [1] * count
    return [error or bytes(have) for error, have in zip(found, data, strict=True)]


@pytest.fixture
def files(web):
    """A web server with a hundred files."""
    web.add_files(FILES)
    return [Wanted(f"{web.url}/{name}") for name in FILES]


@pytest.fixture
def fetcher():
    opened = Fetcher({"timeout_s": 1, "retries": 4})
    yield opened
    opened.close()


def fetch(fetcher, *wanted):
    return gathered(fetcher.get_many(wanted), len(wanted))


def test_all_that_is_asked_for_comes_once_by_one_request_each(web, files, fetcher):
    assert fetch(fetcher, *files) == list(FILES.values())
    assert Counter(line["path"] for line in web.requests(r"\.bin")) == Counter(f"/{name}" for name in FILES)
    assert web.bytes_sent() == sum(map(len, FILES.values()))


def test_requests_travel_side_by_side(web, files, fetcher):
    web.latency(0.8)
    fetch(fetcher, *files)
    lines = web.requests(r"\.bin")
    assert max(line["start"] for line in lines) < min(line["end"] for line in lines)


def most_at_once(lines):
    """Count the answers that were under way at the same time, a hundredth of a second aside."""
    ends = [(line["start"], 1) for line in lines] + [(line["end"] - 0.01, -1) for line in lines]
    return max(itertools.accumulate(change for _, change in sorted(ends)))


@pytest.mark.parametrize("described", [False, True], ids=["quick", "described"])
def test_no_more_requests_are_under_way_to_a_store_than_it_may_have(web, files, described):
    if described:
        store = open_store(web.url)
        files = [want._replace(etag=store.head(name).etag) for want, name in zip(files, FILES, strict=True)]
        web.forget()
    web.latency(0.05)
    fetcher = Fetcher({"max_requests": 3})
    # Two callers of one store, one of which began when all places were taken.
    with fetcher.get_many(files[:60]) as first, fetcher.get_many(files[60:]) as second:
        found = gathered(first, 60) + gathered(second, len(files) - 60)
    assert found == list(FILES.values())
    assert most_at_once(web.requests(r"\.bin")) == 3


def test_threads_that_read_from_a_store_share_what_it_may_have(web, files):
    web.latency(0.05)
    store = open_store(web.url, max_requests=2)
    threads = [threading.Thread(target=store.get, args=[name]) for name in list(FILES)[:12]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_at_once(web.requests(r"\.bin")) == 2
    with pytest.raises(ConfigError, match="max_requests"):
        open_store(web.url, max_requests=0)


@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
def test_an_empty_object_is_empty(web, fetcher, known):
    web.add_files({"empty.bin": b""})
    assert fetch(fetcher, Wanted(f"{web.url}/empty.bin", size=0 if known else None)) == [b""]


def test_an_empty_object_is_empty_after_failures_too(web, fetcher):
    web.add_files({"empty.bin": b""})
    web.fault(path=r"empty", times=2, status=500)
    assert fetch(fetcher, Wanted(f"{web.url}/empty.bin")) == [b""]


@pytest.mark.parametrize(
    "fault",
    [
        {"status": 500},
        {"status": 503},
        {"status": 429, "headers": {"Retry-After": "1"}},
        {"truncate": 0},
        {"truncate": 100},
        {"reset": 0},
        {"reset": 100},
        {"stall": 100},
        {"delay_s": 3},
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again_until_all_is_right(web, files, fetcher, fault):
    web.fault(path=r"\.bin", method="GET", every=10, times=8, **fault)
    assert fetch(fetcher, *files) == list(FILES.values())
    asked = Counter(line["path"] for line in web.requests(r"\.bin") if line["method"] == "GET")
    assert max(asked.values()) >= 2


@pytest.mark.parametrize(
    ("status", "kind", "words"), [(404, ObjectMissing, "does not exist"), (403, AccessDenied, "may not be read")]
)
def test_what_will_not_pass_is_an_error_of_its_own_at_once(web, files, fetcher, status, kind, words):
    web.fault(path=r"/00[0-6]\.bin", method="GET", times=1000, status=status)
    found = fetch(fetcher, *files)
    assert found[7:] == list(FILES.values())[7:]
    for number, error in enumerate(found[:7]):
        assert isinstance(error, kind)
        assert f"{web.url}/00{number}.bin {words}" in str(error)
    assert sum(line["method"] == "GET" for line in web.requests(r"\.bin")) == len(FILES)


def test_a_server_that_keeps_failing_is_an_error_with_attempts_and_reason(web, files):
    fetcher = Fetcher({"timeout_s": 1, "retries": 1})
    web.fault(path=r"/042\.bin", times=100, status=502)
    found = fetch(fetcher, *files)
    assert isinstance(found[42], StoreUnavailable)
    assert "042.bin failed after 2 attempts" in str(found[42])
    assert "502" in str(found[42])
    assert found[:42] + found[43:] == [data for name, data in FILES.items() if name != "042.bin"]


def test_a_server_that_dies_is_an_error_for_all_that_is_left(web, files):
    fetcher = Fetcher({"timeout_s": 1, "retries": 1}, max_requests=4)
    web.fault(path=r"/020\.bin", die=0)
    found = fetch(fetcher, *files)
    assert found[0] == FILES["000.bin"]
    assert isinstance(found[-1], StoreUnavailable)
    assert "the connection was refused" in str(found[-1])


@pytest.mark.parametrize("name", ["../etc/passwd", "a//b.bin", "a\0b.bin", "a/../../b"])
def test_a_name_that_no_store_can_have_is_an_error_of_its_own(web, files, fetcher, name):
    first, second = fetch(fetcher, Wanted(f"{web.url}/{name}"), files[0])
    assert isinstance(first, StoreError)
    assert second == FILES["000.bin"]


@pytest.mark.parametrize("length", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, len(LONG)])
@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
def test_a_long_object_comes_in_pieces_and_is_read_once(web, fetcher, length, known):
    web.add_files({"long.bin": LONG[:length]})
    wanted = Wanted(f"{web.url}/long.bin", size=length if known else None)
    assert fetch(fetcher, wanted) == [LONG[:length]]
    # A first piece that shows that there are more is asked for again, with what identifies the object.
    twice = PIECE_BYTES if length >= PIECE_BYTES and not known else 0
    assert web.bytes_sent(r"long\.bin") <= 1.001 * length + twice


def test_where_objects_are_long_no_byte_of_them_is_read_twice(web, fetcher):
    web.add_files({f"{number}.bin": LONG for number in range(4)})
    for number in range(4):
        web.forget()
        assert fetch(fetcher, Wanted(f"{web.url}/{number}.bin")) == [LONG]
    assert web.bytes_sent(r"3\.bin") == len(LONG)


def test_a_long_range_comes_in_pieces(web, fetcher):
    web.add_files({"long.bin": LONG})
    assert fetch(fetcher, Wanted(f"{web.url}/long.bin", 1000, 17_000_000)) == [LONG[1000:17_000_000]]
    assert web.bytes_sent(r"long\.bin") == 17_000_000 - 1000


@pytest.mark.parametrize("tagged", [True, False], ids=["etags", "no etags"])
@pytest.mark.parametrize("size", ["known", "unknown"])
@pytest.mark.parametrize("answers", [1, 2], ids=["after one answer", "after two answers"])
def test_an_object_replaced_while_it_is_read_is_an_error_or_read_again_but_never_torn(
    web, fetcher, tagged, size, answers
):
    # They agree around the place where the pieces meet, as images with wide margins do.
    old, new = (edge + bytes(2 * PIECE_BYTES) + edge for edge in (b"old", b"new"))
    web.add_files({"old.bin": old, "long.bin": new})
    os.utime(web.folder / "old.bin", (1e9, 1e9))
    without = {} if tagged else {"headers": {"ETag": None}}
    web.fault(path=r"long\.bin", times=answers, serve="/old.bin", **without)
    web.fault(path=r"long\.bin", times=100, **without)
    found = fetch(fetcher, Wanted(f"{web.url}/long.bin", size=len(new) if size == "known" else None))[0]
    if isinstance(found, ObjectChanged):
        assert "long.bin changed while it was read" in str(found)
    else:
        assert found in (old, new)
    assert web.requests(r"long\.bin")[0]["status"] == 206


def test_answers_without_an_etag_beside_some_with_one_tear_no_object(web, fetcher):
    old, new = (letter * (2 * PIECE_BYTES) for letter in (b"o", b"n"))
    web.add_files({"old.bin": old, "long.bin": new})
    os.utime(web.folder / "old.bin", (1e9, 1e9))
    web.fault(path=r"long\.bin", times=100, every=2, serve="/old.bin", headers={"ETag": None})
    found = fetch(fetcher, Wanted(f"{web.url}/long.bin"))[0]
    assert isinstance(found, ObjectChanged) or found in (old, new)


def test_an_object_of_another_size_or_etag_than_recorded_is_an_error(web, files, fetcher):
    (url, size) = files[0].url, len(FILES["000.bin"])
    etag = open_store(url).head().etag
    wanted = [Wanted(url, size=size), Wanted(url, size=size - 1), Wanted(url, size=size + 1), Wanted(url, etag='"no"')]
    same, *others = fetch(fetcher, *wanted, Wanted(url, etag=etag, size=size))
    assert others.pop() == same == FILES["000.bin"]
    assert [type(error) for error in others] == [ObjectChanged] * 3
    assert "where" in str(others[0])
    assert "recorded" in str(others[0])


@pytest.mark.parametrize("size", [2000, len(LONG)], ids=["short", "long"])
@pytest.mark.parametrize("known", [False, True], ids=["size unknown", "size known"])
def test_a_server_that_ignores_ranges_is_asked_for_whole_objects(web, fetcher, size, known):
    names = [f"{number}.bin" for number in range(8)] if size < PIECE_BYTES else ["0.bin"]
    web.add_files(dict.fromkeys(names, LONG[:size]))
    web.fault(path=r"\.bin", times=1000, ignore_range=True)
    for _ in range(2):
        wanted = [Wanted(f"{web.url}/{name}", size=size if known else None) for name in names]
        assert fetch(fetcher, *wanted) == [LONG[:size]] * len(names)
    asked = web.requests(r"\.bin")
    assert sum(line["range"] is None for line in asked) == 2 * len(names)


def test_ranges_of_one_object_that_adjoin_travel_as_one(web, fetcher):
    web.add_files({"tar.bin": LONG[:1_000_000]})
    spans = [(start, start + 20_000) for start in range(0, 980_000, 20_200)]
    DRAW.shuffle(spans)
    wanted = [Wanted(f"{web.url}/tar.bin", *span) for span in spans]
    assert fetch(fetcher, *wanted) == [LONG[start:stop] for start, stop in spans]
    assert len(web.requests(r"tar\.bin")) == 1
    assert web.bytes_sent(r"tar\.bin") <= 1.02 * 20_000 * len(spans)


def test_ranges_that_lie_apart_do_not_bring_what_nobody_wants(web, fetcher):
    web.add_files({"tar.bin": LONG[:1_000_000]})
    wanted = [Wanted(f"{web.url}/tar.bin", start, start + 1000) for start in range(0, 1_000_000, 50_000)]
    assert fetch(fetcher, *wanted) == [LONG[want.start : want.stop] for want in wanted]
    assert web.bytes_sent(r"tar\.bin") == 1000 * len(wanted)


def test_a_range_behind_an_objects_end_is_an_error_of_its_own(web, files, fetcher):
    size = len(FILES["000.bin"])
    spans = [(0, size), (size - 1, size + 1), (5, 5), (size + 10, size + 20)]
    whole, over, empty, beyond = fetch(fetcher, *[Wanted(files[0].url, *span) for span in spans])
    assert (whole, empty) == (FILES["000.bin"], b"")
    assert f"it ends at {size:,}" in str(over)
    assert isinstance(beyond, StoreError)


@pytest.mark.parametrize("span", [(5, 4), (-1, 4), (0, None), (None, 7)])
def test_a_range_that_cannot_be_is_refused_before_anything_is_asked(web, files, fetcher, span):
    with pytest.raises(ConfigError, match="are no range"):
        fetcher.get_many([files[1], Wanted(files[0].url, *span)])
    assert web.requests(r"\.bin") == []


@pytest.mark.parametrize("length", [2**40, 2**50, 2**62])
def test_a_length_that_is_a_mistake_is_an_error_of_its_own_at_once(web, files, fetcher, tmp_path, length):
    web.add_files({"long.bin": LONG})
    (tmp_path / "long.bin").write_bytes(LONG)
    urls = [f"{web.url}/long.bin", str(tmp_path / "long.bin")]
    wanted = [*(Wanted(url, 5, 5 + length) for url in urls), *(Wanted(url, size=length) for url in urls)]
    *errors, good = fetch(fetcher, *wanted, files[0])
    assert good == FILES["000.bin"]
    assert all(isinstance(error, StoreError) and "long.bin" in str(error) for error in errors)
    assert f"it ends at {len(LONG):,}" in str(errors[1])
    assert f"has {len(LONG):,} bytes, where {length:,} were recorded" in str(errors[3])
    assert len(web.requests(r"long\.bin")) <= 64


def test_an_object_of_more_pieces_than_are_asked_for_at_once_is_whole(tmp_path, fetcher):
    length = 40 * PIECE_BYTES + 7
    with open(tmp_path / "long.bin", "wb") as file:
        file.truncate(length)
    offsets = []
    for piece in fetcher.get_many([Wanted(str(tmp_path / "long.bin"), 3, length)]):
        assert piece.error is None
        offsets.append((piece.offset, piece.offset + len(piece.data)))
    ends = sorted(offsets)
    assert (ends[0][0], ends[-1][1]) == (0, length - 3)
    assert all(one[1] == two[0] for one, two in itertools.pairwise(ends))


def test_memory_is_bounded_while_nobody_takes_what_has_come(web):
    web.add_files({f"{number:02}.bin": LONG[:100_000] for number in range(60)})
    wanted = [Wanted(f"{web.url}/{number:02}.bin", size=100_000) for number in range(60)]
    pieces = Fetcher(max_bytes=1_000_000).get_many(wanted)
    first = next(pieces)
    while web.bytes_sent(r"\.bin") < 1_000_000:
        time.sleep(0.02)
    time.sleep(0.3)
    assert web.bytes_sent(r"\.bin") <= 1_100_000
    assert gathered(itertools.chain([first], pieces), 60) == [LONG[:100_000]] * 60


def test_who_reads_two_at_once_on_one_thread_is_never_stuck(web):
    web.add_files({f"{number:02}.bin": LONG[:100_000] for number in range(20)})
    fetcher = Fetcher(max_bytes=150_000)
    wanted = [Wanted(f"{web.url}/{number:02}.bin") for number in range(20)]
    several = [fetcher.get_many(wanted) for _ in range(3)]
    found = [[] for _ in several]
    for turn in zip(*several, strict=True):
        for mine, piece in zip(found, turn, strict=True):
            mine.append(piece)
    assert [gathered(mine, 20) for mine in found] == [[LONG[:100_000]] * 20] * 3


def test_closing_cancels_what_a_stalled_server_owes_and_frees_its_places(web, files):
    fetcher = Fetcher({"timeout_s": 30})
    web.fault(path=r"\.bin", times=1000, stall=0)
    many = [*files, *files, *files]
    pieces = fetcher.get_many(many)
    assert pieces.take(timeout_s=0.5) == []
    pieces.close()
    assert list(pieces) == []
    web.heal()
    assert fetch(fetcher, *files) == list(FILES.values())


def test_letting_go_of_the_iterator_cancels_what_has_not_arrived(web, files):
    web.latency(0.2)
    pieces = Fetcher(max_requests=4).get_many(files)
    next(pieces)
    del pieces
    gc.collect()
    count = len(web.requests(r"\.bin"))
    time.sleep(0.5)
    assert len(web.requests(r"\.bin")) == count < 30


def test_a_straggler_is_asked_for_a_second_time_beside_the_first(web):
    web.add_files({f"{number:03}.bin": LONG[:2000] for number in range(400)})
    web.fault(path=r"/200\.bin", stall=0)
    fetcher = Fetcher({"timeout_s": 60})
    wanted = [Wanted(f"{web.url}/{number:03}.bin") for number in range(400)]
    assert fetch(fetcher, *wanted) == [LONG[:2000]] * 400
    asked = Counter(line["path"] for line in web.requests(r"\.bin"))
    assert asked["/200.bin"] == 2
    assert sum(asked.values()) <= 1.04 * 400


def test_a_server_that_is_slow_altogether_is_not_asked_twice(web, files):
    web.latency(0.6, 0.2)
    assert fetch(Fetcher(max_requests=30), *files, *files) == list(FILES.values()) * 2
    assert len(web.requests(r"\.bin")) == 2 * len(files)


def test_pieces_can_be_taken_in_bunches(web, files, fetcher):
    web.latency(0.2)
    pieces = fetcher.get_many(files)
    assert pieces.take(timeout_s=0.0) == []
    found = []
    while pieces.left:
        found += pieces.take()
    assert gathered(found, len(files)) == list(FILES.values())
    assert pieces.take() == []


def test_stores_of_all_kinds_in_one_call(web, hub, tmp_path, files, fetcher):
    sha = hub.add_dataset("org/name", {"x.bin": b"hub"})
    (tmp_path / "x.bin").write_bytes(b"disk")
    (tmp_path / "long.bin").write_bytes(LONG)
    open_store("memory://many").put("x.bin", b"memory")
    urls = ["hf://org/name/x.bin", f"file://{tmp_path}/x.bin", str(tmp_path / "long.bin"), "memory://many/x.bin"]
    missing = [f"hf://org/name@{sha}/y.bin", "hf://org/none/x.bin", str(tmp_path / "none"), "memory://many/y.bin"]
    found = fetch(fetcher, *map(Wanted, urls), files[0], *map(Wanted, missing))
    assert found[:5] == [b"hub", b"disk", LONG, b"memory", FILES["000.bin"]]
    assert [type(error) for error in found[5:]] == [ObjectMissing] * 4


def test_signed_urls_and_quoted_names_are_objects_of_their_own(web, fetcher):
    web.add_files({"a b.bin": b"1", "c.bin": b"2"})
    urls = [
        f"{web.url}/a%20b.bin",
        f"{web.url}/c.bin?sig=secret",
        f"{web.url}/c.bin?sig=other",
        f"{web.url}/d?sig=secret",
    ]
    *found, error = fetch(fetcher, *map(Wanted, urls))
    assert found == [b"1", b"2", b"2"]
    assert [line["query"] for line in web.requests("/c.bin")] in (
        ["sig=secret", "sig=other"],
        ["sig=other", "sig=secret"],
    )
    assert "secret" not in str(error)


def test_a_process_that_ends_in_the_middle_ends_at_once_and_says_nothing(web, files):
    web.fault(path=r"\.bin", times=1000, stall=0)
    program = f"""
        from penstock.store.many import Fetcher
        from penstock.store.wanted import Wanted

        pieces = Fetcher().get_many([Wanted(url) for url in {[want.url for want in files]!r}])
        pieces.take(timeout_s=0.5)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=20, check=True
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_a_straggler_whose_etag_is_known_is_asked_for_a_second_time_too(web):
    web.add_files({f"{number:03}.bin": LONG[:2000] for number in range(100)})
    wanted = [Wanted(f"{web.url}/{number:03}.bin") for number in range(100)]
    wanted = [want._replace(etag=open_store(want.url).head().etag) for want in wanted]
    web.forget()
    web.fault(path=r"/050\.bin", stall=0)
    assert fetch(Fetcher({"timeout_s": 60}), *wanted) == [LONG[:2000]] * 100
    assert len(web.requests(r"/050\.bin")) == 2


def test_objects_of_a_bucket_come_by_the_same_way(s3):
    s3.create_bucket("many")
    bucket = open_store("s3://many", **s3.options)
    for name, data in FILES.items():
        bucket.put(f"a/{name}", data)
    bucket.put("empty", b"")
    wanted = [Wanted(f"s3://many/a/{name}") for name in FILES]
    found = fetch(
        Fetcher(s3.options), *wanted, Wanted("s3://many/empty"), Wanted("s3://many/none"), Wanted("s3://no/x")
    )
    assert found[: len(FILES) + 1] == [*FILES.values(), b""]
    assert [str(error) for error in found[-2:]] == [
        "s3://many/none does not exist",
        "s3://no/x does not exist: there is no bucket or container s3://no",
    ]


def test_threads_that_share_a_fetcher_get_their_own_through_every_fault_and_leave_nothing_held(web):
    sizes = [0, 1, 100, 5000, 200_000]
    contents = {f"{number:03}.bin": LONG[number : number + DRAW.choice(sizes)] for number in range(80)}
    contents["long.bin"] = LONG
    web.add_files(contents)
    for fault in ({"status": 500}, {"truncate": 50}, {"reset": 10}, {"stall": 20}, {"ignore_range": True}):
        web.fault(path=r"/0.*\.bin", every=19, times=12, **fault)
    fetcher = Fetcher({"timeout_s": 1, "retries": 6}, max_bytes=4 << 20, max_requests=40)
    wrong: list[object] = []

    def read(seed):
        draw = random.Random(seed)
        for stop_at in (None, 30, None):
            names = draw.choices(list(contents), k=60)
            wanted = [Wanted(f"{web.url}/{name}", size=draw.choice([None, len(contents[name])])) for name in names]
            pieces = fetcher.get_many(wanted)
            if stop_at is not None:
                list(itertools.islice(pieces, stop_at))
                pieces.close()
                continue
            found = gathered(pieces, len(wanted))
            wrong.extend(one for one, name in zip(found, names, strict=True) if one != contents[name])

    threads = [threading.Thread(target=read, args=[seed]) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []
    web.heal()
    web.latency(1.0)
    web.forget()
    # What was left would take up places: all can still be asked for at once.
    names = [name for name in contents if 0 < len(contents[name]) < PIECE_BYTES]
    fetch(Fetcher(max_bytes=1 << 30), *[Wanted(f"{web.url}/{name}") for name in names] * 3)
    lines = web.requests(r"\.bin")
    assert len(lines) == 3 * len(names)
    assert max(line["start"] for line in lines) < min(line["end"] for line in lines)


def test_closing_from_another_thread_ends_a_wait(web, files):
    web.fault(path=r"\.bin", times=1000, stall=0)
    pieces = Fetcher({"timeout_s": 60}).get_many(files)
    threading.Timer(0.3, pieces.close).start()
    assert list(pieces) == []
