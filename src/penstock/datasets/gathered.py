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
        self._table: dict[str, np.ndarray] = {}
        self._samples: list[Any] | None = [None] * count if buffers is None else None
        self._placed: list[np.ndarray] = []
        self._leases: list[Any] = []

    def add(self, rows: list[Any] | dict[str, Any], where: np.ndarray) -> None:
        """Put rows at their places, int64 [m], of which each is given once."""
        if self._samples is None:
            if is_table(rows) and self._merge(rows, where):
                return
            self._samples = self._taken_apart()
        if (lease := lease_of(rows)) is not None:
            self._leases.append(lease)
        samples = self._samples
        each = as_samples(rows, len(where)) if isinstance(rows, dict) else rows
        for place, row in zip(where.tolist(), each, strict=True):
            samples[place] = row

    def rows(self) -> list[Any] | dict[str, Any]:
        """Give all of them: a dict of arrays, or a list of samples with the leases of their files."""
        if self._samples is None:
            return self._table
        return Leased.of(self._samples, self._leases) if self._leases else self._samples

    def _merge(self, rows: dict[str, np.ndarray], where: np.ndarray) -> bool:
        """Copy rows into the table; False where they have other columns than it."""
        table = self._table
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
        self._placed.append(where)
        return True

    def _taken_apart(self) -> list[Any]:
        """List the samples that the table holds so far."""
        samples: list[Any] = [None] * self._count
        for place in (place for where in self._placed for place in where.tolist()):
            samples[place] = {name: values[place] for name, values in self._table.items()}
        return samples
