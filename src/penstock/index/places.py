"""Which files a source names: globs, braces, lists, folders; and what folder they share."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from penstock.errors import ConfigError, ObjectMissing
from penstock.formats.remote_sources import fits_glob, split_glob
from penstock.store.store import ObjectInfo, open_store
from penstock.store.urls import HTTP, is_url, lasting, redact

AT_A_TIME = 32
"""Objects that are asked for at the same time."""
MAX_BRACES = 1_000_000
_BRACES = re.compile(r"\{(?:(\d+)\.\.(\d+)|([^{}]*,[^{}]*))\}")
_QUOTED = (*(f"{scheme}://" for scheme in HTTP), "file://")


def folder_above(place: str) -> str:
    """Give the URL or absolute path of the folder that a file is in; a query stays.

    >>> folder_above("s3://bucket/a/x.db"), folder_above("https://host/a/x.db?key=1")
    ('s3://bucket/a', 'https://host/a?key=1')
    """
    if not is_url(place):
        return str(Path(place).absolute().parent)
    plain, question, query = place.partition("?")
    return plain.rpartition("/")[0] + question + query


def name_of(place: str) -> str:
    """Give the name of the file that a URL or path means.

    >>> name_of("https://host/a/x.db?key=1"), name_of("a/x.db")
    ('x.db', 'x.db')
    """
    plain = place.partition("?")[0] if is_url(place) else place
    return plain.rstrip("/").rpartition("/")[2]


def expand_braces(pattern: str) -> list[str]:
    """Write out what braces stand for: numbers from one to another, or words.

    >>> expand_braces("shard-{008..010}.tar"), expand_braces("{a,b}/{0..1}.csv")
    (['shard-008.tar', 'shard-009.tar', 'shard-010.tar'], ['a/0.csv', 'a/1.csv', 'b/0.csv', 'b/1.csv'])
    """
    return list(_expanded(pattern))


def _expanded(pattern: str) -> Iterator[str]:
    found = _BRACES.search(pattern)
    if found is None:
        yield pattern
        return
    first, last, words = found.groups()
    if words is not None:
        choices: Sequence[str] = words.split(",")
    else:
        if not 0 <= int(last) - int(first) < MAX_BRACES:
            raise ConfigError(
                f"{found[0]} in {redact(pattern)} must go from a number to a larger one, by at most a million"
            )
        width = len(first) if first.startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(first), int(last) + 1)]
    before, after = pattern[: found.start()], pattern[found.end() :]
    for choice in choices:
        yield from _expanded(before + choice + after)


def matching(pattern: str, storage_options: Mapping[str, Any]) -> tuple[str, list[ObjectInfo]]:
    """List what a glob matches.

    Returns:
        The folder that all of it is below, and the files, in sorted order.

    Raises:
        ObjectMissing: nothing.
        ConfigError: the store has no listing.
    """
    base, below = split_glob(lasting(pattern))
    hidden = any(part.startswith(".") for part in below.split("/"))
    found = [
        info
        for info in open_store(base, **storage_options).list()
        if fits_glob(info.path, below) and (hidden or not f"/{info.path}".count("/."))
    ]
    if not found:
        raise ObjectMissing(f"no file matches {redact(pattern)}")
    return base, sorted(found, key=lambda info: info.path)


def describe_all(places: Sequence[str], storage_options: Mapping[str, Any]) -> tuple[str, list[ObjectInfo]]:
    """Ask for several files, many at a time.

    Returns:
        The folder that all of them are below, and the files, in the order given.

    Raises:
        ConfigError: they share no folder.
        ObjectMissing, AccessDenied, StoreUnavailable: of the first that can't be had.
    """
    places = [lasting(place) for place in places]
    base = shared_folder(places)
    if base is None:
        raise ConfigError(
            f"{redact(places[0])} and the others given with it lie in different stores: take one at a time"
        )
    names = [_path_below(base, place) for place in places]
    store = open_store(base, **storage_options)
    if len(names) == 1:
        return base, [store.head(names[0])]
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="penstock-places") as pool:
        try:
            return base, list(pool.map(store.head, names))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _path_below(base: str, place: str) -> str:
    if not is_url(place):
        return place[len(base) :].lstrip("/")
    path = place.partition("?")[0][len(base.partition("?")[0]) :].lstrip("/")
    return unquote(path) if place.startswith(_QUOTED) else path


def shared_folder(places: Sequence[str]) -> str | None:
    """Give the folder that all of some files are below; None if they lie in different stores.

    >>> shared_folder(["s3://bucket/a/b/x.csv", "s3://bucket/a/c/y.csv"])
    's3://bucket/a'
    >>> shared_folder(["s3://one/x.csv", "s3://two/x.csv"]) is None
    True
    """
    folders = {folder_above(place) for place in places}
    if len(folders) == 1:
        return folders.pop()
    remote = any(is_url(place) for place in places)
    halves = [folder.partition("?") if remote else (folder, "", "") for folder in folders]
    queries = {"".join(half[1:]) for half in halves}
    columns = zip(*(half[0].split("/") for half in halves), strict=False)
    shared = [parts[0] for parts in takewhile(lambda parts: len(set(parts)) == 1, columns)]
    # A URL's first three parts are its scheme and its bucket or host.
    if len(queries) > 1 or len(shared) < (3 if remote else 1):
        return None
    return ("/".join(shared) or "/") + queries.pop()


def below(base: str, path: str) -> str:
    """Give the place of a file below a folder.

    >>> below("s3://bucket/a", "b/x.csv")
    's3://bucket/a/b/x.csv'
    """
    plain, question, query = base.partition("?") if is_url(base) else (base, "", "")
    return f"{plain.rstrip('/')}/{location_below(base, path)}{question}{query}"


def location_below(base: str, path: str) -> str:
    """Give a file's path as a location below a folder: quoted where the folder's URL is.

    >>> location_below("https://host/a", "b 1.jpg"), location_below("s3://bucket/a", "b 1.jpg")
    ('b%201.jpg', 'b 1.jpg')
    """
    return quote(path) if base.startswith(_QUOTED) else path
