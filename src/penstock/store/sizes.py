"""Sizes in words: "100mb" is 100 × 1024² bytes."""

from __future__ import annotations

import re

from penstock.errors import ConfigError

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_UNITS |= {f"{unit[0]}ib": size for unit, size in _UNITS.items() if len(unit) == 2}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(size: float | str) -> int:
    """Give a number of bytes: a whole number as it is, or a text of a number and a unit, base 1024.

    Args:
        size: such as 4096, "4096", "100mb", "1.5 GB"; units are b, kb, mb, gb and tb, or kib to tib, in any case.

    Raises:
        ConfigError: it is no such text, or is below 0.

    >>> parse_size("100mb"), parse_size("1.5 KB"), parse_size(7)
    (104857600, 1536, 7)
    """
    if isinstance(size, int) and not isinstance(size, bool):
        if size < 0:
            raise ConfigError(f"a size is a number of bytes from 0 on, got {size}")
        return size
    if isinstance(size, float) and size.is_integer() and size >= 0:
        return int(size)
    match = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if match is None or match[2].lower() not in _UNITS:
        raise ConfigError(f'a size is bytes, or a text such as "500kb", "100mb", "1.5gb" or "2tb", got {size!r}')
    return (
        int(float(match[1]) * _UNITS[match[2].lower()]) if "." in match[1] else int(match[1]) * _UNITS[match[2].lower()]
    )
