"""Weights as people write them → whole numbers that say the same.

Decimals are taken as written: 0.7 is 7/10, whatever a float makes of it. Where no small whole numbers say
exactly the same, the nearest do, by largest remainder, and none becomes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from math import gcd, inf, lcm
from typing import Any

import numpy as np

from penstock.errors import ConfigError


def whole_numbers(weights: Sequence[Any], most: int) -> list[int]:
    """Give whole numbers in the proportions of weights, the smallest there are, with a sum of `most` at most.

    Args:
        weights: positive numbers.
        most: the largest sum; weights that no such numbers express exactly are rounded to parts of it.

    >>> whole_numbers([0.4, 0.6], 10**6), whole_numbers([2**0.5, 1], 10**6)
    ([2, 3], [292893, 207107])
    """
    exact = [as_written(weight) for weight in weights]
    scale = lcm(*(weight.denominator for weight in exact))
    numbers = [int(weight * scale) for weight in exact]
    shared = gcd(*numbers)
    numbers = [number // shared for number in numbers]
    if sum(numbers) <= most:
        return numbers
    numbers = split(most, exact)
    shared = gcd(*numbers)
    return [number // shared for number in numbers]


def split(total: int, weights: Sequence[Any]) -> list[int]:
    """Split a total in the proportions of weights by largest remainder; each gets one at least.

    Raises:
        ConfigError: there are more weights than parts to give.

    >>> split(10, [0.5, 0.4, 0.1]), split(4, [1000, 1, 1])
    ([5, 4, 1], [2, 1, 1])
    """
    if len(weights) > total:
        raise ConfigError(f"{total} cannot be split among {len(weights)}: each must get one at least")
    exact = [as_written(weight) for weight in weights]
    whole = sum(exact)
    shares = [weight * total / whole for weight in exact]
    parts = [max(1, int(share)) for share in shares]
    # Whole parts are short of the total, unless the ones for the smallest weights have made them too many.
    by_need = sorted(range(len(parts)), key=lambda j: (parts[j] - shares[j], j))
    for j in by_need[: max(0, total - sum(parts))]:
        parts[j] += 1
    while sum(parts) > total:
        parts[max(range(len(parts)), key=lambda j: (parts[j] > 1, parts[j] - shares[j], -j))] -= 1
    return parts


def check_weights(what: str, weights: Mapping[str, Any]) -> None:
    """Raise ConfigError unless all weights are finite numbers of 0 or more, one of them above."""
    for name, weight in weights.items():
        is_number = isinstance(weight, int | float | np.integer | np.floating | Fraction) and type(weight) is not bool
        if not is_number or not 0 <= weight < inf:
            raise ConfigError(f"{what} of {name!r} must be a finite number, 0 or more, got {weight!r}")
    if not any(weights.values()):
        raise ConfigError(f"{what} must be above 0 for one stream at least, got {dict(weights)}")


def as_written(weight: Any) -> Fraction:
    """Give the decimal that a number is printed as."""
    if isinstance(weight, int | np.integer):
        return Fraction(int(weight))
    return weight if isinstance(weight, Fraction) else Fraction(repr(float(weight)))
