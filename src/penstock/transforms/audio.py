"""A sound in a file → a crop of it as numbers.

    path | bytes ──[crop: only these frames]──▶ mono ──▶ resample ──▶ pad ──▶ float32 [channels, frames]

The frames of a crop are those of the whole sound, decoded, made mono and resampled: where the file allows, only
they and the few around them that a resampler looks at are read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.audio_clip import Clip, read_clip
from penstock.transforms.audio_crop import BY_LENGTH, BY_LOUDNESS
from penstock.transforms.audio_source import open_audio
from penstock.transforms.clips import decode_clip
from penstock.transforms.media import describe
from penstock.transforms.media_options import check_crop, made_with
from penstock.types import check_choice, check_int, check_number

CROPS = (*BY_LENGTH, *BY_LOUDNESS)
_SECONDS = 10.0
"""What `audio_pipeline` cuts out unless it is told otherwise."""


@dataclass(frozen=True, slots=True)
class DecodeAudio:
    """Decode a sound, or a crop of it: float32 [channels, frames] in [-1, 1].

    Beside the sound a sample gets `{out}_sample_rate`, `{out}_start` (where the crop begins in the whole sound, in
    frames of the result's rate) and `{out}_frames` (how many frames are sound and not padding): ints. If the field is
    None, all four are.

    Args:
        field: where the sample has a path, bytes, or a seekable binary file.
        out: where the sound goes; None: into the same field.
        sample_rate: frames a second of the result; None: the file's.
        mono: the mean of the channels, as [1, frames].
        seconds: length of the crop; None: as `frames` says.
        frames: length of the crop, in frames of the result; None too: the whole sound.
        crop: "start", "random" (needs rng), "random_loud" (needs rng: at least half as loud as the loudest),
            "max_mean" (the loudest), "max_center" (around the loudest frame). Loudness is the mean of the absolute
            values; choosing by it decodes the whole sound.
        offset: where "start" begins, in seconds, or the name of the field that says so.
        short: what becomes of a sound shorter than the crop: "pad" (zeros at the end), "keep", or "error". One
            that ends before its crop begins is always an error.
        quality: soxr's.
        max_seconds: the most that is decoded of one sound.
        required: None in the field is an error.

    Raises:
        ConfigError: an option cannot work; from a call: a package is missing, or `rng` is.
        ObjectMissing, StoreError: from a call: there is no such file, or it can't be read.
        BadMedia: from a call: "empty", "not-audio", "no-audio", "truncated", "corrupt", "not-finite", "too-large",
            "too-short", "missing".
    """

    field: str = "audio"
    out: str | None = None
    _: KW_ONLY
    sample_rate: int | None = None
    mono: bool = False
    seconds: float | None = None
    frames: int | None = None
    crop: str = "start"
    offset: float | str = 0.0
    short: str = "pad"
    quality: str = "HQ"
    max_seconds: float = 1800.0
    required: bool = False

    def __post_init__(self) -> None:
        if self.sample_rate is not None:
            check_int("sample_rate", self.sample_rate, minimum=1)
        if self.frames is not None:
            check_int("frames", self.frames, minimum=1)
        if self.frames is not None and self.seconds is not None:
            raise ConfigError("give the length of a crop as seconds or as frames, not both")
        for name in ("seconds", "max_seconds"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), above=0, unit="seconds")
        check_crop(self.crop, self.offset, self.short, allowed=CROPS)
        check_choice("quality", self.quality, ("QQ", "LQ", "MQ", "HQ", "VHQ"))
        if self.crop != "start" and self.frames is None and self.seconds is None:
            raise ConfigError(f"crop={self.crop!r} needs a length: seconds or frames. Of whole sounds, crop='start'")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Decode the sound of a sample."""
        return decode_clip(self, Clip._fields, sample, rng)

    def read(self, value: Any, offset: float = 0.0, rng: np.random.Generator | None = None) -> Clip:
        """Decode one sound: what a call does to a field.

        Args:
            value: a path, bytes, or a seekable binary file.
            offset: where crop="start" begins, in seconds.
            rng: what the random crops draw from.
        """
        source = open_audio(value)
        try:
            clip = read_clip(source, self, describe(value), offset, rng)
        finally:
            source.close()
        if not clip.frames:
            raise nothing_of(value, offset)
        return clip


def nothing_of(value: Any, start_s: float) -> BadMedia:
    """Make the error for a sound that ends before a crop of it begins, which would be silence and nothing else."""
    path = describe(value)
    return BadMedia(f"{path} has no frames from {start_s:g} s on, where its crop begins", path=path, reason="too-short")


def audio_pipeline(
    field: str = "audio",
    *,
    sample_rate: int = 16_000,
    seconds: float | None = _SECONDS,
    frames: int | None = None,
    crop: str = "random",
    mono: bool = True,
    **options: Any,
) -> list[Callable[..., Any]]:
    """Give the transforms of most datasets of sounds: one crop of fixed length each, ready to be stacked.

    Args:
        field: where the sample has a path, bytes, or a seekable binary file.
        sample_rate: see `DecodeAudio`.
        seconds: length of the crop; None, with crop="start": the whole sound.
        frames: length of the crop in frames of the result, in place of seconds.
        crop: see `DecodeAudio`.
        mono: see `DecodeAudio`.
        options: the others of `DecodeAudio`.

    Returns:
        Transforms for `StreamingDataset(transforms=…)`; a sample gets float32 [1, sample_rate × seconds], or
        [1, frames], in `field`.

    Raises:
        ConfigError: an option cannot work.

    >>> [type(transform).__name__ for transform in audio_pipeline(seconds=2)]
    ['DecodeAudio']
    """
    if frames is not None and seconds == _SECONDS:
        seconds = None
    options |= {"seconds": seconds, "frames": frames}
    options |= {"field": field, "sample_rate": sample_rate, "crop": crop, "mono": mono}
    return [made_with(DecodeAudio, "audio_pipeline", **options)]
