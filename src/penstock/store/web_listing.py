"""What is in a folder of a web server, where the server says it.

HTTP knows no listing, but most servers have one to switch on: a page of links for people (nginx, Apache,
Python's own) or JSON (nginx, Caddy). A page is believed to be one only if it says so; what it does not say
exactly, such as 1.2K for a size, is left open.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import orjson

from penstock.store.urls import same_server

ACCEPT = "application/json, text/html;q=0.9, */*;q=0.1"
_IS_LISTING = re.compile(r"\s*(?:index of|directory listing)", re.IGNORECASE)
# What follows a link: a date of some form, then the size.
_DETAILS = re.compile(r"(\d{2}-\w{3}-\d{4}|\d{4}-\d{2}-\d{2}) (\d{2}:\d{2})(?::\d{2})?\s+(\S+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """One name in a folder."""

    name: str
    is_folder: bool
    size: int | None = None
    """None where the page does not say it to the byte."""
    last_modified: datetime | None = None


def read_listing(url: str, content_type: str, page: bytes) -> list[Listed] | None:
    """Read the names in a folder from the page that a server has for it.

    Args:
        url: where the page was found.
        content_type: what the server calls it.
        page: the page.

    Returns:
        The names, in the page's order; None if it is no listing.
    """
    if "json" in content_type:
        return _of_json(page)
    if "html" not in content_type:
        return None
    parser = _Links()
    parser.feed(page.decode("utf-8", "replace"))
    parser.close()
    if not any(_IS_LISTING.match(heading) for heading in parser.headings):
        return None
    return list(_children(url, parser.links))


def _of_json(page: bytes) -> list[Listed] | None:
    try:
        found = orjson.loads(page)
    except orjson.JSONDecodeError:
        return None
    if found is None:
        return []  # how Caddy says that a folder is empty
    if not isinstance(found, list):
        return None
    entries = [_of_entry(one) for one in found]
    if any(entry is None for entry in entries):
        return None
    return [entry for entry in entries if entry is not None and _is_plain(entry.name)]


def _of_entry(entry: Any) -> Listed | None:
    """Read one object of a listing: nginx has `type` and `mtime`, Caddy `is_dir` and `mod_time`."""
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    if "type" not in entry and "is_dir" not in entry:
        return None
    is_folder = bool(entry["is_dir"]) if "is_dir" in entry else entry["type"] == "directory"
    size = entry.get("size")
    return Listed(
        name=entry["name"].rstrip("/"),
        is_folder=is_folder,
        size=size if isinstance(size, int) and not is_folder else None,
        last_modified=_date(str(entry.get("mtime", entry.get("mod_time", "")))),
    )


def _is_plain(name: str) -> bool:
    """Tell whether a name is one of something in the folder, and leads nowhere else."""
    return name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _date(text: str) -> datetime | None:
    for read in (parsedate_to_datetime, datetime.fromisoformat, _short_date):
        try:
            found = read(text)
        except (ValueError, TypeError):
            continue
        return found if found.tzinfo else found.replace(tzinfo=UTC)
    return None


def _short_date(text: str) -> datetime:
    return datetime.strptime(text, "%d-%b-%Y %H:%M")


class _Links(HTMLParser):
    """The links of a page, each with the text that follows it, and the page's title and headings."""

    def __init__(self) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.links: list[list[str]] = []
        self._in_heading = self._in_link = False

    def handle_starttag(self, tag: str, attrs: Iterable[tuple[str, str | None]]) -> None:
        self._in_heading = tag in ("title", "h1")
        if self._in_heading:
            self.headings.append("")
        target: Mapping[str, str | None] = dict(attrs)
        if tag == "a" and target.get("href"):
            self.links.append([str(target["href"]), ""])
            self._in_link = True

    def handle_endtag(self, tag: str) -> None:
        self._in_heading = False
        if tag == "a":
            self._in_link = False

    def handle_data(self, data: str) -> None:
        if self._in_heading:
            self.headings[-1] += data
        elif self.links and not self._in_link:
            self.links[-1][1] += f" {data}"


def _target(url: str, href: str) -> str:
    """Give what a link of a page leads to; "" if that is no URL."""
    try:
        return urljoin(url, href)
    except ValueError:
        return ""


def _children(url: str, links: Iterable[list[str]]) -> Iterator[Listed]:
    """Give what links lead to directly below a folder: not its parent, other sites, or other orders of itself."""
    base = unquote(urlsplit(url).path)
    base = base if base.endswith("/") else f"{base}/"
    seen: set[str] = set()
    for href, details in links:
        target = _target(url, href)
        if not same_server(url, target) or urlsplit(target).query:
            continue
        path = unquote(urlsplit(target).path)
        name = path.removeprefix(base)
        if path == name or not _is_plain(name.rstrip("/")) or name in seen:
            continue
        seen.add(name)
        said = _DETAILS.search(" ".join(details.split()))
        exact = said is not None and said[3].isdecimal() and not name.endswith("/")
        yield Listed(
            name=name.rstrip("/"),
            is_folder=name.endswith("/"),
            size=int(said[3]) if said and exact else None,
            last_modified=_date(f"{said[1]} {said[2]}") if said else None,
        )
