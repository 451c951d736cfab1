"""Text sources as flat batches: the documents of any file, without a Python object for each.

    files ──rows──▶ columns ──sift──▶ TextBatch(data uint8 [N], offsets int64 [n + 1], …)

A source is a sequence of rows: a record of JSON lines, a row of a table, a document of a text file.
Each row becomes a document or is counted under a reason why not; none is passed over in silence. Law:
the documents and their row numbers depend on the source only, and reading that starts at a batch's
`after` gives exactly the batches that would have followed.

Text files (SOURCE.txt) hold one document each, unless `documents` says "line" (every line that is not
blank) or "paragraph" (lines between blank ones). Bytes of a document are never changed; the line end
that closes a line or a paragraph is no part of it. A line is blank if nothing in it is above a space.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from penstock.errors import BadBlock, BadRecord, ConfigError
from penstock.formats import json_lines
from penstock.formats.columns import Column, Fault, gather, without_invalid
from penstock.formats.sources import SourceFile
from penstock.formats.streams import (
    BLOCK_BYTES,
    end_of_last_line,
    end_of_last_paragraph,
    iter_blocks,
    lines_of,
    read_all,
)
from penstock.formats.tables import iter_table
from penstock.types import check_choice

Documents = Literal["file", "line", "paragraph"]
OnError = Literal["raise", "skip"]
DOCUMENTS = get_args(Documents)
ON_ERROR = get_args(OnError)
EMPTY = "empty"
"""Reason of rows without text: no document, and no error either, whatever the policy."""
MAX_LISTED = 100
_MAX_ROWS = 1 << 16
"""A batch ends after so many rows, however little text they hold."""
_SPACE = 32


@dataclass(frozen=True, kw_only=True, slots=True)
class Position:
    """A place between two batches of a source."""

    file: int = 0
    offset: int = 0
    """In the file: uncompressed bytes, or rows of a table."""
    line: int = 1
    """Number of the line that begins there."""
    row: int = 0
    """Rows of the whole source before it."""

    def moved(self, *, offset: int, lines: int, rows: int) -> Position:
        """Give the place that is at an offset, so many lines and rows further on."""
        return replace(self, offset=offset, line=self.line + lines, row=self.row + rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class Skipped:
    """A row that became no document."""

    row: int
    """Its number in the source, from 0."""
    file: str
    line: int
    """Its number in the file, from 1."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TextBatch:
    """Consecutive documents of a source."""

    data: np.ndarray
    """uint8 [N], UTF-8."""
    offsets: np.ndarray
    """int64 [n + 1]: document i is data[offsets[i]:offsets[i + 1]], never empty."""
    rows: np.ndarray
    """int64 [n]: each document's row number in the source, from 0."""
    skipped: dict[str, np.ndarray]
    """Row numbers, int64, of rows that became no document, by reason."""
    listed: tuple[Skipped, ...]
    """The first of those rows, at most a hundred."""
    after: Position
    """Where the next batch begins."""


