"""What a URL means, and what of it may be shown."""

from __future__ import annotations

import pytest

from penstock.store.probe import leaving
from penstock.store.urls import is_url, parse_url, redact, same_server


@pytest.mark.parametrize(
    ("url", "scheme", "root", "key"),
    [
        ("s3://bucket/a b/c#d.bin", "s3", "s3://bucket", "a b/c#d.bin"),
        ("S3A://bucket/", "s3", "s3://bucket", ""),
        ("abfss://container/x", "az", "az://container", "x"),
        ("https://host:8080/a%20b/c.csv?sig=x%2Fy", "https", "https://host:8080/?sig=x%2Fy", "a b/c.csv"),
        ("hf://org/name", "hf", "hf://datasets/org/name@main", ""),
        ("hf://datasets/org/name@v1/data/x.parquet", "hf", "hf://datasets/org/name@v1", "data/x.parquet"),
        ("hf://org/name@refs%2Fpr%2F1/x", "hf", "hf://datasets/org/name@refs/pr/1", "x"),
        ("file:///data/a%20b.txt", "file", "/", "/data/a b.txt"),
        ("memory:///x", "memory", "memory://", "x"),
    ],
)
def test_a_url_names_a_root_and_a_key(url, scheme, root, key):
    place = parse_url(url)
    assert (place.scheme, place.root, place.key) == (scheme, root, key)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://key:secret@host/x failed", "https://host/x failed"),
        ("(https://host/x?X-Amz-Signature=abc&y=1)", "(https://host/x)"),
        ("http://127.0.0.1:80/x and https://u@h/?a=b.", "http://127.0.0.1:80/x and https://h/"),
        ("http://h/m.csv?name=cat(1).jpg&sig=SECRET failed", "http://h/m.csv failed"),
        ("(see 'http://h/m.csv?q=it's&sig=SECRET'): no", "(see 'http://h/m.csv'): no"),
        ('"http://h/m.csv?q="<a>"&sig=SECRET", no', '"http://h/m.csv", no'),
        ("http://h/m.csv?name=my old cat.jpg&sig=SECRET", "http://h/m.csv"),
        ("http://h/x?to=https://g/y&sig=SECRET", "http://h/x"),
        ("http://h/x?a=1&sig=S and http://g/y?b=2&sig=S failed", "http://h/x and http://g/y failed"),
        ("http://me:p@SECRET@127.0.0.1/x", "http://127.0.0.1/x"),
        ("http://h?mail=me@SECRET", "http://h"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_secrets_are_cut_out_of_text(text, shown):
    assert redact(text) == shown


@pytest.mark.parametrize(
    ("source", "is_one"),
    [
        ("s3://b", True),
        ("hf://org/name:en:test", True),
        ("/data/x", False),
        ("C://x", False),
        ("a:b", False),
        (5, False),
    ],
)
def test_urls_and_paths_are_told_apart(source, is_one):
    assert is_url(source) is is_one


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        ("http://host/a", "http://host:80/b", True),
        ("https://host:443/a", "https://host/b", True),
        ("HTTP://me:pw@Host/a", "http://host/b", True),
        ("http://host:8080/a", "http://host/a", False),
        ("http://host:443/a", "http://host/a", False),
        ("http://host/a", "https://host/a", False),
        ("http://host/a", "http://host.other/a", False),
        ("http://host/a", "http://host:port/a", False),
        ("http://host/a", "http://[host/a", False),
    ],
)
def test_a_server_is_known_by_its_port_whether_it_is_said_or_not(one, other, is_same):
    assert same_server(one, other) is is_same
    assert same_server(other, one) is is_same
    assert leaving([one, other]) == (None if is_same else other)
