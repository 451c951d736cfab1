"""Ask an HTTP server itself: why it refused, and what is in a folder of its.

What a client of objects reports of a failure is a status. The rest of the answer is in headers: how
long to wait (Retry-After), and what the Hub calls the failure (X-Error-Code). So a failed request is
followed by one for the headers only. It follows redirects on the same server, as from an old name to a
new one, and no others, so credentials stay with their server. The same way a folder's page is read, which
has no length before it ends, and so is no object.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

from penstock.errors import StoreError
from penstock.store.requests import Transient
from penstock.store.urls import login_of, same_server

LONGEST_S = 10.0
LONGEST_LINE = 1 << 16
LARGEST_PAGE = 256 << 20
MOST_REDIRECTS = 5
LONGEST_CHAIN = 10
UNTRUSTED = "the server's certificate is not trusted"
NO_TLS = "the server does not speak TLS there: write http:// instead of https://, or check the port"
_PLAIN = ("WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE")
"""What OpenSSL calls an answer that is no TLS."""
_FAILURES = (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server says without a body."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

    @property
    def passes(self) -> bool:
        """Whether it may be another when asked again."""
        return self.status >= 500 or self.status in (408, 425, 429)

    @property
    def retry_after_s(self) -> float | None:
        """Seconds the server asks to wait; None if it does not."""
        asked = self.headers.get("retry-after")
        if asked is None:
            return None
        if asked.isdecimal():
            return float(asked)
        try:
            return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
        except (TypeError, ValueError):
            return None


async def probe(root: str, key: str, headers: Mapping[str, str]) -> Answer | None:
    """Send a HEAD request for an object; None if that fails too.

    Args:
        root: URL of the server or folder, perhaps with a query.
        key: the object below it, unquoted.
        headers: what the failed request sent.
    """
    try:
        async with asyncio.timeout(LONGEST_S):
            _, answer, _ = await _followed("HEAD", url_of(root, key), headers)
            return answer
    except _FAILURES:
        return None


async def read_page(url: str, headers: Mapping[str, str], timeout_s: float) -> tuple[str, Answer, bytes]:
    """Read a page of a server, whatever its length.

    Args:
        url: the page.
        headers: sent with the request.
        timeout_s: longest silence of the server.

    Returns:
        Where it was found in the end, the answer without its body, the body; that is empty if it is neither
        HTML nor JSON.

    Raises:
        Transient: no answer, or one cut short.
        StoreError: TLS failed.
    """
    try:
        return await _followed("GET", url, headers, timeout_s)
    except ssl.SSLCertVerificationError:
        raise StoreError(UNTRUSTED) from None
    except _FAILURES as error:
        if isinstance(error, ssl.SSLError) and error.reason in _PLAIN:
            raise StoreError(NO_TLS) from None
        reason = "no answer within the time-out" if isinstance(error, TimeoutError) else str(error)
        raise Transient(reason or type(error).__name__) from None


async def redirects(root: str, key: str, headers: Mapping[str, str], timeout_s: float) -> list[str]:
    """Ask where an object is: its URL, and those that it is redirected to, up to the first that is asked for twice.

    Args:
        root: see `probe`.
        key: see `probe`.
        headers: sent to the first server, and to no other.
        timeout_s: longest silence of a server.

    Raises:
        Transient: no answer.
    """
    chain = [url_of(root, key)]
    try:
        while len(chain) <= LONGEST_CHAIN and chain[-1] not in chain[:-1]:
            sent = {**login_of(chain[0]), **headers} if same_server(chain[0], chain[-1]) else {}
            answer, _ = await _exchange("GET", chain[-1], {**sent, "Range": "bytes=0-0"}, timeout_s, page=False)
            onward = answer.headers.get("location")
            if not 300 <= answer.status < 400 or onward is None:
                break
            chain.append(urljoin(chain[-1], onward))
    except _FAILURES as error:
        raise Transient(str(error) or "no answer within the time-out") from None
    return chain


def leaving(chain: list[str]) -> str | None:
    """Give the first URL of a chain of redirects that is another server's; None if there is none."""
    return next((url for url in chain if not same_server(chain[0], url)), None)


def url_of(root: str, key: str) -> str:
    """Give the URL of an object below a root that may have a query."""
    parts = urlsplit(root)
    return parts._replace(path=parts.path.rstrip("/") + "/" + quote(key) if key else parts.path or "/").geturl()


async def _followed(
    method: str, url: str, headers: Mapping[str, str], timeout_s: float = LONGEST_S
) -> tuple[str, Answer, bytes]:
    """Send a request, and again where the same server redirects it to."""
    passed: dict[str, str] = {}
    headers = {**login_of(url), **headers}
    for _ in range(MOST_REDIRECTS):
        answer, body = await _exchange(method, url, headers, timeout_s)
        # The first of several answers may be the one that names the commit.
        passed |= answer.headers
        onward = urljoin(url, answer.headers.get("location", url))
        if not 300 <= answer.status < 400 or onward == url or not same_server(url, onward):
            return url, Answer(status=answer.status, headers=passed), body
        url = onward
    raise ValueError(f"redirected more than {MOST_REDIRECTS} times")


async def _exchange(
    method: str, url: str, headers: Mapping[str, str], timeout_s: float, *, page: bool = True
) -> tuple[Answer, bytes]:
    parts = urlsplit(url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    # To a client of 1.0 a server sends a body as it is, and its end is the end of the connection.
    lines = [f"{method} {target} HTTP/1.0", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    port = parts.port or (443 if secure else 80)
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=LONGEST_LINE)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        async with asyncio.timeout(timeout_s):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *rest = head.split("\r\n")
        pairs = (line.partition(":") for line in rest if line)
        found = {name.lower(): value.strip() for name, _, value in pairs}
        answer = Answer(status=int(first.split()[1]), headers=found)
        wanted = page and method == "GET" and _is_page(answer)
        return answer, await _body(reader, answer, timeout_s) if wanted else b""
    finally:
        writer.close()


def _is_page(answer: Answer) -> bool:
    """Tell pages from what is not read here, such as a large file."""
    kind = answer.headers.get("content-type", "")
    return answer.status == 200 and ("html" in kind or "json" in kind)


async def _body(reader: asyncio.StreamReader, answer: Answer, timeout_s: float) -> bytes:
    pieces: list[bytes] = []
    size = 0
    while True:
        async with asyncio.timeout(timeout_s):
            piece = await reader.read(1 << 20)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
        if size > LARGEST_PAGE:
            raise ValueError(f"a page of more than {LARGEST_PAGE >> 20} MB")
    length = answer.headers.get("content-length")
    if length is not None and size != int(length):
        raise ConnectionError("the connection ended in the middle of the body")
    return b"".join(pieces)
