"""Lines of blocks → samples: one parse for many lines, and the blame on one line where it fails.

Lines are joined by a number that no file can know, and must come back as objects with that number
between every two: so each line held exactly one, whatever its neighbours hold.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import orjson

from penstock.errors import BadRecord
from penstock.formats.json_lines import parse_json

_OBJECTS = {dict}
_WHITE = b" \t\r\n"

Where = Callable[[int], tuple[str, int]]
"""Place in what was asked → file, and line from 1."""


def parse_lines(lines: Sequence[Any], where: Where) -> list[dict[str, Any]]:
    """Parse lines, bytes or views of them, each one JSON object.

    Args:
        lines: with or without the newline.
        where: says where a line comes from; called for one that can't be used only.

    Raises:
        BadRecord: a line is not one JSON object; the first such.

    Cost: about 0.3 µs a line and 1 ns a byte.
    """
    if not lines:
        return []
    mark, between = _separator()
    try:
        values = orjson.loads(b"".join((b"[", between.join(lines), b"]")))
    except orjson.JSONDecodeError:
        return [_parse_line(bytes(line), where, place) for place, line in enumerate(lines)]
    rows: list[dict[str, Any]] = values[::2]
    if len(rows) == len(lines) and values[1::2] == [mark] * (len(rows) - 1) and set(map(type, rows)) == _OBJECTS:
        return rows
    return [_parse_line(bytes(line), where, place) for place, line in enumerate(lines)]


def parse_texts(lines: Sequence[Any], where: Where) -> list[dict[str, Any]]:
    """Make a sample of each line of text: {"text": it, without what ends it}.

    Raises:
        BadRecord: a line is not UTF-8; the first such.
    """
    rows = []
    for place, line in enumerate(lines):
        try:
            rows.append({"text": bytes(line).strip(b"\r\n").decode()})
        except UnicodeDecodeError as error:
            detail = f"its byte {error.start} is not UTF-8 ({error.reason})"
            raise _bad(where, place, "invalid-utf8", detail) from None
    return rows


@lru_cache(maxsize=1)
def _separator() -> tuple[int, bytes]:
    mark = secrets.randbits(62)
    return mark, b",%d," % mark


def _parse_line(line: bytes, where: Where, place: int) -> dict[str, Any]:
    try:
        value = parse_json(line.strip(_WHITE))
    except UnicodeDecodeError as error:
        detail = f"byte {error.start} of the line is not UTF-8 ({error.reason})"
        raise _bad(where, place, "invalid-utf8", detail) from None
    except ValueError as error:
        raise _bad(where, place, "malformed-json", str(error)) from None
    if not isinstance(value, dict):
        raise _bad(where, place, "not-an-object", f"it is {str(line[:40])[2:-1]!r}, no JSON object")
    return value


def _bad(where: Where, place: int, reason: str, detail: str) -> BadRecord:
    file, line = where(place)
    message = f"line {line} of {file} cannot be used ({reason}): {detail}; repair it, or build the blocks anew"
    return BadRecord(message, file=file, line=line, reason=reason)
