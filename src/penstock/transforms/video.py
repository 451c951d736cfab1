"""A video in a file → a clip of it as one array.

path | bytes ──seek──▶ decode ──[only the clip's frames]──▶ scale, turn, cut ──▶ uint8 [T, H, W, 3]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.transforms.clips import decode_clip
from penstock.transforms.image_shapes import FITS, Fit, Size, check_size
from penstock.transforms.media import MAX_PIXELS
from penstock.transforms.media_options import check_crop, made_with
from penstock.transforms.video_clip import Clip, read_clip
from penstock.transforms.video_frame import METHODS
from penstock.transforms.video_source import VideoSource
from penstock.types import check_choice, check_int, check_number


@dataclass(frozen=True, slots=True)
class DecodeVideo:
    """Decode a clip of a video: uint8 [T, H, W, 3] RGB, turned as the file says.

    A clip is the same whether the file was read from its beginning or from a key frame near the clip, also with
    a variable frame rate. Beside it a sample gets `{out}_times` (float64 [T]: when each frame begins, in seconds),
    `{out}_start` (where the clip begins, in seconds), `{out}_fps` and `{out}_frames` (how many are of the video and
    not repeated). If the field is None, all five are.

    Args:
        field: where the sample has a path, bytes, or a seekable binary file.
        out: where the clip goes; None: into the same field.
        frames: how many; None: all from `offset` on.
        fps: frames a second: at each moment the frame that a player would show. None: every frame of the file.
        crop: where a clip lies: "start", "random" (needs rng), "center".
        offset: where "start" begins, in seconds, or the name of the field that says so.
        size: of the frames: a side, or (height, width). None: as they are.
        fit: see `ResizeImage`.
        method: of scaling, libswscale's: "bilinear", "area", "bicubic", "lanczos", "point".
        short: what becomes of a video shorter than the clip: "pad" (the last frame is repeated), "keep", or "error".
        threads: that decode one video. Loaders decode several at a time.
        max_frames: most frames of a clip, and most that are decoded to get there.
        max_pixels: most pixels of a frame.
        max_seconds: longest clip.
        required: None in the field is an error.

    Raises:
        ConfigError: an option cannot work; from a call: a package is missing, or `rng` is.
        ObjectMissing, StoreError: from a call: there is no such file, or it can't be read.
        BadMedia: from a call: "empty", "unreadable", "no-video", "truncated", "corrupt", "too-large", "too-short",
            "missing".

    Cost: of a clip of `fps`, or at the start, only what lies between a key frame and its end is read and decoded;
        otherwise the file is read once to count its frames.
    """

    field: str = "video"
    out: str | None = None
    _: KW_ONLY
    frames: int | None = 16
    fps: float | None = None
    crop: str = "start"
    offset: float | str = 0.0
    size: Size | None = None
    fit: Fit = "cover"
    method: str = "bilinear"
    short: str = "pad"
    threads: int = 1
    max_frames: int = 20_000
    max_pixels: int = MAX_PIXELS
    max_seconds: float = 1800.0
    required: bool = False

    def __post_init__(self) -> None:
        for name in ("frames", "threads", "max_frames", "max_pixels"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), minimum=1)
        for name in ("fps", "max_seconds"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0)
        check_crop(self.crop, self.offset, self.short)
        check_choice("method", self.method, METHODS)
        check_choice("fit", self.fit, FITS)
        if self.size is not None:
            check_size(self.size, self.fit)
        if self.crop != "start" and self.frames is None:
            raise ConfigError(
                f"crop={self.crop!r} needs a number of frames; all of them, from an offset on, are crop='start'"
            )

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Decode the clip of a sample."""
        return decode_clip(self, Clip._fields, sample, rng)

    def read(self, value: Any, offset: float = 0.0, rng: np.random.Generator | None = None) -> Clip:
        """Decode one clip: what a call does to a field.

        Args:
            value: a path, bytes, or a seekable binary file.
            offset: where crop="start" begins, in seconds.
            rng: what crop="random" draws from.
        """
        video = self.open(value)
        try:
            return read_clip(video, self, offset, rng)
        finally:
            video.close()

    def open(self, value: Any) -> VideoSource:
        """Open a video within this transform's limits."""
        return VideoSource(value, max_pixels=self.max_pixels, max_frames=self.max_frames, threads=self.threads)


def video_pipeline(
    field: str = "video",
    *,
    frames: int | None = 16,
    fps: float | None = 8.0,
    size: Size | None = 256,
    crop: str = "random",
    **options: Any,
) -> list[Callable[..., Any]]:
    """Make videos ready to train on: one clip each, of one length and size.

    Args:
        field: the field that holds a path, bytes, or a seekable binary file.
        frames: see `DecodeVideo`; None needs crop="start".
        fps: see `DecodeVideo`.
        size: see `DecodeVideo`.
        crop: see `DecodeVideo`.
        options: the others of `DecodeVideo`.

    Returns:
        Transforms: path | bytes → uint8 [frames, H, W, 3].

    Raises:
        ConfigError: an option cannot work.

    >>> [type(transform).__name__ for transform in video_pipeline(frames=8)]
    ['DecodeVideo']
    """
    return [
        made_with(DecodeVideo, "video_pipeline", field=field, frames=frames, fps=fps, size=size, crop=crop, **options)
    ]
