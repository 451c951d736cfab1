"""Tables to texts: one column of a Parquet file, row group by row group."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from penstock.errors import BadBlock, ConfigError, StoreError
from penstock.formats.columns import Column, Fault, string_bytes, string_offsets, without_invalid
from penstock.formats.sources import SourceFile
from penstock.formats.streams import open_raw

_BATCH_ROWS = 4096


@contextmanager
def table_errors(place: str, kind: str = "Parquet") -> Iterator[None]:
    """Say of a table's file that it is damaged, where Arrow says what it stumbled over.

    Args:
        place: where it is, for people.
        kind: what it was read as.

    Raises:
        BadBlock: in the place of Arrow's errors, and of the system's.
        StoreError: as it came.
    """
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, StoreError):
            raise
        raise BadBlock(f"{place} cannot be read as {kind}: {error}; fetch or write it again") from error


def iter_table(file: SourceFile, field: str, first_row: int = 0) -> Iterator[tuple[Column, int]]:
    """Read the text column of a table.

    Args:
        file: a Parquet file.
        field: the column's name.
        first_row: where to begin; row groups before it are not touched.

    Yields:
        The next rows, and the number of rows up to their end.

    Raises:
        ConfigError: there is no such column, or it holds no text.
        BadBlock: the file is damaged, or no Parquet.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with table_errors(file.place), open_raw(file) as raw, pq.ParquetFile(pa.PythonFile(raw, mode="r")) as table:
        _check_column(file, table.schema_arrow, field)
        row = 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            if row + count <= first_row:
                row += count
                continue
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=[field]):
                row += len(batch)
                if row > first_row:
                    texts = batch.column(0)[max(0, len(batch) - (row - first_row)) :]
                    yield _from_table(texts, row - len(texts) + 1), row


def _check_column(file: SourceFile, schema: Any, field: str) -> None:
    import pyarrow as pa

    columns = ", ".join(f"{column.name!r} ({column.type})" for column in schema)
    if field not in schema.names:
        raise ConfigError(
            f"{file.place} has no column {field!r}; give text_field (--text-field) one of its columns: {columns}"
        )
    kind = schema.field(field).type
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise ConfigError(f"the column {field!r} of {file.place} holds no text; its columns are {columns}")


def _from_table(texts: Any, first_line: int) -> Column:
    import pyarrow as pa
    import pyarrow.compute as pc

    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        texts = texts.cast(pa.large_string())
    nulls = np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False)) if texts.null_count else ()
    if texts.null_count:
        texts = pc.fill_null(texts, "")
    offsets = string_offsets(texts)
    faults = [Fault(row=int(row), reason="null", detail="its text is null") for row in nulls]
    data = string_bytes(texts)[offsets[0] : offsets[-1]]
    lines = np.arange(first_line, first_line + len(texts))
    return without_invalid(Column(data=data, offsets=offsets - offsets[0], lines=lines, faults=faults))
