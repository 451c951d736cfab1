"""What a URL says: which store, which object in it, and what of it may be shown.

Credentials live in user parts and queries of URLs, so nothing of these is ever printed.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from penstock.errors import ConfigError

HTTP = ("http", "https")
CLOUD = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "abfss": "az", "azure": "az"}
KNOWN = "s3://, gs://, az://, http(s)://, hf://, file://, memory://"

_PORTS = {"http": 80, "https": 443}
_OWN = {*HTTP, *CLOUD.values(), "hf", "memory", "file"}
_NOT_A_PATH = re.compile(r"%2f|%5c|//|/\.{1,2}(/|$)", re.IGNORECASE)
"""What a path of a URL may have in it that is lost where it is taken apart and put together again."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_SECRETS = re.compile(
    r"""
    (?<=://) [^/\s?]* @ (?=[^/\s])  # a user, and a password that may have an @ in it
    | \? (?: (?:(?!://)[^\n])* & [\w.%-]+ = )? \S*?  # a query, in which somebody left blanks, quotes and brackets
    (?= [])}>"',;:]* (?:\s|$) )
    """,
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A URL taken apart."""

    scheme: str
    """"s3", "gs", "az", "http", "https", "hf", "memory", "file", or one that fsspec has a driver for."""
    root: str = field(repr=False)
    """What a connection is made to: a bucket, a host, a dataset at a revision; with its query, if it has one."""
    key: str
    """The object's name there; unquoted, without slashes at its ends."""

    @property
    def is_own(self) -> bool:
        """Whether penstock reads it itself, and not through a driver of fsspec."""
        return self.scheme in _OWN

    def shown_root(self) -> str:
        """The root without what may be a secret."""
        shown = redact(self.root)
        # Some places have no host: dbfs:///folder.
        return shown if shown.endswith("://") else shown.rstrip("/")

    def shown(self) -> str:
        """The whole URL without what may be a secret."""
        return f"{self.shown_root()}/{self.key}" if self.key else self.shown_root()


def is_url(source: object) -> bool:
    """Tell whether a source is a URL and not a local path; `file://` is a URL too.

    >>> is_url("s3://bucket/x"), is_url("C:/data"), is_url("hf://org/name:config:train")
    (True, False, True)
    """
    return isinstance(source, str) and _URL.match(source) is not None


def lasting(source: str | os.PathLike[str]) -> str:
    """Give a URL as it is and a path in full, so that it stays true wherever the process goes.

    >>> lasting("s3://bucket/x"), lasting("/data/link/../x")
    ('s3://bucket/x', '/data/link/../x')
    """
    text = os.fspath(source)
    return text if is_url(text) else os.fspath(Path(text).absolute())


def parse_url(url: str | os.PathLike[str]) -> Place:
    """Take a URL, or a local path, apart.

    Raises:
        ConfigError: the scheme is not known, or the URL lacks a bucket or host.

    >>> parse_url("s3://bucket/a b/c.jsonl").key
    'a b/c.jsonl'
    >>> parse_url("https://host/a%20b.csv").key, parse_url("https://host/a#1.jpg").key
    ('a b.csv', 'a#1.jpg')
    """
    text = os.fspath(url)
    if not is_url(text):
        return Place(scheme="file", root="/", key=os.path.abspath(text))
    scheme, _, rest = text.partition("://")
    scheme = scheme.lower()
    if scheme == "file":
        return Place(scheme="file", root="/", key=unquote(Path(urlsplit(_unfragmented(text)).path).as_posix()))
    if scheme == "hf":
        return _hub_place(rest)
    bucket, _, key = rest.partition("/")
    if scheme not in _OWN and scheme not in CLOUD:
        return _driven_place(scheme, bucket, key)
    if not bucket and scheme != "memory":
        raise ConfigError(f"{redact(text)} names no {'host' if scheme in HTTP else 'bucket'}: {scheme}://NAME/path")
    if scheme in HTTP:
        parts = urlsplit(_unfragmented(text))
        if _NOT_A_PATH.search(parts.path):
            # Asked for as it stands, by a client of its own.
            return Place(scheme=scheme, root=urlunsplit((scheme, *parts[1:])), key="")
        root = urlunsplit((scheme, parts.netloc, "/", parts.query, ""))
        return Place(scheme=scheme, root=root, key=unquote(parts.path).strip("/"))
    kind = CLOUD.get(scheme, scheme)
    if f"/{key}".find("//") >= 0 and scheme in CLOUD:
        raise ConfigError(
            f"{redact(text)} has two slashes in a row in its key, which no request can be made for here: check "
            "how the URL was put together, or copy the object to another key"
        )
    return Place(scheme=kind, root=f"{kind}://{bucket}", key=key.strip("/"))


def _unfragmented(url: str) -> str:
    """Take a # as a letter of a name: no server is ever sent what stands behind one in a URL."""
    return url.replace("#", "%23")


def _driven_place(scheme: str, host: str, key: str) -> Place:
    """Give a place of a scheme that only fsspec can know."""
    from penstock.store.drivers import check_scheme

    check_scheme(scheme)
    return Place(scheme=scheme, root=f"{scheme}://{host}", key=key.strip("/"))


def _hub_place(rest: str) -> Place:
    """Take `[datasets/]ORG/NAME[@REVISION][/path]` apart; the revision may be quoted, as in refs%2Fpr%2F1."""
    match = re.fullmatch(r"(?:datasets/)?([^/@]+/[^/@]+)(?:@([^/]+))?(?:/(.*))?", rest.rstrip("/"))
    if match is None or rest.startswith(("models/", "spaces/", "buckets/")):
        raise ConfigError(f"hf://{rest} names no dataset: hf://ORG/NAME[@REVISION], or with /path of a file")
    repo, revision, key = match.groups()
    return Place(scheme="hf", root=f"hf://datasets/{repo}@{unquote(revision or 'main')}", key=key or "")


def same_server(one: str, other: str) -> bool:
    """Tell whether two URLs of the web are of one server; a port that is not said is the one its scheme has.

    >>> same_server("http://me:pw@Host/a", "http://host:80/b"), same_server("http://host/a", "https://host/a")
    (True, False)
    >>> same_server("https://host:443/a", "https://host/b"), same_server("https://host:8443/a", "https://host/b")
    (True, False)
    """
    try:
        left, right = (
            (parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme))
            for parts in map(urlsplit, (one, other))
        )
    except ValueError:
        # What is no URL is nobody's.
        return False
    return left == right


def login_of(url: str) -> dict[str, str]:
    """Give the header that the user and password in a URL are sent as; none if there are none.

    >>> login_of("https://me:pw@host/x")
    {'Authorization': 'Basic bWU6cHc='}
    """
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": f"Basic {b64encode(login.encode()).decode()}"}


def redact(text: str) -> str:
    """Take what may be a secret out of the URLs in a text: user parts and queries.

    >>> redact("GET https://me:pw@host/x?sig=abc failed")
    'GET https://host/x failed'
    """
    return _SECRETS.sub("", text)
