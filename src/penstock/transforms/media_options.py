"""Options that media transforms share: lengths of time, and places in it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from penstock.errors import ConfigError
from penstock.transforms.media import take_field
from penstock.types import check_choice


def seconds_of(sample: Mapping[str, Any], offset: float | str) -> float:
    """Give an offset that is a number, or in the field of that name, in seconds.

    Raises:
        ConfigError: there is no such field, or it holds no number from 0 on.
    """
    value = take_field(sample, offset) if isinstance(offset, str) else offset
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ConfigError(f"an offset is a number of seconds from 0 on, {offset!r} is {value!r}")
    return seconds


def made_with(make: Callable[..., Any], called: str | None = None, /, **options: Any) -> Any:
    """Make a transform with options that are passed on.

    Args:
        make: makes it.
        called: the function that was called with these options; None: `make` itself.
        options: passed on.

    Raises:
        ConfigError: it has no such option; says which may have been meant.
    """
    known = [name for name in inspect.signature(make).parameters if name != "_"]
    for name in options:
        if name not in known:
            near = get_close_matches(name, known, 1)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise ConfigError(f"{called or make.__name__} has no option {name!r}: {meant}there are {', '.join(known)}")
    return make(**options)


def check_crop(
    crop: str, offset: float | str, short: str, *, allowed: Sequence[str] = ("random", "start", "center")
) -> None:
    """Refuse a place for a crop that is none of those allowed, or that an offset contradicts.

    Raises:
        ConfigError: one of them cannot work.
    """
    check_choice("crop", crop, allowed)
    check_choice("short", short, ("pad", "keep", "error"))
    if crop != "start" and offset != 0:
        raise ConfigError(f'offset says where crop="start" begins, crop={crop!r} chooses for itself')
