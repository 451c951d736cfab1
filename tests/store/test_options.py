"""What is wrong with the options of a cloud is said in words that name the option and what would be right."""

from __future__ import annotations

import pytest

from penstock.errors import ConfigError, StoreError
from penstock.store.many import Fetcher
from penstock.store.store import open_store
from penstock.store.wanted import Wanted

KEYS = {"access_key_id": "k", "secret_access_key": "s", "region": "us-east-1", "retries": 0}


@pytest.fixture(autouse=True)
def no_accounts(monkeypatch):
    for name in ("AWS_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("name", ["endpoint", "endpoint_url", "aws_endpoint_url_s3"])
@pytest.mark.parametrize(
    "address", ["127.0.0.1:9000", " http://127.0.0.1:9", "", "http://", "ftp://x", "http://bad host", "http://x:port"]
)
def test_an_address_that_is_none_is_refused_when_the_store_is_opened(name, address):
    with pytest.raises(ConfigError, match=rf"the option {name} must be an address that begins with http:// or https"):
        open_store("s3://bucket", **KEYS, **{name: address})


def test_so_is_one_of_the_environment_but_not_where_an_option_takes_its_place(monkeypatch, s3):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "127.0.0.1:9000")
    with pytest.raises(ConfigError, match="the variable AWS_ENDPOINT_URL must be an address that begins with http://"):
        open_store("s3://bucket", **KEYS)
    s3.create_bucket("instead")
    open_store("s3://instead", **s3.options).put("x", b"x")


def test_an_address_keeps_its_secrets():
    with pytest.raises(ConfigError) as caught:
        open_store("s3://bucket", **KEYS, endpoint="https://me:pass word@host")
    assert "pass word" not in str(caught.value)


def test_where_a_client_breaks_all_the_same_it_is_an_error_of_the_store(s3):
    # No address, no known option: what a client does not expect is never looked for in all its options.
    odd = {**s3.options, "token": "line\nbreak"}
    with pytest.raises(StoreError, match="the client of the store broke on this request: check the storage options"):
        open_store("s3://bucket", **odd, retries=0).get("x")
    (piece,) = Fetcher({**odd, "retries": 0}).get_many([Wanted("s3://bucket/x")])
    assert "the client of the store broke" in str(piece.error)


@pytest.mark.parametrize(
    ("url", "option", "said"),
    [
        ("s3://b", "region_name", "did you mean region?"),
        ("s3://b", "key", "did you mean access_key_id?"),
        ("s3://b", "secret", "did you mean secret_access_key?"),
        ("s3://b", "anon", "did you mean skip_signature=True?"),
        ("s3://b", "acess_key_id", "did you mean access_key_id?"),
        ("s3://b", "profile", "profiles are not read"),
        ("s3://b", "client_kwargs", "give what is in it by itself: endpoint, region"),
        ("s3://b", "proxy_url", "give client_options={'proxy_url': …}"),
        ("s3://b", "quux", "the usual ones are access_key_id, "),
        ("gs://b", "token", "did you mean service_account_path?"),
        ("az://b", "connection_string", "give account_name and account_key"),
    ],
)
def test_a_name_that_other_tools_have_leads_to_the_right_one(url, option, said):
    with pytest.raises(ConfigError, match=f"has no option '{option}'") as caught:
        open_store(url, **{option: "s3cr3t"})
    assert said in str(caught.value)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("max_request", "http:// has no option 'max_request': did you mean max_requests?"),
        ("header", "http:// has no option 'header': did you mean headers?"),
        ("zzz", "http:// has no option 'zzz': the usual ones are headers, headers_may_leave, retries, timeout_s"),
        ("access_key_id", "it is one of s3://. Options are for all places of a dataset: where some are s3://"),
        ("sas_key", "set the variables that begin with AZURE_ in its place"),
    ],
)
def test_so_does_one_of_a_cloud_or_misspelt_where_a_web_server_is_asked(option, said):
    with pytest.raises(ConfigError) as caught:
        open_store("http://127.0.0.1:9", **{option: "x"})
    assert said in str(caught.value)


def test_none_is_an_option_that_is_not_given(s3):
    s3.create_bucket("plain")
    store = open_store("s3://plain", **s3.options, token=None, headers=None, max_requests=None)
    store.put("x", b"x")
    assert store.get("x") == b"x"


def test_two_names_of_one_option_are_both_named():
    with pytest.raises(ConfigError, match="the options endpoint and endpoint_url are two names of one"):
        open_store("s3://b", endpoint="http://x", endpoint_url="http://y")
