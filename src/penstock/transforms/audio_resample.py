"""Sounds at another sample rate, through soxr."""

from __future__ import annotations

import math

import numpy as np

from penstock.transforms.media import missing_extra

_REACH = 512
"""Frames of the slower rate on either side that a resampled frame depends on, with room to spare."""


def resample(data: np.ndarray, rate: int, new_rate: int, *, quality: str = "HQ") -> np.ndarray:
    """Resample a sound.

    Args:
        data: float32 [frames] or [frames, channels].
        rate: its frames a second.
        new_rate: those wanted.
        quality: soxr's: "QQ", "LQ", "MQ", "HQ" or "VHQ".

    Returns:
        float32 [`num_resampled`(frames, rate, new_rate), …]; the data itself if the rates are equal.

    Raises:
        ConfigError: the soxr package is missing.
    """
    if rate == new_rate:
        return data
    try:
        import soxr
    except ImportError as error:
        raise missing_extra("audio", "soxr", "resampling") from error
    return soxr.resample(np.ascontiguousarray(data), rate, new_rate, quality=quality)


def num_resampled(frames: int, rate: int, new_rate: int) -> int:
    """How many frames `resample` makes of so many.

    >>> num_resampled(44_102, 44_100, 16_000)
    16001
    """
    return (2 * frames * new_rate + rate) // (2 * rate)


def span(start: int, stop: int, rate: int, new_rate: int) -> tuple[int, int, int]:
    """Say which frames must be resampled to get frames [start, stop) as if all had been.

    Returns:
        (first, last, skip): resample frames [first, last), of which there may be fewer, and leave out the first
        `skip` frames of the result.

    >>> span(16_000, 32_000, 44_100, 16_000)
    (42336, 89736, 640)
    """
    if rate == new_rate:
        return start, stop, 0
    # Both clocks meet only every so many frames: from there a part is resampled like the whole.
    step = rate // math.gcd(rate, new_rate)
    reach = _REACH * max(1, -(-rate // new_rate))
    first = max(0, start * rate // new_rate - reach) // step * step
    last = -(-stop * rate // new_rate) + reach
    return first, last, start - first * new_rate // rate
