"""Images: a path or bytes → pixels of the size asked for.

    path | bytes ──header: kind, size, limits──▶ decode ──box of it──▶ scale ──▶ uint8 [H, W, 3] RGB

OpenCV decodes and scales; Pillow does what OpenCV can't.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms import opencv
from penstock.transforms.image_header import checked_size
from penstock.transforms.image_shapes import FITS, Box, Fit, Size, check_size, frame
from penstock.transforms.media import MAX_PIXELS, describe, read_bytes, sniff, take_field
from penstock.types import check_choice, check_int

Method = Literal["area", "linear", "cubic", "nearest", "antialias"]
METHODS = ("area", "linear", "cubic", "nearest", "antialias")
Colour = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class ResizeImage:
    """Scale an image, uint8, uint16 or float32 [H, W, C], to a size.

    Args:
        size: of the result: a side, or (height, width).
        field: the field that holds it.
        out: the field to write; None: the same.
        fit: "cover" cuts the middle out in the shape asked for; "stretch" changes the shape; "contain" fits the
            whole inside and fills the rest; "shorter" and "longer" make that side `size` and keep the shape.
        method: "area" averages over what a pixel covers; "linear" is several times quicker, but takes few pixels of
            those it leaves out, so fine patterns flicker; "antialias" is Pillow's bilinear filter, to the bit (uint8
            only); "cubic", "nearest".
        fill: colour around an image that is contained.
        required: an image that is None is an error, instead of None.

    Raises:
        ConfigError: an argument cannot work, or the sample has no such field.
        BadMedia: None, though required ("missing").

    >>> ResizeImage(4)({"image": np.zeros((8, 16, 3), np.uint8)})["image"].shape
    (4, 4, 3)
    """

    size: Size
    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    fit: Fit = "cover"
    method: Method = "area"
    fill: Colour = (0, 0, 0)
    required: bool = False

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        check_choice("method", self.method, METHODS)
        check_size(self.size, self.fit)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with the image scaled."""
        image = take_field(sample, self.field, required=self.required)
        if image is not None:
            image = fitted(check_pixels(image, self.field), self.size, self.fit, self.method, self.fill)
        return {**sample, self.out or self.field: image}


