"""The folders of a web server: its own pages of what is in them, or WebDAV's answer to the same question."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from penstock.errors import AccessDenied, ConfigError, StoreError
from penstock.store import objects
from penstock.store.connection import Connection
from penstock.store.listings import list_objects, together, walk
from penstock.store.probe import read_page, url_of
from penstock.store.requests import Transient
from penstock.store.store import ObjectInfo
from penstock.store.urls import Place
from penstock.store.web_listing import ACCEPT, Listed, read_listing


class WebFolders:
    """What is on a web server below a URL.

    Args:
        place: the URL.
        connection: how it is reached.
        persist: makes a request about a path, in a word for messages, again while that may help.
    """

    def __init__(self, place: Place, connection: Connection, persist: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        self._place, self._connection, self._persist = place, connection, persist

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Describe all files below a folder.

        A file's size is asked for where the folder's page does not say it to the byte; an etag is never known.

        Raises:
            ConfigError: the server says neither in a page nor by WebDAV what is in its folders.
        """
        first = prefix.strip("/")

        async def opened(path: str) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
            listed = await self._persist(path, "LIST", self._read)
            if not isinstance(listed, str):
                return await self._contents(path, listed)
            if path == first:
                raise _NoListing(listed)
            raise StoreError(f"{self._place.shown()}/{path} is a folder whose server does not show it: {listed}")

        try:
            yield from walk(first, opened)
        except _NoListing as refused:
            yield from self._by_webdav(first, str(refused))

    async def _read(self, key: str) -> Sequence[Listed] | str:
        """Read what is in a folder; in words why the server does not say it."""
        head, _, query = url_of(self._place.root, key).partition("?")
        # Links in a folder's page are relative to it only with the slash at its end.
        url = f"{head.rstrip('/')}/" + (f"?{query}" if query else "")
        url, answer, page = await read_page(
            url, {"Accept": ACCEPT, **self._connection.headers}, self._connection.timeout_s
        )
        if answer.passes:
            raise Transient(f"the server says {answer.status}", answer.status)
        if answer.status == 401:
            raise AccessDenied(f"the server says {answer.status}")
        if answer.status != 200:
            return f"it says {answer.status}"
        listed = read_listing(url, answer.headers.get("content-type", ""), page)
        return "its page is no list of files" if listed is None else listed

    async def _contents(self, path: str, listed: Sequence[Listed]) -> tuple[Sequence[ObjectInfo], Sequence[str]]:
        base = f"{path}/" if path else ""
        files = await together([self._described(f"{base}{one.name}", one) for one in listed if not one.is_folder])
        return files, [f"{base}{one.name}" for one in listed if one.is_folder]

    async def _described(self, path: str, listed: Listed) -> ObjectInfo:
        if listed.size is not None:
            return ObjectInfo(path=path, size=listed.size, last_modified=listed.last_modified)
        found = await self._persist(path, "HEAD", lambda key: objects.describe(self._connection.client, key))
        size, etag, changed, version = objects.described(found)
        return ObjectInfo(path=path, size=size, etag=etag, last_modified=changed, version=version)

    def _by_webdav(self, prefix: str, refused: str) -> Iterator[ObjectInfo]:
        base = "/".join(part for part in (self._place.key, prefix) if part)
        below = len(self._place.key) + 1 if self._place.key else 0
        found: Sequence[Any] = ()
        with suppress(StoreError):
            found = tuple(list_objects(self._connection, base, partial(self._persist, prefix, "LIST")))
        if not found:
            # What knows no WebDAV may also answer that there is nothing.
            shown = f"{self._place.shown()}/{prefix}".rstrip("/")
            raise ConfigError(
                f"{shown} is on a web server, which has no listing of it ({refused}): name the files, or let the "
                "server show its folders (autoindex of nginx, Indexes of Apache, WebDAV)"
            )
        for meta in found:
            size, etag, changed, version = objects.described(meta)
            yield ObjectInfo(path=meta["path"][below:], size=size, etag=etag, last_modified=changed, version=version)


class _NoListing(Exception):
    """The server does not show a folder; as text, why."""
