"""A decoded frame → pixels in their place in a clip: converted and scaled by libswscale, turned, cut."""

from __future__ import annotations

from typing import Any

import numpy as np

from penstock.transforms.image_shapes import Fit, Size, frame

METHODS = ("bilinear", "area", "bicubic", "lanczos", "point")


class FrameWriter:
    """What becomes of every frame of a clip, settled by its first.

    Args:
        scaler: the converter, see `Container`.
        first: the first decoded frame. Its display matrix says how the video is to be turned.
        size: of the result: a side, or (height, width). None: as it is.
        fit: see `ResizeImage`.
        method: libswscale's; all of them look at every pixel that they leave out but "point".

    Attributes:
        height: of the result.
        width: of the result.
    """

    def __init__(self, scaler: Any, first: Any, size: Size | None, fit: Fit, method: str) -> None:
        self._scaler = scaler
        self._turns = round(first.rotation / 90) % 4
        self._method = method.upper()
        height, width = first.height, first.width
        if self._turns % 2:
            height, width = width, height
        self.height, self.width = height, width
        whole = inner = (height, width)
        if size is not None:
            box, inner = frame(height, width, size, fit)
            whole = (
                max(inner[0], round(height * inner[0] / box.height)),
                max(inner[1], round(width * inner[1] / box.width)),
            )
            self.height, self.width = inner
            if fit == "contain":
                self.height, self.width = (size, size) if isinstance(size, int) else size
        self._bare = inner != (self.height, self.width)
        self._cut = _middle(whole, inner)
        self._place = _middle((self.height, self.width), inner)
        self._scaled = whole if self._turns % 2 == 0 else whole[::-1]

    def write(self, decoded: Any, out: np.ndarray) -> None:
        """Write a frame's pixels to uint8 [height, width, 3]."""
        height, width = self._scaled
        rgb = self._scaler.reformat(
            decoded, width=width, height=height, format="rgb24", interpolation=self._method, threads=1
        )
        plane = rgb.planes[0]
        rows = np.frombuffer(plane, np.uint8, count=height * plane.line_size).reshape(height, plane.line_size)
        pixels = rows[:, : width * 3].reshape(height, width, 3)
        if self._turns:
            pixels = np.rot90(pixels, self._turns)
        if self._bare:
            out[:] = 0
        out[self._place] = pixels[self._cut]


def _middle(whole: tuple[int, int], part: tuple[int, int]) -> tuple[slice, slice]:
    top, left = (whole[0] - part[0]) // 2, (whole[1] - part[1]) // 2
    return slice(top, top + part[0]), slice(left, left + part[1])
