"""What a store holds comes back whole, whatever kind it is; what is not there is said precisely."""

from __future__ import annotations

import json
import os
import pickle
import random
import time
import traceback
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

import pytest

from penstock.errors import AccessDenied, ConfigError, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from penstock.store.many import Fetcher
from penstock.store.store import open_store
from penstock.store.wanted import Wanted

DATA = random.Random(5).randbytes(300_000)
ODD = "a folder/ü #1 + 100%25.bin"


KINDS = ["local", "memory", "s3", "azure", "gcs", "http", "hub", "nginx", "ftp", "sftp"]


@pytest.fixture(params=KINDS)
def filled(request, tmp_path):
    """A store of each kind with the same objects."""
    store = fill(request, tmp_path)
    yield store
    store.close()


def fill(request, tmp_path):
    files = {"x.bin": DATA, ODD: b"odd", "below/y.bin": b"y" * 10, "below/deep/z.bin": b""}
    if request.param == "local":
        for name, data in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(data)
        return open_store(tmp_path)
    if request.param in ("http", "hub"):
        hub = request.getfixturevalue("hub")
        sha = hub.add_dataset("org/name", {f"in/{name}": data for name, data in files.items()})
        web = f"{hub.url}/datasets/org/name/resolve/{sha}/in"
        return open_store(web if request.param == "http" else "hf://org/name/in")
    if request.param in ("nginx", "ftp", "sftp"):
        server = request.getfixturevalue(request.param)
        server.add_files({f"in/{name}": data for name, data in files.items()})
        return open_store(f"{server.url}/in", **getattr(server, "options", {}))
    if request.param == "memory":
        store = open_store(f"memory://{tmp_path.name}/in")
    elif request.param in ("azure", "gcs"):
        server = request.getfixturevalue(request.param)
        bucket = tmp_path.name.replace("_", "-").lower().strip("-")
        make = server.create_container if request.param == "azure" else server.create_bucket
        make(bucket)
        store = open_store(f"{'az' if request.param == 'azure' else 'gs'}://{bucket}/in", **server.options)
    else:
        s3 = request.getfixturevalue("s3")
        bucket = tmp_path.name.replace("_", "-").lower()
        s3.create_bucket(bucket)
        store = open_store(f"s3://{bucket}/in", **s3.options)
    for name, data in files.items():
        store.put(name, data)
    return store


def test_objects_come_back_whole_and_by_ranges(filled):
    assert filled.get("x.bin") == DATA
    assert filled.get(ODD) == b"odd"
    assert filled.get("below/deep/z.bin") == b""
    assert filled.get_range("x.bin", 10, 20) == DATA[10:20]
    assert filled.get_range("x.bin", 299_999, 300_000) == DATA[-1:]
    assert filled.get_range("x.bin", 7, 7) == b""
    starts, stops = [200_000, 0, 5, 199_000, 50], [200_010, 10, 150_000, 200_005, 50]
    assert filled.get_ranges("x.bin", starts, stops) == [DATA[a:b] for a, b in zip(starts, stops, strict=True)]
    assert filled.get_ranges("x.bin", [], []) == []


def test_a_store_goes_to_other_processes(filled):
    if filled.url.startswith("memory"):
        pytest.skip("memory belongs to one process")
    again = pickle.loads(pickle.dumps(filled))
    assert again.url.partition("@")[0] == filled.url.partition("@")[0]
    assert again.get_range("x.bin", 10, 20) == DATA[10:20]


def test_objects_are_described_without_being_read(filled):
    info = filled.head("x.bin")
    assert (info.path, info.size) == ("x.bin", len(DATA))
    assert info.etag
    assert filled.get_range("x.bin", 0, 9, etag=info.etag) == DATA[:9]


def test_a_look_at_an_object_describes_it_and_may_bring_a_part_of_it(filled):
    head = filled.head("x.bin")
    for at_end, part in ((False, DATA[:1000]), (True, DATA[-1000:])):
        info, data = filled.peek("x.bin", num_bytes=1000, at_end=at_end)
        assert (info.path, info.size, info.etag) == (head.path, head.size, head.etag)
        assert data in (part, b"")
    info, data = filled.peek("below/deep/z.bin", num_bytes=10)
    assert (info.size, data) == (0, b"")
    with pytest.raises(ObjectMissing, match=r"no/such\.bin does not exist"):
        filled.peek("no/such.bin", num_bytes=10)


