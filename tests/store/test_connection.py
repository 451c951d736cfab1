"""Credentials that end in the middle of a run, and regions that are wrong."""

from __future__ import annotations

import gzip
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest

from penstock.errors import AccessDenied, ConfigError, StoreError
from penstock.store.many import Fetcher
from penstock.store.store import open_store
from penstock.store.wanted import Wanted

FILES = {f"{number:03}.bin": bytes([number]) * 500 for number in range(60)}
EXPIRED = {
    "status": 400,
    "body": "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
}


class Office:
    """Gives out what opens a private dataset; what it gave before is worth nothing from then on."""

    def __init__(self, hub):
        self.hub, self.count, self.lock = hub, 0, threading.RLock()
        self.sha = hub.add_dataset("org/private", FILES, private=True, readers=("none",))

    def __call__(self):
        with self.lock:
            self.count += 1
            self.change(f"secret-{self.count}")
        return {"Authorization": f"Bearer secret-{self.count}"}

    def change(self, token):
        # Whoever was given a token once stays a reader: a server that has read the old tokens and then reads the
        # readers would otherwise say 404 to one it knows, as the Hub does, and not 401.
        repo = self.hub.folder / "org/private/repo.json"
        with self.lock:
            known = json.loads(repo.read_text())
            for path, value in (
                (repo, known | {"readers": [*known["readers"], token]}),
                (self.hub.folder / "tokens.json", [token]),
            ):
                path.with_suffix(".new").write_text(json.dumps(value))
                path.with_suffix(".new").replace(path)

    @property
    def urls(self):
        return [f"{self.hub.url}/datasets/org/private/resolve/{self.sha}/{name}" for name in FILES]


@pytest.fixture
def office(hub):
    return Office(hub)


@pytest.fixture
def web2(tmp_path):
    """A second server, on another port: another host to whom secrets are concerned."""
    from servers.http_process import Web

    started = Web(tmp_path / "web2")
    yield started
    started.kill()


def s3_on(web, **options):
    """Options by which a plain web server is an S3 bucket's."""
    return {
        "endpoint": web.url,
        "region": "us-east-1",
        "virtual_hosted_style_request": False,
        "timeout_s": 2,
        "retries": 2,
        **options,
    }


def keys(number, **more):
    return {"access_key_id": f"key-{number}", "secret_access_key": "secret", **more}


def test_headers_that_are_a_function_are_asked_for_again_when_they_are_refused(hub, office):
    fetcher = Fetcher({"headers": office}, max_requests=8)
    wanted = [Wanted(url) for url in office.urls]
    data = []
    for piece in fetcher.get_many(wanted):
        data.append(piece.data)
        assert piece.error is None
        if len(data) == 20:
            office.change("somebody-elses")
    assert sorted(data) == sorted(FILES.values())
    # One renewal serves all that were refused, and none is refused more than once.
    assert office.count == 2
    refused = [line["path"] for line in hub.requests("resolve") if line["status"] == 401]
    assert 1 <= len(refused) == len(set(refused)) <= 8


def test_a_refusal_that_follows_a_renewal_is_final_and_tells_no_secret(office):
    store = open_store(office.urls[0], headers=lambda: {"Authorization": "Bearer secret-wrong"})
    with pytest.raises(AccessDenied, match=r"000\.bin may not be read") as caught:
        store.get()
    assert "secret" not in str(caught.value)
    assert "secret" not in repr(store)


def test_a_function_that_fails_is_named_without_what_it_says(office):
    answers = iter([{"Authorization": "Bearer wrong"}])

    def headers():
        return next(answers, None) or {}["secret-place"]

    store = open_store(office.urls[0], headers=headers)
    with pytest.raises(AccessDenied, match=r"the function that renews headers failed \(KeyError\)") as caught:
        store.get()
    assert "secret-place" not in str(caught.value)


def test_a_provider_that_fails_is_named_without_what_it_says():
    def provider():
        raise RuntimeError("secret-place")

    store = open_store("s3://bucket", endpoint="http://127.0.0.1:9", region="x", credential_provider=provider)
    with pytest.raises(AccessDenied, match=r"the credential_provider failed \(RuntimeError\)") as caught:
        store.get("x")
    assert "secret-place" not in str(caught.value)


def test_headers_that_are_none_are_refused_when_the_store_is_opened(hub):
    with pytest.raises(ConfigError, match="headers must be a mapping"):
        open_store(hub.url, headers=lambda: "Bearer x")


def test_credentials_of_a_cloud_are_asked_for_again_when_they_end(s3):
    s3.create_bucket("ends")
    open_store("s3://ends", **s3.options).put("x.bin", b"x")
    asked = []

    def provider():
        asked.append(1)
        return keys(len(asked), token=None, expires_at=datetime.now(UTC) + timedelta(seconds=1))

    options = {name: value for name, value in s3.options.items() if "access_key" not in name}
    store = open_store("s3://ends", **options, credential_provider=provider)
    assert store.get("x.bin") == b"x"
    before = len(asked)
    threading.Event().wait(1.2)
    assert store.get("x.bin") == b"x"
    assert len(asked) > before


