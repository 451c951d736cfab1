"""Requests that carry what is wanted: which bytes each asks for, and whose pieces its answer is cut into.

    Wanted … ──trips()──▶ Trip … ──(a request)──▶ bytes ──unpack()──▶ Piece …, more trips

No I/O. A trip asks for at most PIECE_BYTES, so that what is in memory is bounded and what fails, fails
alone. An object of unknown length is asked for as its first PIECE_BYTES: an answer that is shorter is
all of it, and costs one hand-over where a described answer costs two. If it is not shorter it is asked
for again with its description, so that all pieces can be shown to be of one object; where objects are
large the description is asked for at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from penstock.errors import ObjectChanged, StoreError
from penstock.store.ranges import PIECE_BYTES, each_part, parts, sparing
from penstock.store.wanted import Piece, Wanted

if TYPE_CHECKING:
    from penstock.store.sources import Source

AT_ONCE = 32
"""Pieces of one object that are asked for side by side."""
LARGE_BYTES = 384 << 10
"""Objects of a source with this average are described at once: some may come in several pieces."""


class Trip:
    """One request: bytes [start, stop) of an object, or all of it where both are None.

    Args:
        source: where the object is.
        path: which it is, below the source.
        start: the first byte.
        stop: behind the last.
        expected: bytes that will probably come.
        described: the object's size and etag are to come along.
    """

    __slots__ = ("began", "described", "expected", "hedge", "path", "retried", "running", "source", "start", "stop")

    def __init__(
        self,
        source: Source,
        path: str,
        start: int | None,
        stop: int | None,
        expected: int,
        described: bool = False,
    ) -> None:
        self.source, self.path, self.start, self.stop = source, path, start, stop
        self.expected, self.described = expected, described
        self.began = 0.0
        self.running: Any = None
        self.hedge: Any = None
        self.retried = False

    @property
    def etag(self) -> str | None:
        """What the object must have."""
        return None

    @property
    def quick(self) -> bool:
        """Whether single attempts suffice: for a range without a description."""
        return not self.described

    def numbers(self) -> Sequence[int]:
        """Say which Wanted need this trip."""
        raise NotImplementedError

    def unpack(self, data: bytes, meta: Mapping[str, Any] | None) -> tuple[Sequence[Piece], Sequence[Trip]]:
        """Cut an answer into pieces, and say which trips it has shown to be needed.

        Raises:
            StoreError: it is not what was asked for.
        """
        raise NotImplementedError


class Whole(Trip):
    """An object that is probably short enough for one piece."""

    __slots__ = ("number", "want")

    def __init__(self, source: Source, path: str, number: int, want: Wanted) -> None:
        known = want.size
        # One byte more than there should be shows whether there is more, and one less whether there is less.
        stop = PIECE_BYTES if known is None else known + 1
        expected = int(source.mean_bytes) if known is None else known
        super().__init__(source, path, 0, stop, expected, want.etag is not None)
        self.number, self.want = number, want

    @property
    def etag(self) -> str | None:
        """What the object must have."""
        return self.want.etag

    @property
    def quick(self) -> bool:
        """Whether single attempts suffice."""
        if not self.source.ranges:
            self.ask_for_all()
        if self.want.size is None and self.source.mean_bytes >= LARGE_BYTES:
            self.described = True
        return not self.described and self.start is not None

    def ask_for_all(self) -> None:
        """Ask for no range: the server ignores them, or the object is empty."""
        self.start = self.stop = None

    def numbers(self) -> Sequence[int]:
        """Say which Wanted need this trip."""
        return (self.number,)

    def unpack(self, data: bytes, meta: Mapping[str, Any] | None) -> tuple[Sequence[Piece], Sequence[Trip]]:
        """Cut an answer into pieces; see `Trip`."""
        size = len(data)
        known = self.want.size
        if known is not None:
            if meta is not None:
                _check_size(self, known, meta["size"])
            elif size != known:
                raise _changed(self, known, f"{size:,}" if size < known else "more")
        elif size == PIECE_BYTES and self.start is not None and (meta is None or meta["size"] > size):
            return self._proves_long(data, meta)
        tag = meta["e_tag"] if meta is not None else None
        if size <= PIECE_BYTES:
            return (Piece(self.number, 0, data, True, size, tag),), ()
        # A server that ignores ranges has sent it in one.
        cuts = parts(0, size, PIECE_BYTES)
        return [Piece(self.number, at, data[at:end], end == size, size, tag) for at, end in cuts], ()

    def _proves_long(self, data: bytes, meta: Mapping[str, Any] | None) -> tuple[Sequence[Piece], Sequence[Trip]]:
        if meta is None:
            # Nothing would tell whether what follows is of the same object.
            again = Whole(self.source, self.path, self.number, self.want)
            again.described = True
            return (), (again,)
        long = Long(self.number, self.want, 0, meta["size"])
        long.check(self, meta)
        return (long.piece(0, data),), long.begin(self.source, self.path, PIECE_BYTES)


class Ranges(Trip):
    """Ranges of one object that lie so close together that they travel as one."""

    __slots__ = ("members", "tag")

    def __init__(
        self, source: Source, path: str, start: int, stop: int, members: Sequence[tuple[int, int, int]], tag: str | None
    ) -> None:
        super().__init__(source, path, start, stop, stop - start, tag is not None)
        self.members, self.tag = members, tag

    @property
    def etag(self) -> str | None:
        """What the object must have."""
        return self.tag

    def numbers(self) -> Sequence[int]:
        """Say which Wanted need this trip."""
        return [number for number, _, _ in self.members]

    def unpack(self, data: bytes, meta: Mapping[str, Any] | None) -> tuple[Sequence[Piece], Sequence[Trip]]:
        """Cut an answer into pieces; see `Trip`."""
        assert self.start is not None
        assert self.stop is not None
        base, tag = self.start, meta["e_tag"] if meta is not None else None
        if len(self.members) == 1 and len(data) == self.stop - base:
            return (Piece(self.members[0][0], 0, data, True, len(data), tag),), ()
        found = []
        for number, start, stop in self.members:
            own = data[start - base : stop - base]
            error = None
            if len(own) != stop - start:
                error = self.source.ended_early(self.path, start, stop, max(0, base + len(data) - start))
            found.append(Piece(number, 0, b"" if error else own, True, 0 if error else len(own), tag, error))
        return found, ()


class Long:
    """What comes in several pieces, and what must be the same in all of their answers."""

    __slots__ = ("base", "described", "etag", "left", "number", "over", "rest", "size", "want")

    def __init__(self, number: int, want: Wanted, base: int, size: int) -> None:
        self.number, self.want, self.base, self.size = number, want, base, size
        self.left = size
        """Bytes that have not come."""
        self.etag = want.etag
        self.described: tuple[int, Any] | None = None
        """Size and time of change of the object, as the first answer said."""
        self.over = False
        """It has failed: what still comes of it is nobody's."""
        self.rest: Iterator[Part] = iter(())
        """Trips that are begun when others have arrived, so that a length that is a mistake costs little."""

    def begin(self, source: Source, path: str, start: int) -> list[Part]:
        """Plan the trips for bytes from `start` on, and give the first of them."""
        cuts = each_part(start, self.base + self.size, PIECE_BYTES)
        self.rest = (Part(source, path, at, end, self) for at, end in cuts)
        return list(islice(self.rest, AT_ONCE))

    def check(self, trip: Trip, meta: Mapping[str, Any]) -> None:
        """See to it that an answer is of the same object as all others, and that this has all that is wanted.

        Raises:
            ObjectChanged: it is not the same, or not of the size that was recorded.
            StoreError: it is shorter than the range.
        """
        if self.etag is not None and meta["e_tag"] not in (self.etag, None):
            raise _other(trip, self.etag, meta["e_tag"])
        untagged = self.etag is None or meta["e_tag"] is None
        self.etag = self.etag or meta["e_tag"]
        if self.want.size is not None:
            _check_size(trip, self.want.size, meta["size"])
        if self.base + self.size > meta["size"]:
            raise trip.source.ended_early(trip.path, self.base, self.base + self.size, meta["size"] - self.base)
        found = meta["size"], meta.get("last_modified")
        self.described = self.described or found
        # Servers behind one address may have the same content since different times: an etag says more, where both
        # answers have one.
        if found[0] != self.described[0] or (untagged and found[1] != self.described[1]):
            raise _other(trip, "{:,} bytes, of {}".format(*self.described), "{:,}, of {}".format(*found))

    def piece(self, offset: int, data: bytes) -> Piece:
        """Count bytes that came, and make a piece of them."""
        self.left -= len(data)
        return Piece(self.number, offset, data, self.left == 0, self.size, self.etag)


