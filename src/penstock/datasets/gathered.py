"""Rows of several streams, put where they belong among each other: in a table while all give the same columns.

A stream's rows are copied right after they were made, while a core's cache still holds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from penstock.datasets.answers import Rows, as_samples, is_table
from penstock.datasets.leased import Leased
from penstock.transforms.reused_buffers import ReusedBuffers

Answer = tuple[slice, Rows]
"""Some of the rows that were asked for, in the order in which their places are known, and which they are."""


def gather(places: np.ndarray, answers: Iterable[Answer], buffers: ReusedBuffers | None) -> Rows:
    """Make one answer of those of several datasets.

    Args:
        places: int64 [n], where each row belongs.
        answers: all n rows, part by part.
        buffers: where memory for a table is taken from. None: it is to be a list.

    Returns:
        A dict of arrays, or a list of samples with the leases of their files.
    """
    table: dict[str, np.ndarray] = {}
    found: list[Any] = []
    leases: list[Any] = []
    for which, rows in answers:
        if buffers is not None:
            if is_table(rows) and _merged(table, rows, places, which, buffers):
                continue
            found, buffers = _taken_apart(table, places[: which.start]), None
        found += as_samples(rows, which.stop - which.start) if isinstance(rows, dict) else rows
        if type(rows) is Leased:
            leases.append(rows.lease)
    if buffers is not None:
        return table
    in_place = np.empty(len(places), object)
    in_place[places] = np.fromiter(found, object, len(places))
    samples: list[Any] = in_place.tolist()
    return Leased.of(samples, leases) if leases else samples


def _merged(
    table: dict[str, np.ndarray],
    rows: dict[str, np.ndarray],
    places: np.ndarray,
    which: slice,
    buffers: ReusedBuffers,
) -> bool:
    """Copy rows into the table, which the first ones begin; False where they have other columns than it."""
    if not which.start:
        for name, values in rows.items():
            table[name] = buffers.take((len(places), *values.shape[1:]), values.dtype)
    elif len(table) != len(rows):
        return False
    for name, values in rows.items():
        column = table.get(name)
        if column is None or column.dtype != values.dtype or column.shape[1:] != values.shape[1:]:
            return False
    where = places[which]
    for name, values in rows.items():
        table[name][where] = values
    return True


def _taken_apart(table: dict[str, np.ndarray], places: np.ndarray) -> list[Any]:
    """List the samples that a table holds at places."""
    return [{name: values[place] for name, values in table.items()} for place in places.tolist()]
