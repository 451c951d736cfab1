"""From rows of an index to the objects they name.

    row["image"] = "cats/7.jpg" ──base──▶ "s3://bucket/cats/7.jpg" ──▶ Wanted(url, start, stop)

A location is a URL, a local path, or a name relative to where the index lies. A row can also name a part
of an object, by two more columns: where it starts and how long it is.
"""

from __future__ import annotations

import posixpath
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ConfigError, FormatError
from penstock.index.grouping import LENGTH, OFFSET
from penstock.store.cache_names import local_path
from penstock.store.urls import HTTP, is_url, parse_url, redact
from penstock.store.wanted import Wanted

Row = dict[str, Any]
Place = Wanted | str | None
"""An object to fetch, a local file to be used where it lies, or nothing."""

MOST_BYTES = 2**63 - 1
_KEYS = ("column", "offset", "length", "name")
_BLANK = "there is a blank, tab or line break"


@dataclass(frozen=True, kw_only=True, slots=True)
class Download:
    """One column of the samples that holds local paths of what was downloaded."""

    name: str
    """The column in the sample."""
    column: str
    """The column of the index that holds the location."""
    offset: str | None = None
    """The column that says at which byte of the object the sample's part starts; None: all of the object."""
    length: str | None = None
    """The column that says how many bytes it has; without `offset`, how many the whole object has."""
    suffix: str = ""
    """What the local file's name ends in, where the object's own name does not say."""

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns of the index it needs."""
        return tuple(name for name in (self.column, self.offset, self.length) if name is not None)

    def beside(self, columns: Container[str]) -> Download:
        """Take up what the index itself says of the bytes, as it does of members of archives and files of folders."""
        if self.offset is not None:
            return self
        offset, length = self.column + OFFSET, self.column + LENGTH
        if length not in columns:
            return self
        if offset not in columns:
            return replace(self, length=length)
        # Of a member of an archive the column is what its name ended in.
        return replace(self, offset=offset, length=length, suffix=f".{self.column}")


def read_downloads(columns_to_download: Any) -> tuple[Download, ...]:
    """Read the option `columns_to_download`: names of columns, and mappings for parts of objects.

    Raises:
        ConfigError: it is something else, or two of them fill the same column.

    >>> read_downloads(["image"])[0].columns
    ('image',)
    >>> read_downloads([{"column": "shard", "offset": "start", "length": "size", "name": "jpg"}])[0].name
    'jpg'
    """
    if columns_to_download is None:
        return ()
    if isinstance(columns_to_download, str | Mapping) or not isinstance(columns_to_download, Sequence):
        how = f": write [{columns_to_download!r}]" if isinstance(columns_to_download, str | Mapping) else ""
        raise ConfigError(
            f"columns_to_download must be a list of column names, or None for none, got {columns_to_download!r}{how}"
        )
    downloads = tuple(_download(entry) for entry in columns_to_download)
    names = [download.name for download in downloads]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"columns_to_download fills {', '.join(map(repr, twice))} more than once: give each entry a 'name' of its "
            "own"
        )
    return downloads


def _download(entry: Any) -> Download:
    if isinstance(entry, str):
        return Download(name=entry, column=entry)
    if not isinstance(entry, Mapping) or not all(isinstance(value, str) for value in entry.values()):
        raise ConfigError(
            "an entry of columns_to_download must be a column's name, or a mapping of names like "
            f"{{'column': 'shard', 'offset': 'start', 'length': 'size'}}, got {entry!r}"
        )
    if unknown := sorted(set(entry) - set(_KEYS)):
        raise ConfigError(f"an entry of columns_to_download has {', '.join(unknown)}; known are {', '.join(_KEYS)}")
    if "column" not in entry or ("offset" in entry) != ("length" in entry):
        raise ConfigError(
            f"the entry {dict(entry)!r} of columns_to_download needs 'column', and 'offset' and 'length' both or "
            "neither"
        )
    return Download(
        name=entry.get("name", entry["column"]),
        column=entry["column"],
        offset=entry.get("offset"),
        length=entry.get("length"),
    )


class Locations:
    """Finds out which objects rows name.

    Args:
        downloads: which columns hold locations.
        base: folder or URL that relative ones begin at; None if there is no such place.
        local: whether rows may name files of this machine.
    """

    def __init__(self, downloads: Sequence[Download], base: str | None, *, local: bool = True) -> None:
        self._downloads = tuple(downloads)
        self._local, self._based_here = local, base is not None and is_local(base)
        plain, question, query = (base or "").partition("?") if is_url(base) else (base or "", "", "")
        self._base = None if base is None else plain.rstrip("/") + "/"
        # What lets a client read the index, such as a signature in its query, lets it read what lies beside.
        self._query = question + query
        self._roots: set[str] = set()

    def wanted(self, row: Row) -> list[Place]:
        """Name the objects of a row, one for each download; a path for a local file, None where the row names none.

        Raises:
            FormatError: what a column holds is no location, or no part of an object.
        """
        found: list[Place] = []
        for download in self._downloads:
            location = row.get(download.column)
            if location is None:
                found.append(None)
                continue
            url = self.resolved(location, download.column)
            if url[-1] == "/" and url[:4].lower() != "http":
                raise _no_location(location, download.column, 'it ends in "/", which names a folder: name its objects')
            if download.offset is not None:
                found.append(Wanted(url, *_bounds(row, download.offset, download.length), suffix=download.suffix))
            elif url[0] == "/" or url.startswith("file:"):
                found.append(local_path(url))
            else:
                found.append(Wanted(url, size=row.get(download.length) if download.length else None))
        return found

    def resolved(self, location: Any, column: str) -> str:
        """Give the URL or path that a location means.

        Raises:
            FormatError: it means none.
        """
        if type(location) is not str or not location or "\0" in location:
            raise FormatError(
                f"column {column!r} holds {_shown(location)}, which is no location: it must be a URL, a path, or a "
                "name relative to the index"
            )
        if "://" in location and location[0] != "/":
            return self._known_store(location, column)
        if not self._local and (location[0] == "/" or self._based_here):
            raise _not_from_afar(location, column)
        if location[0] == "/":
            return location
        if self._base is None:
            raise FormatError(
                f"column {column!r} holds {_shown(location)}, a relative location, but the source has no folder that "
                "it could be relative to: give whole URLs or paths"
            )
        full = self._climbed(location, column) if ".." in location else self._base + location
        return full + self._query

    def _known_store(self, url: str, column: str) -> str:
        """Refuse what is no URL of an object, or of a store there is none of, before others are asked for with it."""
        root = url[: url.find("/", url.index("://") + 3)]
        if root not in self._roots:
            if not is_url(url):
                raise _no_location(url, column, _no_url(url))
            try:
                place = parse_url(url)
            except ConfigError as error:
                raise _no_location(url, column, str(error)) from None
            if place.scheme == "file" and not self._local:
                raise _not_from_afar(url, column)
            if not place.key and place.scheme not in HTTP:
                raise _no_location(url, column, "it names no object in it")
            # On the Hub, what is a store begins further down.
            if place.scheme != "hf" and place.key:
                self._roots.add(root)
        if url[-1].isspace() and url[:4].lower() == "http":
            raise _no_location(url, column, f"{_BLANK} behind the URL: take it out of the table")
        return url

    def _climbed(self, location: str, column: str) -> str:
        """Resolve a location that may go up; it does not leave the base's bucket or host."""
        assert self._base is not None
        scheme, mark, rest = self._base.partition("://")
        root, _, folder = rest.partition("/") if mark else ("", "", self._base.lstrip("/"))
        parts: list[str] = []
        for part in posixpath.join(folder, location).split("/"):
            if part == "..":
                if not parts:
                    raise FormatError(f"column {column!r} holds {_shown(location)}, which leaves {redact(self._base)}")
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        full = "/".join([*parts, ""] if location[-1] == "/" else parts)
        return f"{scheme}://{root}/{full}" if mark else f"/{full}"


