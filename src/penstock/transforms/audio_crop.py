"""Where a crop of a sound begins. All positions are frames; none needs more than one pass over the sound."""

from __future__ import annotations

import numpy as np

from penstock.errors import ConfigError

BY_LENGTH = ("start", "random")
"""Crops for which the length of a sound is enough."""

BY_LOUDNESS = ("random_loud", "max_mean", "max_center")
"""Crops for which the whole of it must be heard."""

RANDOM = ("random", "random_loud")
"""Crops that draw."""

LOUD = 0.5
"""A crop of "random_loud" is at least this loud, relative to the loudest."""


def by_length(crop: str, total: int, frames: int, rng: np.random.Generator | None) -> int:
    """Choose where a crop of so many frames begins: at 0, or anywhere with equal probability."""
    room = total - frames
    if crop == "start" or room <= 0:
        return 0
    return int(drawing(rng, crop).integers(room + 1))


def by_loudness(crop: str, data: np.ndarray, frames: int, rng: np.random.Generator | None) -> int:
    """Choose where a crop begins by how loud the sound is: the mean of its absolute values.

    Args:
        crop: "max_mean": the loudest crop there is, the first of several. "max_center": the loudest frame is in its
            middle, or as near to it as the ends of the sound allow. "random_loud": any crop at least half as loud as
            the loudest, with equal probability.
        data: [total] or [total, channels].
        frames: length of the crop.
        rng: needed by "random_loud".

    Cost: three passes; 16 bytes a frame.

    >>> by_loudness("max_mean", np.array([0, 0.1, -0.5, 0.4, 0]), 2, None)
    2
    """
    loudness = np.abs(data) if data.ndim == 1 else np.abs(data).mean(axis=1)
    room = len(loudness) - frames
    if room <= 0:
        return 0
    if crop == "max_center":
        return min(max(0, int(loudness.argmax()) - frames // 2), room)
    sums = np.empty(len(loudness) + 1)
    sums[0] = 0
    np.cumsum(loudness, dtype=np.float64, out=sums[1:])
    sums[:-frames] = sums[frames:] - sums[:-frames]
    sums = sums[:-frames]  # [room + 1]
    if crop == "max_mean":
        return int(sums.argmax())
    loud = np.flatnonzero(sums >= LOUD * sums.max())
    return int(loud[drawing(rng, crop).integers(len(loud))])


def drawing(rng: np.random.Generator | None, crop: str) -> np.random.Generator:
    """Give the generator, which there must be.

    Raises:
        ConfigError: there is none.
    """
    if rng is None:
        raise ConfigError(
            f"crop={crop!r} draws, so it needs rng=: datasets and loaders give one, by hand pass penstock.rng(seed)"
        )
    return rng
