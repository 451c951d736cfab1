"""Compressed blocks that can be read at any place: Zstandard's seekable format.

A file is a row of independent frames, each holding whole lines, and a table of their sizes in a frame
that ordinary decoders skip, at the very end. So a range of uncompressed bytes costs the frames it touches.

    frame │ frame │ … │ skippable: sizes [frames, 2], then 9 bytes that say how many
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np

from penstock.errors import BadBlock

if TYPE_CHECKING:
    from penstock.formats.block_bytes import BlockBytes

FRAME_MAGIC = 0x184D2A5E
SEEK_MAGIC = 0x8F92EAB1
FOOTER_BYTES = 9
HEADER_BYTES = 8
_CHECKSUM_FLAG = 0x80
KEPT_FRAMES = 32
"""Frames of one block kept uncompressed: 8 MB at the usual 256 KiB."""


class Frames:
    """The uncompressed bytes of a seekable Zstandard file.

    Args:
        raw: the compressed bytes.

    Raises:
        BadBlock: they do not end in a seek table, or it contradicts them.
    """

    def __init__(self, raw: BlockBytes) -> None:
        self._raw = raw
        self.name = raw.name
        entries, table_bytes = _seek_table(raw)
        self._starts = np.concatenate([np.zeros((1, 2), np.int64), np.cumsum(entries, axis=0)])  # [frames + 1, 2]
        if int(self._starts[-1, 0]) + table_bytes != raw.size:
            raise BadBlock(
                f"{raw.name}: its seek table describes another file: it is truncated or damaged, fetch it again"
            )
        self.size = int(self._starts[-1, 1])
        self._kept: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, start: int, stop: int) -> bytes:
        """Give the uncompressed bytes [start, stop)."""
        first, last = np.searchsorted(self._starts[1:, 1], [start, stop - 1], side="right").tolist()
        base = int(self._starts[first, 1])
        frames = self._frames(first, min(last, len(self._starts) - 2) + 1)
        return (frames[0] if len(frames) == 1 else b"".join(frames))[start - base : stop - base]

    def read_many(self, spans: np.ndarray) -> list[bytes]:
        """Give several ranges, int64 [n, 2]; each frame is uncompressed once, whatever their order."""
        parts: list[bytes] = [b""] * len(spans)
        order = np.argsort(spans[:, 0], kind="stable")
        for place, (start, stop) in zip(order.tolist(), spans[order].tolist(), strict=True):
            parts[place] = self.read(start, stop)
        return parts

    def close(self) -> None:
        """Close the file beneath."""
        self._raw.close()

    def _frames(self, first: int, end: int) -> list[bytes]:
        """Give the frames [first, end): those that are not kept come by one ranged read."""
        with self._lock:
            known = {number: self._kept[number] for number in range(first, end) if number in self._kept}
        missing = [number for number in range(first, end) if number not in known]
        if missing:
            known.update(self._uncompressed(missing[0], missing[-1] + 1))
        with self._lock:
            for number in list(known)[-KEPT_FRAMES:]:
                self._kept[number] = known[number]
                self._kept.move_to_end(number)
            while len(self._kept) > KEPT_FRAMES:
                self._kept.popitem(last=False)
        return [known[number] for number in range(first, end)]

    def _uncompressed(self, first: int, end: int) -> dict[int, bytes]:
        import pyarrow as pa

        codec = pa.Codec("zstd")
        base = int(self._starts[first, 0])
        raw = memoryview(self._raw.read(base, int(self._starts[end, 0])))
        found = {}
        for number in range(first, end):
            start, stop = (int(self._starts[edge, 0]) - base for edge in (number, number + 1))
            size = int(self._starts[number + 1, 1] - self._starts[number, 1])
            try:
                found[number] = codec.decompress(raw[start:stop], size, asbytes=True)
            except OSError as error:
                raise BadBlock(f"{self.name}: frame {number} is damaged ({error}): fetch the file again") from error
        return found


def _seek_table(raw: BlockBytes) -> tuple[np.ndarray, int]:
    """Read the frames' sizes, compressed and not, int64 [frames, 2], and how many bytes the table takes."""
    cause = f"{raw.name} is no Zstandard file with a seek table at its end: truncated, or compressed by another tool"
    if raw.size < FOOTER_BYTES + HEADER_BYTES:
        raise BadBlock(cause)
    footer = raw.read(raw.size - FOOTER_BYTES, raw.size)
    count, flags = int.from_bytes(footer[:4], "little"), footer[4]
    width = 3 if flags & _CHECKSUM_FLAG else 2
    table_bytes = HEADER_BYTES + 4 * width * count + FOOTER_BYTES
    if int.from_bytes(footer[5:], "little") != SEEK_MAGIC or table_bytes > raw.size:
        raise BadBlock(cause)
    table = raw.read(raw.size - table_bytes, raw.size)
    if int.from_bytes(table[:4], "little") != FRAME_MAGIC:
        raise BadBlock(cause)
    entries = np.frombuffer(table, "<u4", width * count, HEADER_BYTES).reshape(count, width)[:, :2]
    return entries.astype(np.int64), table_bytes
