"""What a cached object is called: by a digest, so that no key ever becomes a path and no secret a name.

    URL without its signature · range · the server the URL means ──blake2b──▶ 16 bytes

A query may choose what a server answers, so it belongs to the name; what only proves who is asking, a
signature and its date, does not, or an object would be fetched again whenever its URL is signed anew.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Mapping
from functools import cache
from hashlib import blake2b
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from penstock.store.urls import is_url, parse_url
from penstock.store.wanted import Wanted

KEY_BYTES = 16
_SIGNED = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|key-pair-id|policy", re.IGNORECASE
)
_SIGNED_AZURE = re.compile("s[vsrptei]|srt|sip|spr|sig|skoid|sktid|skt|ske|sks|skv|saoid|suoid|scid")
_SUFFIX = re.compile(r"\.[A-Za-z0-9_]{1,16}$")
# Options and variables that decide which server a URL such as s3://bucket/key means.
_PLACE = re.compile(r"endpoint|account_name|base_url|hub_url", re.IGNORECASE)
_VARIABLES = (
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_ENDPOINT",
    "HF_ENDPOINT",
    "AZURE_STORAGE_ACCOUNT_NAME",
    "AZURE_STORAGE_ENDPOINT",
    "GOOGLE_BASE_URL",
)


def server_of(storage_options: Mapping[str, Any] | None) -> str:
    """Say, in a text for digests only, which servers URLs mean under some storage options and the environment."""
    options = storage_options or {}
    given = sorted((name, str(value)) for name, value in options.items() if _PLACE.search(name))
    around = [(name, os.environ[name]) for name in _VARIABLES if os.environ.get(name)]
    return repr((given, around)) if given or around else ""


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
    elif (path := local_path(url)) is not None:
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
    """Take out of a URL who is asking, and leave what for."""
    if url.startswith("hf:"):
        return url
    parts = urlsplit(url)
    if not parts.query and "@" not in parts.netloc:
        return url
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    azure = any(name == "sig" for name, _ in pairs)
    kept = [pair for pair in pairs if not (_SIGNED.fullmatch(pair[0]) or (azure and _SIGNED_AZURE.fullmatch(pair[0])))]
    # As it stands, if it can, since another spelling may be another object.
    query = parts.query if len(kept) == len(pairs) else repr(kept) if kept else ""
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query=query).geturl()


@cache
def _process(_: int) -> str:
    """Give this process a name that no other has, before or after."""
    return secrets.token_hex(8)
