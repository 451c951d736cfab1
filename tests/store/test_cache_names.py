"""What a cached object is known by: all that chooses its bytes, and nothing that only proves who asks."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.store.cache import open_cache
from penstock.store.cache_names import key_of, server_of
from penstock.store.wanted import Wanted


def key(url, **options):
    return key_of(Wanted(url), server_of(options))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("abfss://container@one/x", "abfss://container@two/x"),
        ("abfss://one@account/x", "abfss://two@account/x"),
        ("github://org:one@main/x", "github://org:two@main/x"),
        ("sftp://alice@host/x", "sftp://bob@host/x"),
        ("ftp://alice:pw@host/x", "ftp://bob:pw@host/x"),
        ("https://alice:pw@host/x", "https://bob:pw@host/x"),
        ("https://alice:pw@host/x", "https://host/x"),
        ("s3://bucket/x?policy=1", "s3://bucket/x?policy=2"),
        ("gs://bucket/a?Expires=1&Signature=a&GoogleAccessId=b", "gs://bucket/a"),
        ("az://container/a?sv=1&sig=a&se=1", "az://container/a"),
        ("https://host/x?policy=1", "https://host/x?policy=2"),
        ("https://host/x?signature=1", "https://host/x?signature=2"),
        ("https://host/x?expires=1&policy=2", "https://host/x?expires=2&policy=2"),
        ("https://host/x?sig=1&sr=2", "https://host/x?sig=1&sr=3"),
        ("https://host/x?sv=1&sig=a&se=1&snapshot=1", "https://host/x?sv=1&sig=b&se=2&snapshot=2"),
    ],
)
def test_urls_of_different_objects_have_different_names(one, other):
    assert key(one) != key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("https://alice:old@host/x", "https://alice:new@host/x"),
        ("sftp://alice:old@host/x", "sftp://alice@host/x"),
        ("https://h/x?Expires=1&Signature=a&Key-Pair-Id=k", "https://h/x?Expires=2&Signature=b&Key-Pair-Id=k"),
        ("https://h/x?Policy=1&Signature=a&Key-Pair-Id=k", "https://h/x?Policy=2&Signature=b&Key-Pair-Id=k"),
        ("https://h/x?AWSAccessKeyId=k&Expires=1&Signature=a", "https://h/x"),
        ("https://h/x?X-Goog-Signature=a&X-Goog-Date=1", "https://h/x?X-Goog-Signature=b&X-Goog-Date=2"),
        ("https://h/x?sv=1&se=1&sp=r&sig=a", "https://h/x"),
    ],
)
def test_what_only_proves_who_asks_changes_no_name(one, other):
    assert key(one) == key(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": {"Accept": "image/png"}}, {"headers": {"Accept": "image/webp"}}),
        ({"headers": {"X-User": "alice"}}, {}),
        ({"client_options": {"default_headers": {"X-User": "alice"}}}, {}),
        ({"instance": "one.example"}, {"instance": "two.example"}),
        ({"username": "alice"}, {"username": "bob"}),
        ({"connection_string": "AccountName=one;AccountKey=k"}, {"connection_string": "AccountName=two;AccountKey=k"}),
    ],
)
def test_options_that_choose_what_a_server_answers_are_part_of_the_name(one, other):
    assert key("https://host/x", **one) != key("https://host/x", **other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"headers": {"Accept": "x"}}, {"headers": {"accept": "x"}}),
        ({"headers": lambda: {"Authorization": "old"}}, {"headers": lambda: {"Authorization": "new"}}),
        ({"connection_string": "AccountName=a;AccountKey=k"}, {"connection_string": "AccountName=a;AccountKey=other"}),
        ({"retries": 1, "timeout_s": 3, "secret_access_key": "s"}, {}),
    ],
)
def test_options_that_choose_nothing_are_not(one, other):
    assert key("https://host/x", **one) == key("https://host/x", **other)


def test_one_user_is_never_given_what_another_was_sent(web, tmp_path):
    host = web.url.partition("://")[2]
    web.add_files({"x.bin": b"of alice"})
    with open_cache(tmp_path / "cache", "1mb") as cache:
        first = cache.acquire([Wanted(f"http://alice:pw@{host}/x.bin")])[0]
        assert Path(first).read_bytes() == b"of alice"
        web.add_files({"x.bin": b"of bob"})
        assert Path(cache.acquire([Wanted(f"http://bob:pw@{host}/x.bin")])[0]).read_bytes() == b"of bob"