def iter_text(
    files: Sequence[SourceFile],
    *,
    text_field: str = "text",
    documents: Documents = "file",
    on_error: OnError = "raise",
    start: Position | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Generator[TextBatch, None, None]:
    """Read the documents of files, in order.

    Args:
        files: from `sources.find_files`.
        text_field: key of the text in JSON records, column of it in tables.
        documents: what a document of a text file is.
        on_error: what a row that can't be used does: "raise" ends the reading with its file and line,
            "skip" counts it by reason. An empty text never raises: it is counted as "empty".
        start: the `after` of an earlier batch, to go on from there.
        block_bytes: text read at a time, about.

    Raises:
        BadRecord: on_error is "raise", and a row can't be used.
        ConfigError: a table has no such column, or no record of a file's first block has the field.
        BadBlock: a file is damaged or truncated.
        StoreError: a file can't be read.

    Cost: a few times block_bytes of memory, unless one document is larger; of a text file that is one
        document all of it, as of a .json array.
    """
    check_choice("documents", documents, DOCUMENTS)
    check_choice("on_error", on_error, ON_ERROR)
    begun = start or Position()
    held, held_bytes = list[TextBatch](), 0
    for batch in _pieces(files, text_field, documents, on_error, begun, block_bytes):
        held.append(batch)
        held_bytes += len(batch.data)
        if held_bytes >= block_bytes // 2 or batch.after.row - begun.row >= _MAX_ROWS:
            yield _joined(held)
            begun, held, held_bytes = batch.after, [], 0
    if held:
        yield _joined(held)


def iter_strings(
    files: Sequence[SourceFile],
    *,
    text_field: str = "text",
    documents: Documents = "file",
    on_error: OnError = "raise",
) -> Iterator[str]:
    """Read the documents of files one by one, as strings; see `iter_text`."""
    for batch in iter_text(files, text_field=text_field, documents=documents, on_error=on_error):
        raw, cuts = batch.data.tobytes(), batch.offsets.tolist()
        for start, stop in pairwise(cuts):
            yield raw[start:stop].decode()


def _pieces(
    files: Sequence[SourceFile], field: str, documents: Documents, on_error: OnError, start: Position, block_bytes: int
) -> Iterator[TextBatch]:
    position = start
    for index in range(start.file, len(files)):
        file = files[index]
        if position.file != index:
            position = Position(file=index, row=position.row)
        for column, after in _columns(file, position, field, documents, block_bytes):
            if position.offset == 0:
                _check_field(file, column)
            yield _sifted(column, file, on_error, position.row, after)
            position = after


def _columns(
    file: SourceFile, at: Position, field: str, documents: Documents, block_bytes: int
) -> Iterator[tuple[Column, Position]]:
    """Read a file's rows from a position on, each time with the position after them."""
    if file.kind == "parquet":
        return _table_columns(file, at, field)
    if file.kind == "text" and documents != "file":
        return _text_columns(file, at, documents, block_bytes)
    if file.kind == "text":
        return _whole(at, lambda: _document(read_all(file)))
    if file.kind == "json":
        return _json_columns(file, at, field, block_bytes)
    return _json_line_columns(file, at, field, block_bytes)


def _whole(at: Position, read: Any) -> Iterator[tuple[Column, Position]]:
    """Give a file that is read at once; nothing if it has been."""
    if at.offset == 0:
        column = read()
        yield column, at.moved(offset=1, lines=1, rows=len(column.lines))


def _document(content: bytes) -> Column:
    data = np.frombuffer(content, np.uint8)
    return without_invalid(Column(data=data, offsets=np.array([0, len(data)], np.int64), lines=np.ones(1, np.int64)))


def _json_line_columns(
    file: SourceFile, at: Position, field: str, block_bytes: int
) -> Iterator[tuple[Column, Position]]:
    for block, end in iter_blocks(file, at.offset, block_bytes, end_of_last_line):
        column, lines = json_lines.read_json_lines(block, field, at.line)
        at = at.moved(offset=end, lines=lines, rows=len(column.lines))
        yield column, at


def _json_columns(file: SourceFile, at: Position, field: str, block_bytes: int) -> Iterator[tuple[Column, Position]]:
    """Read a .json file: an array of records, or, as many name them so, JSON lines."""
    if not _begins_with_bracket(file):
        return _json_line_columns(file, at, field, block_bytes)

    def read() -> Column:
        column = json_lines.read_json_array(read_all(file), field)
        if column is None:
            raise BadBlock(f"{file.place} begins like a JSON array and is none: truncated, or malformed")
        return column

    return _whole(at, read)


def _begins_with_bracket(file: SourceFile) -> bool:
    for block, _ in iter_blocks(file, 0, 1 << 16, len):
        first = block.tobytes().lstrip()[:1]
        if first:
            return first == b"["
    return False


def _text_columns(
    file: SourceFile, at: Position, documents: Documents, block_bytes: int
) -> Iterator[tuple[Column, Position]]:
    last_end = end_of_last_line if documents == "line" else end_of_last_paragraph
    for block, end in iter_blocks(file, at.offset, block_bytes, last_end):
        starts, ends = lines_of(block)
        firsts = lasts = ~_blank(block, starts)
        if documents == "paragraph":
            outside = np.zeros(1, bool)
            firsts, lasts = (
                firsts & ~np.concatenate([outside, firsts[:-1]]),
                lasts & ~np.concatenate([lasts[1:], outside]),
            )
        data, offsets = gather(block, starts[firsts], ends[lasts])
        column = without_invalid(Column(data=data, offsets=offsets, lines=np.flatnonzero(firsts) + at.line))
        at = at.moved(offset=end, lines=len(starts), rows=len(column.lines))
        yield column, at


def _blank(block: np.ndarray, starts: np.ndarray) -> np.ndarray:
    return ~np.logical_or.reduceat(block > _SPACE, starts) if len(starts) else np.zeros(0, bool)


def _table_columns(file: SourceFile, at: Position, field: str) -> Iterator[tuple[Column, Position]]:
    for column, end in iter_table(file, field, at.offset):
        at = at.moved(offset=end, lines=len(column.lines), rows=len(column.lines))
        yield column, at


def _check_field(file: SourceFile, column: Column) -> None:
    """Refuse a file in whose first block no record has the field: the field is wrong, not the json_lines."""
    faults = column.faults
    if faults and len(faults) == len(column.lines) and all(fault.reason == "missing-field" for fault in faults):
        raise ConfigError(
            f"line {column.lines[0]} of {file.place}: {faults[0].detail}; give text_field (--text-field) one of them"
        )


def _sifted(column: Column, file: SourceFile, on_error: OnError, first_row: int, after: Position) -> TextBatch:
    """Keep the rows that are documents; count the others, or raise at the first that is an error."""
    if column.faults and on_error == "raise":
        raise _bad_record(file, column, column.faults[0])
    lengths = np.diff(column.offsets)
    keep = lengths > 0
    skipped: dict[str, np.ndarray] = {}
    listed: Iterable[Skipped] = ()
    if not keep.all():
        skipped, listed = _skipped(column, file, ~keep, first_row)
    offsets = column.offsets if not skipped else np.concatenate([column.offsets[:1], column.offsets[1:][keep]])
    rows = np.flatnonzero(keep) + first_row
    return TextBatch(data=column.data, offsets=offsets, rows=rows, skipped=skipped, listed=tuple(listed), after=after)


def _skipped(
    column: Column, file: SourceFile, dropped: np.ndarray, first_row: int
) -> tuple[dict[str, np.ndarray], Iterable[Skipped]]:
    reasons = {fault.row: fault.reason for fault in column.faults}
    by_reason: dict[str, list[int]] = {}
    rows = np.flatnonzero(dropped).tolist()
    for row in rows:
        by_reason.setdefault(reasons.get(row, EMPTY), []).append(row + first_row)
    listed = [
        Skipped(row=row + first_row, file=file.name, line=int(column.lines[row]), reason=reasons.get(row, EMPTY))
        for row in rows[:MAX_LISTED]
    ]
    return {reason: np.array(numbers, np.int64) for reason, numbers in by_reason.items()}, listed


def _bad_record(file: SourceFile, column: Column, fault: Fault) -> BadRecord:
    line = int(column.lines[fault.row])
    place = {"text": "line", "jsonl": "line", "json": "record", "parquet": "row"}[file.kind]
    return BadRecord(
        f"{place} {line} of {file.place} cannot be used ({fault.reason}): {fault.detail}; repair it, or pass over such "
        f'rows with on_error="skip" (--on-error skip), which counts them by reason',
        file=file.place,
        line=line,
        reason=fault.reason,
    )


def _joined(batches: list[TextBatch]) -> TextBatch:
    """Put consecutive batches into one."""
    if len(batches) == 1:
        return batches[0]
    starts = np.cumsum([0] + [len(batch.data) for batch in batches])
    offsets = [batch.offsets[1:] + start for batch, start in zip(batches, starts.tolist(), strict=False)]
    reasons = dict.fromkeys(reason for batch in batches for reason in batch.skipped)
    return TextBatch(
        data=np.concatenate([batch.data for batch in batches]),
        offsets=np.concatenate([np.zeros(1, np.int64), *offsets]),
        rows=np.concatenate([batch.rows for batch in batches]),
        skipped={
            reason: np.concatenate([batch.skipped[reason] for batch in batches if reason in batch.skipped])
            for reason in reasons
        },
        listed=tuple(row for batch in batches for row in batch.listed)[:MAX_LISTED],
        after=batches[-1].after,
    )
