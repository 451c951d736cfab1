"""Many ranges of one object, read side by side: close ones together, long ones in parts."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from itertools import islice
from typing import Any

from penstock.store.listings import together
from penstock.store.ranges import PART_BYTES, coalesce, each_part
from penstock.store.requests import MAX_REQUESTS


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
    pieces = (
        (number, *part) for number, one in enumerate(requests) for part in each_part(one.start, one.stop, PART_BYTES)
    )
    arrived: list[list[bytes]] = [[] for _ in requests]
    # A wave at a time: a length that is a mistake fails with the first, before there is a list of all its parts.
    while wave := list(islice(pieces, MAX_REQUESTS)):
        chunks = await together([read(start, stop) for _, start, stop in wave])
        for (number, _, _), chunk in zip(wave, chunks, strict=True):
            arrived[number].append(chunk)
    found = [b""] * len(starts)
    for request, pieces_of_it in zip(requests, arrived, strict=True):
        whole = pieces_of_it[0] if len(pieces_of_it) == 1 else b"".join(pieces_of_it)
        for member in request.members:
            start, stop = starts[member] - request.start, stops[member] - request.start
            found[member] = whole if stop - start == len(whole) else whole[start:stop]
    return found
