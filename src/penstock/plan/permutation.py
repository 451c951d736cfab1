"""A shuffle that needs no memory: a keyed bijection of [0, n) with random access.

`feistel8-v1` is the name of this exact arithmetic. It is part of every saved state, because two
permutations that differ in one id are two different orders: changing a line of `permute` that
changes its output is a breaking change with a new name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from math import isqrt
from typing import Any

import numpy as np

from penstock.errors import PlanError

ORDER_NAME = "feistel8-v1"
MAX_RANGE = 2**62
ROUNDS = 8
SMALL_RANGE = 256
SMALL_ROUNDS = 24
"""Below SMALL_RANGE a hash has only a few values to add, so more of them are needed to reach every order alike."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xFF51AFD7ED558CCD)
_MIX_B = np.uint64(0xC4CEB9FE1A85EC53)
_HALF = np.uint64(32)


def permute(i: np.ndarray, n: int, key: np.ndarray) -> np.ndarray:
    """Map positions through a keyed bijection of [0, n).

    Random access to a shuffle without storing it: a generalised Feistel network over the rectangle
    ⌈√n⌉ × ⌈n/⌈√n⌉⌉, walking the cycle until the value falls below n.

    Args:
        i: int64 of any shape, positions in [0, n).
        n: length of the range, 1 <= n <= 2**62.
        key: uint64 [4] from `seeds.key`. Same key, same bijection, on every platform.

    Returns:
        int64, the shape of i; distinct where i is.

    Raises:
        PlanError: n outside its bounds, or a position outside the range.

    Cost: O(len(i)) time and memory, whatever n is: about 30 ns an id in calls of thousands.
    Source: Black & Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002.

    >>> from penstock.seeds import key
    >>> sorted(permute(np.arange(5), 5, key(0, "doc")).tolist())
    [0, 1, 2, 3, 4]
    """
    if not 1 <= n <= MAX_RANGE:
        raise PlanError(f"cannot permute a range of {n}: its length must be from 1 to 2**62")
    positions = np.asarray(i, dtype=np.int64)
    if positions.size == 0:
        return positions.copy()
    if int(positions.min()) < 0 or int(positions.max()) >= n:
        raise PlanError(f"positions run from {positions.min()} to {positions.max()}, outside [0, {n})")
    width = np.uint64(isqrt(n - 1) + 1)
    height = np.uint64(-(-n // (isqrt(n - 1) + 1)))
    rounds = _round_keys(key, SMALL_ROUNDS if n < SMALL_RANGE else ROUNDS)
    values = _network(positions.ravel().view(np.uint64), width, height, rounds)
    # The rectangle is at most `width` larger than n, so a walk of more than one step is rare.
    outside = np.flatnonzero(values >= np.uint64(n))
    while outside.size:
        values[outside] = _network(values[outside], width, height, rounds)
        outside = outside[values[outside] >= np.uint64(n)]
    return values.view(np.int64).reshape(positions.shape)


def permute_each(
    positions: np.ndarray, counts: Sequence[int], ranges: Sequence[int], keys: Sequence[np.ndarray]
) -> np.ndarray:
    """Map positions through several bijections in one call, as `permute` does through each.

    Args:
        positions: int64 [B]: first those of the first bijection, then those of the second, and so on.
        counts: how many of them are each one's.
        ranges: n of each.
        keys: uint64 [4] of each.

    Returns:
        int64 [B].

    Raises:
        PlanError: as `permute` does.

    Cost: about 40 ns an id, where a call of its own for a few ids costs 50 µs.

    >>> from penstock.seeds import key
    >>> both = permute_each(np.arange(8), [3, 5], [1000, 2000], [key(0, "a"), key(0, "b")])
    >>> both[3:].tolist() == permute(np.arange(3, 8), 2000, key(0, "b")).tolist()
    True
    """
    ends = list(accumulate(counts))
    if len(counts) < 2 or min(ranges) < SMALL_RANGE or max(ranges) > MAX_RANGE:
        parts = np.split(positions, ends[:-1])
        mapped = [permute(part, n, key) for part, n, key in zip(parts, ranges, keys, strict=True)]
        return np.concatenate([positions[:0], *mapped])
    if positions.size == 0:
        return positions.copy()
    limits = np.repeat(np.array(ranges, np.uint64), counts)
    values = positions.view(np.uint64)
    if (values >= limits).any():
        raise PlanError(f"positions run from {positions.min()} to {positions.max()}, some outside their ranges")
    widths = [isqrt(n - 1) + 1 for n in ranges]
    sides = np.array([widths, [-(-n // width) for n, width in zip(ranges, widths, strict=True)]], np.uint64)
    rounds = _round_keys(np.stack(keys), ROUNDS)  # uint64 [ROUNDS, bijections]
    width, height = np.repeat(sides, counts, axis=1)
    # One round's keys at a time: memory for all at once would be asked of the system, and given back, in every call.
    values = _network(values, width, height, (np.repeat(each, counts) for each in rounds))
    outside = np.flatnonzero(values >= limits)
    while outside.size:
        which = np.searchsorted(ends, outside, side="right")
        width, height = sides[:, which]
        values[outside] = _network(values[outside], width, height, rounds[:, which])
        outside = outside[values[outside] >= limits[outside]]
    return values.view(np.int64)


def _round_keys(keys: np.ndarray, count: int) -> np.ndarray:
    """Spread 256-bit keys over the rounds: uint64 [..., 4] → [count, ...]."""
    rounds = np.arange(count)
    return (keys[..., rounds % 4] + (rounds // 4).astype(np.uint64) * _GOLDEN).T


def _network(values: np.ndarray, width: Any, height: Any, rounds: Any) -> np.ndarray:
    """Run all rounds on uint64 [B] below width × height: each adds a hash of one side to the other, modulo its size.

    Width, height and each round's key are uint64: one for all values, or [B].
    """
    sizes = (width, height)
    upper, lower = np.divmod(values, sizes[0])
    sides = [lower, upper]
    mixed, shifted = np.empty_like(values), np.empty_like(values)
    for j, round_key in enumerate(rounds):
        side, size, other = sides[j % 2], sizes[j % 2], sides[1 - j % 2]
        np.bitwise_xor(other, round_key, out=mixed)
        np.multiply(mixed, _MIX_A, out=mixed)
        np.right_shift(mixed, _HALF, out=shifted)
        np.bitwise_xor(mixed, shifted, out=mixed)
        np.multiply(mixed, _MIX_B, out=mixed)
        # The hash's high 32 bits, scaled to [0, size): a multiplication where a modulo would be slow.
        np.right_shift(mixed, _HALF, out=mixed)
        np.multiply(mixed, size, out=mixed)
        np.right_shift(mixed, _HALF, out=mixed)
        np.add(side, mixed, out=side)
        # side mod size without a branch: below size, side - size wraps around to a huge number.
        np.subtract(side, size, out=mixed)
        np.minimum(side, mixed, out=side)
    return sides[1] * sizes[0] + sides[0]
