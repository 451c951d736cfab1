"""An index: one row a sample, its key, where its files are, and what else is known of it.

    Index ── len · keys · rows(ids) · column(name) ── take · split · select ──▶ Index

Law: row i is the same on every process and every node, whatever the index was made of and wherever it
lies; `fingerprint` says so in 32 characters. An index holds no row in memory: it maps them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.errors import ConfigError
from penstock.index.keys import check_keys
from penstock.index.lazy_rows import LazyRows
from penstock.index.notes import Note, save_rows
from penstock.index.rows import BatchRows, Row, Rows
from penstock.index.scan import nearest
from penstock.index.sql import run_query
from penstock.plan.permutation import permute
from penstock.seeds import key as seed_key
from penstock.store.urls import redact
from penstock.types import check_int, check_number

_TAKEN = 1 << 16


class Index:
    """Rows by number. Pickling carries where they are, not what they are.

    Args:
        rows: all columns, the key as text; keys are known to differ.
        key: the key's column.
        base: the URL or absolute folder that relative locations are below.
        fingerprint: what `KeyCheck.finish` said, where it is known.
        ids: the rows that this index has, int64 [n]. None: all.
    """

    def __init__(
        self, rows: Rows, *, key: str, base: str, fingerprint: str | None = None, ids: np.ndarray | None = None
    ) -> None:
        self._rows, self._key, self._base = rows, key, base
        self._fingerprint = fingerprint
        self._ids = ids

    def __repr__(self) -> str:
        return f"Index({len(self):,} rows, key {self._key!r}, columns {', '.join(map(repr, self.columns))})"

    def __len__(self) -> int:
        return len(self._rows) if self._ids is None else len(self._ids)

    @property
    def key(self) -> str:
        """Name of the column of the keys."""
        return self._key

    @property
    def base(self) -> str:
        """The URL or absolute folder that relative locations are below."""
        return self._base

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._rows.schema

    @property
    def columns(self) -> list[str]:
        """Names of the columns, the key's too."""
        return list(self._rows.schema.names)

    @property
    def keys(self) -> pa.ChunkedArray:
        """The keys, text, in order."""
        return self.column(self._key)

    @property
    def fingerprint(self) -> str:
        """What the samples are: the same wherever the index lies; another if keys, their order or columns change."""
        if self._fingerprint is None:
            self._fingerprint = check_keys(lambda: self.keys.chunks, self._key, self.columns, "the index")
        return self._fingerprint

    @property
    def block_ends(self) -> np.ndarray | None:
        """Where each part of a lazy index ends, int64 [k]; None where rows need not be read part by part."""
        return self._rows.block_ends if isinstance(self._rows, LazyRows) and self._ids is None else None

    def prefetch(self, ids: np.ndarray | Sequence[int]) -> None:
        """Begin to read the parts of a lazy index that rows are in; returns at once, and does nothing for others."""
        if isinstance(self._rows, LazyRows):
            self._rows.prefetch(self._numbers(ids))

    def rows(self, ids: np.ndarray | Sequence[int], *, spare: frozenset[str] = frozenset()) -> list[Row]:
        """Read rows as Python values, None where there is none.

        Args:
            ids: int64 [n], in any order, each in [0, len).
            spare: columns that need not be read: they are None.

        Raises:
            IndexError: an id is outside the range.

        Cost: about 3 µs for a row of nine columns.
        """
        return self._rows.rows(self._numbers(ids), spare)

    def column(self, name: str) -> pa.ChunkedArray:
        """Give a column; without a copy if this index has all rows of its file.

        Raises:
            ConfigError: there is no such column.
        """
        if name not in self._rows.schema.names:
            raise ConfigError(f"the index has no column {name!r}: {nearest(name, self.columns)}")
        if self._ids is None:
            return self._rows.column(name)
        number = self._rows.schema.names.index(name)
        return pa.chunked_array(
            [batch.column(number) for batch in self.iter_batches()], type=self.schema.field(name).type
        )

    def iter_batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in order, a batch in memory at a time."""
        if self._ids is None:
            yield from self._rows.iter_batches()
        elif (np.diff(self._ids) > 0).all():
            start = 0
            for batch in self._rows.iter_batches():
                first, last = np.searchsorted(self._ids, [start, start + len(batch)])
                if last > first:
                    yield batch.take(_as_arrow(self._ids[first:last] - start))
                start += len(batch)
        else:
            table = pa.Table.from_batches(self._rows.iter_batches(), self.schema).combine_chunks()
            for at in range(0, len(self._ids), _TAKEN):
                yield from table.take(_as_arrow(self._ids[at : at + _TAKEN])).combine_chunks().to_batches()

    def _numbers(self, ids: np.ndarray | Sequence[int]) -> np.ndarray:
        numbers = np.asarray(ids, np.int64)
        count = len(self)
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= count):
            wrong = numbers[(numbers < 0) | (numbers >= count)][0]
            raise IndexError(f"row {wrong:,} was asked for; the index has {count:,} rows, from 0")
        return numbers if self._ids is None else self._ids[numbers]

    def take(self, ids: np.ndarray | Sequence[int]) -> Index:
        """Make an index of some of the rows, in the order given, each at most once.

        Args:
            ids: int64 [n], distinct.

        Raises:
            IndexError: an id is outside the range.
            ConfigError: an id is there twice: keys would be.
        """
        numbers = self._numbers(ids)
        if len(np.unique(numbers)) != len(numbers):
            raise ConfigError(f"take was given {len(numbers):,} rows, some of them twice; an index has each row once")
        return Index(self._rows, key=self._key, base=self._base, ids=numbers)

    def select(self, sql: str) -> Index:
        """Make an index of what a query gives, in memory: rows of its own, its order, its columns.

        Args:
            sql: one SELECT of DuckDB's SQL, from the table `dataframe`.

        Raises:
            ConfigError: the query is wrong, gives no rows, or no column of the keys.
            FormatError: a key is missing in what it gives, or there twice.
        """
        table = pa.Table.from_batches(self.iter_batches(), self.schema)
        with run_query(sql, table) as reader:
            batches = list(reader)
        if self._key not in reader.schema.names:
            raise ConfigError(
                f"the query gives no column {self._key!r} of the keys: {nearest(self._key, reader.schema.names)}"
            )
        rows = BatchRows.of(reader.schema, batches)
        if not len(rows):
            raise ConfigError(f"the query gives no rows: {sql}")
        found = check_keys(lambda: rows.column(self._key).chunks, self._key, rows.schema.names, "the query's result")
        return Index(rows, key=self._key, base=self._base, fingerprint=found)

    def split(
        self, val_ratio: float | None = None, *, val_count: int | None = None, seed: int = 0
    ) -> tuple[Index, Index]:
        """Part the rows into those to train on and those to validate with, at random, each part in its old order.

        Args:
            val_ratio: share of the rows to validate with, in [0, 1]; rounded down.
            val_count: or how many they are; all there are, if these are fewer.
            seed: which split; same seed and same number of rows, same split.

        Raises:
            ConfigError: neither or both are given, or out of range.
        """
        count = self._val_count(val_ratio, val_count)
        chosen = np.zeros(len(self), bool)
        if count:
            chosen[permute(np.arange(count, dtype=np.int64), len(self), seed_key(seed, "split"))] = True
        return self.take(np.flatnonzero(~chosen)), self.take(np.flatnonzero(chosen))

    def _val_count(self, ratio: float | None, count: int | None) -> int:
        if (ratio is None) == (count is None):
            raise ConfigError(f"give val_ratio or val_count: got {ratio!r} and {count!r}")
        if count is not None:
            check_int("val_count", count, minimum=0)
            return min(count, len(self))
        return int(len(self) * check_number("val_ratio", ratio, maximum=1))

    def save(self, url: str | os.PathLike[str], **storage_options: Any) -> None:
        """Write the index to one Arrow file, which `open_index` opens and anything that knows Arrow reads.

        Args:
            url: a path or URL that ends in .arrow; what is there is replaced. A file on a disk is mapped when it
                is opened; an object is compressed, and is held in memory while it is sent.
            storage_options: see `open_store`.

        Raises:
            ConfigError: the name does not end in .arrow.
            StoreError: it can't be written.
        """
        save_rows(
            url,
            self.schema,
            self.iter_batches(),
            Note(key=self._key, base=redact(self._base), fingerprint=self.fingerprint),
            storage_options,
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_fingerprint": self.fingerprint}


def _as_arrow(ids: np.ndarray) -> pa.Array:
    """View int64 [n] as an Arrow array."""
    return pa.Array.from_buffers(pa.int64(), len(ids), [None, pa.py_buffer(np.ascontiguousarray(ids))])
