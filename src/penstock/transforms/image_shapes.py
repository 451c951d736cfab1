"""Which part of an image becomes which size: arithmetic, no pixels.

(height, width) of the image ──frame──▶ a box of it, and the size it is scaled to
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from penstock.errors import ConfigError
from penstock.types import check_int

Fit = Literal["stretch", "cover", "contain", "shorter", "longer"]
FITS = ("stretch", "cover", "contain", "shorter", "longer")
Size = int | tuple[int, int]


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def frame(height: int, width: int, size: Size, fit: Fit) -> tuple[Box, tuple[int, int]]:
    """Say which part of an image is scaled, and to which (height, width).

    "stretch" scales both sides as asked; "cover" cuts the middle out in the shape asked for; "contain" scales
    the whole to fit inside; "shorter" and "longer" make that side `size` and keep the shape.

    >>> frame(375, 500, 224, "cover"), frame(375, 500, 224, "shorter")[1]
    ((Box(top=0, left=62, height=375, width=375), (224, 224)), (224, 299))
    """
    whole = Box(0, 0, height, width)
    if fit in ("shorter", "longer"):
        assert isinstance(size, int)
        scale = size / (min if fit == "shorter" else max)(height, width)
        return whole, (max(1, round(height * scale)), max(1, round(width * scale)))
    target = (size, size) if isinstance(size, int) else size
    if fit == "stretch":
        return whole, target
    if fit == "contain":
        scale = min(target[0] / height, target[1] / width)
        return whole, (max(1, round(height * scale)), max(1, round(width * scale)))
    cut_height = min(height, max(1, round(width * target[0] / target[1])))
    cut_width = min(width, max(1, round(height * target[1] / target[0])))
    return Box((height - cut_height) // 2, (width - cut_width) // 2, cut_height, cut_width), target


def check_size(size: object, fit: str = "stretch") -> None:
    """Raise ConfigError unless size is what the fit can make."""
    sides = size if isinstance(size, tuple) and fit not in ("shorter", "longer") else (size,)
    if isinstance(size, tuple) and len(sides) != 2:
        wanted = "an integer" if fit in ("shorter", "longer") else "an integer or (height, width)"
        raise ConfigError(f"size must be {wanted} with fit={fit!r}, got {size!r}")
    for side in sides:
        check_int("size", side, minimum=1)


def aspect_buckets(area: int, *, step: int = 64, max_ratio: float = 2.0) -> tuple[tuple[int, int], ...]:
    """List sizes of about one area and different shapes, for training on images of any shape without cutting much.

    Args:
        area: pixels that a size has at most.
        step: sides are multiples of it.
        max_ratio: of the longer side to the shorter one.

    Returns:
        (height, width), from the flattest to the tallest; with each its transpose.

    Raises:
        ConfigError: no size fits.

    >>> aspect_buckets(256 * 256, step=64, max_ratio=2)
    ((192, 320), (256, 256), (320, 192))
    """
    check_int("step", step, minimum=1)
    found = set()
    for short in range(step, math.isqrt(check_int("area", area, minimum=1)) + 1, step):
        long = area // short // step * step
        if long <= short * max_ratio:
            found |= {(short, long), (long, short)}
    if not found:
        raise ConfigError(f"no sides that are multiples of {step} make an area of at most {area:,} pixels")
    return tuple(sorted(found, key=lambda sides: sides[0] / sides[1]))


def nearest_bucket(height: int, width: int, buckets: Sequence[tuple[int, int]]) -> int:
    """Give the number of the bucket whose shape is closest to that of an image, by the ratio of their ratios.

    >>> nearest_bucket(375, 500, [(192, 320), (256, 256), (320, 192)])
    0
    """
    sides = np.asarray(buckets, np.float64)
    return int(np.argmin(np.abs(np.log(sides[:, 0] / sides[:, 1]) - math.log(height / width))))
