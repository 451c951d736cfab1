"""Ask an HTTP server why it refused.

What a client of objects reports of a failure is a status. The rest of the answer is in headers: how
long to wait (Retry-After), and what the Hub calls the failure (X-Error-Code). So a failed request is
followed by one for the headers only. It follows redirects on the same server, as from an old name to a
new one, and no others, so credentials stay with their server.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import quote, urljoin, urlsplit

LONGEST_S = 10.0
LONGEST_LINE = 1 << 16
MOST_REDIRECTS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a server says without a body."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""

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
    parts = urlsplit(root)
    path = parts.path.rstrip("/") + "/" + quote(key)
    url = parts._replace(path=path).geturl()
    passed: dict[str, str] = {}
    try:
        async with asyncio.timeout(LONGEST_S):
            for _ in range(MOST_REDIRECTS):
                answer = await _exchange(url, headers)
                passed |= answer.headers
                onward = urljoin(url, answer.headers.get("location", url))
                if not 300 <= answer.status < 400 or onward == url or not _same_server(url, onward):
                    # The first of several answers may be the one that names the commit.
                    return Answer(status=answer.status, headers=passed)
                url = onward
    except (OSError, ValueError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        return None
    return None


def _same_server(one: str, other: str) -> bool:
    left, right = urlsplit(one), urlsplit(other)
    return (left.scheme, left.netloc) == (right.scheme, right.netloc)


async def _exchange(url: str, headers: Mapping[str, str]) -> Answer:
    parts = urlsplit(url)
    secure = ssl.create_default_context() if parts.scheme == "https" else None
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    lines = [f"HEAD {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    port = parts.port or (443 if secure else 80)
    reader, writer = await asyncio.open_connection(parts.hostname, port, ssl=secure, limit=LONGEST_LINE)
    try:
        writer.write(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1"))
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    finally:
        writer.close()
    first, *rest = head.split("\r\n")
    pairs = (line.partition(":") for line in rest if line)
    return Answer(status=int(first.split()[1]), headers={name.lower(): value.strip() for name, _, value in pairs})