def is_local(place: str) -> bool:
    """Tell whether a path or URL is of this machine's disks.

    >>> is_local("/data"), is_local("FILE:///data"), is_local("s3://bucket")
    (True, True, False)
    """
    return not is_url(place) or place[:5].lower() == "file:"


def blanks_in(url: str) -> str:
    """Say, of what is not there, that a blank may be why; "" where there is none.

    A name may begin or end in a blank, so that is no mistake before the object turns out to be missing.

    >>> blanks_in("s3://bucket/a b.jpg"), bool(blanks_in("s3://bucket/a.jpg "))
    ('', True)
    """
    odd = next((name for name in redact(url).split("/") if name != name.strip()), None)
    return "" if odd is None else f"; there is a blank around {odd!r}: if it is not meant, take it out of the table"


def _no_url(location: str) -> str:
    if is_url(location.lstrip()):
        return f"{_BLANK} before the URL: take it out of the table"
    return "it has :// in it, and does not begin as a URL does"


def _no_location(location: str, column: str, reason: str) -> FormatError:
    return FormatError(f"column {column!r} holds {_shown(location)}, which is no location: {reason}")


def _not_from_afar(location: str, column: str) -> FormatError:
    return FormatError(
        f"column {column!r} holds {_shown(location)}, a file of this machine, but the index is not of this machine, "
        "and who writes it could choose what is read here: if that is meant, give allow_local_paths=True"
    )


def _bounds(row: Row, offset: str, length: str | None) -> tuple[int, int]:
    given: tuple[Any, Any] = row.get(offset), row.get(length or "")
    try:
        start, count = int(given[0]), int(given[1])
    except (TypeError, ValueError, OverflowError):
        start = count = -1
    if start < 0 or count < 0 or start + count > MOST_BYTES:
        raise FormatError(
            f"columns {offset!r} and {length!r} hold {given[0]!r} and {given[1]!r}: they must say at which byte of the "
            "object its part begins, from 0 on, and how many bytes it has; together less than 2**63"
        )
    return start, start + count


def _shown(location: Any) -> str:
    """Print what a column holds, shortened, without what may be a secret."""
    text = redact(location) if isinstance(location, str) else location
    shown = repr(text)
    return shown if len(shown) <= 200 else shown[:200] + "…"
