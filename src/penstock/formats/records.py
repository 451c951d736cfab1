"""Any source as JSON lines: records read in batches, from any position, by one way for all formats.

    files ──▶ blocks of lines │ rows of tables │ lines of text ──▶ LineBatch(data uint8 [N], ends int64 [n], after)

A record is a JSON object. Those of JSON lines pass through as they stand, once they are known to be JSON;
rows of tables become objects with the columns' names as keys; a line of a .txt file becomes {"text": line}.
Law: the records depend on the source and the options only, and reading from a batch's `after` gives
exactly the records that would have followed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from penstock.errors import BadBlock, BadRecord, ConfigError, StateMismatch
from penstock.formats.columns import Fault
from penstock.formats.files import read_json
from penstock.formats.record_lines import Lines, array_lines, check_lines, text_lines
from penstock.formats.record_tables import chosen_columns, iter_csv, iter_rows
from penstock.formats.record_values import table_lines
from penstock.formats.sources import RECORD_KINDS, Source, SourceFile, find_files, source_file
from penstock.formats.streams import BLOCK_BYTES, Opener, end_of_last_line, iter_blocks, open_raw, read_all
from penstock.formats.text import MAX_LISTED, ON_ERROR, OnError, Position, Skipped
from penstock.types import check_choice, check_int

OnNan = Literal["raise", "null"]
ON_NAN = get_args(OnNan)
_WITH_COLUMNS = ("parquet", "arrow", "csv", "tsv")
PASS_OVER = 'repair it, or pass over such rows with on_error="skip" (--on-error skip), which counts them by reason'
"""What to do about a row that can't be a record, where rows can be passed over."""
_PLACES = {"json": "record", "parquet": "row", "arrow": "row"}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LineBatch:
    """Consecutive records of a source."""

    data: np.ndarray
    """uint8 [N], JSON objects in UTF-8, each with its newline. Valid until the next batch is asked for."""
    ends: np.ndarray
    """int64 [n]: record i is data[ends[i - 1]:ends[i]]."""
    after: dict[str, Any]
    """Where the next batch begins, as JSON."""
    skipped: dict[str, int] = field(default_factory=dict)
    """How many rows became no record, by reason."""
    listed: tuple[Skipped, ...] = ()
    """The first of those rows, at most a hundred."""
    nulled: int = 0
    """NaN and infinities that became null."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Records:
    """A source to be read; see `open_records`."""

    files: tuple[SourceFile, ...]
    on_error: OnError
    on_nan: OnNan
    columns: tuple[str, ...] | None
    assets: Path | None
    block_bytes: int
    opener: Opener
    advice: str = PASS_OVER

    @property
    def signature(self) -> list[list[object]]:
        """Name, size, and time of change or etag of each file: tells whether positions still mean the same."""
        return [file.signature for file in self.files]

    @property
    def size_bytes(self) -> int:
        """Bytes of all files, as they are stored."""
        return sum(file.size_bytes for file in self.files)

    def read(self, start: Mapping[str, int] | None = None) -> Iterator[LineBatch]:
        """Read the records, in order.

        Args:
            start: the `after` of an earlier batch, to go on from there. None: from the beginning.

        Raises:
            BadRecord: on_error is "raise", and a row can't be a record.
            BadBlock: a file is damaged or truncated.
            StateMismatch: start is no position in this source.
            ConfigError: a table has no such column, or bytes and there is no folder for them.
            StoreError: a file can't be read.
        """
        position = self._position(start)
        for index in range(position.file, len(self.files)):
            if position.file != index:
                position = Position(file=index, row=position.row)
            for lines, after in self._lines(self.files[index], position):
                yield self._batch(self.files[index], lines, position, after)
                position = after

    def _position(self, start: Mapping[str, int] | None) -> Position:
        try:
            position = Position(**(start or {}))
        except TypeError as error:
            raise StateMismatch(f"{start!r} is no position in a source ({error})") from None
        if not 0 <= position.file <= len(self.files):
            raise StateMismatch(f"{start!r} is a position in file {position.file} of {len(self.files)}")
        return position

    def _lines(self, file: SourceFile, at: Position) -> Iterator[tuple[Lines, Position]]:
        """Read a file's rows from a position on, each time with the position after them."""
        if file.kind in ("parquet", "arrow"):
            return self._table_lines(file, at)
        if file.kind in ("csv", "tsv"):
            return self._csv_lines(file, at)
        if file.kind == "json" and begins_with_bracket(file, self.opener):
            return self._array_lines(file, at)
        return self._block_lines(file, at)

    def _block_lines(self, file: SourceFile, at: Position) -> Iterator[tuple[Lines, Position]]:
        null_nan = self.on_nan == "null"
        for block, end in iter_blocks(file, at.offset, self.block_bytes, end_of_last_line, self.opener):
            lines, count = text_lines(block) if file.kind == "text" else check_lines(block, null_nan=null_nan)
            at = at.moved(offset=end, lines=count, rows=lines.rows)
            yield lines, at

    def _array_lines(self, file: SourceFile, at: Position) -> Iterator[tuple[Lines, Position]]:
        if at.offset:
            return
        lines = array_lines(read_all(file, self.opener), null_nan=self.on_nan == "null")
        if lines is None:
            raise BadBlock(f"{file.place} begins like a JSON array and is none: truncated, or malformed")
        yield lines, at.moved(offset=1, lines=lines.rows, rows=lines.rows)

    def _table_lines(self, file: SourceFile, at: Position) -> Iterator[tuple[Lines, Position]]:
        for batch, end in iter_rows(file, at.offset, self.columns, self.opener):
            lines = self._written(batch)
            at = at.moved(offset=end, lines=lines.rows, rows=lines.rows)
            yield lines, at

    def _csv_lines(self, file: SourceFile, at: Position) -> Iterator[tuple[Lines, Position]]:
        for batch, wrong, end, count in iter_csv(file, at.offset, self.block_bytes, self.opener):
            names = chosen_columns(file, batch.schema.names, self.columns)
            lines = self._written(batch if names is None else batch.select(names))
            # Rows that the parser left out stand after the others: which they were among them is not known.
            faults = [
                Fault(row=lines.rows + i, reason="malformed-csv", detail=detail) for i, (_, detail) in enumerate(wrong)
            ]
            numbers = np.concatenate([np.zeros(lines.rows, np.int64), np.array([line for line, _ in wrong], np.int64)])
            lines = replace(lines, rows=lines.rows + len(wrong), faults=[*lines.faults, *faults], lines=numbers)
            at = at.moved(offset=end, lines=count, rows=lines.rows)
            yield lines, at

    def _written(self, batch: Any) -> Lines:
        return table_lines(batch, null_nan=self.on_nan == "null", assets=self.assets)

    def _batch(self, file: SourceFile, lines: Lines, before: Position, after: Position) -> LineBatch:
        """Count the rows that became no record, or raise at the first."""
        listed: list[Skipped] = []
        skipped: dict[str, int] = {}
        for fault in lines.faults:
            number = before.line + (fault.row if lines.lines is None else int(lines.lines[fault.row]))
            if self.on_error == "raise":
                raise _bad_record(file, number, fault, self.advice)
            skipped[fault.reason] = skipped.get(fault.reason, 0) + 1
            if len(listed) < MAX_LISTED:
                row = before.row + fault.row
                listed.append(Skipped(row=row, file=file.name, line=number, reason=fault.reason))
        return LineBatch(
            data=lines.data,
            ends=lines.ends,
            after=asdict(after),
            skipped=skipped,
            listed=tuple(listed),
            nulled=lines.nulled,
        )