@dataclass(frozen=True, slots=True)
class DecodeImage:
    """Decode an image, and scale it in the same step: the path or bytes in a field → uint8 [H, W, 3] RGB.

    JPEG, PNG, GIF, BMP, WebP, TIFF, AVIF, JPEG 2000, PNM, and what else Pillow reads, whatever the file is called.
    Grey images and palettes become RGB, CMYK too; of an animated image the first frame is taken; an orientation in
    EXIF is applied. Without scaling, pixels equal those of Pillow, but for CMYK and "L", by 1 at most; of 16 bits the
    upper 8 are taken.

    Args:
        field: the field that holds a path on this machine, or bytes.
        out: the field to write; None: the same.
        size: a side, or (height, width). None: as it is.
        fit: see `ResizeImage`.
        method: see `ResizeImage`.
        fill: see `ResizeImage`.
        mode: "RGB"; "L": grey, [H, W, 1]; "RGBA": [H, W, 4], opaque where there is no alpha.
        background: colour to lay behind what is transparent. None: alpha is left out, as Pillow's convert does.
        orient: turn as EXIF says.
        layout: "hwc", or "chw": [3, H, W], contiguous.
        dtype: "uint8"; "uint16": 16 bits a channel, where a file has 8 these times 257; "float32": in [0, 1].
        max_pixels: refuse more, by the header, before anything is decoded. None: no limit.
        max_bytes: refuse larger files before reading. None: no limit.
        required: None is an error, instead of None.

    Raises:
        ConfigError: an argument cannot work, the sample has no such field, or `penstock[image]` is not installed.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: "empty", "not-an-image", "truncated" or otherwise "corrupt", "too-large", "missing".
    """

    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    size: Size | None = None
    fit: Fit = "cover"
    method: Method = "area"
    fill: Colour = (0, 0, 0)
    mode: Literal["RGB", "RGBA", "L"] = "RGB"
    background: Colour | None = None
    orient: bool = True
    layout: Literal["hwc", "chw"] = "hwc"
    dtype: Literal["uint8", "uint16", "float32"] = "uint8"
    max_pixels: int | None = MAX_PIXELS
    max_bytes: int | None = None
    required: bool = False

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        check_choice("method", self.method, METHODS)
        check_choice("mode", self.mode, ("RGB", "RGBA", "L"))
        check_choice("layout", self.layout, ("hwc", "chw"))
        check_choice("dtype", self.dtype, ("uint8", "uint16", "float32"))
        if self.size is not None:
            check_size(self.size, self.fit)
        for name in ("max_pixels", "max_bytes"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), minimum=1)
        if self.dtype == "uint16" and (self.method == "antialias" or self.mode == "RGBA" or self.background):
            raise ConfigError("16 bits a channel are read without alpha and scaled by any method but 'antialias'")
        if self.mode == "RGBA" and self.background:
            raise ConfigError("mode='RGBA' keeps alpha, a background does away with it: give one of them")

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with pixels in the place of the path or bytes."""
        value = take_field(sample, self.field, required=self.required)
        return {**sample, self.out or self.field: None if value is None else self.decode(value)}

    def decode(self, value: Any) -> np.ndarray:
        """Decode one image, at a path or in bytes."""
        data = read_bytes(value, max_bytes=self.max_bytes)
        path = describe(value)
        checked_size(data, path, max_pixels=self.max_pixels)
        image = self._pixels(data, path)
        if self.size is not None:
            image = fitted(image, self.size, self.fit, self.method, self.fill)
        if self.dtype == "float32":
            image = np.multiply(image, np.float32(1 / 255), dtype=np.float32)
        return np.ascontiguousarray(image.transpose(2, 0, 1)) if self.layout == "chw" else image

    def _pixels(self, data: bytes | memoryview, path: str) -> np.ndarray:
        """Decode to [H, W, channels], uint8 or uint16, by whichever library can."""
        image = None
        kind = sniff(data)
        deep = self.dtype == "uint16"
        if kind == "jpeg" or not (self.background or self.mode == "RGBA"):
            image = opencv.decode(data, grey=self.mode == "L", deep=deep, orient=self.orient)
        if image is not None and self.mode == "RGBA":
            image = np.dstack([image, np.full(image.shape[:2], 255, np.uint8)])
        if image is None and not deep and kind != "jpeg":
            from penstock.transforms import pillow

            image = pillow.decode(data, mode=self.mode, background=self.background, orient=self.orient)
        if image is None:
            raise BadMedia(
                f"{path} is {kind or 'an image'} by its header, but can't be decoded to its end: {len(data):,} bytes, "
                "cut off or damaged",
                path=path,
                reason="truncated" if ends_early(data, kind) else "corrupt",
            )
        if image.dtype == np.uint8:
            return image.astype(np.uint16) * np.uint16(257) if deep else image
        if image.dtype != np.uint16:
            raise BadMedia(
                f"{path} has pixels of {image.dtype}, of which no colours can be made: it is no picture",
                path=path,
                reason="unsupported",
            )
        return image


def fitted(image: np.ndarray, size: Size, fit: Fit, method: Method, fill: Colour) -> np.ndarray:
    """Scale an image [H, W, C] as `ResizeImage` does."""
    box, target = frame(image.shape[0], image.shape[1], size, fit)
    scaled = scaled_box(image, box, target, method)
    if fit != "contain":
        return scaled
    height, width = (size, size) if isinstance(size, int) else size
    if scaled.shape[:2] == (height, width):
        return scaled
    whole = np.empty((height, width, image.shape[2]), image.dtype)
    whole[:] = np.resize(np.array(fill), image.shape[2]) if image.shape[2] != 4 else (*fill, 255)
    top, left = (height - scaled.shape[0]) // 2, (width - scaled.shape[1]) // 2
    whole[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled
    return whole


def scaled_box(image: np.ndarray, box: Box, target: tuple[int, int], method: Method) -> np.ndarray:
    """Scale a box of an image [H, W, C] to (height, width)."""
    if method == "antialias" and image.dtype == np.uint8:
        from penstock.transforms import pillow

        bounds = (box.left, box.top, box.left + box.width, box.top + box.height)
        return pillow.resize(image, target, bounds)
    if method == "antialias":
        raise ConfigError(f"method='antialias' scales uint8, the image is {image.dtype}: use 'area'")
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    return part if part.shape[:2] == target else opencv.resize(part, target, method)


def check_pixels(image: Any, field: str) -> np.ndarray:
    """Raise ConfigError unless a value is an image [H, W, C]."""
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] in (1, 3, 4):
        return image
    what = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
    raise ConfigError(
        f"the field {field!r} must hold pixels [H, W, channels], it holds {what}: is DecodeImage missing?"
    )


_ENDS = {"jpeg": b"\xff\xd9", "png": b"IEND\xaeB`\x82", "gif": b"\x00;"}


def ends_early(data: bytes | memoryview, kind: str | None) -> bool:
    """Guess whether what ails a broken file is that its end is missing."""
    if kind == "webp":
        return int.from_bytes(data[4:8], "little") + 8 > len(data)
    end = _ENDS.get(kind or "")
    return end is None or end not in bytes(data[-16:])
