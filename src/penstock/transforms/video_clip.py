"""A clip of an open video → one array. Only its frames are converted, each once and into its place."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from penstock.errors import BadMedia
from penstock.transforms.video_frame import FrameWriter
from penstock.transforms.video_source import VideoSource
from penstock.transforms.video_times import begin, begin_frame, sampled

if TYPE_CHECKING:
    from penstock.transforms.video import DecodeVideo

_MAX_BYTES = 4 << 30
_TAIL_S = 0.25
"""How much earlier than its header says a video may end: headers round, and the last frame's length is a guess."""


class Clip(NamedTuple):
    """A clip of a video."""

    data: np.ndarray
    """uint8 [T, H, W, 3]."""
    times: np.ndarray
    """float64 [T]: when each frame begins, in seconds from the beginning of the video."""
    start: float
    """Where the clip begins, in seconds."""
    fps: float
    """Frames a second: those asked for, or the video's average; 0: the video does not say."""
    frames: int
    """How many frames are of the video; the rest repeats the last one."""


class _Shown(NamedTuple):
    """One frame of a video that a clip shows, and at which of its places."""

    frame: Any
    first: int
    stop: int


def read_clip(
    video: VideoSource, wanted: DecodeVideo, offset: float = 0.0, rng: np.random.Generator | None = None
) -> Clip:
    """Read the clip of a video that is wanted.

    Args:
        video: the open video.
        wanted: the transform's options, as they are.
        offset: where the clip "start" begins, in seconds.
        rng: what random clips draw from.

    Raises:
        ConfigError: the crop draws, and there is no rng.
        BadMedia: see `DecodeVideo`.
    """
    count, start, shown = _sampled(video, wanted, offset, rng) if wanted.fps else _native(video, wanted, offset, rng)
    if count > wanted.max_frames:
        raise _too_large(video, f"{count:,} frames, max_frames={wanted.max_frames:,}")
    data, pts, filled = _fill(video, wanted, count, shown)
    if filled < count or wanted.frames is None:
        _check_complete(video)
    if not filled or (filled < count and wanted.frames is not None and wanted.short == "error"):
        raise video.container.bad("too-short", f"has {filled:,} of the {count:,} frames that are wanted of it")
    if wanted.frames is None or wanted.short == "keep":
        data, pts = data[:filled], pts[:filled]
    data[filled:], pts[filled:] = data[filled - 1], pts[filled - 1]
    times = (pts - video.origin) * float(video.tick)
    return Clip(data, times, float(times[0]) if start is None else start, float(wanted.fps or video.fps or 0.0), filled)


def _sampled(
    video: VideoSource, wanted: DecodeVideo, offset: float, rng: np.random.Generator | None
) -> tuple[int, float | None, Iterator[_Shown]]:
    """Choose a clip of so many frames a second."""
    assert wanted.fps
    count, start = wanted.frames, offset
    if count is None:
        count = max(1, int((video.length_s() - offset) * wanted.fps + 1e-6))
    elif wanted.crop != "start":
        start = begin(wanted.crop, video.length_s() - count / wanted.fps, rng)
    if count / wanted.fps > wanted.max_seconds:
        raise _too_large(video, f"{count / wanted.fps:,.1f} s, max_seconds={wanted.max_seconds:g}")
    # Before the moments are written down.
    moments = sampled(start, min(count, wanted.max_frames + 1), wanted.fps, video.tick)
    return count, start, _at_moments(video, moments + video.origin)


def _native(
    video: VideoSource, wanted: DecodeVideo, offset: float, rng: np.random.Generator | None
) -> tuple[int, float | None, Iterator[_Shown]]:
    """Choose a clip of frames as the video has them."""
    if wanted.frames is None and (video.duration_s or 0) - offset > wanted.max_seconds:
        raise _too_large(video, f"{video.duration_s:,.1f} s, max_seconds={wanted.max_seconds:g}")
    moment = sampled(offset, 1, 1, video.tick)[0] + video.origin if offset else None
    if wanted.frames is not None and wanted.crop == "start":
        return wanted.frames, None, _in_turn(video, moment, 0, wanted.frames)
    scan = video.scan()
    if wanted.frames is None:
        return scan.num_frames, None, _in_turn(video, moment, 0, scan.num_frames)
    first = begin_frame(wanted.crop, scan.num_frames - wanted.frames, rng)
    if scan.stamps is None:
        return wanted.frames, None, _in_turn(video, None, first, wanted.frames)
    return wanted.frames, None, _in_turn(video, float(scan.stamps[first]), 0, wanted.frames)


def _at_moments(video: VideoSource, moments: np.ndarray) -> Iterator[_Shown]:
    """Give the frame that is shown at each moment: the last that began by then, or the first of all."""
    place, last = 0, None
    for frame in video.frames(int(moments[0])):
        if last is not None:
            stop = int(np.searchsorted(moments, frame.pts))
            if stop > place:
                yield _Shown(last, place, stop)
                place = stop
        if place == len(moments):
            return
        last = frame
    stop = int(np.searchsorted(moments, video.end))
    if last is not None and stop > place:
        yield _Shown(last, place, stop)


def _in_turn(video: VideoSource, moment: float | None, skipped: int, count: int) -> Iterator[_Shown]:
    """Give frames one after the other, from the one that is shown at a moment, or from the beginning."""
    frames = video.frames() if moment is None else _from_moment(video, moment)
    for number, frame in enumerate(islice(frames, skipped, skipped + count)):
        yield _Shown(frame, number, number + 1)


def _from_moment(video: VideoSource, moment: float) -> Iterator[Any]:
    last, begun = None, False
    for frame in video.frames(int(moment)):
        if not begun and frame.pts > moment:
            begun = True
            if last is not None:
                yield last
        if begun:
            yield frame
        last = frame
    if last is not None and not begun and moment < video.end:
        yield last


def _fill(
    video: VideoSource, wanted: DecodeVideo, count: int, shown: Iterator[_Shown]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Write frames into one array: it, int64 [count] their time stamps, and how many places are filled."""
    data, pts, filled = np.empty((0, 0, 0, 3), np.uint8), np.zeros(count, np.int64), 0
    writer: FrameWriter | None = None
    for frame, first, stop in shown:
        if writer is None:
            writer = FrameWriter(video.container.scaler(), frame, wanted.size, wanted.fit, wanted.method)
            shape = (count, writer.height, writer.width, 3)
            if math.prod(shape) > _MAX_BYTES:
                raise _too_large(video, f"{math.prod(shape):,} bytes, {_MAX_BYTES:,}")
            data = np.empty(shape, np.uint8)
        writer.write(frame, data[first])
        data[first + 1 : stop] = data[first]
        pts[first:stop] = frame.pts
        filled = stop
    return data, pts, filled


def _check_complete(video: VideoSource) -> None:
    """Refuse a video that ends before its header says."""
    end_s = video.seconds(video.end)
    if video.duration_s is not None and end_s < video.duration_s - _TAIL_S:
        raise video.container.bad(
            "truncated", f"ends after {end_s:.3f} s, its header says {video.duration_s:.3f} s: it was cut off"
        )


def _too_large(video: VideoSource, what: str) -> BadMedia:
    return video.container.bad("too-large", f"would be a clip of {what} are allowed: read less of it, or smaller")