def test_credentials_of_a_cloud_are_asked_for_again_when_the_server_says_they_have_ended(web):
    web.add_files({f"bucket/{name}": data for name, data in FILES.items()})
    asked = []

    def provider():
        asked.append(1)
        return keys(len(asked), token=None, expires_at=None)

    fetcher = Fetcher(s3_on(web, credential_provider=provider), max_requests=4)
    web.fault(path=r"/bucket/03.\.bin", times=3, **EXPIRED)
    found = {piece.number: piece.data for piece in fetcher.get_many([Wanted(f"s3://bucket/{name}") for name in FILES])}
    assert [found[number] for number in range(len(FILES))] == list(FILES.values())
    assert len(asked) == 2


def test_ended_credentials_that_nobody_renews_are_an_error_that_says_so(web):
    web.add_files({"bucket/x.bin": b"x"})
    web.fault(path=r"x\.bin", times=100, **EXPIRED)
    store = open_store("s3://bucket", **s3_on(web), **keys(1))
    with pytest.raises(AccessDenied, match=r"x\.bin may not be read: the credentials have expired .*ExpiredToken"):
        store.get("x.bin")
    assert len(web.requests(r"x\.bin")) == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"status": 301}, "the bucket is elsewhere, not in the region"),
        (
            {
                "status": 400,
                "body": "<Error><Code>AuthorizationHeaderMalformed</Code><Message>the region 'us-east-1' is wrong; "
                "expecting 'eu-west-1'</Message><Region>eu-west-1</Region></Error>",
            },
            "the bucket is in eu-west-1, not in the region",
        ),
    ],
    ids=["redirected", "refused"],
)
def test_a_wrong_region_is_said_at_once(web, answer, words):
    web.add_files({"bucket/x.bin": b"x"})
    web.fault(path=r"x\.bin", times=100, **answer)
    (piece,) = Fetcher(s3_on(web, **keys(1))).get_many([Wanted("s3://bucket/x.bin")])
    assert isinstance(piece.error, StoreError)
    assert f"GET s3://bucket/x.bin failed: {words}" in str(piece.error)
    assert "give region=" in str(piece.error)
    assert len(web.requests(r"x\.bin")) == 1


def test_where_a_server_names_the_region_in_a_header_only_it_is_named(web):
    web.fault(times=9, status=301, headers={"x-amz-bucket-region": "eu-west-3"})
    for ask in ("get", "head"):
        with pytest.raises(StoreError, match="the bucket is in eu-west-3, not in the region or at the endpoint"):
            getattr(open_store("s3://bucket", **s3_on(web), **keys(1)), ask)("x.bin")


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (403, "<Error><Code>SignatureDoesNotMatch</Code></Error>", r"the server says 403 Forbidden \(SignatureDoesNot"),
        (400, EXPIRED["body"], "the credentials have expired"),
        (
            400,
            (
                "<Error><Code>AuthorizationHeaderMalformed</Code>"
                "<Message>the region 'us-east-1' is wrong; expecting 'eu-west-1'</Message></Error>"
            ),
            "the bucket is in eu-west-1",
        ),
    ],
    ids=["signature", "expired", "region"],
)
def test_what_a_description_is_refused_for_is_asked_with_a_request_that_may_be_answered(web, status, body, words):
    web.fault(times=9, status=status, method="HEAD", body="")
    web.fault(times=9, status=status, method="GET", body=body)
    with pytest.raises(StoreError, match=words):
        open_store("s3://bucket", **s3_on(web), **keys(1)).head("x.bin")
    assert [line["method"] for line in web.requests(r"x\.bin")] == ["HEAD", "GET"]


def test_a_description_that_is_refused_stays_refused_whatever_else_may_be_read(web):
    web.add_files({"bucket/x.bin": b"x"})
    web.fault(times=9, status=403, method="HEAD", body="")
    with pytest.raises(AccessDenied, match="the server says 403 Forbidden"):
        open_store("s3://bucket", **s3_on(web), **keys(1)).head("x.bin")


def test_credentials_that_come_after_a_refusal_are_used(web, monkeypatch):
    web.add_files({"bucket/x.bin": b"x"})
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    web.fault(times=1, status=403, body="<Error><Code>AccessDenied</Code></Error>")
    with pytest.raises(AccessDenied, match="AccessDenied"):
        open_store("s3://bucket", **s3_on(web)).get("x.bin")
    monkeypatch.delenv("AWS_SKIP_SIGNATURE")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert open_store("s3://bucket", **s3_on(web)).get("x.bin") == b"x"
    assert [line["auth"] for line in web.requests(r"x\.bin")] == [False, True]


def test_a_wrong_signature_is_said_with_the_servers_word(web):
    web.add_files({"bucket/x.bin": b"x"})
    web.fault(path=r"x\.bin", times=9, status=403, body="<Error><Code>SignatureDoesNotMatch</Code></Error>")
    with pytest.raises(AccessDenied, match=r"403 Forbidden \(SignatureDoesNotMatch\)\. Give access_key_id"):
        open_store("s3://bucket", **s3_on(web), **keys(1)).get("x.bin")


