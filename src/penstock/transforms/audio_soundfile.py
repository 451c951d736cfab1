"""Sounds read through libsndfile: wav, flac, mp3, ogg, opus, aiff and its other formats."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

from penstock.transforms.media import missing_extra
from penstock.transforms.media_file import MediaFile

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
_MOST_CHUNKS = 1000
_BLOCK = 1 << 16


class SoundFileSource:
    """An open sound. Seeks land on the exact frame; where the library's would not, it decodes from the start.

    Args:
        media: the file; closed with this.

    Raises:
        ConfigError: the soundfile package is missing.
        BadMedia: the library does not know the format ("not-audio"), or a wav is cut off ("truncated").

    Attributes:
        sample_rate: frames a second.
        channels: values a frame.
        num_frames: how many frames the file has, by its header.
    """

    def __init__(self, media: MediaFile) -> None:
        try:
            import soundfile
        except ImportError as error:
            raise missing_extra("audio", "soundfile", "reading sound") from error
        self._media = media
        self._failure: type[Exception] = soundfile.LibsndfileError
        _check_wav(media)
        try:
            self._sound: Any = soundfile.SoundFile(media.handle(), closefd=False)
        except soundfile.LibsndfileError as error:
            raise media.bad("not-audio", f"cannot be read as sound: {error.error_string}") from error
        self.sample_rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.num_frames: int | None = self._sound.frames
        # libsndfile's seek into the last page of a Vorbis stream lands beside the frame asked for.
        self._can_seek = self._sound.subtype != "VORBIS"
        self._at = 0

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames [start, stop).

        Returns:
            float32 [stop - start, channels].

        Raises:
            BadMedia: there are fewer ("truncated"), or they can't be decoded ("corrupt").
        """
        try:
            self._go_to(start)
            data: np.ndarray = self._sound.read(stop - start, dtype="float32", always_2d=True)
        except self._failure as error:
            raise self._media.bad("corrupt", f"cannot be decoded in [{start:,}, {stop:,}): {error}") from error
        self._at = start + len(data)
        if len(data) < stop - start:
            raise self._media.bad(
                "truncated", f"ends after {self._at:,} frames, its header says {self.num_frames:,}: it was cut off"
            )
        return data

    def _go_to(self, start: int) -> None:
        if start == self._at:
            return
        if self._can_seek:
            self._sound.seek(start)
            self._at = start
            return
        if start < self._at:
            self._sound.seek(0)
            self._at = 0
        while self._at < start:
            skipped = len(self._sound.read(min(_BLOCK, start - self._at), dtype="float32"))
            if not skipped:
                raise self._media.bad("truncated", f"ends after {self._at:,} frames: it was cut off")
            self._at += skipped

    def close(self) -> None:
        """Close the decoder and the file."""
        self._sound.close()
        self._media.close()


def _check_wav(media: MediaFile) -> None:
    """Refuse a wav whose samples are cut off: libsndfile would take what is there for all there was."""
    if media.head[:4] != b"RIFF" or media.head[8:12] != b"WAVE":
        return
    at = 12
    for _ in range(_MOST_CHUNKS):
        media.file.seek(at)
        header = media.file.read(8)
        if len(header) < 8:
            media.file.seek(0)
            raise media.bad("truncated", "is a wav without samples: it was cut off")
        name, size = struct.unpack("<4sI", header)
        if name == b"data":
            break
        at += 8 + size + size % 2
    else:
        raise media.bad("corrupt", f"is a wav with {_MOST_CHUNKS:,} chunks and no samples among them")
    media.file.seek(0)
    # A writer that could not go back, into a pipe say, leaves these: the samples go on to the end of the file.
    if size not in _UNKNOWN_SIZES and at + 8 + size > media.num_bytes:
        raise media.bad(
            "truncated",
            f"holds {media.num_bytes - at - 8:,} bytes of samples, its header says {size:,}: it was cut off",
        )