class Part(Trip):
    """A piece of something long."""

    __slots__ = ("long",)

    def __init__(self, source: Source, path: str, start: int, stop: int, long: Long) -> None:
        super().__init__(source, path, start, stop, stop - start, described=True)
        self.long = long

    @property
    def etag(self) -> str | None:
        """What the object must have."""
        return self.long.etag

    def numbers(self) -> Sequence[int]:
        """Say which Wanted need this trip."""
        if self.long.over:
            return ()
        self.long.over = True
        return (self.long.number,)

    def unpack(self, data: bytes, meta: Mapping[str, Any] | None) -> tuple[Sequence[Piece], Sequence[Trip]]:
        """Cut an answer into pieces; see `Trip`."""
        long = self.long
        if long.over:
            return (), ()
        assert self.start is not None
        assert self.stop is not None
        if meta is not None:
            long.check(self, meta)
        if len(data) != self.stop - self.start:
            raise self.source.ended_early(self.path, self.start, self.stop, len(data))
        return (long.piece(self.start - long.base, data),), list(islice(long.rest, 1))

    def instead(self) -> Sequence[Trip]:
        """Give the trip for all of the object, where the server ignores ranges; none if there is one already."""
        if self.long.over:
            return ()
        self.long.over = True
        return (Whole(self.source, self.path, self.long.number, self.long.want),)