def test_an_endpoint_where_nobody_listens_is_said_with_attempts_and_reason():
    options = {"endpoint": "http://127.0.0.1:9", "region": "us-east-1", "retries": 1, **keys(1)}
    (piece,) = Fetcher(options).get_many([Wanted("s3://bucket/x.bin")])
    assert "x.bin failed after 2 attempts" in str(piece.error)
    assert "the connection was refused" in str(piece.error)
    assert "Check the network and the address" in str(piece.error)


def test_what_authorizes_stays_with_the_host_it_was_given_for(web):
    web.add_files({"x.bin": b"elsewhere"})
    elsewhere = web.url.replace("127.0.0.1", "localhost")
    web.fault(path="/moved", times=2, status=302, headers={"Location": f"{elsewhere}/x.bin"})
    host = web.url.partition("://")[2]
    assert open_store(f"{web.url}/moved", headers={"Authorization": "Bearer SECRET"}).get() == b"elsewhere"
    assert open_store(f"http://me:SECRET@{host}/moved").get() == b"elsewhere"
    assert [line["auth"] for line in web.requests("/moved")] == [True, True]
    assert [line["auth"] for line in web.requests("/x.bin")] == [False, False]


def test_no_header_of_the_users_goes_to_a_host_it_was_not_given_for(web, web2):
    web2.add_files({f"{number}.bin": b"elsewhere" * 200 for number in range(4)})
    web.fault(path="/moved", times=99, status=302, headers={"Location": f"{web2.url}/0.bin"})
    web.fault(path="/1.bin", times=99, status=302, headers={"Location": f"{web2.url}/1.bin?signed=1"})
    web.add_files({"2.bin": b"here"})
    headers = {"X-Api-Key": "SECRET", "Authorization": "Bearer SECRET"}
    assert open_store(f"{web.url}/moved", headers=headers).get_range("", 0, 9) == b"elsewhere"
    assert open_store(web.url, headers=headers).head("1.bin").size == 1800
    pieces = list(Fetcher({"headers": headers}).get_many([Wanted(f"{web.url}/{n}.bin") for n in (1, 2)]))
    assert sorted(piece.data[:9] for piece in pieces) == [b"elsewhere", b"here"]
    assert all(line["key"] for line in web.requests())
    seen = web2.requests()
    assert len(seen) >= 3
    assert not any(line["key"] or line["auth"] for line in seen)
    allowed = open_store(f"{web.url}/moved", headers=headers, headers_may_leave=True)
    assert allowed.get_range("", 0, 9) == b"elsewhere"
    assert web2.requests()[-1]["key"]


def test_a_signed_place_on_another_host_may_end_and_be_given_anew(web, web2):
    web2.add_files({"s.bin": b"signed"})
    web.fault(path="/s.bin", times=99, status=302, headers={"Location": f"{web2.url}/s.bin?sig=one"})
    store = open_store(web.url, headers={"X-Api-Key": "SECRET"})
    assert store.get_range("s.bin", 0, 6) == b"signed"
    web2.fault(path="sig=one", times=99, status=403)
    web.heal()
    web.fault(path="/s.bin", times=99, status=302, headers={"Location": f"{web2.url}/s.bin?sig=two"})
    assert store.get_range("s.bin", 0, 6) == b"signed"
    assert not any(line["key"] for line in web2.requests())


def test_redirects_in_a_circle_fail_at_once_with_the_chain(web):
    web.fault(path="^/a$", times=99, status=302, headers={"Location": "/b?token=SECRET"})
    web.fault(path="^/b", times=99, status=302, headers={"Location": "/a"})
    with pytest.raises(StoreError, match="redirected without end") as caught:
        open_store(web.url).get("a")
    assert str(caught.value).endswith(f"{web.url}/a → {web.url}/b → {web.url}/a")
    assert len(web.requests("^/a$")) < 12


def test_what_has_no_length_is_refused_at_once(web):
    web.add_files({"page": b"made while it is sent"})
    web.fault(path="/page", times=99, ignore_range=True, headers={"Content-Length": None})
    with pytest.raises(StoreError, match="does not say how long it is"):
        open_store(web.url).get("page")
    assert len(web.requests("/page")) == 1


def test_what_a_server_compresses_all_the_same_is_refused(web):
    web.add_files({"x.bin": gzip.compress(b"x" * 1000)})
    web.fault(path="/x.bin", times=99, ignore_range=True, headers={"Content-Encoding": "gzip"})
    for ask in (
        lambda: open_store(web.url).get("x.bin"),
        lambda: next(piece.error for piece in Fetcher({}).get_many([Wanted(f"{web.url}/x.bin")]) if piece.error),
    ):
        try:
            said = ask()
        except StoreError as error:
            said = error
        assert "compressed (gzip) though it was asked not to" in str(said)
    assert {line["accept_encoding"] for line in web.requests("/x.bin")} == {"identity"}
