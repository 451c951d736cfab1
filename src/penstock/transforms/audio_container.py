"""Sounds inside files with streams: m4a, aac, and the sound of a video."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from penstock.transforms.media_file import MediaFile
from penstock.transforms.video_container import Container, samples_of

_LEAD_IN_S = 0.1
"""What is decoded before the first frame asked for: a codec's windows overlap, the first after a seek is half."""

_TAIL_S = 0.1
"""How much less than the header says there may be: a header rounds, and an encoder pads."""


class ContainerSource:
    """The first audio stream of a file, counted in its own frames from its beginning.

    Args:
        media: the file; closed with this.

    Raises:
        ConfigError: the av package is missing.
        BadMedia: nothing that can be read ("unreadable"), or without sound ("no-audio").

    Attributes:
        sample_rate: frames a second.
        channels: values a frame.
        num_frames: how many there are by the header; None: it does not say.
        start_s: when the first one sounds, on the clock that the file's streams share.
    """

    def __init__(self, media: MediaFile) -> None:
        self._container = Container(media)
        if not self._container.streams.audio:
            self.close()
            raise media.bad("no-audio", "has no audio stream")
        stream: Any = self._container.streams.audio[0]
        self._stream = stream
        if stream.codec_context is None:
            self.close()
            raise media.bad("unreadable", "has sound in a format that is not known here")
        self.sample_rate: int = stream.codec_context.sample_rate
        self.channels: int = stream.codec_context.layout.nb_channels
        if not self.sample_rate or not self.channels:
            self.close()
            raise media.bad("corrupt", "has an audio stream without a sample rate")
        self._tick = stream.time_base
        self._first_pts = stream.start_time or 0
        self.start_s = float(self._first_pts * self._tick)
        # Coarser time stamps, such as Matroska's milliseconds, would put frames where they are not.
        self._stamped = self._container.can_seek and self._tick * self.sample_rate <= 1
        known = self._stamped and stream.duration is not None
        self.num_frames = round(stream.duration * self._tick * self.sample_rate) if known else None
        self._used = False

    def read(self, start: int, stop: int) -> np.ndarray:
        """Decode frames [start, stop), as far as there are any where the file does not say how many it has.

        Returns:
            float32 [n, channels]; n is stop - start if `num_frames` is known.

        Raises:
            BadMedia: there are fewer than the header says ("truncated"), or they can't be decoded ("corrupt").
        """
        parts: list[np.ndarray] = []
        at = start
        for first, values in self._from(start):
            cut = values[max(0, at - first) : max(0, stop - first)]
            if len(cut):
                # A gap between time stamps is silence.
                gap = max(0, first - at)
                parts += [np.zeros((gap, self.channels), np.float32), cut] if gap else [cut]
                at += gap + len(cut)
            if at >= stop or first >= stop:
                break
        if self.num_frames is not None and at < stop:
            if stop - at > _TAIL_S * self.sample_rate:
                raise self._container.bad(
                    "truncated", f"ends after {at:,} frames, its header says {self.num_frames:,}: it was cut off"
                )
            parts.append(np.zeros((stop - at, self.channels), np.float32))
        return np.concatenate(parts) if parts else np.zeros((0, self.channels), np.float32)

    def _from(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        """Decode from a little before a frame on: the number of each piece's first frame, and the piece."""
        lead_in = math.ceil(_LEAD_IN_S * self.sample_rate)
        if self._used or (self._stamped and start > lead_in):
            where = max(0, start - lead_in) if self._stamped else 0
            self._container.seek(self._stream, self._first_pts + int(where / self.sample_rate / self._tick))
        self._used = True
        count = 0
        for frame in self._container.frames(self._stream):
            if frame.sample_rate != self.sample_rate or frame.layout.nb_channels != self.channels:
                raise self._container.bad("corrupt", "changes its sample rate or its channels on the way")
            values = samples_of(frame)
            stamped = self._stamped and frame.pts is not None
            first = round((frame.pts - self._first_pts) * frame.time_base * self.sample_rate) if stamped else count
            yield first, values
            count = first + len(values)

    def close(self) -> None:
        """Close the decoder and the file."""
        self._container.close()
