"""Rows of several streams, put where they belong among each other: in a table while all give the same columns.

A stream's rows are copied right after they were made, while a core's cache still holds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.datasets.answers import as_samples, is_table
from penstock.datasets.leased import Leased, lease_of
from penstock.transforms.reused_buffers import ReusedBuffers


class Gathered:
    """The answers of several datasets on their way to become one.

    Args:
        count: how many rows there will be.
        buffers: where memory for a table is taken from. None: it is to be a list.
    """

    def __init__(self, count: int, buffers: ReusedBuffers | None) -> None:
        self._count = count
        self._buffers = buffers
        self._table: dict[str, np.ndarray] | None = None if buffers is None else {}
        self._samples: list[Any] = []
        """As they came, where there is no table."""
        self._placed: list[np.ndarray] = []
        self._leases: list[Any] = []

    def add(self, rows: list[Any] | dict[str, Any], where: np.ndarray) -> None:
        """Put rows at their places, int64 [m], of which each is given once."""
        if self._table is not None and not (is_table(rows) and self._merge(self._table, rows, where)):
            self._samples, self._table = self._taken_apart(self._table), None
        if self._table is None:
            if (lease := lease_of(rows)) is not None:
                self._leases.append(lease)
            self._samples += as_samples(rows, len(where)) if isinstance(rows, dict) else rows
        self._placed.append(where)

    def rows(self) -> list[Any] | dict[str, Any]:
        """Give all of them: a dict of arrays, or a list of samples with the leases of their files."""
        if self._table is not None:
            return self._table
        samples: list[Any] = [None] * self._count
        for place, row in zip(np.concatenate(self._placed).tolist(), self._samples, strict=True):
            samples[place] = row
        return Leased.of(samples, self._leases) if self._leases else samples

    def _merge(self, table: dict[str, np.ndarray], rows: dict[str, np.ndarray], where: np.ndarray) -> bool:
        """Copy rows into the table; False where they have other columns than it."""
        if not self._placed:
            assert self._buffers is not None
            for name, values in rows.items():
                table[name] = self._buffers.take((self._count, *values.shape[1:]), values.dtype)
        elif len(table) != len(rows):
            return False
        for name, values in rows.items():
            column = table.get(name)
            if column is None or column.dtype != values.dtype or column.shape[1:] != values.shape[1:]:
                return False
        for name, values in rows.items():
            table[name][where] = values
        return True

    def _taken_apart(self, table: dict[str, np.ndarray]) -> list[Any]:
        """List the samples that the table holds so far, as they came."""
        places = (place for where in self._placed for place in where.tolist())
        return [{name: values[place] for name, values in table.items()} for place in places]
