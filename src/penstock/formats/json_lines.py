"""JSON records to texts: a column of flat bytes, and the rows that have none.

Two ways lead there. The *fast* one parses a whole block in compiled code and makes no Python object
of any row; it is taken only when it can be shown that it saw each line as one record. The *careful*
one reads line by line and says of each row what is wrong with it. Law: where the fast way answers,
the careful one gives the same bytes; so what becomes of a row does not depend on its neighbours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import orjson

from penstock.formats.columns import Column, Fault, is_utf8, string_bytes, string_offsets
from penstock.formats.streams import lines_of

_OPEN, _CLOSE = b"{}"
MAX_FAST_BYTES = 1 << 30
"""Longer blocks, which hold one huge record, take the careful way: the fast one counts in 31 bits."""


def read_json_lines(block: np.ndarray, field: str, first_line: int) -> tuple[Column, int]:
    """Read the texts of a block of JSON lines.

    Args:
        block: uint8 [N], whole lines.
        field: the key that holds the text.
        first_line: number of the block's first line in its file.

    Returns:
        One row for each line that is not blank; and the number of lines, blank ones included.
    """
    starts, ends = lines_of(block)
    column = _read_fast(block, field, starts, ends, first_line) if 0 < len(block) <= MAX_FAST_BYTES else None
    return column or _read_carefully(block, field, starts, ends, first_line), len(starts)


def _read_fast(block: np.ndarray, field: str, starts: np.ndarray, ends: np.ndarray, first_line: int) -> Column | None:
    """Parse a block at once; None unless every line is provably one object with a string in the field."""
    import pyarrow as pa

    rows = np.flatnonzero(ends > starts)
    if len(rows) != len(starts):
        starts, ends = starts[rows], ends[rows]
    table = parse_objects(block, starts, ends, pa.schema([(field, pa.string())])) if len(rows) else None
    if table is None:
        return None
    texts = table.column(0)
    if texts.null_count or texts.num_chunks != 1:
        return None
    return _from_arrow(texts.chunk(0), rows + first_line)


def parse_objects(block: np.ndarray, starts: np.ndarray, ends: np.ndarray, schema: Any) -> Any:
    """Parse some fields of a block of lines that are not empty; None unless each is provably one object.

    The proof: each line starts with { and ends with }. A line's end within an object would put } before
    {, which JSON forbids, or into a string, where it is forbidden too; so objects end where lines end, no
    line holds less than one, and as many rows as lines means exactly one each.
    """
    import pyarrow as pa
    import pyarrow.json as pa_json

    if len(block) > MAX_FAST_BYTES or not ((block[starts] == _OPEN) & (block[ends - 1] == _CLOSE)).all():
        return None
    # The parser takes a zero byte for the end of its input, and does not look whether bytes are UTF-8.
    if not block.all() or not is_utf8(block):
        return None
    try:
        table = pa_json.read_json(
            pa.BufferReader(pa.py_buffer(block)),
            read_options=pa_json.ReadOptions(use_threads=False, block_size=len(block) + 1),
            parse_options=pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore"),
        )
    except pa.ArrowInvalid:
        return None
    return table if table.num_rows == len(starts) else None


def _from_arrow(texts: Any, lines: np.ndarray) -> Column | None:
    """View an array of strings as a column; None if half a surrogate pair is among them."""
    import pyarrow as pa

    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return None
    return Column(data=string_bytes(texts), offsets=string_offsets(texts), lines=lines)


def _read_carefully(block: np.ndarray, field: str, starts: np.ndarray, ends: np.ndarray, first_line: int) -> Column:
    texts: list[bytes | tuple[str, str]] = []
    lines: list[int] = []
    view = memoryview(block.data)
    for line, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True), first_line):
        raw = bytes(view[start:end]).strip(b" \t\r")
        if raw:
            texts.append(_text_of_line(raw, field))
            lines.append(line)
    return _column(texts, lines)


def read_json_array(content: bytes, field: str) -> Column | None:
    """Read the texts of a file that is one JSON array of objects; None if it is no such thing."""
    try:
        values = parse_json(content)
    except ValueError:
        return None
    if not isinstance(values, list):
        return None
    return _column([_text_of(value, field) for value in values], range(1, len(values) + 1))


def _column(texts: Sequence[bytes | tuple[str, str]], lines: Iterable[int]) -> Column:
    """Lay texts end to end; a pair in the place of a text is the reason and detail of its absence."""
    parts = [text if isinstance(text, bytes) else b"" for text in texts]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    faults = [
        Fault(row=row, reason=text[0], detail=text[1]) for row, text in enumerate(texts) if not isinstance(text, bytes)
    ]
    data = np.frombuffer(b"".join(parts), np.uint8)
    return Column(data=data, offsets=offsets, lines=np.fromiter(lines, np.int64, len(parts)), faults=faults)


def _text_of_line(raw: bytes, field: str) -> bytes | tuple[str, str]:
    try:
        return _text_of(parse_json(raw), field)
    except UnicodeDecodeError as error:
        return "invalid-utf8", f"byte {error.start} of the line is not UTF-8 ({error.reason})"
    except ValueError as error:
        text = _text_of_fast_line(raw, field)
        return ("malformed-json", str(error)) if text is None else text


def _text_of_fast_line(raw: bytes, field: str) -> bytes | None:
    """Give the text of a line that the fast way alone can read; None if it can't either.

    It knows no limit of nesting or of digits, and Inf: among good neighbours such a line would pass.
    """
    if not 0 < len(raw) <= MAX_FAST_BYTES:
        return None
    column = _read_fast(np.frombuffer(raw, np.uint8), field, np.zeros(1, np.int64), np.full(1, len(raw)), 1)
    return None if column is None else column.data[column.offsets[0] : column.offsets[1]].tobytes()


def parse_json(raw: bytes) -> Any:
    """Parse JSON as Python does.

    The quick parser refuses whole records for half a surrogate pair or a NaN in any field, and Python's
    own writes both; what decides is the text alone.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: it is not JSON.
    """
    try:
        return orjson.loads(raw)
    except orjson.JSONDecodeError:
        try:
            return json.loads(raw.decode())
        except RecursionError:
            raise ValueError("nested too deeply") from None


def _text_of(value: Any, field: str) -> bytes | tuple[str, str]:
    """Give a record's text in UTF-8, or the reason and detail of its absence."""
    if not isinstance(value, dict):
        return "not-an-object", f"it is a JSON {json_type(value)}, no object"
    if field not in value:
        return "missing-field", f"it has no field {field!r}, its fields are {', '.join(map(repr, value)) or 'none'}"
    text = value[field]
    if text is None:
        return "null", f"its field {field!r} is null"
    if not isinstance(text, str):
        return "not-a-string", f"its field {field!r} is a JSON {json_type(text)}, no string"
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        return "lone-surrogate", f"its field {field!r} has the lone surrogate U+{code:04X} at character {error.start}"


def json_type(value: object) -> str:
    """Name what JSON calls a value."""
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")
