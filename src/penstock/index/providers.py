"""Rows that a program gives: the index of whatever has no file.

A data provider is a function that gives the rows, or an object with `__len__` and `rows(start, stop)`. Rows are
mappings from column to value, or Arrow tables or record batches. What it says is taken once, when the index
is built. Whether the index still holds is told by the provider's `fingerprint`, if it has one, and else by
the rows themselves, for which all of them are asked for each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pyarrow as pa

from penstock.errors import ConfigError, FormatError
from penstock.index.scan import conform, unified

STEP_ROWS = 16_384
"""Rows asked for at a time."""


@runtime_checkable
class RowProvider(Protocol):
    """Rows by number; `rows` gives those from start to before stop."""

    def __len__(self) -> int: ...

    def rows(self, start: int, stop: int) -> Any:
        """Give rows: a list of mappings, or an Arrow table or record batch."""


def is_provider(src: object) -> bool:
    """Tell whether a source is a data provider."""
    return not isinstance(src, type) and (isinstance(src, RowProvider) or callable(src))


class ProviderSource:
    """The rows of a data provider; see `penstock.index.scan.Source`."""

    def __init__(self, provider: RowProvider | Callable[[], Iterable[Any]]) -> None:
        self._provider = provider
        self._taken: list[pa.RecordBatch] | None = None

    @property
    def place(self) -> str:
        """What it is called."""
        name = getattr(self._provider, "__qualname__", type(self._provider).__qualname__)
        return f"the data provider {name}"

    @property
    def base(self) -> str:
        """What relative locations are below: the folder the process is in."""
        return str(Path.cwd())

    def signature(self) -> list[Any]:
        """Its fingerprint if it has one, else a digest of its rows."""
        said = getattr(self._provider, "fingerprint", None)
        if said is not None:
            return ["provider", str(said)]
        digest = blake2b(digest_size=16)
        sink = pa.PythonFile(_Digesting(digest.update), mode="w")
        with pa.ipc.new_stream(sink, self.schema) as writer:
            for batch in self.batches():
                writer.write_batch(batch)
        return ["provider", digest.hexdigest()]

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; takes all rows the first time."""
        return unified([batch.schema for batch in self._rows()], self.place)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows.

        Raises:
            FormatError: it gives something else than rows, or values of a column that have no type in common.
            Exception: whatever the provider raises.
        """
        schema = self.schema
        for batch in self._rows():
            yield conform(batch, schema)

    def _rows(self) -> list[pa.RecordBatch]:
        if self._taken is None:
            taken = [batch for part in self._parts() for batch in self._batches_of(part)]
            if not taken:
                raise FormatError(f"{self.place} gives no rows")
            self._taken = taken
        return self._taken

    def _parts(self) -> Iterator[Any]:
        """Ask for the rows, some at a time."""
        provider = self._provider
        if isinstance(provider, RowProvider):
            total = len(provider)
            for start in range(0, total, STEP_ROWS):
                stop = min(start + STEP_ROWS, total)
                part = provider.rows(start, stop)
                if len(part) != stop - start:
                    raise FormatError(
                        f"{self.place} has {total:,} rows and gives {len(part):,} for rows({start}, {stop}): it must "
                        f"give {stop - start:,}"
                    )
                yield part
            return
        given = provider()
        if isinstance(given, pa.Table | pa.RecordBatch):
            yield given
            return
        if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
            raise FormatError(
                f"{self.place} gives {type(given).__name__}: it must give rows, as mappings or Arrow tables"
            )
        rows: list[Any] = []
        for item in given:
            if isinstance(item, pa.Table | pa.RecordBatch):
                yield item
                continue
            rows.append(item)
            if len(rows) == STEP_ROWS:
                yield rows
                rows = []
        if rows:
            yield rows

    def _batches_of(self, part: Any) -> Sequence[pa.RecordBatch]:
        if isinstance(part, pa.RecordBatch):
            return [part]
        if isinstance(part, pa.Table):
            return part.to_batches()
        wrong = next((row for row in part if not isinstance(row, Mapping)), None)
        if wrong is not None:
            raise FormatError(f"{self.place} gives {type(wrong).__name__} as a row: it must be a mapping of columns")
        names = list(dict.fromkeys(name for row in part for name in row))
        columns = [self._column(name, [row.get(name) for row in part]) for name in names]
        return [pa.RecordBatch.from_arrays(columns, names=[str(name) for name in names])]

    def _column(self, name: object, values: list[Any]) -> pa.Array:
        try:
            return pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise FormatError(f"{self.place}: the values of column {name!r} have no type in common: {error}") from error


class _Digesting:
    """A file that keeps nothing of what is written to it but a digest."""

    closed = False

    def __init__(self, update: Callable[[Any], None]) -> None:
        self._update = update

    def write(self, data: Any) -> int:
        self._update(data)
        return len(data)

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        self.closed = True


def check_provider(src: object) -> None:
    """Raise ConfigError unless something that is no path is a data provider."""
    if not is_provider(src):
        raise ConfigError(
            f"src must be a path, a URL, a list of these, a function that gives rows, or an object with __len__ and "
            f"rows(start, stop); got {type(src).__name__}"
        )
