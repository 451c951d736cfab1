"""What there is below a URL: many folders asked at once, each question asked again where it failed.

A listing of a bucket is a chain of pages, each begun where the last one ended, so one chain is as slow as
its round trips. Where objects lie in folders there is a chain for each folder. Where there is no such
thing as a listing of everything below, as on a web server, folders are opened one by one, side by side.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from penstock.errors import StoreError
from penstock.store import objects
from penstock.store.connection import Connection
from penstock.store.requests import run
from penstock.store.store import ObjectInfo

T = TypeVar("T")
AT_A_TIME = 16
DEEPEST = 64
Persist = Callable[[Callable[[str], Awaitable[Any]]], Coroutine[Any, Any, Any]]
"""Makes a request, again while that may help; see `RemoteStore`."""


class _Pages:
    """One chain of pages, which goes on behind what it gave when a request of it failed."""

    def __init__(self, connection: Connection, prefix: str) -> None:
        self._connection, self._prefix = connection, prefix
        self._stream: Any = None
        self._last: str | None = None

    async def next(self, _: str) -> list[Mapping[str, Any]] | None:
        """Give the next page; None after the last."""
        if self._stream is None:
            self._stream = objects.listing(self._connection.client, self._prefix, after=self._last)
        try:
            page = await objects.next_page(self._stream)
        except BaseException:
            # A stream that has failed has ended: asked again it would say that there is no more.
            self._stream = None
            raise
        if page:
            self._last = page[-1]["path"]
        return page


def list_objects(connection: Connection, base: str, persist: Persist) -> Iterator[Mapping[str, Any]]:
    """Describe all objects below a key, as obstore does; in no order where there are many.

    Args:
        connection: where to.
        base: the key.
        persist: makes each request.
    """
    pages = _Pages(connection, base)
    page = run(persist(pages.next))
    below = len(base) + 1 if base else 0
    if page is not None and len(page) >= objects.PAGE and any("/" in one["path"][below:] for one in page):
        yield from _by_folders(connection, base, persist)
        return
    while page is not None:
        yield from page
        page = run(persist(pages.next))


def _by_folders(connection: Connection, base: str, persist: Persist) -> Iterator[Mapping[str, Any]]:
    files, folders = run(persist(partial(_level, connection, base)))
    while len(folders) == 1 and not files:
        files, folders = run(persist(partial(_level, connection, folders[0])))
    yield from files
    waiting = deque(_Pages(connection, folder) for folder in folders)
    asked: list[_Pages] = []
    while waiting or asked:
        while waiting and len(asked) < AT_A_TIME:
            asked.append(waiting.popleft())
        found = run(together([persist(pages.next) for pages in asked]))
        for page in found:
            yield from page or ()
        asked = [pages for pages, page in zip(asked, found, strict=True) if page is not None]


async def _level(connection: Connection, folder: str, _: str) -> tuple[list[Mapping[str, Any]], list[str]]:
    return await objects.level(connection.client, folder)


def walk(
    first: str, open_folder: Callable[[str], Coroutine[Any, Any, tuple[Sequence[ObjectInfo], Sequence[str]]]]
) -> Iterator[ObjectInfo]:
    """Describe all files below a folder by opening it, what is in it, and so on; many at a time.

    Args:
        first: the folder's path.
        open_folder: gives the files of a folder, and the paths of the folders in it.

    Raises:
        StoreError: folders lie in folders without end.
    """
    waiting = deque([first])
    depth = first.count("/")
    while waiting:
        asked = [waiting.popleft() for _ in range(min(AT_A_TIME, len(waiting)))]
        for files, folders in run(together([open_folder(path) for path in asked])):
            yield from files
            if folders and folders[0].count("/") > depth + DEEPEST:
                raise StoreError(
                    f"{folders[0]} lies in more than {DEEPEST} folders: a link among them seems to lead back up"
                )
            waiting.extend(folders)


async def together(work: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Do several things at once; the first failure ends the others."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except BaseExceptionGroup as several:
        first = several.exceptions[0]
        raise first from first.__cause__
    return [task.result() for task in tasks]
