"""Tables to rows: Parquet by row group, Arrow files by record batch, CSV by blocks of whole records.

Columns keep the types their file gives them; CSV gives none, so each of its values is the text that
stands there, and a field with nothing in it is null. CSV is that of RFC 4180: a field with a quote, a
separator or a line end in it is quoted, its quotes doubled.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from penstock.errors import BadBlock, ConfigError
from penstock.formats.sources import SourceFile
from penstock.formats.streams import Opener, end_of_last_line, iter_blocks, last_of, open_raw
from penstock.formats.tables import table_errors

_BATCH_BYTES = 8 << 20
_MAX_ROWS = 4096
QUOTE, _NEWLINE, _RETURN = b'"\n\r'


def iter_rows(
    file: SourceFile, first_row: int, columns: Sequence[str] | None, opener: Opener = open_raw
) -> Iterator[tuple[Any, int]]:
    """Read a Parquet or Arrow file.

    Args:
        file: what to read.
        first_row: where to begin; row groups before it are not touched.
        columns: those wanted. None: all.
        opener: how the file's bytes are reached.

    Yields:
        Record batches, and the number of rows up to their end.

    Raises:
        ConfigError: there is no such column.
        BadBlock: the file is damaged, or something else.
        StoreError: it can't be read.
    """
    kind, batches = ("Parquet", _parquet_batches) if file.kind == "parquet" else ("an Arrow file", _arrow_batches)
    with table_errors(file.place, kind), opener(file) as raw:
        for batch, end in batches(file, raw, first_row, columns):
            if end > first_row:
                yield batch.slice(max(0, len(batch) - (end - first_row))), end


def _parquet_batches(
    file: SourceFile, raw: Any, first_row: int, columns: Sequence[str] | None
) -> Iterator[tuple[Any, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(pa.PythonFile(raw, mode="r"), pre_buffer=False) as table:
        names = chosen_columns(file, table.schema_arrow.names, columns)
        groups = [table.metadata.row_group(group) for group in range(table.num_row_groups)]
        ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64).tolist()
        wanted = [group for group, end in enumerate(ends) if end > first_row]
        if hasattr(raw, "announce"):
            raw.announce([(ends[group], extents(groups[group], names)) for group in wanted])
        for group in wanted:
            row = ends[group] - groups[group].num_rows
            size = max(1, groups[group].total_byte_size // max(1, groups[group].num_rows))
            rows = min(_MAX_ROWS, max(1, _BATCH_BYTES // size))
            for batch in table.iter_batches(batch_size=rows, row_groups=[group], columns=names, use_threads=False):
                row += len(batch)
                yield batch, row


def extents(group: Any, columns: Sequence[str] | None) -> list[tuple[int, int]]:
    """Give where the wanted columns of a row group lie in the file, half-open, neighbours joined."""
    found: list[tuple[int, int]] = []
    for number in range(group.num_columns):
        column = group.column(number)
        if columns is not None and column.path_in_schema.partition(".")[0] not in columns:
            continue
        start = column.dictionary_page_offset or column.data_page_offset
        stop = start + column.total_compressed_size
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], stop)
        else:
            found.append((start, stop))
    return found


def chosen_columns(file: SourceFile, names: Sequence[str], columns: Sequence[str] | None) -> list[str] | None:
    """Give the wanted columns in the file's order; None where all are.

    Raises:
        ConfigError: the file has not all of them.
    """
    missing = [column for column in columns or () if column not in names]
    if missing:
        raise ConfigError(f"{file.place} has no column {missing[0]!r}; its columns are {', '.join(map(repr, names))}")
    return None if columns is None else [name for name in names if name in columns]


def _arrow_batches(
    file: SourceFile, raw: Any, first_row: int, columns: Sequence[str] | None
) -> Iterator[tuple[Any, int]]:
    import pyarrow as pa

    source = pa.PythonFile(raw, mode="r")
    row = 0
    for batch in _ipc_batches(source):
        names = chosen_columns(file, batch.schema.names, columns)
        for start in range(0, len(batch), _MAX_ROWS):
            part = batch.slice(start, _MAX_ROWS)
            row += len(part)
            if row > first_row:
                yield part if names is None else part.select(names), row


def _ipc_batches(source: Any) -> Iterator[Any]:
    """Read the record batches of an Arrow file, of either of its two layouts."""
    import pyarrow as pa

    magic = source.read(6)
    source.seek(0)
    if magic == b"ARROW1":
        with pa.ipc.open_file(source) as reader:
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    else:
        with pa.ipc.open_stream(source) as reader:
            yield from reader


def iter_csv(
    file: SourceFile, offset: int, block_bytes: int, opener: Opener = open_raw
) -> Iterator[tuple[Any, list[tuple[int, str]], int, int]]:
    """Read a CSV or TSV file whose first record names its columns.

    Args:
        file: what to read.
        offset: where to begin, in uncompressed bytes: 0, or an end given before.
        block_bytes: text read at a time, about.
        opener: how the file's bytes are reached.

    Yields:
        A record batch of strings; records that fit no columns, each as its line within the block, from 0, and
        what is wrong with it; the offset of the block's end; and the number of lines in it.

    Raises:
        ConfigError: two columns have one name.
        BadBlock: nobody can tell where records end, or the file is damaged.
    """
    names, header = csv_header(file, opener)
    for block, end in iter_blocks(file, offset, block_bytes, end_of_last_record, opener):
        start = header - (end - len(block)) if offset == 0 else 0
        refuse_stray_quotes(file, block)
        before = _count_lines(block[:start])
        batch, wrong = _parse(file, block[start:], names)
        yield batch, [(line + before, detail) for line, detail in wrong], end, before + _count_lines(block[start:])
        offset = end


def _count_lines(block: np.ndarray) -> int:
    return int((block == _NEWLINE).sum()) + bool(len(block) and block[-1] != _NEWLINE)


def _record_ends(buffer: np.ndarray) -> np.ndarray:
    """Find the line ends outside quotes, int64."""
    newlines = np.flatnonzero(buffer == _NEWLINE)
    return newlines[np.searchsorted(np.flatnonzero(buffer == QUOTE), newlines) % 2 == 0]


def end_of_last_record(buffer: np.ndarray) -> int:
    """Give the end of the last line of CSV that ends outside quotes, 0 if none does."""
    end = end_of_last_line(buffer)
    # A line end behind an odd number of quotes is inside of them; so is all from the last quote before it.
    while end and np.count_nonzero(buffer[:end] == QUOTE) % 2:
        end = end_of_last_line(buffer[: last_of(QUOTE, buffer[:end])])
    return end


def csv_header(file: SourceFile, opener: Opener = open_raw) -> tuple[list[str], int]:
    """Read the names of a CSV or TSV file's columns, and where its first record ends in the file.

    Raises:
        ConfigError: two columns have one name.
        BadBlock: it is no CSV.
    """
    for block, end in iter_blocks(file, 0, 1 << 16, end_of_last_record, opener):
        ends = _record_ends(block)
        cut = int(ends[0]) + 1 if len(ends) else len(block)
        first = block[:cut].tobytes().decode("utf-8", "replace")
        try:
            names = next(csv.reader([first], delimiter=separator(file)), [])
        except csv.Error as error:
            lines = "its lines end in \\r alone, as on computers of long ago: write them anew with \\n"
            raise BadBlock(f"{file.place} is not CSV: {lines if chr(13) in first else error}") from error
        if len(set(names)) < len(names):
            raise ConfigError(f"{file.place} names a column twice: {', '.join(map(repr, names))}")
        return names, end - len(block) + cut
    return [], 0


def separator(file: SourceFile) -> str:
    """Give what stands between the fields of a CSV or TSV file."""
    return "\t" if file.kind == "tsv" else ","


def refuse_stray_quotes(file: SourceFile, block: np.ndarray) -> None:
    """Raise if a quote neither opens nor closes a field: then nobody can tell where records end."""
    quotes = np.flatnonzero(block == QUOTE)
    around = np.concatenate([[_NEWLINE], block, [_NEWLINE]])
    edges = np.array([ord(separator(file)), _NEWLINE, _RETURN, QUOTE])
    before, after = around[quotes[::2]], around[quotes[1::2] + 2]
    wrong = np.concatenate([quotes[::2][~np.isin(before, edges)], quotes[1::2][~np.isin(after, edges)]])
    if len(wrong) or len(quotes) % 2:
        at = int(wrong.min()) if len(wrong) else int(quotes[-1])
        found = bytes(block[max(0, at - 30) : at + 30]).decode("utf-8", "replace")
        raise BadBlock(
            f'{file.place} is not CSV: the quote in {found!r} is neither at the edge of its field nor doubled (""), so '
            "where records end is unknown; write it as RFC 4180 says, or as JSON lines"
        )


def _parse(file: SourceFile, block: np.ndarray, names: list[str]) -> tuple[Any, list[tuple[int, str]]]:
    """Parse records as strings; those with too few or too many fields are left out and told of."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv

    wrong: list[tuple[int, str]] = []

    def leave_out(row: Any) -> str:
        wrong.append((row.number, f"it has {row.actual_columns} fields, the columns are {row.expected_columns}"))
        return "skip"

    none = pa.record_batch([pa.array([], pa.string())] * len(names), names=names)
    if not len(block):
        return none, wrong
    try:
        table = pa_csv.read_csv(
            pa.BufferReader(pa.py_buffer(np.ascontiguousarray(block))),
            read_options=pa_csv.ReadOptions(use_threads=False, block_size=len(block) + 1, column_names=names),
            parse_options=pa_csv.ParseOptions(
                delimiter=separator(file), newlines_in_values=True, invalid_row_handler=leave_out
            ),
            convert_options=pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise BadBlock(f"{file.place} is not CSV in UTF-8: {error}; write it anew, or as JSON lines") from error
    batches = table.combine_chunks().to_batches()
    return (batches[0] if batches else none), [(_line_of(block, row - 1), detail) for row, detail in wrong]


def _line_of(block: np.ndarray, record: int) -> int:
    """Give the line, from 0, at which a record of a block begins."""
    ends = _record_ends(block)
    return _count_lines(block[: int(ends[record - 1]) + 1]) if 0 < record <= len(ends) else 0
