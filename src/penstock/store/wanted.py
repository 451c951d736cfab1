"""What is asked of many objects at once, and what comes of it: values, no I/O."""

from __future__ import annotations

from typing import NamedTuple

from penstock.errors import StoreError


class Wanted(NamedTuple):
    """An object, or bytes [start, stop) of one. A tuple, since caches look them up by the thousand."""

    url: str
    """In full, see `open_store`."""
    start: int | None = None
    """None with `stop` None: the whole object."""
    stop: int | None = None
    etag: str | None = None
    """Where given, an object that has another is not what was meant: ObjectChanged."""
    size: int | None = None
    """Bytes of the whole object, where known: one that has more or fewer is ObjectChanged."""
    suffix: str = ""
    """Of a part of an object: what the name of its local file is to end in, such as ".jpg"."""


class Piece(NamedTuple):
    """Bytes that arrived of something wanted, or why they never will.

    Up to PIECE_BYTES a Wanted comes as one piece; a longer one as several, in any order.
    """

    number: int
    """Which Wanted, by its place in what was asked."""
    offset: int
    """Where the bytes belong, from the start of what was wanted."""
    data: bytes
    """Empty where `error` says why."""
    last: bool
    """Nothing more comes of this Wanted."""
    size: int
    """Bytes of all that was wanted; 0 with an error."""
    etag: str | None
    """The object's, where the store sent it along: always for what comes in several pieces."""
    error: StoreError | None = None
    """Ready for the user: what was asked, what was found, what to do. Pieces before it are void."""
