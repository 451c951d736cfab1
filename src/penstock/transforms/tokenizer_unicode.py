"""Documents with characters on which the engines' Unicode tables differ.

Splitting text into words asks what is a letter, a digit, a mark. The fast engine asks Unicode 17,
the references an older version, in which these characters mean nothing yet; so the few documents
that hold one are encoded by the reference. The list is the outcome of comparing the engines over
every character, which the tests repeat.
"""

from __future__ import annotations

import numpy as np

RANGES = np.array(
    [
        (0x088F, 0x088F),
        (0x0C5C, 0x0C5C),
        (0x0CDC, 0x0CDC),
        (0x1ACF, 0x1ADD),
        (0x1AE0, 0x1AEB),
        (0xA7CE, 0xA7CF),
        (0xA7D2, 0xA7D2),
        (0xA7D4, 0xA7D4),
        (0xA7F1, 0xA7F1),
        (0x10940, 0x10959),
        (0x10EC5, 0x10EC7),
        (0x10EFA, 0x10EFB),
        (0x11B60, 0x11B67),
        (0x11DB0, 0x11DDB),
        (0x11DE0, 0x11DE9),
        (0x16EA0, 0x16EB8),
        (0x16EBB, 0x16ED3),
        (0x16FF2, 0x16FF6),
        (0x187F8, 0x187FF),
        (0x18D09, 0x18D1E),
        (0x18D80, 0x18DF2),
        (0x1E6C0, 0x1E6DE),
        (0x1E6E0, 0x1E6F5),
        (0x1E6FE, 0x1E6FF),
        (0x2B73A, 0x2B73F),
        (0x2CEA2, 0x2CEAD),
        (0x323B0, 0x33479),
    ],
    np.uint32,
)
"""uint32 [R, 2]: first and last code point, in order."""

CHUNK_BYTES = 1 << 18
FIRST_LEAD = 0xE0


def newer_documents(data: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Find the documents that hold one of the characters.

    Args:
        data: uint8 [N], valid UTF-8.
        offsets: int64 [n + 1].

    Returns:
        int64 [k], their numbers, rising.

    Cost: one pass, several GB/s for text in Latin letters.
    """
    start, stop = int(offsets[0]), int(offsets[-1])
    found = [_newer_positions(data, i, min(i + CHUNK_BYTES, stop)) for i in range(start, stop, CHUNK_BYTES)]
    if not any(len(positions) for positions in found):
        return np.zeros(0, np.int64)
    return np.unique(np.searchsorted(offsets, np.concatenate(found), side="right") - 1)


def _newer_positions(data: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Positions in data[start:stop] at which one of the characters begins."""
    chunk = data[start:stop]
    if chunk.max() < FIRST_LEAD:
        return np.zeros(0, np.int64)
    leads = chunk >= 0xF0
    for lead in _LEADS:
        leads |= chunk == lead
    positions = np.flatnonzero(leads) + start
    following = [data[np.minimum(positions + k, data.size - 1)].astype(np.uint32) for k in range(2)]
    positions = positions[_PAIRS[following[0] << 8 | following[1]]]
    if not positions.size:
        return positions
    points = _code_points(data, positions)
    row = np.searchsorted(RANGES[:, 0], points, side="right").astype(np.int64) - 1
    return positions[(row >= 0) & (points <= RANGES[row, 1])]


def _code_points(data: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Decode the characters of three or four bytes that begin at positions."""
    a, b, c, d = (data[np.minimum(positions + k, data.size - 1)].astype(np.uint32) for k in range(4))
    three = (a & 0x0F) << 12 | (b & 0x3F) << 6 | c & 0x3F
    four = (a & 0x07) << 18 | (b & 0x3F) << 12 | (c & 0x3F) << 6 | d & 0x3F
    return np.where(a < 0xF0, three, four)


def _pairs() -> np.ndarray:
    """Mark the first two bytes, as one number, with which one of the characters begins: bool [65536]."""
    table = np.zeros(1 << 16, bool)
    for first, last in RANGES.tolist():
        a, b = chr(first).encode(), chr(last).encode()
        table[int.from_bytes(a[:2], "big") : int.from_bytes(b[:2], "big") + 1] = True
    return table


_PAIRS = _pairs()
_LEADS = [lead for lead in range(FIRST_LEAD, 0xF0) if _PAIRS[lead << 8 : (lead + 1) << 8].any()]
