"""An open sound → a crop of it, decoding what the crop needs.

A crop has the frames that it would have had if the whole sound had been decoded, made mono and resampled first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.audio_crop import BY_LOUDNESS, by_length, by_loudness
from penstock.transforms.audio_resample import num_resampled, resample, span
from penstock.transforms.audio_source import AudioSource, mean_of_channels

if TYPE_CHECKING:
    from penstock.transforms.audio import DecodeAudio

_MAX_VALUES = 1 << 30
"""Most numbers that are decoded at once: 4 GiB."""


class Clip(NamedTuple):
    """A crop of a sound."""

    data: np.ndarray
    """float32 [channels, frames]."""
    sample_rate: int
    start: int
    """Where it begins in the whole sound, in frames of this rate."""
    frames: int
    """How many of its frames are sound; the rest is padding."""


def read_clip(
    source: AudioSource, wanted: DecodeAudio, name: str, offset: float = 0.0, rng: np.random.Generator | None = None
) -> Clip:
    """Read the crop of a sound that is wanted.

    Args:
        source: the sound.
        wanted: what of it: the transform's options, as they are.
        name: what the sound is called in messages.
        offset: where the crop "start" begins, in seconds. What lies before 0 is silence.
        rng: what random crops draw from.

    Raises:
        ConfigError: the crop draws, and there is no rng.
        BadMedia: see `DecodeAudio`.
    """
    sound = _Sound(source, wanted, name)
    frames = wanted.frames
    if wanted.seconds is not None:
        frames = max(1, round(wanted.seconds * sound.new_rate))
    start = round(offset * sound.new_rate)
    if frames is None or wanted.crop in BY_LOUDNESS or (wanted.crop == "random" and sound.total is None):
        sound.hear_all()
    if frames is None:
        frames = max(0, sound.new_total() - start)
    elif wanted.crop == "random":
        start = by_length("random", sound.new_total(), frames, rng)
    elif wanted.crop in BY_LOUDNESS:
        start = sound.by_loudness(frames, rng)
    data = sound.resampled(max(0, start), start + frames)
    before = min(frames, max(0, -start))
    return Clip(_laid_out(data, frames, before, sound), sound.new_rate, start, before + len(data))


class _Sound:
    """A sound that is decoded in parts or, once it was heard, kept."""

    def __init__(self, source: AudioSource, wanted: DecodeAudio, name: str) -> None:
        self.source, self.wanted, self.name = source, wanted, name
        self.total = source.num_frames
        self.rate = source.sample_rate
        self.new_rate = wanted.sample_rate or source.sample_rate
        self._whole: np.ndarray | None = None
        if self.total == 0:
            raise self.bad("empty", "has no frames")

    def bad(self, reason: str, what: str) -> BadMedia:
        return BadMedia(f"{self.name} {what}", path=self.name, reason=reason)

    def new_total(self) -> int:
        """How many frames the whole sound has when resampled."""
        return num_resampled(self.total or 0, self.rate, self.new_rate)

    def hear_all(self) -> None:
        """Decode the whole sound, which must be within the limits."""
        most = int(self.wanted.max_seconds * self.rate)
        # Of a sound that does not say how long it is, one frame more than allowed tells that it is too long.
        self._whole = self._decoded(0, most + 1 if self.total is None else self.total)
        self.total = len(self._whole)
        if self.total > most:
            raise self._too_long(self.total / self.rate)
        if not self.total:
            raise self.bad("empty", "has no frames")
        self._check(self._whole)

    def by_loudness(self, frames: int, rng: np.random.Generator | None) -> int:
        """Choose where a crop of so many resampled frames begins, by the loudness of the sound as it was."""
        assert self._whole is not None
        heard = -(-frames * self.rate // self.new_rate)
        at = by_loudness(self.wanted.crop, self._whole, heard, rng)
        return max(0, min(at * self.new_rate // self.rate, self.new_total() - frames))

    def resampled(self, start: int, stop: int) -> np.ndarray:
        """Give frames [start, stop) of the resampled sound, those there are: [n] or [n, channels]."""
        if self.total is not None:
            stop = min(stop, self.new_total())
        if stop <= start:
            return np.zeros((0,) if self.wanted.mono else (0, self.source.channels), np.float32)
        if stop - start > self.wanted.max_seconds * self.new_rate:
            raise self._too_long((stop - start) / self.new_rate)
        first, last, skip = span(start, stop, self.rate, self.new_rate)
        last = last if self.total is None else min(last, self.total)
        data = self._decoded(first, last) if self._whole is None else self._whole[first:last]
        data = resample(data, self.rate, self.new_rate, quality=self.wanted.quality)[skip : skip + stop - start]
        if self._whole is None:
            self._check(data)
        return data

    def _decoded(self, first: int, last: int) -> np.ndarray:
        if self.total is not None and last - first > self.wanted.max_seconds * self.rate + 2 * self.rate:
            raise self._too_long((last - first) / self.rate)
        if self.total is not None and (last - first) * self.source.channels > _MAX_VALUES:
            raise self.bad("too-large", f"would be {(last - first) * self.source.channels:,} numbers: read less of it")
        data = self.source.read(first, last)
        if not self.wanted.mono:
            return data
        return mean_of_channels(data)

    def _check(self, data: np.ndarray) -> None:
        if not np.isfinite(data).all():
            raise self.bad("not-finite", "holds values that are NaN or infinite: write it again")

    def _too_long(self, seconds: float) -> BadMedia:
        return self.bad(
            "too-large", f"would be {seconds:,.1f} s of sound, max_seconds={self.wanted.max_seconds:g} are allowed"
        )


def _laid_out(data: np.ndarray, frames: int, before: int, sound: _Sound) -> np.ndarray:
    """Give a crop its final form, [channels, frames], within full scale."""
    kept = before + len(data)
    if kept < frames and sound.wanted.short == "error":
        raise sound.bad(
            "too-short", f"has {len(data):,} of the {frames:,} frames that are wanted at {sound.new_rate} Hz"
        )
    rows = data.T if data.ndim == 2 else data[None]
    width = frames if sound.wanted.short == "pad" else kept
    out = np.empty((len(rows), width), np.float32)
    out[:, :before] = 0
    out[:, kept:] = 0
    # Lossy decoders and resamplers overshoot.
    np.clip(rows, -1, 1, out=out[:, before:kept])
    return out
