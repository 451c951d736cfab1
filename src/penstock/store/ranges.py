"""Which requests fetch which ranges: arithmetic on byte ranges, no I/O.

A request costs a round trip whatever its size, so ranges that lie close together are fetched as one,
and a long range is cut into parts that travel side by side and fail alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

GAP_BYTES = 1 << 16
"""Bytes nobody asked for that are cheaper to read than another request."""
PART_BYTES = 16 << 20
"""Longest range of one request."""

PIECE_BYTES = 8 << 20
"""Longest piece of an object that is one of many."""
WASTE = 0.02
"""Bytes nobody asked for, as a share of those somebody did, that joining requests of many objects may cost."""
HEADER_BYTES = 2 << 10
"""Bytes between two files of an archive: padding and a header, of a long name too. They are always worth reading."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A range to fetch, and the ranges asked for that lie in it."""

    start: int
    stop: int
    members: tuple[int, ...]
    """Places, in what was asked, of the ranges that this request serves."""


def coalesce(starts: Sequence[int], stops: Sequence[int], *, gap: int = GAP_BYTES) -> list[Request]:
    """Join half-open ranges that overlap, touch, or leave at most `gap` bytes between them.

    A joined request does not grow beyond PART_BYTES; a single range longer than that stays as it is.
    Empty ranges are left out.

    >>> [(r.start, r.stop, r.members) for r in coalesce([90, 0, 10], [99, 10, 30], gap=5)]
    [(0, 30, (1, 2)), (90, 99, (0,))]
    """
    joined: list[Request] = []
    for place in sorted(range(len(starts)), key=starts.__getitem__):
        start, stop = starts[place], stops[place]
        if stop <= start:
            continue
        last = joined[-1] if joined else None
        if last is not None and start - last.stop <= gap and max(stop, last.stop) - last.start <= PART_BYTES:
            joined[-1] = Request(start=last.start, stop=max(stop, last.stop), members=(*last.members, place))
        else:
            joined.append(Request(start=start, stop=stop, members=(place,)))
    return joined


def sparing(starts: Sequence[int], stops: Sequence[int]) -> list[Request]:
    """Join half-open ranges as `coalesce` does, but so that hardly a byte comes that nobody asked for.

    A joined request is at most PIECE_BYTES long. Gaps of up to HEADER_BYTES are read along, so that the files of one
    sample in an archive are one request; of the other bytes at most WASTE are in no range. Empty ranges are left out.

    >>> [(r.start, r.stop, r.members) for r in sparing([0, 2512, 5000, 9000], [2000, 3000, 6000, 9100])]
    [(0, 6000, (0, 1, 2)), (9000, 9100, (3,))]
    """
    joined: list[Request] = []
    used = 0
    for place in sorted(range(len(starts)), key=starts.__getitem__):
        start, stop = starts[place], stops[place]
        if stop <= start:
            continue
        last = joined[-1] if joined else None
        if last is not None:
            end = max(stop, last.stop)
            between = start - last.stop
            fresh = end - (last.stop if between <= HEADER_BYTES else start)
            length = end - last.start
            if length <= PIECE_BYTES and length <= (1 + WASTE) * (used + fresh):
                joined[-1] = Request(start=last.start, stop=end, members=(*last.members, place))
                used += fresh
                continue
        joined.append(Request(start=start, stop=stop, members=(place,)))
        used = stop - start
    return joined


def parts(start: int, stop: int, size: int = PART_BYTES) -> list[tuple[int, int]]:
    """Cut [start, stop) into ranges of at most `size` bytes, as equal as they can be.

    >>> parts(5, 25, 8)
    [(5, 11), (11, 18), (18, 25)]
    """
    return list(each_part(start, stop, size))


def each_part(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    """Give one after the other what `parts` gives, however many there are."""
    length = stop - start
    count = max(1, -(-length // size))
    return pairwise(start + length * number // count for number in range(count + 1))
