"""A file to be read at any position: where its next read begins, whatever its bytes come from."""

from __future__ import annotations

import io

from penstock.errors import ConfigError


class SeekableFile(io.RawIOBase):
    """The position in a read-only file. Who inherits reads from `_at` on, moves it, and says the file's `size`."""

    size: int
    """Bytes of the whole file."""

    def __init__(self) -> None:
        super().__init__()
        self._at = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it can be read at any position."""
        return True

    def tell(self) -> int:
        """Give the position of the next read."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position of the next read; costs nothing.

        Raises:
            ConfigError: it is before the start.
        """
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}.get(whence)
        if base is None or base + offset < 0:
            raise ConfigError(f"cannot seek to {offset} from {whence}: positions run from 0")
        self._at = base + offset
        return self._at
