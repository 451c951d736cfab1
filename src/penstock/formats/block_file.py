"""One block while it is written: its bytes, its offset table and its checksum, side by side.

    block_00000.jsonl.partial, block_00000.idx.partial     until the last line is on the disk

    .idx    uint64, little-endian: where each line starts, and behind the last one where it ends, counted
            in bytes before compression

Compressed blocks are Zstandard's seekable format: frames of whole lines, then a table of the frames'
sizes in a frame that decoders skip, so any zstd unpacks them, and a reader who knows the table needs only
the frames it wants. A frame ends with the first line that brings it to 256 KiB, so the bytes depend on the
lines alone, never on how they came.
"""

from __future__ import annotations

import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import FormatError
from penstock.formats.block_frames import FRAME_MAGIC, SEEK_MAGIC
from penstock.formats.block_layout import idx_path
from penstock.formats.block_manifest import block_name
from penstock.formats.block_offsets import ENTRY_BYTES, OFFSET_DTYPE
from penstock.formats.files import publish, store_errors

FRAME_BYTES = 256 << 10
"""Uncompressed bytes of a frame, at least, but for the last one."""
MAX_FRAME_BYTES = 1 << 30
"""The seekable format's limit, so of a line in a compressed block too."""
_LEVEL = 3


class BlockFile:
    """A block that is being written; it has its name once `finish` returns.

    Args:
        folder: the folder for blocks, which exists.
        block_id: its number.
        compression: "zstd" or None.

    Raises:
        StoreError: the folder can't be written.
    """

    def __init__(self, folder: Path, block_id: int, compression: str | None) -> None:
        self.path = folder / f"{block_name(block_id)}.jsonl{'.zst' if compression else ''}"
        self.size_bytes = 0
        """Bytes in the file so far."""
        self._idx_path = folder / idx_path(self.path.name)
        self._hasher = blake2b(digest_size=16)
        self._num_bytes = 0  # of lines, before compression
        self._frames: _Frames | None = _Frames() if compression else None
        with store_errors(self.path):
            self._file = open(_partial(self.path), "wb", buffering=0)  # noqa: SIM115 - closed by finish or discard
            try:
                self._idx = open(_partial(self._idx_path), "wb", buffering=0)  # noqa: SIM115
                _write_all(self._idx, bytes(ENTRY_BYTES))
            except BaseException:
                self._file.close()
                raise

    def write(self, data: Any, ends: np.ndarray) -> None:
        r"""Append whole lines.

        Args:
            data: contiguous bytes, the lines one after the other, each with its "\n".
            ends: int64 [n], n > 0: where each line ends in data.

        Raises:
            StoreError: the disk is full, or can't be written; the block can't be gone on with.
            FormatError: a line of a compressed block is longer than a frame may be.
        """
        with store_errors(self.path):
            if self._frames is None:
                self._append(data)
            else:
                for frame in self._frames.take(data, ends):
                    self._append(frame)
            _write_all(self._idx, (ends + self._num_bytes).astype(OFFSET_DTYPE))
        self._num_bytes += len(data)

    def _append(self, data: Any) -> None:
        _write_all(self._file, data)
        self._hasher.update(data)
        self.size_bytes += len(data)

    def finish(self) -> str:
        """Force all of it to the disk, give it its name, and return its checksum.

        Raises:
            StoreError: as `write`.
        """
        with store_errors(self.path):
            if self._frames is not None:
                self._append(self._frames.rest())
            # A table that is older than its block is none: readers would make it again.
            changed_ns = os.fstat(self._file.fileno()).st_mtime_ns
            os.utime(self._idx.fileno(), ns=(changed_ns, changed_ns))
            for file in (self._idx, self._file):
                os.fsync(file.fileno())
                file.close()
            # One sync of the folder, by the second name, is for both.
            os.replace(_partial(self._idx_path), self._idx_path)
        publish(_partial(self.path), self.path)
        return self._hasher.hexdigest()

    def discard(self) -> None:
        """Close and remove what was written, which gives a full disk its room back."""
        for file, path in ((self._file, self.path), (self._idx, self._idx_path)):
            file.close()
            with store_errors(path):
                _partial(path).unlink(missing_ok=True)


class _Frames:
    """Lines to frames, and the table of them."""

    def __init__(self) -> None:
        import pyarrow as pa

        self._codec = pa.Codec("zstd", compression_level=_LEVEL)
        self._open = bytearray()
        self._sizes: list[tuple[int, int]] = []

    def take(self, data: Any, ends: np.ndarray) -> list[bytes]:
        """Add lines, and give the frames that are whole now."""
        frames, start = list[bytes](), 0
        data = memoryview(data)
        while True:
            line = int(np.searchsorted(ends, start + FRAME_BYTES - len(self._open)))
            if line == len(ends):
                self._open += data[start:]
                return frames
            stop = int(ends[line])
            self._open += data[start:stop]
            frames.append(self._frame())
            start = stop

    def _frame(self) -> bytes:
        if len(self._open) > MAX_FRAME_BYTES:
            raise FormatError(
                f"a sample of {len(self._open):,} bytes is longer than the {MAX_FRAME_BYTES:,} of a compressed frame; "
                "write blocks without compression"
            )
        frame: bytes = self._codec.compress(self._open, asbytes=True)
        self._sizes.append((len(frame), len(self._open)))
        self._open = bytearray()
        return frame

    def rest(self) -> bytes:
        """Give the last frame, if there is something for it, and the table."""
        last = self._frame() if self._open else b""
        entries = np.array(self._sizes, "<u4").tobytes()
        footer = len(self._sizes).to_bytes(4, "little") + b"\0" + SEEK_MAGIC.to_bytes(4, "little")
        size = (len(entries) + len(footer)).to_bytes(4, "little")
        return b"".join([last, FRAME_MAGIC.to_bytes(4, "little"), size, entries, footer])


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _write_all(file: Any, data: Any) -> None:
    """Write all of it: the system may take less at a time, and says so only by the count."""
    rest = memoryview(data).cast("B")
    while len(rest):
        rest = rest[file.write(rest) :]
