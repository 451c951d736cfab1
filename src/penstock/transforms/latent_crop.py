"""A stretch of time out of latents: the same of each field that belongs together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.image_augment import needed
from penstock.transforms.media import take_field
from penstock.transforms.media_options import check_crop
from penstock.types import check_int


@dataclass(frozen=True, kw_only=True, slots=True)
class CropLatent:
    """Cut a stretch of time out of latents: [C, T, …] → [C, frames, …].

    Beside it a sample gets `{field}_start` (where it begins in the whole) and `{field}_frames` (how many frames are of
    the whole and not repeated): ints. If the field is None, both are.

    Args:
        frames: how many; they are the latent's, of which one may stand for several of the video or sound.
        field: the field with the array.
        along: fields with arrays of the same length, such as the spread, of which the same is cut.
        crop: "random" (needs rng), "start" or "center".
        offset: where "start" begins, in frames, or the name of the field that says so.
        axis: of time.
        short: what becomes of one that is too short: "pad" (its last frame is repeated), "keep", or "error".

    Raises:
        ConfigError: an option cannot work; from a call: `rng` is missing.
        BadMedia: from a call: "shape", "too-short".

    >>> sample = CropLatent(frames=2, crop="center")({"latent": np.arange(12.0).reshape(2, 6)})
    >>> sample["latent"].tolist(), sample["latent_start"]
    ([[2.0, 3.0], [8.0, 9.0]], 2)
    """

    frames: int
    field: str = "latent"
    along: tuple[str, ...] = ()
    crop: Literal["random", "start", "center"] = "random"
    offset: int | str = 0
    axis: int = 1
    short: Literal["pad", "keep", "error"] = "pad"

    def __post_init__(self) -> None:
        check_int("frames", self.frames, minimum=1)
        check_crop(self.crop, self.offset, self.short)

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Give the sample with the stretch, and where it was."""
        values = take_field(sample, self.field)
        start_field, frames_field = f"{self.field}_start", f"{self.field}_frames"
        if values is None:
            return {**sample, start_field: None, frames_field: None}
        total = self._length(values)
        start = self._start(sample, total, rng)
        kept = min(self.frames, total - start)
        if kept < (self.frames if self.short == "error" else 1):
            raise BadMedia(
                f"{self.field!r} has {total:,} frames, {self.frames:,} from {start:,} on were asked for",
                path="",
                reason="too-short",
            )
        cut = {name: self._cut(take_field(sample, name), total, start, kept) for name in (self.field, *self.along)}
        return {**sample, **cut, start_field: start, frames_field: kept}

    def _start(self, sample: Mapping[str, Any], total: int, rng: np.random.Generator | None) -> int:
        room = max(0, total - self.frames)
        if self.crop == "random":
            return int(needed(rng).integers(room + 1))
        if self.crop == "center":
            return room // 2
        offset = take_field(sample, self.offset) if isinstance(self.offset, str) else self.offset
        return check_int("offset", offset, minimum=0)

    def _length(self, values: Any) -> int:
        shape = np.shape(values)
        if not -len(shape) <= self.axis < len(shape):
            raise BadMedia(
                f"{self.field!r} has the shape {list(shape)}, without an axis {self.axis} of time",
                path="",
                reason="shape",
            )
        return shape[self.axis]

    def _cut(self, values: Any, total: int, start: int, kept: int) -> np.ndarray:
        values = np.asarray(values)
        if self._length(values) != total:
            raise BadMedia(
                f"{self.field!r} has {total:,} frames and a field to be cut alike has {self._length(values):,}",
                path="",
                reason="shape",
            )
        places = np.arange(start, start + (kept if self.short == "keep" else self.frames))
        return np.take(values, np.minimum(places, start + kept - 1), axis=self.axis)