def test_a_listing_names_everything_below(filled):
    if "resolve" in filled.url:
        with pytest.raises(ConfigError, match="web server, which has no listing"):
            list(filled.list())
        return
    found = {info.path: info.size for info in filled.list()}
    assert found == {"x.bin": len(DATA), ODD: 3, "below/y.bin": 10, "below/deep/z.bin": 0}
    assert {info.path for info in filled.list("below")} == {"below/y.bin", "below/deep/z.bin"}


def test_what_is_missing_is_named(filled):
    for ask in (filled.get, filled.head, lambda path: filled.get_range(path, 0, 1)):
        with pytest.raises(ObjectMissing, match=r"no/such\.bin does not exist") as caught:
            ask("no/such.bin")
        assert isinstance(caught.value, FileNotFoundError)


def test_a_range_outside_the_object_is_an_error_and_not_less_data(filled):
    with pytest.raises(StoreError, match=r"x\.bin"):
        filled.get_range("x.bin", 299_990, 300_010)
    with pytest.raises(StoreError, match=r"x\.bin"):
        filled.get_range("x.bin", 300_000, 300_010)


def test_a_store_opens_in_a_url_or_on_the_object_itself(tmp_path):
    store = open_store(f"memory://{tmp_path.name}")
    store.put("a/b.txt", b"text")
    assert open_store(f"memory://{tmp_path.name}/a/b.txt").get() == b"text"
    assert open_store(f"memory://{tmp_path.name}/a").get("b.txt") == b"text"
    (tmp_path / "c d.txt").write_bytes(b"file")
    assert open_store(tmp_path / "c d.txt").get() == b"file"
    assert open_store(f"file://{tmp_path}/c%20d.txt").get() == b"file"


def test_a_missing_bucket_is_not_a_missing_object(s3):
    s3.create_bucket("is-there")
    with pytest.raises(ObjectMissing, match=r"there is no bucket or container s3://is-not"):
        open_store("s3://is-not/x", **s3.options).get("y")
    with pytest.raises(ObjectMissing, match=r"there is no bucket or container s3://is-not"):
        open_store("s3://is-not/x", **s3.options).head("y")
    with pytest.raises(ObjectMissing) as caught:
        open_store("s3://is-there/x", **s3.options).head("y")
    assert "bucket" not in str(caught.value)


def test_a_cloud_without_credentials_says_what_to_give(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StoreError, match="access_key_id"):
        open_store("s3://bucket/x", region="us-east-1", retries=0, timeout_s=2).get()


@pytest.mark.parametrize("kind", ["s3", "local"])
def test_an_object_that_changed_is_not_read_as_if_it_had_not(request, tmp_path, kind):
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        s3.create_bucket("changes")
        store = open_store("s3://changes", **s3.options)
        store.put("x", b"a" * 10)
    else:
        store = open_store(tmp_path)
        (tmp_path / "x").write_bytes(b"a" * 10)
    etag = store.head("x").etag
    if kind == "s3":
        store.put("x", b"b" * 10)
    else:
        (tmp_path / "x").write_bytes(b"b" * 11)
    with pytest.raises(ObjectChanged, match=r"x changed"):
        store.get_range("x", 0, 5, etag=etag)


@pytest.mark.parametrize(
    ("url", "options", "message"),
    [
        ("ftp2://host/x", {}, "not a store that penstock knows"),
        ("s3:///x", {}, "names no bucket"),
        ("https:///x", {}, "names no host"),
        ("hf://name", {}, "names no dataset"),
        ("hf://spaces/org/name/x", {}, "names no dataset"),
        ("s3://b/x", {"acess_key": "k", "region": "r"}, "acess_key"),
        ("/tmp", {"region": "r"}, "a local path takes no storage options, got region"),
        ("https://host/x", {"timeout_s": 0}, "timeout_s must be a number of seconds above 0, got 0"),
        ("https://host/x", {"retries": -1}, "retries must be an integer >= 0, got -1"),
        ("s3://b/x", {"headers": {"a": "b"}}, r"headers are for http\(s\)://"),
    ],
)
def test_what_cannot_be_opened_is_refused_by_name(url, options, message):
    with pytest.raises(ConfigError, match=message):
        open_store(url, **options)


def test_no_secret_is_shown(monkeypatch):
    secrets = {
        "https://me:passw0rd@host.invalid/x?sig=s3cr3t": {"headers": {"Authorization": "Bearer s3cr3t"}},
        "s3://bucket/x": {"secret_access_key": "s3cr3t", "access_key_id": "s3cr3t", "region": "us-east-1"},
        "hf://org/name/x": {"token": "hf_s3cr3t", "endpoint": "http://host.invalid"},
    }
    for url, options in secrets.items():
        store = open_store(url, retries=0, timeout_s=1, **options)
        shown = [repr(store), store.url, repr(vars(store))]
        if not url.startswith("s3"):
            with pytest.raises(StoreUnavailable) as caught:
                store.get()
            shown += traceback.format_exception(caught.value)
        assert "s3cr3t" not in "".join(shown)
        assert "passw0rd" not in "".join(shown)


