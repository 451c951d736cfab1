"""How large an image says it is, read from its header alone.

The common kinds are read here, in a few microseconds; the others by Pillow, which decodes nothing either.
Whatever is decoded has passed through here first.
"""

from __future__ import annotations

import struct
from typing import Any

from penstock.errors import BadMedia
from penstock.transforms.media import MAX_PIXELS, describe, head_of, read_bytes, sniff

KINDS = frozenset(("jpeg", "png", "gif", "bmp", "webp", "tiff", "avif", "heif", "jp2", "pnm"))
"""What `sniff` calls images. Pillow may know more."""

_FRAMES = frozenset((*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)))
"""JPEG's markers SOF0 … SOF15, without DHT, JPG and DAC."""


def image_size(value: Any, *, max_pixels: int | None = MAX_PIXELS) -> tuple[int, int]:
    """Say height and width of an image at a path or in bytes, as stored: an orientation in its EXIF is not applied.

    Raises:
        BadMedia: it is no image ("not-an-image", "empty"), its header is cut off ("truncated") or says nonsense
            ("corrupt"), or it has more than `max_pixels` ("too-large").

    Cost: one small read; a second one, of the whole file, where a header is longer than 64 KiB.
    """
    head = head_of(value, 1 << 16)
    path = describe(value)
    try:
        return checked_size(head, path, max_pixels=max_pixels)
    except BadMedia as error:
        if len(head) < 1 << 16 or error.reason == "too-large":
            raise
    return checked_size(read_bytes(value), path, max_pixels=max_pixels)


def checked_size(data: bytes | memoryview, path: str, *, max_pixels: int | None) -> tuple[int, int]:
    """Say height and width of an image in memory; see `image_size`."""
    kind = sniff(data)
    try:
        height, width = _size_by_header(data, kind) or _size_by_pillow(data, path, kind)
    except (struct.error, IndexError):
        raise BadMedia(f"{path} ends in the middle of its header", path=path, reason="truncated") from None
    if height < 1 or width < 1:
        raise BadMedia(f"{path} says that it has {width} × {height} pixels", path=path, reason="corrupt")
    if max_pixels is not None and height * width > max_pixels:
        raise BadMedia(
            f"{path} says that it has {width:,} × {height:,} pixels, at most {max_pixels:,} are allowed: raise "
            "max_pixels if it is not made to fill the memory",
            path=path,
            reason="too-large",
        )
    return height, width


def _size_by_header(data: bytes | memoryview, kind: str | None) -> tuple[int, int] | None:
    """Read height and width where that is simple; None elsewhere."""
    if kind == "jpeg":
        return _jpeg_size(data)
    if kind == "png":
        width, height = struct.unpack_from(">II", data, 16)
        return height, width
    if kind == "gif":
        width, height = struct.unpack_from("<HH", data, 6)
        return height, width
    if kind == "webp":
        return _webp_size(data)
    return None


def _jpeg_size(data: bytes | memoryview) -> tuple[int, int]:
    """Go from segment to segment up to the frame's header."""
    place = 2
    while True:
        while data[place] != 0xFF:  # Decoders skip what stands between segments.
            place += 1
        while data[place] == 0xFF:
            place += 1
        marker = data[place]
        place += 1
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", data, place + 3)
            return height, width
        if marker == 0xD9 or marker == 0xDA:
            return 0, 0
        if marker != 0x01 and not 0xD0 <= marker <= 0xD7:
            place += max(2, struct.unpack_from(">H", data, place)[0])


def _webp_size(data: bytes | memoryview) -> tuple[int, int]:
    chunk = bytes(data[12:16])
    if chunk == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return height & 0x3FFF, width & 0x3FFF


def _size_by_pillow(data: bytes | memoryview, path: str, kind: str | None) -> tuple[int, int]:
    from penstock.transforms.pillow import stored_size

    if kind is not None and kind not in KINDS:
        raise not_an_image(path, kind)
    size = stored_size(data, path)
    if size is None:
        raise not_an_image(path, kind)
    return size


def not_an_image(path: str, kind: str | None) -> BadMedia:
    """Make the error for bytes that are something else."""
    if kind in KINDS:
        return BadMedia(
            f"{path} begins as {kind} does, but its header can't be read: it is cut off, damaged, or of a variant that "
            "Pillow does not know here",
            path=path,
            reason="corrupt",
        )
    found = f"its first bytes are those of {kind}" if kind else "its first bytes are those of no format known here"
    return BadMedia(f"{path} is not an image that can be read: {found}", path=path, reason="not-an-image")
