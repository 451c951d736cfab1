"""Lines that are known to be JSON objects, and what is wrong with the others.

A block of lines is parsed as a whole in compiled code, which keeps nothing: that shows it to be JSON,
and each line to be one object, so good lines pass on unchanged and no Python object is made of any.
Only lines that this parser judges more mildly than JSON does (NaN, half surrogate pairs, deep nesting)
and lines of a block that it refuses are read one by one. Law: what becomes of a line does not depend on
its neighbours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from penstock.formats.columns import Fault, gather
from penstock.formats.json_lines import json_type, parse_objects
from penstock.formats.streams import lines_of

NAN = "nan"
"""Reason of records with NaN or infinities, which JSON has no way to write."""
_NEWLINE = 10
_MAX_DEPTH = 1024
"""Deeper records can't be read back by the reader of blocks."""
_LENIENT = (b"NaN", b"Inf", b"\\ud")
"""Whatever the quick parser lets pass against JSON's rules has one of these in it, capital after the first byte or
not, or is nested deeply."""
_CASE = 0x20
"""The bit in which capital letters differ."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Lines:
    """JSON objects of consecutive rows of one file, a line each."""

    data: np.ndarray
    """uint8 [N], each line with its newline."""
    ends: np.ndarray
    """int64 [n]: where each line ends, its newline included."""
    rows: int
    """Rows they were made of, those with a fault included."""
    faults: Sequence[Fault] = ()
    """Rows that gave no line; `row` counts from 0 among those of this object."""
    lines: np.ndarray | None = None
    """int64 [rows]: each row's number in the file, from 0 at the first line; None if rows are lines."""
    nulled: int = 0
    """NaN and infinities that became null."""


def check_lines(block: np.ndarray, *, null_nan: bool = False) -> tuple[Lines, int]:
    """Keep the lines of a block that are JSON objects.

    Args:
        block: uint8 [N], whole lines; those that are blank are no rows.
        null_nan: write null for NaN and infinities; otherwise a line with one has the fault "nan".

    Returns:
        The lines, without copying them where all are good; and how many lines there were, blank ones included.
    """
    starts, ends = lines_of(block)
    count = len(starts)
    full = np.flatnonzero(ends > starts)
    if len(full) != count:
        starts, ends = starts[full], ends[full]
    numbers = None if len(full) == count else full
    doubtful = _doubtful(block, starts, ends)
    if doubtful is not None and not len(doubtful):
        data, cuts = _together(block, starts, ends)
        return Lines(data=data, ends=cuts, rows=len(starts), lines=numbers), count
    return _one_by_one(block, starts, ends, full, doubtful, null_nan=null_nan), count


