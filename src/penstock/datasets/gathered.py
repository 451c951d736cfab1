"""Rows of several streams, put where they belong among each other: in a table while all give the same columns.

A stream's rows are copied right after they were made, while a core's cache still holds them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.datasets.answers import as_samples, is_table
from penstock.datasets.leased import Leased
from penstock.transforms.reused_buffers import ReusedBuffers


class Gathered:
    """The answers of several datasets on their way to become one.

    Args:
        places: int64 [n], where each row belongs, in the order in which they are added.
        buffers: where memory for a table is taken from. None: it is to be a list.
    """

    def __init__(self, places: np.ndarray, buffers: ReusedBuffers | None) -> None:
        self._places = places
        self._buffers = buffers
        self._table: dict[str, np.ndarray] | None = None if buffers is None else {}
        self._samples: list[Any] = []
        """As they came, where there is no table."""
        self._leases: list[Any] = []

    def add(self, rows: list[Any] | dict[str, Any], which: slice) -> None:
        """Add the next rows: those that belong to these of the places."""
        if self._table is not None and not (is_table(rows) and self._merge(self._table, rows, which)):
            self._samples, self._table = self._taken_apart(self._table, which.start), None
        if self._table is None:
            self._samples += as_samples(rows, which.stop - which.start) if isinstance(rows, dict) else rows
            if type(rows) is Leased:
                self._leases.append(rows.lease)

    def rows(self) -> list[Any] | dict[str, Any]:
        """Give all of them: a dict of arrays, or a list of samples with the leases of their files."""
        if self._table is not None:
            return self._table
        samples: list[Any] = [None] * len(self._places)
        for place, row in zip(self._places.tolist(), self._samples, strict=True):
            samples[place] = row
        return Leased.of(samples, self._leases) if self._leases else samples

    def _merge(self, table: dict[str, np.ndarray], rows: dict[str, np.ndarray], which: slice) -> bool:
        """Copy rows into the table; False where they have other columns than it."""
        if not which.start:
            assert self._buffers is not None
            for name, values in rows.items():
                table[name] = self._buffers.take((len(self._places), *values.shape[1:]), values.dtype)
        elif len(table) != len(rows):
            return False
        for name, values in rows.items():
            column = table.get(name)
            if column is None or column.dtype != values.dtype or column.shape[1:] != values.shape[1:]:
                return False
        where = self._places[which]
        for name, values in rows.items():
            table[name][where] = values
        return True

    def _taken_apart(self, table: dict[str, np.ndarray], count: int) -> list[Any]:
        """List the first samples that the table holds, as they came."""
        return [{name: values[place] for name, values in table.items()} for place in self._places[:count].tolist()]
