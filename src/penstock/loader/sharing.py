"""Big arrays from one process to another without a copy through a pipe.

A sender writes into a slab, an anonymous memory file that has no name, and passes its descriptor
over a Unix socket once. The receiver maps the same pages, and tells the sender when nothing refers
to them any more, so slabs are used again and the first-touch cost of fresh pages is paid once. An
anonymous file lives as long as someone holds it: whatever is killed, nothing is left behind.

    worker: object ──pickle 5, buffers apart──▶ slab ══ same pages ══▶ arrays :trainer
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import socket
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

IN_BAND_BYTES = 32 * 1024
"""Results up to this size go through the socket itself."""

MAX_BUSY_SLABS = 32
"""Slabs of one sender in use at a time. A trainer that keeps more batches gets copies: a slab costs a descriptor."""

_ALIGN = 64
_HEADER = struct.Struct("<Q")
_MAX_FDS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Parcel:
    """Where a pickled object lies: in `inline`, or in a slab whose descriptor comes along the first time."""

    inline: bytes | None = None
    slab: int = -1
    slab_bytes: int = 0
    spans: tuple[tuple[int, int], ...] = ()
    """(start, length) of the pickle and then of each of its buffers."""


class Wire:
    """Messages with descriptors over one connected Unix socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def fileno(self) -> int:
        """Give the descriptor, for selectors."""
        return self._sock.fileno()

    def send(self, message: Any, fds: tuple[int, ...] = (), timeout: float | None = None) -> None:
        """Send a message, with descriptors; TimeoutError if the other side does not take it in time."""
        self._sock.settimeout(timeout)
        data = pickle.dumps(message, protocol=5)
        frame = _HEADER.pack(len(data)) + data
        sent = socket.send_fds(self._sock, [frame], fds)
        if sent < len(frame):
            self._sock.sendall(memoryview(frame)[sent:])

    def receive(self, timeout: float | None = None) -> tuple[Any, list[int]]:
        """Receive one whole message.

        Raises:
            EOFError: the other side is gone.
            TimeoutError: the message did not arrive, or stopped in the middle, within `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._sock.settimeout(timeout)
        try:
            head, fds, _, _ = socket.recv_fds(self._sock, _HEADER.size, _MAX_FDS)
            while len(head) < _HEADER.size:
                head += self._some(_HEADER.size - len(head), deadline)
            (left,) = _HEADER.unpack(head)
            pieces = []
            while left:
                pieces.append(self._some(min(left, 1 << 20), deadline))
                left -= len(pieces[-1])
        except ConnectionError as error:
            raise EOFError("the connection was reset") from error
        return pickle.loads(b"".join(pieces)), fds  # noqa: S301 - the other end is our own process

    def close(self) -> None:
        """Close the socket; the other side reads the end."""
        self._sock.close()

    def _some(self, count: int, deadline: float | None) -> bytes:
        if deadline is not None:
            self._sock.settimeout(max(0.001, deadline - time.monotonic()))
        if not (data := self._sock.recv(count)):
            raise EOFError("the other side has closed the connection")
        return data


class SlabWriter:
    """The sender's side: packs objects into slabs, and takes slabs back."""

    def __init__(self) -> None:
        self._slabs: list[mmap.mmap] = []
        self._free: set[int] = set()

    def pack(self, value: Any) -> tuple[Parcel, tuple[int, ...]]:
        """Pack an object; returns its parcel and the descriptors to send with it."""
        buffers: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=buffers.append).dump(value)
        pieces = [memoryview(stream.getbuffer()), *(buffer.raw() for buffer in buffers)]
        spans, size = [], 0
        for piece in pieces:
            spans.append((size, piece.nbytes))
            size += -(-piece.nbytes // _ALIGN) * _ALIGN
        if size <= IN_BAND_BYTES:
            inline = pickle.dumps((pieces[0].tobytes(), [bytearray(piece) for piece in pieces[1:]]), protocol=5)
            return Parcel(inline=inline), ()
        slab, fds = self._slab(size)
        target = self._slabs[slab]
        for (start, length), piece in zip(spans, pieces, strict=True):
            target[start : start + length] = piece
        return Parcel(slab=slab, slab_bytes=len(target), spans=tuple(spans)), fds

    def take_back(self, slabs: list[int]) -> None:
        """Note slabs that the receiver no longer refers to."""
        self._free.update(slabs)

    def _slab(self, size: int) -> tuple[int, tuple[int, ...]]:
        """Find the smallest free slab that holds size bytes, or open one."""
        fitting = [slab for slab in self._free if len(self._slabs[slab]) >= size]
        if fitting:
            slab = min(fitting, key=lambda slab: len(self._slabs[slab]))
            self._free.remove(slab)
            return slab, ()
        fd = anonymous_file(1 << (size - 1).bit_length())
        self._slabs.append(mmap.mmap(fd, 0))
        return len(self._slabs) - 1, (fd,)


class SlabReader:
    """The receiver's side: maps slabs, and knows when nothing refers to one any more."""

    def __init__(self) -> None:
        self._pages: dict[int, np.ndarray] = {}
        self._busy: set[int] = set()

    def unpack(self, parcel: Parcel, fds: list[int]) -> Any:
        """Rebuild an object; its arrays are views of the slab, writable."""
        if parcel.inline is not None:
            stream, buffers = pickle.loads(parcel.inline)  # noqa: S301 - written by our own worker
            return pickle.loads(stream, buffers=buffers)  # noqa: S301
        if fds:
            self._pages[parcel.slab] = np.frombuffer(mmap.mmap(fds[0], parcel.slab_bytes), np.uint8)
            os.close(fds[0])
        pages = self._pages[parcel.slab]
        self._busy.add(parcel.slab)
        stream, *buffers = [pages.data[start : start + length] for start, length in parcel.spans]
        if len(self._busy) > MAX_BUSY_SLABS:
            buffers = [memoryview(bytearray(buffer)) for buffer in buffers]
        return pickle.loads(stream, buffers=buffers)  # noqa: S301

    def released(self) -> list[int]:
        """List the slabs that have become free since they were last listed."""
        # Every array made from a slab keeps its pages alive through references to this one array.
        free = [slab for slab in self._busy if sys.getrefcount(self._pages[slab]) <= _UNSHARED]
        self._busy.difference_update(free)
        return free


def anonymous_file(size: int) -> int:
    """Open a file without a name that lives in memory where the system has such, and give its descriptor."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("penstock", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    os.ftruncate(fd, size)
    return fd


class _Pickler(pickle.Pickler):
    """Pickles arrays and CPU tensors as buffers, wherever they are in the object."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is np.ndarray:
            if value.dtype.hasobject or value.flags.c_contiguous or value.flags.f_contiguous:
                return NotImplemented
            return np.asarray, (np.ascontiguousarray(value),)
        torch = sys.modules.get("torch")
        if torch is None or type(value) is not torch.Tensor:
            return NotImplemented
        if value.device.type != "cpu" or value.layout is not torch.strided or value.is_quantized:
            return NotImplemented
        plain = value.detach().contiguous()
        flat = plain.reshape(-1).view(torch.uint8).numpy()
        return _as_tensor, (flat, str(plain.dtype).removeprefix("torch."), tuple(plain.shape))


def _as_tensor(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Any:
    """Rebuild a tensor on the bytes that were sent."""
    import torch

    return torch.from_numpy(data).view(getattr(torch, dtype)).reshape(shape)


def _count_unshared() -> int:
    """Measure what getrefcount says of an array held by one dict alone, asked as `released` asks."""
    pages = {0: np.zeros(1)}
    return next(sys.getrefcount(pages[slab]) for slab in pages)


_UNSHARED = _count_unshared()
