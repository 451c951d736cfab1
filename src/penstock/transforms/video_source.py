"""An open video: its frames from any moment on, the very ones that decoding from the beginning gives."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np

from penstock.transforms.media_file import MediaFile
from penstock.transforms.video_container import Container

_STEP_BACK_S = 2


class Scan(NamedTuple):
    """What a video holds."""

    num_frames: int
    """How many frames."""
    stamps: np.ndarray | None
    """int64 [num_frames], ascending: when each is shown; None: the file does not say, or cannot be trusted to."""


class VideoSource:
    """The first video stream of a file.

    Args:
        value: a path on this machine, bytes, or a seekable binary file.
        max_pixels: most pixels of a frame.
        max_frames: most frames that are decoded.
        threads: that decode it.

    Raises:
        ConfigError: the av package is missing, or the value is none of these.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: "empty", "unreadable", "no-video", "too-large".

    Attributes:
        tick: seconds of one unit of time stamps.
        origin: the time stamp of the beginning.
        duration_s: how long it is by its header; None: it does not say.
        fps: frames a second, on average; None: it does not say.
        start_s: the beginning on the clock that the file's streams share.
        end: the time stamp at which the frame that was decoded last is no longer shown.
    """

    def __init__(self, value: Any, *, max_pixels: int, max_frames: int, threads: int = 1) -> None:
        media = MediaFile(value)
        try:
            self.container = Container(media)
        except BaseException:
            media.close()
            raise
        self._max_pixels, self._max_frames = max_pixels, max_frames
        self._num_decoded = 0
        if not self.container.streams.video:
            self.close()
            raise media.bad("no-video", "has no video stream")
        stream: Any = self.container.streams.video[0]
        self._stream = stream
        codec = stream.codec_context
        if codec is None:
            self.close()
            raise media.bad("unreadable", "has video in a format that is not known here")
        codec.thread_count = threads
        self.tick: Fraction = stream.time_base
        self.origin: int = stream.start_time or 0
        self.start_s = float(self.origin * self.tick)
        self.fps = float(stream.average_rate) if stream.average_rate else None
        self.duration_s = None if stream.duration is None else float(stream.duration * self.tick)
        self._usual = max(1, round(1 / self.fps / float(self.tick))) if self.fps else 1
        self.end = self.origin
        self._fresh = True
        try:
            self._check_pixels(codec.width, codec.height)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the decoders and the file."""
        self.container.close()

    def scan(self) -> Scan:
        """Count the frames, and find out when each is shown, reading the file but decoding nothing.

        Raises:
            BadMedia: there are fewer than the header says ("truncated"), or none ("empty").
        """
        self._rewind()
        # Only what is needed of a packet: it holds its bytes.
        packets = [(packet.pts, packet.is_discard) for packet in self.container.packets(self._stream) if packet.size]
        self._fresh = False
        if self.container.can_seek and len(packets) < self._stream.frames:
            raise self.container.bad(
                "truncated", f"has {len(packets):,} frames, its header says {self._stream.frames:,}: it was cut off"
            )
        stamps = [pts for pts, is_discard in packets if not is_discard]
        if not stamps:
            raise self.container.bad("empty", "has a video stream without frames")
        trusted = self.container.can_seek and None not in stamps
        return Scan(len(stamps), np.sort(np.array(stamps, np.int64)) if trusted else None)

    def length_s(self) -> float:
        """Say how long the video is; where its header does not, by reading the file."""
        if self.duration_s is not None:
            return self.duration_s
        scan = self.scan()
        frame_s = 1 / self.fps if self.fps else 0.0
        return scan.num_frames * frame_s if scan.stamps is None else self.seconds(int(scan.stamps[-1])) + frame_s

    def frames(self, pts: int | None = None) -> Iterator[Any]:
        """Decode from the frame that is shown at a time stamp, or from the beginning.

        Frames of before may come first. Seeks go to a key frame; frames that depend on what lies before it, which a
        video with open groups of pictures has, are left out.

        Raises:
            BadMedia: a frame is damaged ("corrupt"), too large or one too many ("too-large").
        """
        step = round(_STEP_BACK_S / self.tick)
        where = self.origin if pts is None or not self.container.can_seek else pts
        while where > self.origin:
            frames = self._after_seek(where)
            first = next(frames, None)
            if first is not None and first.pts <= (pts or 0):
                yield first
                yield from frames
                return
            where, step = where - step, 2 * step
        self._rewind()
        yield from self._decoded()

    def _rewind(self) -> None:
        if not self._fresh:
            self.container.seek(self._stream, self.origin)

    def _after_seek(self, pts: int) -> Iterator[Any]:
        """Decode from a seek on, beginning with a key frame."""
        self.container.seek(self._stream, pts)
        first: int | None = None
        for frame in self._decoded(intact=False):
            if first is None and frame.key_frame:
                first = frame.pts
            if first is not None and frame.pts >= first:
                self._check_intact(frame)
                yield frame

    def _decoded(self, *, intact: bool = True) -> Iterator[Any]:
        self._fresh = False
        for frame in self.container.frames(self._stream):
            self._num_decoded += 1
            if self._num_decoded > self._max_frames:
                raise self.container.bad(
                    "too-large", f"needs more than max_frames={self._max_frames:,} of its frames to be decoded"
                )
            self._check_pixels(frame.width, frame.height)
            if frame.pts is None:
                frame.pts = self.end
            self.end = frame.pts + (frame.duration or self._usual)
            if intact:
                self._check_intact(frame)
            yield frame

    def _check_intact(self, frame: Any) -> None:
        if frame.is_corrupt:
            raise self.container.bad("corrupt", f"has a damaged frame at {self.seconds(frame.pts):.3f} s")

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise self.container.bad(
                "too-large", f"has frames of {width:,}×{height:,} pixels, max_pixels={self._max_pixels:,} are allowed"
            )

    def seconds(self, pts: int) -> float:
        """Say a time stamp in seconds from the beginning."""
        return float((pts - self.origin) * self.tick)