def trips(wanted: Sequence[Wanted], places: Mapping[int, tuple[Source, str]]) -> list[Trip]:
    """Plan the requests for what is wanted, in the order of `places`.

    Args:
        wanted: all of it; ranges among it are not empty.
        places: source and path of each number that is to be planned for.
    """
    planned: list[Trip] = []
    ranged: dict[tuple[str, str | None], list[int]] = {}
    for number, (source, path) in places.items():
        want = wanted[number]
        if want.start is not None:
            ranged.setdefault((want.url, want.etag), []).append(number)
        elif want.size is not None and want.size > PIECE_BYTES:
            planned += Long(number, want, 0, want.size).begin(source, path, 0)
        else:
            planned.append(Whole(source, path, number, want))
    for (_, tag), members in ranged.items():
        source, path = places[members[0]]
        spans = [_span(wanted[number]) for number in members]
        for request in sparing([span[0] for span in spans], [span[1] for span in spans]):
            own = [(members[place], *spans[place]) for place in request.members]
            if request.stop - request.start > PIECE_BYTES:
                number = own[0][0]
                long = Long(number, wanted[number], request.start, request.stop - request.start)
                planned += long.begin(source, path, request.start)
            else:
                planned.append(Ranges(source, path, request.start, request.stop, own, tag))
    return planned


def _span(want: Wanted) -> tuple[int, int]:
    assert want.start is not None
    assert want.stop is not None
    return want.start, want.stop


def _check_size(trip: Trip, known: int, found: int) -> None:
    if known != found:
        raise _changed(trip, known, f"{found:,}")


def _changed(trip: Trip, known: int, found: str) -> StoreError:
    return ObjectChanged(
        f"{trip.source.shown(trip.path)} has {found} bytes, where {known:,} were recorded: the object changed, or the "
        "record is wrong. Make the index again"
    )


def _other(trip: Trip, known: str, found: str) -> StoreError:
    return ObjectChanged(f"{trip.source.shown(trip.path)} changed while it was read: it had {known}, and now {found}")
