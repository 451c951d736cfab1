"""Files to bytes, and bytes to blocks of whole records.

A block is a view into a buffer that the next block reuses. Where blocks are cut depends on the file
and on the first block's offset only, so reading can stop after any block and go on from there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.errors import BadBlock, StoreError
from penstock.formats.sources import SourceFile

if TYPE_CHECKING:
    from penstock.store.whole_copy import WholeCopy

BLOCK_BYTES = 8 << 20
"""Text is read, encoded and written in pieces of about this size: small enough that buffers stay in memory
that is already mapped, large enough that calls cost nothing."""
SKIP_BYTES = 4 << 20
_FIRST_TAIL = 1 << 16
_MARK = b"\xef\xbb\xbf"
_NEWLINE, _RETURN = b"\n\r"
_BLANK_LINE = re.compile(rb"\n[\x00-\x09\x0b-\x20]*\n")


@contextmanager
def open_raw(file: SourceFile, *, copy: WholeCopy | None = None, **storage_options: Any) -> Iterator[Any]:
    """Open a source's file for reading as it is stored: an object with `readinto`, `read`, `seek` and `tell`.

    Args:
        file: which.
        copy: see `open_file`.
        storage_options: see `open_store`.
    """
    if file.url is not None:
        from penstock.store.ranged_file import open_file
        from penstock.store.store import ObjectInfo

        info = ObjectInfo(path="", size=file.size_bytes, etag=file.etag)
        with open_file(file.url, info=info, known=file.known, copy=copy, **storage_options) as remote:
            yield remote
        return
    # Not by name: pyarrow would choose the compression by the suffix, and report errors its own way.
    with open(file.path, "rb", buffering=0) as raw:
        yield raw


Opener = Callable[[SourceFile], AbstractContextManager[Any]]
"""How the stored bytes of a file are reached; see `open_raw`."""


@contextmanager
def open_bytes(file: SourceFile, opener: Opener = open_raw) -> Iterator[Any]:
    """Open a source's file for reading, uncompressed: an object with `readinto` and, if stored so, `seek`.

    Raises:
        StoreError: it can't be opened.
        BadBlock: while reading: its compressed content is truncated or damaged.
    """
    import pyarrow as pa

    try:
        with opener(file) as raw:
            if file.compression is None:
                yield raw
            else:
                with _reported(file), pa.input_stream(pa.PythonFile(raw, "r"), compression=file.compression) as stream:
                    yield stream
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"cannot read {file.place}: {error.strerror or error}") from error


@contextmanager
def _reported(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StoreError) or error.errno is not None:
            raise
        raise BadBlock(f"{file.place} is damaged: {error}; fetch it again") from error


def read_all(file: SourceFile, opener: Opener = open_raw) -> bytes:
    """Read a whole file, without the mark that some systems put before UTF-8.

    Raises:
        StoreError, BadBlock: see `open_bytes`.
    """
    with open_bytes(file, opener) as stream:
        content: bytes = stream.read()
    return content.removeprefix(_MARK)


def iter_blocks(
    file: SourceFile,
    offset: int,
    block_bytes: int,
    last_end: Callable[[np.ndarray], int],
    opener: Opener = open_raw,
) -> Iterator[tuple[np.ndarray, int]]:
    """Cut a file into blocks of whole records.

    Args:
        file: what to read.
        offset: where to begin, in uncompressed bytes: 0, or an end given before.
        block_bytes: length of a block, unless one record is longer.
        last_end: gives where the last whole record of a buffer ends; 0 if none does.
        opener: how the file's bytes are reached.

    Yields:
        uint8 [n], valid until the next is asked for, and the offset of its end.

    Raises:
        StoreError, BadBlock: see `open_bytes`.
    """
    with open_bytes(file, opener) as stream:
        _skip(stream, offset, seeks=file.compression is None)
        buffer, held = np.empty(block_bytes, np.uint8), 0
        while True:
            held += _fill(stream, buffer[held:])
            at_end = held < len(buffer)
            cut = held if at_end else last_end(buffer)
            if cut:
                mark = len(_MARK) if offset == 0 and bytes(buffer[: len(_MARK)]) == _MARK else 0
                yield buffer[mark:cut], offset + cut
                offset += cut
            if at_end:
                return
            rest = buffer[cut:held]
            buffer = _with_room(buffer, len(rest), block_bytes)
            buffer[: len(rest)] = rest
            held = len(rest)


def _with_room(buffer: np.ndarray, held: int, block_bytes: int) -> np.ndarray:
    """Give a buffer with room after `held` bytes: longer while a record outgrows it, as usual after."""
    needed = max(block_bytes, 2 * held if held == len(buffer) else held + 1)
    return buffer if needed == len(buffer) else np.empty(needed, np.uint8)


def _fill(stream: Any, buffer: np.ndarray) -> int:
    """Read until the buffer is full or the file ends; give the number of bytes read."""
    view, got = memoryview(buffer.data), 0
    while got < len(view):
        count = stream.readinto(view[got:])
        if not count:
            break
        got += count
    return got


def _skip(stream: Any, offset: int, *, seeks: bool) -> None:
    if seeks:
        stream.seek(offset)
        return
    scratch = np.empty(min(SKIP_BYTES, offset), np.uint8)
    while offset:
        count = _fill(stream, scratch[:offset])
        if not count:
            break
        offset -= count


def lines_of(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the lines of a block: int64 starts and ends, the ends without what ends a line (LF or CR LF)."""
    newlines = np.flatnonzero(block == _NEWLINE)
    starts = np.concatenate([np.zeros(1, np.int64), newlines + 1])
    ends = np.concatenate([newlines, np.full(1, len(block), np.int64)])
    if starts[-1] == len(block):
        starts, ends = starts[:-1], ends[:-1]
    before = block[np.maximum(ends, 1) - 1]
    return starts, ends - ((before == _RETURN) & (ends > starts))


def end_of_last_line(buffer: np.ndarray) -> int:
    """Give the end of the last whole line of a buffer, 0 if it holds none."""
    return _search_tail(buffer, lambda tail: tail.rfind(b"\n") + 1)


def last_of(byte: int, buffer: np.ndarray) -> int:
    """Give the place of the last of a byte in a buffer that has one."""
    return _search_tail(buffer, lambda tail: tail.rfind(byte) + 1) - 1


def end_of_last_paragraph(buffer: np.ndarray) -> int:
    """Give the end of the last blank line of a buffer, 0 if it holds none after another line."""
    return _search_tail(buffer, _after_blank_line)


def _after_blank_line(tail: bytes) -> int:
    end = 0
    for match in _BLANK_LINE.finditer(tail):
        end = match.end()
    return end


def _search_tail(buffer: np.ndarray, find: Callable[[bytes], int]) -> int:
    """Search the end of a buffer, then ever more of it."""
    length = min(_FIRST_TAIL, len(buffer))
    while True:
        found = find(buffer[len(buffer) - length :].tobytes())
        if found:
            return len(buffer) - length + found
        if length == len(buffer):
            return 0
        length = min(16 * length, len(buffer))
