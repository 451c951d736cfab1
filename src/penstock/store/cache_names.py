"""What a cached object is called: by a digest, so that no key ever becomes a path and no secret a name.

    URL without its signature · range · the server the URL means ──blake2b──▶ 16 bytes

A query, a user and a header may choose what a server answers, so they belong to the name; what only proves
who is asking, a password, a signature and its date, does not, or an object would be fetched again whenever
its URL is signed anew. For the same reason headers that a function renews do not.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl

from penstock.store.urls import HTTP, is_url, parse_url
from penstock.store.wanted import Wanted

KEY_BYTES = 16
_V4 = ("algorithm", "credential", "date", "expires", "signedheaders", "signature", "security-token", "content-sha256")
_SIGNATURES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (frozenset(sure.split()), frozenset(parts.split()))
    for sure, parts in (
        ("x-amz-signature x-amz-credential", " ".join(f"x-amz-{name}" for name in _V4)),
        ("x-amz-signature x-amz-date", " ".join(f"x-amz-{name}" for name in _V4)),
        ("x-goog-signature", " ".join(f"x-goog-{name}" for name in _V4)),
        ("signature expires awsaccesskeyid", "signature expires awsaccesskeyid x-amz-security-token"),
        ("signature expires googleaccessid", "signature expires googleaccessid"),
        ("signature key-pair-id expires", "signature key-pair-id expires hash-algorithm"),
        ("signature key-pair-id policy", "signature key-pair-id policy hash-algorithm"),
        ("sig sv", "sv ss sr sp st se si srt sip spr sig skoid sktid skt ske sks skv saoid suoid scid"),
    )
)
"""Parameters that together are a signature, and what belongs to it: one of them alone may choose an object."""
_SUFFIX = re.compile(r"\.[A-Za-z0-9_]{1,16}$")
# Options and variables that decide which server a URL such as s3://bucket/key means.
_PLACE = re.compile(
    r".*(endpoint|account_name|base_url|hub_url).*|account|instance|host|port|user|username|org|repo|sha|ref|branch",
    re.IGNORECASE,
)
_SECRET_OF_AZURE = re.compile(r"(AccountKey|SharedAccessSignature)=[^;]*", re.IGNORECASE)
_LOGINS = ("http", "https", "ftp", "ftps", "sftp", "ssh")
"""Where a user part is a user and a password. Elsewhere it may be an account, a container or a repository."""
_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "HF_ENDPOINT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ACCOUNT",
    "AZURE_STORAGE_CONNECTION_STRING",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)


def server_of(storage_options: Mapping[str, Any] | None) -> str:
    """Give a digest of what, in storage options and the environment, decides what servers answer; "" if nothing does.

    These are the servers that URLs mean, and headers, names in any case, unless a function gives them.
    """
    options = storage_options or {}
    given = [(name, str(value)) for name, value in options.items() if _PLACE.fullmatch(name)]
    given += [(name, os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    if isinstance(secret := options.get("connection_string"), str):
        given.append(("connection_string", secret))
    client = options.get("client_options")
    more = client.get("default_headers") if isinstance(client, Mapping) else None
    for headers in (options.get("headers"), more):
        if isinstance(headers, Mapping):
            given += [(f"{str(name).lower()}:", str(value)) for name, value in headers.items()]
    text = repr(sorted((name, _SECRET_OF_AZURE.sub("", value)) for name, value in given))
    return blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES).hexdigest() if given else ""


def local_path(url: str) -> str | None:
    """Give the path of a local file, as it was given if it is no URL; None for what is elsewhere."""
    if not is_url(url):
        return url
    return parse_url(url).key if url[:7].lower() == "file://" else None


def key_of(wanted: Wanted, server: str) -> bytes:
    """Give the 16 bytes that an object, or a part of one, is known by in a cache.

    Args:
        wanted: what of which URL.
        server: see `server_of`.
    """
    url = wanted.url
    if "?" in url or "@" in url:
        url = _unsigned(url)
    if url.startswith("memory://"):
        # What is in the memory of a process is nobody else's.
        url = f"{url}\0{_process(os.getpid())}"
    elif wanted.start is not None and (path := local_path(url)) is not None:
        # Only parts of local files are cached; the file may be written anew between two runs.
        found = os.stat(path)
        url = f"{path}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}"
    text = f"{url}\0{server}" if wanted.start is None else f"{url}\0{server}\0{wanted.start}\0{wanted.stop}"
    return blake2b(text.encode(errors="surrogatepass"), digest_size=KEY_BYTES).digest()


def suffix_of(wanted: Wanted) -> str:
    """Give the extension a cached file keeps, "" for none: that of a whole object, if it is a plain one.

    >>> suffix_of(Wanted("https://host/a/../b.JPG?size=3")), suffix_of(Wanted("s3://b/x.tar", 512, 900))
    ('.JPG', '')
    >>> suffix_of(Wanted("s3://b/x.tar", 512, 900, suffix=".boxes.json"))
    '.json'
    """
    # A part of a .tar is no .tar.
    name = wanted.url.partition("?")[0] if wanted.start is None else wanted.suffix
    found = _SUFFIX.search(name)
    return found[0] if found else ""


def _unsigned(url: str) -> str:
    """Take out of a URL what proves who is asking, and leave who, and what for."""
    scheme = url.partition("://")[0].lower()
    if scheme not in _LOGINS:
        # Question marks are letters of a key as others are.
        return url
    head, slash, rest = url.partition("://")[2].partition("/")
    login, at, host = head.rpartition("@")
    bare = f"{scheme}://{login.partition(':')[0]}{at}{host}{slash}{rest}"
    if scheme not in HTTP:
        return bare
    path, mark, query = bare.partition("?")
    pairs = parse_qsl(query, keep_blank_values=True)
    names = {name.lower() for name, _ in pairs}
    signature = {part for sure, parts in _SIGNATURES if sure <= names for part in parts}
    if not signature:
        # As it stands, since another spelling may be another object.
        return bare
    kept = [pair for pair in pairs if pair[0].lower() not in signature]
    return f"{path}{mark}{kept!r}" if kept else path


@cache
def _process(_: int) -> str:
    """Give this process a name that no other has, before or after."""
    return secrets.token_hex(8)
