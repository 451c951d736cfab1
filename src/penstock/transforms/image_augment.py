"""Images, cut, mirrored and normalised: pixels [H, W, C] → pixels.

What is random takes its numbers from `rng`, so that a sample of an epoch is the same whoever makes it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.image import METHODS, Method, check_pixels, fitted, scaled_box
from penstock.transforms.image_shapes import Box, Size, check_size, nearest_bucket
from penstock.transforms.media import take_field
from penstock.types import check_choice

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class CropImage:
    """Cut a part out of an image [H, W, C], without scaling: the middle, or one drawn by `rng`.

    Args:
        size: of the part: a side, or (height, width).
        field: the field that holds pixels.
        out: the field to write; None: the same.
        random: anywhere, each place as likely, instead of the middle.

    Raises:
        ConfigError: an argument cannot work, or the field holds no pixels.
        BadMedia: the image is smaller than that ("too-small").

    >>> image = np.arange(16, dtype=np.uint8).reshape(4, 4, 1)
    >>> CropImage(2)({"image": image})["image"].ravel().tolist()
    [5, 6, 9, 10]
    """

    size: Size
    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    random: bool = False

    def __post_init__(self) -> None:
        check_size(self.size)

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Give the sample with a part of the image."""
        image = take_field(sample, self.field)
        if image is None:
            return {**sample, self.out or self.field: None}
        height, width = (self.size, self.size) if isinstance(self.size, int) else self.size
        rows, columns = check_pixels(image, self.field).shape[:2]
        if rows < height or columns < width:
            raise BadMedia(
                f"an image of {columns} × {rows} has no part of {width} × {height}: scale it first",
                path="",
                reason="too-small",
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        if self.random:
            rng = needed(rng)
            top, left = int(rng.integers(rows - height + 1)), int(rng.integers(columns - width + 1))
        part = np.ascontiguousarray(image[top : top + height, left : left + width])
        return {**sample, self.out or self.field: part}


@dataclass(frozen=True, slots=True)
class RandomResizedCrop:
    """Cut a part of random area and shape out of an image [H, W, C], and scale it to a size.

    Args:
        size: of the result: a side, or (height, width).
        field: the field that holds pixels.
        out: the field to write; None: the same.
        scale: least and most of the part's share of the area.
        ratio: least and most of its width / height, drawn by logarithm.
        method: see `ResizeImage`.

    After ten parts that do not fit, the middle of the nearest shape is taken.
    """

    size: Size
    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    method: Method = "area"

    def __post_init__(self) -> None:
        check_size(self.size)
        check_choice("method", self.method, METHODS)
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(
                f"scale must rise in (0, 1] and ratio be positive and rise, got {self.scale} and {self.ratio}"
            )

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Give the sample with a part of the image, scaled."""
        image = take_field(sample, self.field)
        if image is not None:
            height, width = check_pixels(image, self.field).shape[:2]
            target = (self.size, self.size) if isinstance(self.size, int) else self.size
            image = np.ascontiguousarray(scaled_box(image, self._box(height, width, rng), target, self.method))
        return {**sample, self.out or self.field: image}

    def _box(self, height: int, width: int, rng: np.random.Generator) -> Box:
        """Draw a part."""
        areas = rng.uniform(*self.scale, size=10) * (height * width)
        ratios = np.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), size=10))
        heights, widths = np.rint(np.sqrt(areas / ratios)).astype(int), np.rint(np.sqrt(areas * ratios)).astype(int)
        fits = np.flatnonzero((heights > 0) & (widths > 0) & (heights <= height) & (widths <= width))
        if fits.size:
            high, wide = int(heights[fits[0]]), int(widths[fits[0]])
            return Box(int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide)
        shape = min(max(width / height, self.ratio[0]), self.ratio[1])
        high, wide = min(height, max(1, round(width / shape))), min(width, max(1, round(height * shape)))
        return Box((height - high) // 2, (width - wide) // 2, high, wide)


@dataclass(frozen=True, slots=True)
class FlipImage:
    """Mirror an image [H, W, C] left to right, with probability `p`; or upside down (`axis="vertical"`)."""

    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    p: float = 0.5
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __post_init__(self) -> None:
        check_choice("axis", self.axis, ("horizontal", "vertical"))
        if not 0 <= self.p <= 1:
            raise ConfigError(f"p must be a probability, got {self.p}")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Give the sample with the image as it is, or mirrored."""
        image = take_field(sample, self.field)
        if image is not None and rng.random() < self.p:
            image = check_pixels(image, self.field)
            image = np.ascontiguousarray(image[:, ::-1] if self.axis == "horizontal" else image[::-1])
        return {**sample, self.out or self.field: image}


@dataclass(frozen=True, slots=True)
class NormalizeImage:
    """Turn pixels uint8 or uint16 [H, W, C] into float32: (x / largest - mean) / std, by channel.

    Args:
        field: the field that holds pixels; float32 is taken to be in [0, 1] already.
        out: the field to write; None: the same.
        mean: one number, or one a channel.
        std: the same; means and spreads of 0.5 give [-1, 1], 0 and 1 give [0, 1].
        layout: "chw": [C, H, W], contiguous; or "hwc".

    It makes four bytes of one: where the device does the same for the whole batch, leave it to that.

    >>> NormalizeImage(mean=0.5, std=0.5)({"image": np.full((1, 1, 3), 255, np.uint8)})["image"].ravel().tolist()
    [1.0, 1.0, 1.0]
    """

    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    mean: float | Sequence[float] = IMAGENET_MEAN
    std: float | Sequence[float] = IMAGENET_STD
    layout: Literal["chw", "hwc"] = "chw"

    def __post_init__(self) -> None:
        check_choice("layout", self.layout, ("chw", "hwc"))
        if not np.all(np.isfinite(self.mean)) or not np.all(np.asarray(self.std) > 0):
            raise ConfigError(f"mean must be finite and std positive, got {self.mean} and {self.std}")

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with numbers in the place of pixels."""
        image = take_field(sample, self.field)
        if image is not None:
            image = self._normalised(check_pixels(image, self.field))
        return {**sample, self.out or self.field: image}

    def _normalised(self, image: np.ndarray) -> np.ndarray:
        channels = image.shape[2]
        largest = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
        mean, std = (np.asarray(values, np.float64) for values in (self.mean, self.std))
        if any(values.ndim and values.shape != (channels,) for values in (mean, std)):
            raise ConfigError(f"mean and std must be numbers or {channels} numbers each, for {channels} channels")
        factor = np.broadcast_to(1 / (std * largest), channels).astype(np.float32)
        offset = np.broadcast_to(-mean / std, channels).astype(np.float32)
        if self.layout == "hwc":
            return image * factor + offset
        planes = np.empty((channels, *image.shape[:2]), np.float32)
        for channel, plane in enumerate(planes):
            np.multiply(image[:, :, channel], factor[channel], out=plane)
            plane += offset[channel]
        return planes


@dataclass(frozen=True, slots=True)
class ChannelsFirst:
    """Lay an image [H, W, C] out as [C, H, W], contiguous, of the same type.

    >>> ChannelsFirst()({"image": np.zeros((2, 4, 3), np.uint8)})["image"].shape
    (3, 2, 4)
    """

    field: str = "image"
    out: str | None = None

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with the image laid out so."""
        image = take_field(sample, self.field)
        if image is not None:
            image = np.ascontiguousarray(check_pixels(image, self.field).transpose(2, 0, 1))
        return {**sample, self.out or self.field: image}


@dataclass(frozen=True, slots=True)
class FitBucket:
    """Scale and cut an image [H, W, C] to that of some sizes whose shape is closest to its own.

    Args:
        buckets: (height, width) each, see `aspect_buckets`.
        field: the field that holds pixels.
        out: the field to write; None: the same.
        bucket_field: the field to write the bucket's number to; None: none.
        method: see `ResizeImage`.

    A batch of several shapes does not stack: `Collate(groups="bucket")` makes a part of each shape.
    """

    buckets: Sequence[tuple[int, int]]
    field: str = "image"
    out: str | None = None
    _: KW_ONLY
    bucket_field: str | None = "bucket"
    method: Method = "area"

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if not self.buckets:
            raise ConfigError("there must be a bucket at least")
        for bucket in self.buckets:
            check_size(tuple(bucket))

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with the image of a bucket's size."""
        image, bucket = take_field(sample, self.field), None
        if image is not None:
            rows, columns = check_pixels(image, self.field).shape[:2]
            bucket = nearest_bucket(rows, columns, self.buckets)
            height, width = self.buckets[bucket]
            image = np.ascontiguousarray(fitted(image, (height, width), "cover", self.method, (0, 0, 0)))
        return {**sample, self.out or self.field: image, **({self.bucket_field: bucket} if self.bucket_field else {})}


def needed(rng: np.random.Generator | None) -> np.random.Generator:
    """Give the generator that a random transform was called with.

    Raises:
        ConfigError: it was called without one.
    """
    if rng is None:
        raise ConfigError(
            'a random transform draws from rng: call it as transform(sample, rng=penstock.rng(0, "name"))'
        )
    return rng
