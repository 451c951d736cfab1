"""OpenCV: the fast way to decode and resize. Nothing else here imports it.

Its functions release the GIL, so threads of a loader decode side by side.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np

from penstock.transforms.media import missing_extra


def decode(data: bytes | memoryview, *, grey: bool, deep: bool, orient: bool) -> np.ndarray | None:
    """Decode an image; of an animated one the first frame.

    Args:
        data: a file's bytes, whose size was checked before.
        grey: give [H, W, 1] instead of [H, W, 3] RGB. Alpha is left out of either.
        deep: give 16 bits a channel where the file has them, instead of their upper 8.
        orient: turn it as its EXIF says.

    Returns:
        uint8 or, if `deep`, uint16; None if OpenCV can't read it.
    """
    cv2 = load()
    flags = cv2.IMREAD_COLOR_RGB
    flags |= (cv2.IMREAD_ANYDEPTH if deep else 0) | (0 if orient else cv2.IMREAD_IGNORE_ORIENTATION)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None
    # Decoders of their own have other ideas of grey, up to a file's luma, where saturated colours differ much.
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None] if grey and image is not None else image


def resize(image: np.ndarray, size: tuple[int, int], method: str) -> np.ndarray:
    """Scale an image [H, W, C], uint8, uint16 or float32, to (height, width) by "area", "linear", "cubic" or "nearest".

    Area means averages over what a pixel covers, which is only of use where there are fewer pixels than
    before: growing, it is linear.
    """
    cv2 = load()
    height, width = size
    if method == "area" and (height > image.shape[0] or width > image.shape[1]):
        method = "linear"
    scaled = cv2.resize(image, (width, height), interpolation=_methods(cv2)[method])
    return scaled if scaled.ndim == 3 else scaled[:, :, None]


@cache
def load() -> Any:
    """Import OpenCV, once, and have it use the thread that calls it and no others.

    Its log is switched off: what it says there of broken files is in our errors.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise missing_extra("image", "OpenCV", "reading images") from error
    cv2.setNumThreads(0)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2


@cache
def _methods(cv2: Any) -> dict[str, int]:
    return {
        "area": cv2.INTER_AREA,
        "linear": cv2.INTER_LINEAR,
        "cubic": cv2.INTER_CUBIC,
        "nearest": cv2.INTER_NEAREST_EXACT,
    }
