"""Many ranges of one object, read side by side: close ones together, long ones in parts."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from penstock.store.listings import together
from penstock.store.ranges import coalesce, parts


async def read_ranges(
    read: Callable[[int, int], Coroutine[Any, Any, bytes]], starts: Sequence[int], stops: Sequence[int]
) -> list[bytes]:
    """Read half-open ranges of an object.

    Args:
        read: reads one, in one request.
        starts: their first bytes.
        stops: behind their last.

    Returns:
        The bytes of each range, in the order given.
    """
    requests = coalesce(starts, stops)
    pieces = [(number, *part) for number, one in enumerate(requests) for part in parts(one.start, one.stop)]
    chunks = await together([read(start, stop) for _, start, stop in pieces])
    arrived: list[list[bytes]] = [[] for _ in requests]
    for (number, _, _), chunk in zip(pieces, chunks, strict=True):
        arrived[number].append(chunk)
    found = [b""] * len(starts)
    for request, pieces_of_it in zip(requests, arrived, strict=True):
        whole = pieces_of_it[0] if len(pieces_of_it) == 1 else b"".join(pieces_of_it)
        for member in request.members:
            start, stop = starts[member] - request.start, stops[member] - request.start
            found[member] = whole if stop - start == len(whole) else whole[start:stop]
    return found
