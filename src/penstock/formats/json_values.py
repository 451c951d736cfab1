r"""Samples as lines of JSON, and what becomes of values that JSON does not have.

A line is the sample in UTF-8 without spaces between its parts, `json.dumps(sample, ensure_ascii=False,
separators=(",", ":"))` and "\n"; only numbers may be spelled shorter (1e16 for 1e+16), they parse to the same.
Besides JSON's own values it takes: bytes, which go to a file under assets/ and leave its relative path;
dates and times, as ISO 8601; NumPy's numbers and arrays, as numbers and lists. NaN and infinities, which JSON does
not have, follow a policy and are counted.
"""

from __future__ import annotations

import json
import math
from datetime import date, datetime, time
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import BadRecord
from penstock.formats.assets import keep_asset
from penstock.types import check_choice

_OPTIONS = orjson.OPT_APPEND_NEWLINE | orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_PASSTHROUGH_DATACLASS
ON_NAN = ("raise", "null")


class LineEncoder:
    """Write samples as lines of JSON.

    Args:
        name: what the samples are called in messages: a dataset's name, or a file's.
        assets: folder for bytes, see `keep_asset`. None: bytes are refused.
        on_nan: "raise" refuses a sample with NaN or an infinity; "null" writes null for it, and counts.
    """

    def __init__(self, name: str, assets: Path | None = None, *, on_nan: str = "raise") -> None:
        check_choice("on_nan", on_nan, ON_NAN)
        self.nulled = 0
        """NaN and infinities written as null so far."""
        self._name = name
        self._assets = assets
        self._on_nan = on_nan

    def encode(self, sample: Any, number: int) -> bytes:
        r"""Give the line of a sample, with its line end.

        Args:
            sample: what to write, made of JSON values and those named above.
            number: its place among the samples, from 0, for messages.

        Raises:
            BadRecord: a value is neither, by reason: "not-json", "nan", "lone-surrogate".
            StoreError: bytes can't be written.

        >>> LineEncoder("web").encode({"text": "água\n", "id": 7}, 0).decode()
        '{"text":"água\\n","id":7}\n'
        """
        try:
            line = orjson.dumps(sample, self._plain, _OPTIONS)
        except TypeError:
            line = self._encode_oddity(sample, number)
        # The encoder writes null for what is no number, without a word: only lines that hold one need a look.
        if b"null" in line and (count := _count_nan(sample)):
            if self._on_nan == "raise":
                raise self._bad(
                    number, "nan", "it holds NaN or an infinity, which JSON has not; on_nan='null' nulls it"
                )
            self.nulled += count
        return line

    def _encode_oddity(self, sample: Any, number: int) -> bytes:
        """Encode what the fast way alone refuses: keys that are no strings, integers beyond 64 bits."""
        try:
            return orjson.dumps(sample, self._plain, _OPTIONS | orjson.OPT_NON_STR_KEYS)
        except TypeError:
            pass
        try:
            text = json.dumps(sample, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=self._plain)
            return text.encode() + b"\n"
        except UnicodeEncodeError:
            raise self._bad(
                number, "lone-surrogate", "a text of it has half a surrogate pair, so it is no UTF-8"
            ) from None
        except (TypeError, ValueError, RecursionError) as error:
            raise self._bad(number, "not-json", f"{error}; make it of JSON values, bytes, dates and arrays") from error

    def _plain(self, value: Any) -> Any:
        """Give the JSON value for one that the encoder does not know."""
        if isinstance(value, bytes | bytearray | memoryview) and self._assets is not None:
            return keep_asset(self._assets, bytes(value))
        if isinstance(value, datetime | date | time):
            return value.isoformat() if value == value else None
        if isinstance(value, np.ndarray):
            return value.tolist()
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{type(value).__name__} is no JSON value")

    def _bad(self, number: int, reason: str, why: str) -> BadRecord:
        message = f"sample {number} of {self._name} cannot be written: {why}"
        return BadRecord(message, file=self._name, line=number + 1, reason=reason)


def _count_nan(value: Any) -> int:
    """Count the NaN and infinities in a value, and dates that are none."""
    if isinstance(value, float | np.floating):
        return int(not math.isfinite(value))
    if isinstance(value, dict):
        return sum(map(_count_nan, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_count_nan, value))
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
        return int(value.size - np.count_nonzero(np.isfinite(value)))
    if isinstance(value, np.ndarray) and value.dtype.kind == "O":
        return _count_nan(value.tolist())
    if isinstance(value, np.ndarray | np.datetime64) and value.dtype.kind == "M":
        return int(np.count_nonzero(np.isnat(value)))
    return int(isinstance(value, date) and value != value)
