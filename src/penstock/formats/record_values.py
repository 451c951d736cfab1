"""Rows of a table to JSON lines.

JSON has no times, no bytes and no NaN. Times become ISO 8601 text, decimals their digits as text, a map a
list of [key, value]; bytes become files, named by their content, and what stands in the record is their
path; NaN and infinities become null, or make their row a fault: never silently. Whole columns are turned
into values first, in compiled code, so a row costs one dict and one call of the JSON writer.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import ConfigError
from penstock.formats.assets import keep_asset
from penstock.formats.columns import Fault
from penstock.formats.record_lines import NAN, Lines, count_nan, join_lines


def table_lines(batch: Any, *, null_nan: bool, assets: Path | None) -> Lines:
    """Write the rows of an Arrow record batch as JSON lines.

    Args:
        batch: the rows; the names of its columns are the keys.
        null_nan: write null for NaN and infinities; otherwise a row with one has the fault "nan".
        assets: folder for the files that bytes become; records name them below its parent.

    Raises:
        ConfigError: a column holds bytes and there is no folder for them, or values JSON has no form for.
        StoreError: a file can't be written.
    """
    columns = [_values(column) for column in batch.columns]
    not_finite = sum((_count_not_finite(*pair) for pair in zip(batch.columns, columns, strict=True)), np.zeros(1))
    names = batch.schema.names
    rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
    faults, kept = list[Fault](), rows
    if not_finite.any() and not null_nan:
        bad = set(np.flatnonzero(not_finite).tolist())
        faults = [Fault(row=row, reason=NAN, detail="it holds NaN or an infinity") for row in sorted(bad)]
        kept = [row for number, row in enumerate(rows) if number not in bad]
    data, ends = join_lines(_dumped(kept, _writer(assets)))
    return Lines(data=data, ends=ends, rows=len(rows), faults=faults, nulled=int(not_finite.sum()) if null_nan else 0)


def _values(column: Any) -> list[Any]:
    """Give a column as values that the JSON writer, or `_writer`, knows."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return _values(column.storage)
    if pa.types.is_dictionary(kind):
        return _values(column.dictionary_decode())
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or (is_number and not column.null_count):
        return column.to_numpy(zero_copy_only=False).tolist()
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        # Python's own times stop at microseconds.
        in_utc = column if kind.tz is None else column.cast(pa.timestamp("ns", "UTC"))
        return pc.strftime(in_utc, format="%Y-%m-%dT%H:%M:%S" + ("" if kind.tz is None else "+00:00")).to_pylist()
    return column.to_pylist()


def _dumped(rows: list[dict[str, Any]], convert: Callable[[Any], Any]) -> list[bytes]:
    try:
        return [orjson.dumps(row, convert) for row in rows]
    except orjson.JSONEncodeError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(
            f"a row cannot be written as JSON ({error}); leave its column out (columns=, --columns)"
        ) from error


def _writer(assets: Path | None) -> Callable[[Any], Any]:
    """Make the function that gives JSON values for those that JSON does not have."""

    def convert(value: Any) -> Any:
        if isinstance(value, bytes):
            if assets is None:
                raise ConfigError(
                    "a column holds bytes, which JSON lines can't; give a folder for them as files (assets=), or "
                    "leave the column out (columns=, --columns)"
                )
            return keep_asset(assets, value)
        if isinstance(value, Decimal):
            return str(value)
        if isinstance(value, timedelta):
            return iso_duration(value)
        if hasattr(value, "isoformat"):
            return value.isoformat()
        raise TypeError(f"{type(value).__name__} is no JSON value")

    return convert


def iso_duration(value: timedelta) -> str:
    """Write a duration as ISO 8601.

    >>> iso_duration(timedelta(seconds=-1, microseconds=-500000))
    '-PT1.500000S'
    """
    micros = value // timedelta(microseconds=1)
    whole, part = divmod(abs(micros), 1_000_000)
    return f"{'-' * (micros < 0)}PT{whole}{f'.{part:06}' if part else ''}S"


def _count_not_finite(column: Any, values: list[Any]) -> np.ndarray:
    """Count NaN and infinities of each row, int64 [rows], or [1] where the column can't hold any."""
    import pyarrow as pa

    if pa.types.is_floating(column.type):
        numbers = np.asarray(column.cast(pa.float64()).fill_null(0.0).to_numpy(zero_copy_only=False))
        return (~np.isfinite(numbers)).astype(np.int64)
    if not _has_floats(column.type):
        return np.zeros(1, np.int64)
    return np.fromiter(map(count_nan, values), np.int64, len(values))


def _has_floats(kind: Any) -> bool:
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return _has_floats(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _has_floats(kind.value_type)
    if pa.types.is_nested(kind):
        return any(_has_floats(kind.field(number).type) for number in range(kind.num_fields))
    return bool(pa.types.is_floating(kind))
