"""An object that is written as it grows is there whole or not at all, and is never held whole."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from penstock import AccessDenied, ConfigError, ObjectMissing, StoreError, StoreUnavailable, open_store
from penstock.store import uploads
from penstock.store.uploads import part_bytes_of

PIECE = os.urandom(1 << 20)
GROWTH = """
import sys, psutil
from penstock import open_store
process = psutil.Process()
piece = bytes(1 << 20)
with open_store(sys.argv[1], endpoint=sys.argv[2], access_key_id="k", secret_access_key="s", region="us-east-1",
                virtual_hosted_style_request=False).upload("") as file:
    file.write(piece)
    before = process.memory_info().rss
    most = 0
    for _ in range(400):
        file.write(piece)
        most = max(most, process.memory_info().rss - before)
print(most)
"""
BEGUN = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
FAULTY = {"region": "x", "access_key_id": "k", "secret_access_key": "s", "retries": 0}


def bucket(s3, name):
    s3.create_bucket(name)
    return open_store(f"s3://{name}", **s3.options)


def unfinished(s3, name) -> bytes:
    with urllib.request.urlopen(f"{s3.url}/{name}?uploads", timeout=30) as answer:
        return answer.read()


def write_and_fail(store, path, pieces) -> None:
    with store.upload(path) as file:
        for left in range(pieces - 1, -2, -1):
            file.write(PIECE[: len(PIECE) // (left + 1)])


@pytest.mark.parametrize("size", [0, 5, 40 << 20], ids=["empty", "small", "in parts"])
def test_what_was_written_is_there(s3, size):
    store = bucket(s3, f"whole-{size}")
    with store.upload("a/x") as file:
        for at in range(0, size, len(PIECE)):
            file.write(PIECE[: size - at])
        assert not list(store.list()), "it has no name before its end"
    assert store.get("a/x") == (PIECE * 40)[:size]
    assert b"<Upload>" not in unfinished(s3, f"whole-{size}")


@pytest.mark.parametrize("kind", ["az", "gs"])
def test_other_clouds_take_parts_as_well(kind, request):
    server = request.getfixturevalue("azure" if kind == "az" else "gcs")
    (server.create_container if kind == "az" else server.create_bucket)("uploads")
    store = open_store(f"{kind}://uploads", **server.options)
    with store.upload("x") as file:
        for _ in range(20):
            file.write(PIECE)
    assert store.get("x") == PIECE * 20
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store, "x", 20)
    assert store.head("x").size == 20 << 20


@pytest.mark.parametrize("pieces", [1, 40])
def test_a_block_that_fails_leaves_what_was_there_before(s3, pieces):
    name = f"failing-{pieces}"
    store = bucket(s3, name)
    store.put("x", b"before")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(store, "x", pieces)
    assert store.get("x") == b"before"
    assert b"<Upload>" not in unfinished(s3, name)


def test_a_file_that_was_closed_within_the_block_is_there_after_it(s3):
    store = bucket(s3, "closed")
    with store.upload("x") as file:
        file.write(b"abc")
        file.close()
    assert store.get("x") == b"abc"


def test_a_server_that_fails_now_and_then_is_asked_again(web):
    store = open_store("s3://bucket", endpoint=web.url, region="x", access_key_id="k", secret_access_key="s", retries=2)
    web.fault(times=1, status=503)
    web.fault(times=1, status=200, headers={"ETag": '"1"'})
    with store.upload("x") as file:
        file.write(b"abc")
    assert [line["status"] for line in web.requests()] == [503, 200]


def test_a_server_that_keeps_failing_is_given_up(web):
    store = open_store("s3://bucket", endpoint=web.url, region="x", access_key_id="k", secret_access_key="s", retries=1)
    web.fault(times=9, status=503)
    with (
        pytest.raises(StoreUnavailable, match=r"PUT s3://bucket/x kept failing: the server says 503"),
        store.upload("x") as file,
    ):
        file.write(b"abc")
    assert len(web.requests()) == 2


def test_a_refusal_and_a_missing_bucket_are_said(web, s3):
    store = open_store("s3://bucket", endpoint=web.url, region="x", access_key_id="k", secret_access_key="s", retries=0)
    web.fault(times=9, status=403)
    with (
        pytest.raises(AccessDenied, match=r"s3://bucket/x may not be written: the server says 403"),
        store.upload("x") as file,
    ):
        file.write(b"abc")
    missing = open_store("s3://no-such-bucket-here", **s3.options)
    with pytest.raises(ObjectMissing, match="there is no bucket"), missing.upload("x") as file:
        file.write(b"abc")


@pytest.mark.parametrize("pieces", [20, 40, 120], ids=["in the last part", "in parts on their way", "in one before"])
def test_a_refused_part_is_told_though_throwing_the_others_away_fails_too(web, pieces):
    web.fault(method="HEAD", path=".", times=99, status=404)
    web.fault(method="POST", path=".", times=9, status=200, body=BEGUN)
    web.fault(method="PUT", path=".", times=99, status=403)
    web.fault(method="DELETE", path=".", times=99, status=500)
    store = open_store("s3://bucket", endpoint=web.url, **FAULTY)
    with pytest.raises(AccessDenied, match=r"s3://bucket/x may not be written: the server says 403") as caught:
        write(store, "x", pieces)
    assert [note.partition(":")[0] for note in caught.value.__notes__] == [
        "what was sent before could not be thrown away (the server says 500 Internal Server Error)"
    ]


def test_where_why_an_upload_failed_cannot_be_found_out_that_is_said(web):
    web.fault(method="HEAD", path=".", times=99, status=404)
    web.fault(method="POST", path=".", status=200, body=BEGUN)
    web.fault(method="PUT", path=".", times=99, status=200, headers={"ETag": '"1"'})
    web.fault(method="POST", path=".", status=403)
    web.fault(method="POST", path=".", status=200, body=BEGUN)
    web.fault(method="DELETE", path=".", times=99, status=500)
    store = open_store("s3://bucket", endpoint=web.url, **FAULTY)
    with pytest.raises(StoreError, match=r"s3://bucket/x failed: .*client does not say why") as caught:
        write(store, "x", 20)
    assert "says 500" in caught.value.__notes__[0]


def write(store, path, pieces, **more) -> None:
    with store.upload(path, **more) as file:
        for _ in range(pieces):
            file.write(PIECE)


def test_what_is_large_goes_in_parts_that_the_clouds_limits_hold(s3):
    gib = 1 << 30
    for num_bytes in (0, 1, 156 * gib, 157 * gib, 640 * gib, 5 << 40):
        size = part_bytes_of(num_bytes)
        assert 16 << 20 <= size <= 5 * gib
        assert -(-num_bytes // size) <= 10_000
        assert size == 16 << 20 or -(-num_bytes // (size - (1 << 20))) > 10_000, "no larger than they must be"
    store = bucket(s3, "hints")
    write(store, "x", 20)
    assert store.head("x").etag.endswith('-2"'), "it went in two parts"
    write(store, "x", 20, num_bytes=200 * gib)
    assert "-" not in store.head("x").etag, "parts are of 21 MiB"
    assert store.get("x") == PIECE * 20


def test_what_no_cloud_holds_is_refused_before_it_begins(s3):
    store = open_store("s3://never-made", **s3.options)
    with pytest.raises(ConfigError, match=r"clouds hold objects of at most 5 TiB: write several"):
        store.upload("x", num_bytes=(5 << 40) + 1).__enter__()
    with pytest.raises(ConfigError, match="num_bytes must be an integer >= 0"):
        store.upload("x", num_bytes=-1).__enter__()


def test_what_outgrows_its_parts_is_told_how_to_be_written_and_leaves_nothing(s3, monkeypatch):
    monkeypatch.setattr(uploads, "MOST_PARTS", 2)
    store = bucket(s3, "outgrown")
    write(store, "x", 32)
    assert store.head("x").size == 32 << 20
    with pytest.raises(StoreError, match=r"outgrown/y failed: it grows beyond 33,554,432 bytes.*num_bytes=…"):
        write(store, "y", 40)
    assert [info.path for info in store.list()] == ["x"]
    assert b"<Upload>" not in unfinished(s3, "outgrown")
    write(store, "y", 40, num_bytes=40 << 20)
    assert store.get("y") == PIECE * 40
    assert store.head("y").etag.endswith('-2"')


def test_memory_is_a_store_as_others_are():
    store = open_store("memory://uploads")
    with store.upload("x") as file:
        file.write(b"abc")
    assert store.get("x") == b"abc"


@pytest.mark.parametrize("url", ["https://host/x", "hf://org/name", "/tmp"])
def test_places_that_are_only_read_say_so(url):
    with pytest.raises(ConfigError, match=r"only reads? "):
        open_store(url).upload("x").__enter__()


def test_a_place_that_fsspec_knows_is_written_in_pieces(sftp):
    store = open_store(sftp.url, **sftp.options)
    with store.upload("deep/x.parquet") as file:
        for _ in range(3):
            file.write(PIECE)
    assert store.get("deep/x.parquet") == PIECE * 3
    with pytest.raises(StoreError), store.upload("deep/x.parquet") as file:
        raise StoreError("no")
    assert [info.path for info in store.list()] == ["deep/x.parquet"]


@pytest.mark.slow
def test_an_object_larger_than_its_parts_takes_no_more_memory_than_they(s3):
    s3.create_bucket("growth")
    command = [sys.executable, "-c", GROWTH, "s3://growth/x", s3.url]
    grown = int(subprocess.run(command, check=True, capture_output=True, cwd=Path(__file__).parent).stdout)
    assert grown < 200 << 20, f"{grown >> 20} MiB for an object of 401"
