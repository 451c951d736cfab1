"""Open a sound, whatever it is in, and read any of its frames."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.audio_container import ContainerSource
from penstock.transforms.audio_soundfile import SoundFileSource
from penstock.transforms.media import sniff
from penstock.transforms.media_file import MediaFile

_IN_CONTAINERS = ("mp4", "webm", "aac", "avi", "mpeg", "flv")
_PICTURES = ("jpeg", "png", "gif", "bmp", "tiff", "webp", "avif", "heif", "jp2", "pnm", "svg")
_SOUNDS = ("wav", "flac", "ogg", "mp3")
_NEVER = (*_PICTURES, "npy", "zip", "gzip", "pdf", "xml", "html", "json")
_MAX_SAMPLE_RATE = 1_000_000
_MAX_CHANNELS = 64


class AudioSource(Protocol):
    """An open sound.

    Attributes:
        sample_rate: frames a second.
        channels: values a frame.
        num_frames: how many there are by the header; None: it does not say.
    """

    sample_rate: int
    channels: int
    num_frames: int | None

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames [start, stop) to float32 [n, channels]; n is smaller only if `num_frames` is None."""

    def close(self) -> None:
        """Close it."""


def open_audio(value: Any) -> AudioSource:
    """Open a sound for reading parts of it.

    What the file is called plays no role. wav, flac, mp3, ogg, opus and aiff are read by libsndfile; m4a, aac and the
    sound of videos by FFmpeg, as is whatever libsndfile does not know.

    Args:
        value: a path on this machine, bytes, or a seekable binary file, such as one of `open_file`.

    Raises:
        ConfigError: the package that reads it is missing, or the value is none of these.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: no sound ("empty", "not-audio", "no-audio"), cut off ("truncated"), or one that no microphone made
            ("too-large").
    """
    media = MediaFile(value)
    try:
        source = _open(media)
    except BaseException:
        media.close()
        raise
    if source.sample_rate > _MAX_SAMPLE_RATE or source.channels > _MAX_CHANNELS:
        source.close()
        raise media.bad(
            "too-large",
            f"says it has {source.channels} channels at {source.sample_rate:,} Hz; at most {_MAX_CHANNELS} at "
            f"{_MAX_SAMPLE_RATE:,} Hz are read",
        )
    return source


def mean_of_channels(data: np.ndarray) -> np.ndarray:
    """Make a sound mono: float32 [frames, channels] → float32 [frames]. One channel is itself, not a copy."""
    if data.shape[1] == 1:
        return data[:, 0]
    mean = data[:, 0] + data[:, 1]
    for channel in range(2, data.shape[1]):
        mean += data[:, channel]
    mean *= np.float32(1 / data.shape[1])
    return mean


def _open(media: MediaFile) -> AudioSource:
    kind = sniff(media.head)
    if kind in _NEVER:
        raise media.bad("not-audio", f"is no sound: by its first bytes it is {kind}")
    if kind in _IN_CONTAINERS:
        return ContainerSource(media)
    try:
        return SoundFileSource(media)
    except BadMedia as error:
        if error.reason != "not-audio":
            raise
        media.file.seek(0)
        try:
            return ContainerSource(media)
        except (BadMedia, ConfigError):
            if kind in _SOUNDS:
                raise media.bad("corrupt", f"begins as {kind} and cannot be read: {error}") from None
            raise error from None