def _doubtful(block: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray | None:
    """Give the lines that have to be looked at, int64; None if all of them have."""
    import pyarrow as pa

    if not len(starts):
        return np.empty(0, np.int64)
    table = parse_objects(block, starts, ends, pa.schema([]))
    return None if table is None else _lenient(block, starts, ends)


def _lenient(block: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Find the lines that the quick parser may have let pass against the rules."""
    places = np.concatenate([_places(block, mark) for mark in _LENIENT])
    found = np.searchsorted(starts, places, "right") - 1
    long = np.flatnonzero(ends - starts >= 2 * _MAX_DEPTH).tolist()
    raw = block.tobytes() if long else b""
    deep = [i for i in long if _brackets(raw, int(starts[i]), int(ends[i])) > _MAX_DEPTH]
    return np.union1d(found, np.array(deep, np.int64)).astype(np.int64)


def _places(block: np.ndarray, mark: bytes) -> np.ndarray:
    """Find where a mark is in a block, int64: several times as fast as searching bytes, its first being rare."""
    places = np.flatnonzero(block[: max(0, len(block) - len(mark) + 1)] == mark[0])
    for offset, byte in enumerate(mark[1:], 1):
        places = places[(block[places + offset] | _CASE) == (byte | _CASE)]
    return places


def _brackets(raw: bytes, start: int, stop: int) -> int:
    return raw.count(b"[", start, stop) + raw.count(b"{", start, stop)


def _together(block: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay lines end to end, each with its newline."""
    if not len(starts):
        return np.empty(0, np.uint8), np.empty(0, np.int64)
    closed = ends + 1
    # A line may end in a carriage return and a newline; the first of them is no part of the record.
    is_closed = closed[-1] <= len(block) and block[ends[-1]] == _NEWLINE
    if is_closed and starts[0] == 0 and (closed[:-1] == starts[1:]).all():
        return block[: closed[-1]], closed
    if not is_closed or (block[ends[:-1]] != _NEWLINE).any():
        parts = [block[start:stop].tobytes() for start, stop in zip(starts.tolist(), ends.tolist(), strict=True)]
        return join_lines(parts)
    data, offsets = gather(block, starts, closed)
    return data, offsets[1:]


def join_lines(parts: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    """Lay records end to end, adding their newlines: uint8 [N] and int64 ends [n]."""
    ends = np.fromiter(map(len, parts), np.int64, len(parts))
    np.cumsum(ends + 1, out=ends)
    return np.frombuffer(b"\n".join([*parts, b""]), np.uint8), ends


def _one_by_one(
    block: np.ndarray,
    starts: np.ndarray,
    ends: np.ndarray,
    numbers: np.ndarray,
    doubtful: np.ndarray | None,
    *,
    null_nan: bool,
) -> Lines:
    raw = block.tobytes()
    parts = [raw[start:stop] for start, stop in zip(starts.tolist(), ends.tolist(), strict=True)]
    faults, nulled, blank = list[Fault](), 0, list[int]()
    for row in range(len(parts)) if doubtful is None else doubtful.tolist():
        line = parts[row].strip(b" \t\r")
        if not line:
            blank.append(row)
            continue
        try:
            parts[row], count = checked_line(line, null_nan=null_nan)
            nulled += count
        except _Unfit as unfit:
            faults.append(Fault(row=row, reason=unfit.reason, detail=unfit.detail))
    bad = {fault.row for fault in faults}.union(blank)
    data, cuts = join_lines([part for row, part in enumerate(parts) if row not in bad] if bad else parts)
    if blank:
        moved = np.cumsum(~np.isin(np.arange(len(parts)), blank)) - 1
        faults = [Fault(row=int(moved[each.row]), reason=each.reason, detail=each.detail) for each in faults]
        numbers = np.delete(numbers, blank)
    return Lines(data=data, ends=cuts, rows=len(numbers), faults=faults, lines=numbers, nulled=nulled)


class _Unfit(Exception):
    """A record that can't be a line."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def checked_line(line: bytes, *, null_nan: bool) -> tuple[bytes, int]:
    """Give a line that is a JSON object, unchanged unless it holds NaN; and how many of these became null.

    Raises:
        _Unfit: it is none.
    """
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return _lenient_line(line, error, null_nan=null_nan)
    if not isinstance(value, dict):
        raise _Unfit("not-an-object", f"it is a JSON {json_type(value)}, no object")
    return line, 0


def _lenient_line(line: bytes, error: orjson.JSONDecodeError, *, null_nan: bool) -> tuple[bytes, int]:
    """Read what Python's own writer writes against JSON's rules, or say what is wrong."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as wrong:
        raise _Unfit("invalid-utf8", f"byte {wrong.start} of the line is not UTF-8 ({wrong.reason})") from None
    except (ValueError, RecursionError):
        raise _Unfit("malformed-json", str(error)) from None
    return dump_record(value, null_nan=null_nan)


def dump_record(value: Any, *, null_nan: bool) -> tuple[bytes, int]:
    """Write a JSON value, a dict, as a line without its newline; and count the NaN that became null.

    Raises:
        _Unfit: it is no dict, or holds what JSON lines can't say.
    """
    if not isinstance(value, dict):
        raise _Unfit("not-an-object", f"it is a JSON {json_type(value)}, no object")
    count = count_nan(value)
    if count and not null_nan:
        raise _Unfit(NAN, "it holds NaN or an infinity, which JSON can't say")
    try:
        # The parser's view has the last word: it reads the block later.
        line = orjson.dumps(value)
        orjson.loads(line)
    except (TypeError, orjson.JSONDecodeError) as error:
        reason = "lone-surrogate" if "surrogate" in str(error) or "utf-8" in str(error).lower() else "malformed-json"
        raise _Unfit(reason, str(error)) from None
    return line, count


def count_nan(value: Any) -> int:
    """Count NaN and infinities in a JSON value."""
    if isinstance(value, float):
        return 0 if math.isfinite(value) else 1
    if isinstance(value, dict):
        return sum(map(count_nan, value.values()))
    return sum(map(count_nan, value)) if isinstance(value, list | tuple) else 0


def array_lines(content: bytes, *, null_nan: bool) -> Lines | None:
    """Read the records of a file that is one JSON array; None if it is no such thing."""
    values = _array(content)
    if values is None:
        return None
    parts, faults, nulled = list[bytes](), list[Fault](), 0
    for row, value in enumerate(values):
        try:
            part, count = dump_record(value, null_nan=null_nan)
        except _Unfit as unfit:
            faults.append(Fault(row=row, reason=unfit.reason, detail=unfit.detail))
        else:
            parts.append(part)
            nulled += count
    data, ends = join_lines(parts)
    return Lines(data=data, ends=ends, rows=len(values), faults=faults, nulled=nulled)


def _array(content: bytes) -> list[Any] | None:
    try:
        values = orjson.loads(content)
    except orjson.JSONDecodeError:
        try:
            values = json.loads(content.decode())
        except (ValueError, RecursionError):
            return None
    return values if isinstance(values, list) else None


def text_lines(block: np.ndarray) -> tuple[Lines, int]:
    """Make a record {"text": line} of each line that is not blank.

    Returns:
        The lines, and how many lines there were, blank ones included.
    """
    starts, ends = lines_of(block)
    raw = block.tobytes()
    parts, numbers, faults = list[bytes](), list[int](), list[Fault]()
    for number, (start, stop) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        text = raw[start:stop]
        if not text.strip():
            continue
        try:
            parts.append(b'{"text":%b}' % orjson.dumps(text.decode()))
        except UnicodeDecodeError as error:
            detail = f"byte {error.start} of the line is not UTF-8 ({error.reason})"
            faults.append(Fault(row=len(numbers), reason="invalid-utf8", detail=detail))
        numbers.append(number)
    data, cuts = join_lines(parts)
    lines = Lines(data=data, ends=cuts, rows=len(numbers), faults=faults, lines=np.array(numbers, np.int64))
    return lines, len(starts)
