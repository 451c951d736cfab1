"""A sound or a video as a file that is read in parts: a path, bytes in memory, or any seekable binary file.

Sounds and videos may be far larger than memory, and a clip of them needs little of the whole; what `open_file` gives
is read by ranges through this as well.
"""

from __future__ import annotations

import io
import os
from typing import Any, BinaryIO

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.media import HEAD_BYTES, describe, unreadable


class MediaFile:
    """An open file of sound or video: what is read, and how it is called in messages.

    Args:
        value: a path on this machine, bytes, or a seekable binary file, which stays open when this is closed.

    Raises:
        ConfigError: the value is none of these.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: it is empty.

    Attributes:
        name: the path, or what else it is.
        path: the path, if there is one.
        file: what is read, at its beginning.
        head: its first bytes.
        num_bytes: its length.
    """

    def __init__(self, value: Any) -> None:
        self.path: str | None = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        self.name = self.path if self.path is not None else describe(value)
        self._owned = not _is_file(value)
        self.file: BinaryIO = self._open(value)
        try:
            self.num_bytes = self.file.seek(0, io.SEEK_END)
            if not self.num_bytes:
                raise BadMedia(f"{self.name} is empty", path=self.name, reason="empty")
            self.file.seek(0)
            self.head = self.file.read(HEAD_BYTES)
            self.file.seek(0)
        except OSError as error:
            self.close()
            raise unreadable(self.name, error) from error
        except BadMedia:
            self.close()
            raise

    def _open(self, value: Any) -> BinaryIO:
        if self.path is not None:
            try:
                return open(self.path, "rb", buffering=0)
            except OSError as error:
                raise unreadable(self.path, error) from error
        if not self._owned:
            return value
        try:
            data = memoryview(value).cast("B")
        except TypeError:
            raise ConfigError(
                f"a media field holds a path, bytes or a seekable binary file, got {type(value).__name__}: was it "
                "decoded before?"
            ) from None
        return _in_memory(data)

    def bad(self, reason: str, what: str) -> BadMedia:
        """Make the error that says what is wrong with this file."""
        return BadMedia(f"{self.name} {what}", path=self.name, reason=reason)

    def handle(self) -> int | BinaryIO:
        """Give the system's descriptor of the file, which is read without Python and its lock; else the file."""
        if not self._owned:
            return self.file
        try:
            return self.file.fileno()
        except OSError:
            return self.file

    def close(self) -> None:
        """Close what was opened here; a file that was handed in stays open."""
        if self._owned:
            self.file.close()


def _is_file(value: Any) -> bool:
    return hasattr(value, "read") and hasattr(value, "seek")


def _in_memory(data: memoryview) -> BinaryIO:
    """Give bytes as a file. Where it can be one of the system's, a decoder reads it without asking Python."""
    if not hasattr(os, "memfd_create"):
        return io.BytesIO(data)
    file = open(os.memfd_create("penstock-media"), "w+b", buffering=0)  # noqa: SIM115 (closed by its owner)
    rest = data
    while len(rest):
        rest = rest[file.write(rest) :]
    return file
