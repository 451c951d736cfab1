"""A clip of a video and the sound that belongs to it, from the same file or from one beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.audio import DecodeAudio, nothing_of
from penstock.transforms.audio_clip import Clip as Sound
from penstock.transforms.audio_clip import read_clip as read_sound
from penstock.transforms.audio_container import ContainerSource
from penstock.transforms.audio_source import AudioSource, open_audio
from penstock.transforms.clips import with_clip
from penstock.transforms.media import describe, take_field
from penstock.transforms.media_file import MediaFile
from penstock.transforms.media_options import seconds_of
from penstock.transforms.video import DecodeVideo
from penstock.transforms.video_clip import Clip, read_clip
from penstock.types import check_choice

_SILENT_CHANNELS = 2


@dataclass(frozen=True, slots=True)
class DecodeVideoAudio:
    """Decode a clip of a video and the sound of just that time.

    The sound begins with the clip, to the sample, on the clock that the streams of a file share; a sound in a file of
    its own begins with the video. Where there is none, before its beginning or after its end, it is silence. A sample
    gets all fields of both transforms.

    Args:
        video: what of the video. It chooses where the clip lies.
        audio: what of the sound. Its `field` is that of the video, for the sound in the same file, or another one's,
            such as that of a .wav; `seconds` None is the length of the clip.
        missing: a video without sound, a None in the field of the sound, or a sound that ends before the clip begins:
            "silence" (zeros; for want of a sound 2 channels unless `mono`), "none" (None in all fields of the sound),
            or "error".

    Raises:
        ConfigError: the two do not go together; from a call: a package is missing, or `rng` is.
        ObjectMissing, StoreError: from a call: there is no such file, or it can't be read.
        BadMedia: from a call: as of the two transforms; "no-audio" and "too-short" with missing="error".

    >>> both = DecodeVideoAudio(DecodeVideo("mp4", fps=8), DecodeAudio("mp4", "sound", sample_rate=16_000))
    """

    video: DecodeVideo
    audio: DecodeAudio
    missing: str = "silence"

    def __post_init__(self) -> None:
        check_choice("missing", self.missing, ("silence", "none", "error"))
        if (self.audio.out or self.audio.field) == (self.video.out or self.video.field):
            raise ConfigError("video and sound would go into the same field: give audio another out=")
        if self.audio.crop != "start" or self.audio.offset != 0:
            raise ConfigError("the clip of the video says where its sound begins: leave out audio's crop= and offset=")
        if self.video.fps is None and self.audio.seconds is None and self.audio.frames is None:
            raise ConfigError("without fps= clips last differently long: give the video fps=, or audio seconds=")
        if self.missing == "silence" and self.audio.sample_rate is None:
            raise ConfigError('missing="silence" needs a sample_rate= of the sound')

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Decode video and sound of a sample."""
        value = take_field(sample, self.video.field, required=self.video.required)
        audio_value = take_field(sample, self.audio.field, required=self.audio.required)
        clip, sound = None, None
        if value is not None:
            clip, start_s = self._read_video(value, seconds_of(sample, self.video.offset), rng)
            sound = self._read_sound(audio_value, clip, start_s)
        seen = with_clip(sample, self.video.out or self.video.field, Clip._fields, clip)
        return with_clip(seen, self.audio.out or self.audio.field, Sound._fields, sound)

    def _read_video(self, value: Any, offset: float, rng: np.random.Generator | None) -> tuple[Clip, float]:
        """Give the clip, and when it begins on the file's clock."""
        source = self.video.open(value)
        try:
            clip = read_clip(source, self.video, offset, rng)
            return clip, source.start_s + clip.start
        finally:
            source.close()

    def _read_sound(self, value: Any, clip: Clip, start_s: float) -> Sound | None:
        options = self.audio
        if options.seconds is None and options.frames is None:
            options = replace(options, seconds=len(clip.data) / clip.fps)
        try:
            source, start_s = self._open_sound(value, clip, start_s)
        except BadMedia as error:
            if error.reason != "no-audio" or self.missing == "error":
                raise
            return _silence(options) if self.missing == "silence" else None
        try:
            sound = read_sound(source, options, describe(value), start_s)
        finally:
            source.close()
        if not sound.frames and self.missing == "error":
            raise nothing_of(value, start_s)
        return None if not sound.frames and self.missing == "none" else sound

    def _open_sound(self, value: Any, clip: Clip, start_s: float) -> tuple[AudioSource, float]:
        """Open the sound; say where in it the clip begins."""
        if value is None:
            raise BadMedia(f"the sample has no sound in its field {self.audio.field!r}", path="", reason="no-audio")
        if self.audio.field != self.video.field:
            return open_audio(value), clip.start
        media = MediaFile(value)
        try:
            source = ContainerSource(media)
        except BaseException:
            media.close()
            raise
        return source, start_s - source.start_s


def _silence(options: DecodeAudio) -> Sound:
    assert options.sample_rate is not None
    frames = options.frames or max(1, round((options.seconds or 0) * options.sample_rate))
    data = np.zeros((1 if options.mono else _SILENT_CHANNELS, frames), np.float32)
    return Sound(data, options.sample_rate, 0, 0)