def open_records(
    source: Source | Sequence[SourceFile],
    *,
    on_error: OnError = "raise",
    on_nan: OnNan = "raise",
    columns: Sequence[str] | None = None,
    assets: str | os.PathLike[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    opener: Opener = open_raw,
    advice: str = PASS_OVER,
) -> Records:
    """Find the files of a source of records; nothing is read yet.

    Args:
        source: a file, folder, glob or list of these, of .jsonl, .json, .csv, .tsv, .txt (each also .gz or
            .zst), .parquet or .arrow, or a folder that `datasets` saved; files in sorted order. Or files found
            before.
        on_error: what a row that can't be a record does: "raise" ends the reading with its file and line,
            "skip" counts it by reason.
        on_nan: "null" writes null for NaN and infinities, which JSON can't say, and counts them; "raise" makes
            their row one that can't be a record.
        columns: those wanted of tables and CSV. None: all.
        assets: folder for the files that bytes in tables become; records name them below its parent. None: bytes
            are refused.
        block_bytes: text read at a time, about.
        opener: how the bytes of a file are reached.
        advice: what the error for a row that can't be a record says is to be done.

    Raises:
        ObjectMissing: there is no such file or folder, or a glob matches nothing.
        ConfigError: no file of a known kind, or several kinds in one folder; or an argument can't work.
    """
    check_choice("on_error", on_error, ON_ERROR)
    check_choice("on_nan", on_nan, ON_NAN)
    check_int("block_bytes", block_bytes, minimum=1)
    if columns is not None and (isinstance(columns, str) or not columns):
        raise ConfigError(f"columns must be a list of names, got {columns!r}")
    files = tuple(_files(source))
    whole = None if columns is None else next((file for file in files if file.kind not in _WITH_COLUMNS), None)
    if whole is not None:
        raise ConfigError(
            f"columns (--columns) are taken of Parquet, Arrow and CSV; {whole.place} is of another kind and is only "
            "taken whole: leave columns out"
        )
    return Records(
        files=files,
        on_error=on_error,
        on_nan=on_nan,
        columns=None if columns is None else tuple(columns),
        assets=None if assets is None else Path(assets),
        block_bytes=block_bytes,
        opener=opener,
        advice=advice,
    )


def _files(source: Source | Sequence[SourceFile]) -> Sequence[SourceFile]:
    if not isinstance(source, str | os.PathLike):
        if all(isinstance(place, SourceFile) for place in source):
            return [place for place in source if isinstance(place, SourceFile)]
        return find_files([place for place in source if not isinstance(place, SourceFile)], RECORD_KINDS, remote=True)
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        splits = ", ".join(map(repr, read_json(folder / "dataset_dict.json").get("splits", [])))
        raise ConfigError(f"{folder} holds several splits ({splits}): give the folder of one of them")
    if (folder / "state.json").is_file():
        names = [entry["filename"] for entry in read_json(folder / "state.json").get("_data_files", [])]
        return [source_file(folder / name, name=name, kinds=RECORD_KINDS) for name in names]
    return find_files(source, RECORD_KINDS, remote=True)


def begins_with_bracket(file: SourceFile, opener: Opener = open_raw) -> bool:
    """Tell whether the first thing in a file is a [."""
    for block, _ in iter_blocks(file, 0, 1 << 16, len, opener):
        first = block.tobytes().lstrip()[:1]
        if first:
            return first == b"["
    return False


def _bad_record(file: SourceFile, line: int, fault: Fault, advice: str) -> BadRecord:
    return BadRecord(
        f"{_PLACES.get(file.kind, 'line')} {line} of {file.place} cannot be used ({fault.reason}): {fault.detail}; "
        f"{advice}",
        file=file.place,
        line=line,
        reason=fault.reason,
    )
