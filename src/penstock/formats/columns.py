"""Texts of consecutive rows, end to end in one buffer: what every kind of file is read into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

_CONTINUES, _CONTINUES_MASK = 0x80, 0xC0
"""A byte of UTF-8 that does not begin a character has these bits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why a row has no text."""

    row: int
    """Place among the rows of its column, from 0."""
    reason: str
    """Short stable word under which it is counted."""
    detail: str
    """What was found, for the message."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Column:
    """The texts of consecutive rows of one file. Rows with a fault, and those with an empty text, have length 0."""

    data: np.ndarray
    """uint8 [N], UTF-8."""
    offsets: np.ndarray
    """int64 [rows + 1]: row i is data[offsets[i]:offsets[i + 1]]."""
    lines: np.ndarray
    """int64 [rows]: each row's number in its file, from 1."""
    faults: Sequence[Fault] = ()


def is_utf8(data: np.ndarray) -> bool:
    """Tell whether bytes, uint8 [N], are valid UTF-8 from end to end."""
    import pyarrow as pa

    whole = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.LargeStringArray.from_buffers(1, whole, pa.py_buffer(data)).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def without_invalid(column: Column) -> Column:
    """Take the text from rows that are not valid UTF-8, and name the fault."""
    if _all_valid(column):
        return column
    cuts, raw, faults = column.offsets, column.data.tobytes(), list(column.faults)
    for row, (start, stop) in enumerate(pairwise(cuts.tolist())):
        try:
            raw[start:stop].decode()
        except UnicodeDecodeError as error:
            detail = f"its byte {error.start} is not UTF-8 ({error.reason})"
            faults.append(Fault(row=row, reason="invalid-utf8", detail=detail))
    keep = np.ones(len(column.lines), bool)
    keep[[fault.row for fault in faults]] = False
    data, _ = select_documents(column.data, cuts, keep)
    offsets = np.zeros(len(cuts), np.int64)
    np.cumsum(np.where(keep, np.diff(cuts), 0), out=offsets[1:])
    return replace(column, data=data, offsets=offsets, faults=sorted(faults, key=lambda fault: fault.row))


def _all_valid(column: Column) -> bool:
    """Tell whether each row is UTF-8: the whole is, and no row begins within a character."""
    starts = column.offsets[column.offsets < len(column.data)]
    return is_utf8(column.data) and not (column.data[starts] & _CONTINUES_MASK == _CONTINUES).any()


def select_documents(data: np.ndarray, offsets: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy some of the documents that lie end to end.

    Args:
        data: [N], bytes or ids.
        offsets: int64 [n + 1] from 0.
        keep: bool [n].

    Returns:
        The same form, for the documents kept.
    """
    lengths = np.diff(offsets)
    kept = np.zeros(int(keep.sum()) + 1, np.int64)
    np.cumsum(lengths[keep], out=kept[1:])
    return data[: offsets[-1]][np.repeat(keep, lengths)], kept


def gather(block: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy slices of a block, end to end: data and offsets. They come in order and don't overlap."""
    steps = np.zeros(len(block) + 1, np.int8)
    steps[starts] += 1
    steps[ends] -= 1
    offsets = np.zeros(len(starts) + 1, np.int64)
    np.cumsum(ends - starts, out=offsets[1:])
    return block[np.cumsum(steps[:-1], dtype=np.int8).view(bool)], offsets


def string_offsets(texts: Any) -> np.ndarray:
    """Give the offsets of an Arrow string array into its bytes, int64 [rows + 1]."""
    import pyarrow as pa

    width = np.dtype(np.int64 if pa.types.is_large_string(texts.type) else np.int32)
    if not len(texts):
        return np.zeros(1, np.int64)
    return np.frombuffer(texts.buffers()[1], width)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)


def string_bytes(texts: Any) -> np.ndarray:
    """View the bytes of an Arrow string array, uint8 [N], without copying them."""
    buffer = texts.buffers()[2]
    return np.empty(0, np.uint8) if buffer is None else np.frombuffer(buffer, np.uint8)
