"""Which frames of a video a clip shows: arithmetic over time stamps, in ticks of the video's own clock."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from penstock.transforms.audio_crop import drawing

_ROUNDING_S = 0.0005
"""A frame that begins this little after a moment is shown at it: moments are decimal, ticks are not."""


def sampled(start_s: float, frames: int, fps: float, tick: Fraction) -> np.ndarray:
    """Give the moments of a clip of so many frames a second.

    Returns:
        float64 [frames], in ticks: at each the frame is shown that began last at or before it.

    >>> sampled(0.5, 3, 2, Fraction(1, 100)).round().tolist()
    [50.0, 100.0, 150.0]
    """
    return (start_s + np.arange(frames) / fps + _ROUNDING_S) / float(tick)


def begin(crop: str, room: float, rng: np.random.Generator | None) -> float:
    """Choose where a clip begins, in [0, room]."""
    if crop == "start" or room <= 0:
        return 0.0
    if crop == "center":
        return room / 2
    return float(drawing(rng, crop).uniform(0, room))


def begin_frame(crop: str, room: int, rng: np.random.Generator | None) -> int:
    """Choose the frame with which a clip begins, of 0 … room."""
    if crop == "start" or room <= 0:
        return 0
    if crop == "center":
        return room // 2
    return int(drawing(rng, crop).integers(room + 1))
