"""Which samples are meant: one number, or many at once, held against how many there are.

dataset[-1] ──check_id──▶ len - 1          fetch([3, 7]) ──check_ids──▶ as they are, or IndexError
"""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def check_id(index: Any, size: int, where: object) -> int:
    """Return the number of a sample, in [0, size); a negative one counts from the end.

    Args:
        index: what was asked for.
        size: how many samples there are.
        where: whose they are; said in errors only.

    Raises:
        IndexError: there is no such sample.
        TypeError: it is no whole number.

    >>> check_id(-1, 5, "here")
    4
    """
    try:
        number = operator.index(index)
    except TypeError:
        number = None
    if number is None or isinstance(index, bool):
        raise TypeError(
            f"a sample is asked for by its number, got {index!r}; several by a loop, the next ones by iter()"
        )
    if not -size <= number < size:
        raise IndexError(f"sample {number} of {where}: {_says(size)}")
    return number % size


def check_ids(ids: np.ndarray, size: int, where: object) -> int:
    """Return the highest of several samples' numbers, -1 if there is none.

    Args:
        ids: int64 [n], each in [0, size).
        size: how many samples there are.
        where: whose they are; said in errors only.

    Raises:
        IndexError: one of them is not there.

    >>> check_ids(np.array([3, 1]), 5, "here")
    3
    """
    if not len(ids):
        return -1
    # Seen as unsigned, a negative id is a huge one: one pass finds both.
    highest = int(np.asarray(ids, np.int64).view(np.uint64).max())
    if highest >= size:
        raise IndexError(f"samples {ids.min()} to {ids.max()} of {where}: {_says(size)}")
    return highest


def _says(size: int) -> str:
    return f"it has {size} of them, from 0 to {size - 1}" if size else "it has none"