def test_credentials_that_expire_are_asked_for_again(s3):
    s3.create_bucket("expiring")
    calls = []

    def provide():
        calls.append(1)
        soon = datetime.now(UTC) + timedelta(seconds=1)
        return {"access_key_id": "a", "secret_access_key": "b", "token": None, "expires_at": soon}

    options = {name: value for name, value in s3.options.items() if "key" not in name}
    store = open_store("s3://expiring", credential_provider=provide, **options)
    store.put("x", b"x")
    before = len(calls)
    time.sleep(1.1)
    assert store.get("x") == b"x"
    assert len(calls) > before > 0


def test_other_clouds_ask_their_own_servers(hub):
    """Wiring only: the server is not theirs, and says of everything that it is not there."""
    key = {"gcs_base_url": hub.url, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    stores = {
        "/cont/in/x.bin": open_store("az://cont/in", endpoint=hub.url, account_name="a", account_key="a2V5"),
        "/bucket/in/x.bin": open_store("gs://bucket/in", service_account_key=json.dumps(key)),
    }
    for path, store in stores.items():
        with pytest.raises(ObjectMissing, match=rf"{store.url}/x\.bin does not exist"):
            store.get_range("x.bin", 5, 10)
        asked = hub.requests(path)[0]
        assert (asked["method"], asked["range"]) == ("GET", "bytes=5-9")


def test_a_folder_is_not_an_object(tmp_path):
    with pytest.raises(ObjectMissing, match="is a folder"):
        open_store(tmp_path).head()


@pytest.mark.skipif(os.name == "nt" or os.getuid() == 0, reason="needs a user whom permissions bind")
def test_a_file_that_may_not_be_read_is_denied(tmp_path):
    (tmp_path / "x").write_bytes(b"x")
    (tmp_path / "x").chmod(0)
    with pytest.raises(AccessDenied, match="may not be read"):
        open_store(tmp_path).get("x")


NAMES = ("a%2Fb.txt", "a/b.txt", "x#1.jpg", "sp ace+.txt", "q?x=1.txt", "é.txt", "a%20b", "a b", "p%q")


def test_names_are_exact_both_ways_in_a_bucket(s3):
    s3.create_bucket("exact-names")
    store = open_store("s3://exact-names", **s3.options)
    for name in NAMES:
        store.put(name, name.encode())
    assert sorted(info.path for info in store.list()) == sorted(NAMES)
    assert [store.get(name) for name in NAMES] == [name.encode() for name in NAMES]
    wanted = [Wanted(f"s3://exact-names/{name}") for name in NAMES]
    pieces = {piece.number: piece.data for piece in Fetcher(s3.options).get_many(wanted)}
    assert [pieces[number] for number in range(len(NAMES))] == [name.encode() for name in NAMES]
    for url in ("s3://exact-names//a.txt", "s3://exact-names/a//b.txt"):
        with pytest.raises(ConfigError, match="two slashes in a row"):
            open_store(url, **s3.options)


def test_names_are_exact_both_ways_at_a_web_server(web):
    web.add_files({name: name.encode() for name in NAMES if "%2F" not in name})
    asked = {"a/b.txt": "/a/b.txt", "x#1.jpg": "/x%231.jpg", "a%20b": "/a%20b", "p%25q": "/p%25q"}
    for url, target in asked.items():
        expected = unquote(url).encode()
        assert open_store(f"{web.url}/{url}").get() == expected
        (piece,) = Fetcher({}).get_many([Wanted(f"{web.url}/{url}")])
        assert piece.data == expected
        assert {line["target"] for line in web.requests()[-2:]} == {target}
    for name in NAMES:
        if "%2F" not in name:
            assert open_store(web.url).get(name) == name.encode()
    for url in ("a%2Fb.txt", "a%2fb.txt?x=1", "a//b.txt"):
        with suppress(StoreError):
            open_store(f"{web.url}/{url}").get()
        list(Fetcher({}).get_many([Wanted(f"{web.url}/{url}")]))
        assert {line["target"] for line in web.requests()[-2:]} == {f"/{url}"}


def test_a_length_that_is_a_mistake_fails_at_once(web):
    web.add_files({"x.bin": bytes(1000)})
    with pytest.raises(StoreError, match=r"ends at 1,000|Range Not Satisfiable"):
        open_store(web.url, retries=0).get_range("x.bin", 0, 2**60)
