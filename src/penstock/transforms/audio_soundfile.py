"""Sounds read through libsndfile: wav, flac, mp3, ogg, opus, aiff and its other formats."""

from __future__ import annotations

import os
import struct
from typing import Any

import numpy as np

from penstock.transforms.media import missing_extra, unreadable
from penstock.transforms.media_file import MediaFile
from penstock.transforms.mp3_frames import Mp3Frames, find_frames, tells_length

_UNKNOWN_SIZES = (0, 0xFFFFFFFF)
_MOST_CHUNKS = 1000

_LEAD_IN = {"MPEG_LAYER_III": 5760, "VORBIS": 8192, "OPUS": 24_000}
"""Frames that are decoded before the first one asked for. A frame of these codecs needs those before it: an mp3's lies
partly in the bytes of the ones before, an Opus decoder needs a while to hear what it would have heard. (Half a second
of it, at 48 kHz.) Decoded from here, sound is what it is in the whole: to the bit for Vorbis, within 1e-6 of full
scale for mp3, within 1e-3 for Opus."""

_TAIL_BYTES = 1 << 17
"""Where an Ogg file's last two pages begin: a page has at most 65,307 bytes."""
_PAGE = struct.Struct("<4sBBqI")


class SoundFileSource:
    """An open sound. Any frames of it are those of the whole; reading them costs them, and what their codec needs.

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
        samples_at = _check_wav(media)
        last_seek = _last_seek(media)
        is_told = tells_length(media.file)
        self._soundfile = soundfile
        self._sound: Any = self._opened()
        self.sample_rate: int = self._sound.samplerate
        self.channels: int = self._sound.channels
        self.num_frames: int | None = self._sound.frames
        self._subtype: str = self._sound.subtype
        # What is numbers one after the other needs no decoder.
        self._plain = _plain_numbers(media.handle(), samples_at) if self._subtype == "PCM_16" else None
        self._lead_in = _LEAD_IN.get(self._subtype, 0)
        self._most = last_seek if self._subtype == "VORBIS" else self._sound.frames
        self._at = 0
        self._frames: Mp3Frames | None = None
        self._is_walked = False
        # What guesses how long an mp3 is reads no further than that.
        self._is_alone = not is_told and self._mp3_frames() is not None
        if self._is_alone and self._frames is not None:
            self.num_frames = self._frames.num_frames

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames [start, stop).

        Returns:
            float32 [stop - start, channels].

        Raises:
            BadMedia: there are fewer ("truncated"), or they can't be decoded ("corrupt").
        """
        if self._plain is not None:
            data = self._copied(*self._plain, start, stop)
        elif self._is_alone or (start and self._mp3_frames() is not None):
            data = self._decoded_alone(start, stop)
        else:
            data = self._decoded(start, stop)
        if start + len(data) < stop:
            end = start + len(data)
            raise self._media.bad(
                "truncated", f"ends after {end:,} frames, its header says {self.num_frames:,}: it was cut off"
            )
        return data

    def _decoded(self, start: int, stop: int) -> np.ndarray:
        begin = start
        try:
            self._forget()
            if start != self._at:
                begin = max(0, min(start, self._most) - self._lead_in)
                self._sound.seek(begin)
            # One call for both: the library would go back and forth between two.
            data: np.ndarray = self._sound.read(stop - begin, dtype="float32", always_2d=True)
        except self._failure as error:
            self._at = -1
            raise self._media.bad("corrupt", f"cannot be decoded in [{start:,}, {stop:,}): {error}") from error
        self._at = begin + len(data)
        return data[start - begin :]

    def _mp3_frames(self) -> Mp3Frames | None:
        """Find the frames of an mp3, once; None if it is none, or must be sought in."""
        if self._subtype == "MPEG_LAYER_III" and not self._is_walked:
            self._is_walked = True
            self._at = -1
            self._media.file.seek(0)
            self._frames = find_frames(self._media.file.read(), self._sound.frames)
        return self._frames

    def _decoded_alone(self, start: int, stop: int) -> np.ndarray:
        """Decode a part of an mp3 as a file of its own, which depends on nothing that was read before."""
        assert self._frames is not None
        # Behind the sound comes what the encoder filled the last frame with.
        stop = max(start, min(stop, self._frames.num_frames))
        first, last, skip = self._frames.part(start, stop)
        begin, end = self._frames.offsets[[first, last]].tolist()
        self._at = -1
        try:
            self._media.file.seek(begin)
            part = MediaFile(self._frames.head(last - first) + self._media.file.read(end - begin))
        except OSError as error:
            raise unreadable(self._media.name, error) from error
        try:
            with self._soundfile.SoundFile(part.handle(), closefd=False) as sound:
                return sound.read(dtype="float32", always_2d=True)[skip : skip + stop - start]
        except self._failure as error:
            raise self._media.bad("corrupt", f"cannot be decoded in [{start:,}, {stop:,}): {error}") from error
        finally:
            part.close()

    def _copied(self, descriptor: int, samples_at: int, start: int, stop: int) -> np.ndarray:
        """Read frames of 16-bit numbers as the library does, a third of the time."""
        width = 2 * self.channels
        count = max(0, min(stop, self._sound.frames) - start)
        try:
            content = os.pread(descriptor, count * width, samples_at + start * width)
        except OSError as error:
            raise unreadable(self._media.name, error) from error
        numbers = np.frombuffer(content, "<i2", len(content) // width * self.channels)
        return np.multiply(numbers, np.float32(1 / 32768), dtype=np.float32).reshape(-1, self.channels)

    def _forget(self) -> None:
        """Make what is read next independent of what was read before, to the last bit."""
        if self._subtype == "MPEG_LAYER_III" and self._at != 0:
            # The decoder's filter goes on where it was, whatever the seek: sums come in another order.
            self._sound.close()
            self._media.file.seek(0)
            self._sound = self._opened()
            self._at = 0
        elif self._subtype == "OPUS" and self._at != 0:
            # What follows on what was read just now would be decoded with a longer past than what is sought.
            self._at = -1

    def _opened(self) -> Any:
        try:
            return self._soundfile.SoundFile(self._media.handle(), closefd=False)
        except self._failure as error:
            reason = str(getattr(error, "error_string", error))
            raise self._media.bad("not-audio", f"cannot be read as sound: {reason}") from error

    def close(self) -> None:
        """Close the decoder and the file."""
        self._sound.close()
        self._media.close()


def _plain_numbers(handle: Any, samples_at: int | None) -> tuple[int, int] | None:
    """Give the descriptor of a wav and where in it the samples begin, if it can be read that way."""
    if samples_at is None or not isinstance(handle, int) or not hasattr(os, "pread"):
        return None
    return handle, samples_at


def _check_wav(media: MediaFile) -> int | None:
    """Refuse a wav whose samples are cut off: libsndfile would take what is there for all there was.

    Returns:
        Where the samples begin; None if it is no wav.
    """
    if media.head[:4] != b"RIFF" or media.head[8:12] != b"WAVE":
        return None
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
    return at + 8


def _last_seek(media: MediaFile) -> int:
    """Give the last frame of an Ogg file that libsndfile's seek finds: in the last page it lands beside it."""
    if media.head[:4] != b"OggS":
        return 0
    media.file.seek(max(0, media.num_bytes - _TAIL_BYTES))
    tail = media.file.read(_TAIL_BYTES)
    media.file.seek(0)
    ends: list[int] = []
    at = len(tail)
    while len(ends) < 2 and (at := tail.rfind(b"OggS", 0, at)) >= 0:
        if at + _PAGE.size <= len(tail):
            *_, end, _serial = _PAGE.unpack_from(tail, at)
            ends.append(end)
    # The frame at which the page before the last one ends.
    return max(0, ends[1]) if len(ends) == 2 else 0
