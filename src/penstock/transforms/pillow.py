"""Pillow: what OpenCV can't read, alpha, and antialiasing. Nothing else here imports it."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.media import missing_extra

_REFUSED = frozenset(("EPS", "WMF", "FPX", "MIC", "MPEG", "HDF5", "BUFR", "GRIB", "SPIDER", "FITS"))
"""Formats that start other programs, or are no pictures."""

_BROKEN = (
    *(OSError, SyntaxError, ValueError, IndexError, KeyError, TypeError, ArithmeticError, EOFError, RuntimeError),
    *(struct.error, zlib.error, Warning),
)
"""What Pillow's decoders raise for files that are broken; warnings where these are made errors."""


def stored_size(data: bytes | memoryview, path: str) -> tuple[int, int] | None:
    """Read (height, width) from an image's header; None if Pillow knows no such format, or the header is broken.

    Raises:
        BadMedia: more pixels than Pillow itself allows ("too-large").
    """
    library = _module("Image")
    try:
        image = _open(data)
    except (library.DecompressionBombError, library.DecompressionBombWarning) as error:
        raise BadMedia(f"{path} is refused by Pillow: {error}", path=path, reason="too-large") from None
    return None if image is None else (image.height, image.width)


def decode(
    data: bytes | memoryview, *, mode: str, background: tuple[int, int, int] | None, orient: bool
) -> np.ndarray | None:
    """Decode an image; of an animated one the first frame.

    Args:
        data: a file's bytes, whose size was checked before.
        mode: "RGB", "RGBA" or "L".
        background: a colour to lay behind what is transparent; None: alpha is left out, unless the mode has it.
        orient: turn it as its EXIF says.

    Returns:
        uint8 [H, W, channels]; None if it can't be read to its end.
    """
    image = _open(data)
    if image is None:
        return None
    with suppress(*_BROKEN):
        image = _oriented(image) if orient else image
        image = _narrowed(image)
        if background is not None:
            image = image.convert("RGBA")
            image = _module("Image").alpha_composite(
                _module("Image").new("RGBA", image.size, (*background, 255)), image
            )
        pixels = np.array(image.convert(mode))
        return pixels if pixels.ndim == 3 else pixels[:, :, None]
    return None


def resize(
    image: np.ndarray, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> np.ndarray:
    """Scale an image, or the box (left, upper, right, lower) of it, by Pillow's own antialiased bilinear filter.

    Args:
        image: uint8 [H, W, 1, 3 or 4].
        size: (height, width).
        box: in pixels; parts of pixels count.
    """
    library = _module("Image")
    pixels = library.fromarray(np.ascontiguousarray(image if image.shape[2] > 1 else image[:, :, 0]))
    scaled = np.array(pixels.resize((size[1], size[0]), library.Resampling.BILINEAR, box))
    return scaled if scaled.ndim == 3 else scaled[:, :, None]


def _open(data: bytes | memoryview) -> Any:
    library = _module("Image")
    formats = [name for name in library.OPEN if name not in _REFUSED]
    try:
        return library.open(BytesIO(data), formats=formats)
    except library.DecompressionBombWarning:
        raise
    except _BROKEN:
        return None


def _oriented(image: Any) -> Any:
    return _module("ImageOps").exif_transpose(image)


def _narrowed(image: Any) -> Any:
    """Bring 16 bits down to their upper 8, where Pillow's own conversion would clip; refuse other numbers."""
    if image.mode.startswith("I;16"):
        return _module("Image").fromarray((np.array(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no range of which 8 bits could be made")
    return image


@cache
def _module(name: str) -> Any:
    """Import a part of Pillow, with all the formats that it knows.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise missing_extra("image", "Pillow", "reading such images") from error
    Image.init()
    return {"Image": Image, "ImageOps": ImageOps}[name]
