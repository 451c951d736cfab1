"""Options of clouds: what is wrong with them, in words that say what would be right.

A client finds some mistakes late or not at all, and has names of its own for what other tools call
otherwise. Nothing here prints a value, except of an address.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit

from penstock.errors import ConfigError

_VARIABLES = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}
"""What the variables begin with that a cloud's client reads when it is made."""
_ADDRESS = re.compile(r"(^|_)(endpoint|endpoint_url|endpoint_url_s3|base_url)$", re.IGNORECASE)
_UNKNOWN = re.compile(r"Configuration key: '(\w+)' is not valid|unexpected keyword argument '(\w+)'")
_TWICE = re.compile(r"Duplicate key (?:(?:aws|google|azure)(?:_storage)?_)?(\w+) provided")
_OF_THE_CLIENT = ("proxy_url", "timeout", "connect_timeout", "allow_http", "allow_invalid_certificates", "user_agent")
_ANONYMOUS = "did you mean skip_signature=True?"
_CLIENT_OPTION = "it is one of the client: give client_options={{'{name}': …}}"
_COMMON = ("retries", "timeout_s", "max_requests", "credential_provider", "client_options", "skip_signature")
_USUAL = {
    "s3": ("access_key_id", "secret_access_key", "token", "region", "endpoint", "virtual_hosted_style_request"),
    "gs": ("service_account_path", "service_account_key", "application_credentials"),
    "az": ("account_name", "account_key", "sas_key", "endpoint", "client_id", "client_secret", "tenant_id"),
}
_OF_THE_WEB = ("headers", "headers_may_leave", "retries", "timeout_s", "max_requests", "client_options")
_ELSEWHERE = {
    ("s3", "region_name"): "did you mean region?",
    ("s3", "key"): "did you mean access_key_id?",
    ("s3", "secret"): "did you mean secret_access_key?",
    ("s3", "anon"): _ANONYMOUS,
    ("s3", "profile"): "profiles are not read: give access_key_id and secret_access_key, or a credential_provider",
    ("s3", "profile_name"): "profiles are not read: give access_key_id and secret_access_key, or a credential_provider",
    ("s3", "client_kwargs"): "give what is in it by itself: endpoint, region",
    ("s3", "use_ssl"): "write http:// or https:// before the endpoint",
    ("gs", "token"): "did you mean service_account_path? For a public bucket: skip_signature=True",
    ("gs", "project"): "leave it out: a bucket's name is enough",
    ("gs", "anon"): _ANONYMOUS,
    ("az", "connection_string"): "give account_name and account_key",
    ("az", "credential"): "did you mean account_key or sas_key?",
    ("az", "anon"): _ANONYMOUS,
}
"""Names that other tools have for it, and what to say."""


def variables(scheme: str) -> tuple[tuple[str, str], ...]:
    """Give the variables that a client of a scheme would be made from now; they may hold secrets."""
    prefix = _VARIABLES.get(scheme)
    if prefix is None:
        return ()
    return tuple(sorted((name, value) for name, value in os.environ.items() if name.upper().startswith(prefix)))


def check_addresses(scheme: str, options: Mapping[str, Any]) -> None:
    """Refuse addresses that are none, among the options of a cloud or, if none is there, among its variables.

    Raises:
        ConfigError: names the option or variable.
    """
    given = {f"the option {name}": value for name, value in options.items() if _ADDRESS.search(name)}
    found = {f"the variable {name}": value for name, value in variables(scheme) if _ADDRESS.search(name) and value}
    for what, value in (given or found).items():
        if isinstance(value, str) and not _is_address(value):
            raise ConfigError(
                f"{what} must be an address that begins with http:// or https://, as in http://127.0.0.1:9000, got "
                f"{value.rpartition('@')[2].partition('?')[0]!r}"
            )


def _is_address(value: str) -> bool:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018  it is looked at for its ValueError
    except ValueError:
        return False
    # What urlsplit would forgive, a client does not.
    return parts.scheme in ("http", "https") and bool(parts.hostname) and not re.search(r"[\s\x00-\x1f]", value)


def advice(scheme: str, options: Mapping[str, Any], said: str) -> str | None:
    """Say more about options than a client that has refused them.

    Args:
        scheme: "s3", "gs", "az", "http" or "https".
        options: what it was given.
        said: what it said.

    Returns:
        What is wrong and what to do; None if nothing is known beyond `said`.

    >>> advice("s3", {"region_name": "x"}, "Configuration key: 'region_name' is not valid for store 'S3'.")
    "s3:// has no option 'region_name': did you mean region?"
    >>> advice("http", {"max_request": 4}, "HTTPStore.__new__() got an unexpected keyword argument 'max_request'")
    "http:// has no option 'max_request': did you mean max_requests?"
    """
    twice = _TWICE.search(said)
    if twice:
        names = sorted(name for name in options if twice[1] in name.lower() or name.lower() in twice[1])
        return f"the options {' and '.join(names)} are two names of one: give one of them"
    unknown = _UNKNOWN.search(said)
    # A client breaks at its own options where those of the store belong, and does not say which it was.
    name = unknown[1] or unknown[2] if unknown else next((name for name in _OF_THE_CLIENT if name in options), None)
    return None if name is None else f"{scheme}:// has no option {name!r}: {_instead(scheme, name)}"


def _instead(scheme: str, name: str) -> str:
    if name in _OF_THE_CLIENT:
        return _CLIENT_OPTION.format(name=name)
    if (scheme, name) in _ELSEWHERE:
        return _ELSEWHERE[scheme, name]
    if scheme not in _USUAL and (cloud := next((cloud for cloud, names in _USUAL.items() if name in names), None)):
        return (
            f"it is one of {cloud}://. Options are for all places of a dataset: where some are {cloud}:// and some are "
            f"not, set the variables that begin with {_VARIABLES[cloud]} in its place"
        )
    usual = (*_USUAL[scheme], *_COMMON) if scheme in _USUAL else _OF_THE_WEB
    near = get_close_matches(name, usual, 1)
    return f"did you mean {near[0]}?" if near else f"the usual ones are {', '.join(usual)}"
