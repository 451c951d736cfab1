"""Windows of a token stream, gathered many at a time: the one hot path of all token datasets.

Two copies per token and no Python per row. numpy gathers rows of the mapped file into a small scratch
that stays in the core's cache, each row being one opaque item to it: that is one call of memcpy, where a
row of numbers goes through numpy's iterators. From there it widens them into a buffer that is used again
once nobody holds it. Before all that it reads the first token of every row: rows lie anywhere in the
file, and a core fetches many places of memory at once if it is asked for one right after the other.
"""

from __future__ import annotations

import numpy as np

from penstock.transforms.reused_buffers import ReusedBuffers

SCRATCH_BYTES = 256 * 1024
"""What is gathered before it is widened; more would fall out of the core's own cache in between."""


class WindowReader:
    """Reads windows of one length from a stream of token ids.

    Args:
        tokens: uint16 or uint32 [N], mapped or in memory, contiguous.
        length: tokens per window, at most N.

    >>> WindowReader(np.arange(10, dtype=np.uint16), 3).read(np.array([0, 7])).tolist()
    [[0, 1, 2], [7, 8, 9]]
    """

    def __init__(self, tokens: np.ndarray, length: int) -> None:
        # A memmap's own indexing runs Python code for every slice; its plain view does not.
        self._tokens = tokens.view(np.ndarray)
        self._length = length
        itemsize, num_windows = tokens.itemsize, len(tokens) - length + 1
        self._windows = np.ndarray((num_windows,), f"V{length * itemsize}", self._tokens, strides=(itemsize,))
        self._rows = max(1, SCRATCH_BYTES // (length * itemsize))
        self._buffers = ReusedBuffers()

    def read(self, starts: np.ndarray) -> np.ndarray:
        """Gather the windows at starts, int64 [n], as int64 [n, length].

        The array is the caller's for as long as anything refers to it, then its memory is used again.
        """
        out = self._buffers.take((len(starts), self._length))
        self._tokens[starts]  # For the cache's sake only.
        for row in range(0, len(starts), self._rows):
            scratch = self._windows[starts[row : row + self._rows]].view(self._tokens.dtype)
            out[row : row + self._rows] = scratch.reshape(-1, self._length)
        return out
