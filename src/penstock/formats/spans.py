"""Where each document of a file lies: a table of byte ranges, so that any of them is one ranged read.

The documents are those that `formats.text` reads from the same file, in the same order; only
records with an empty text, or with none, are still among them, since no record is parsed here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Literal, get_args

import numpy as np

from penstock.errors import BadBlock, ConfigError
from penstock.formats.files import atomic_write
from penstock.formats.sources import SourceFile
from penstock.formats.streams import BLOCK_BYTES, end_of_last_line, end_of_last_paragraph, iter_blocks, lines_of
from penstock.types import check_choice

SPAN_DTYPE = np.dtype("<u8")
Unit = Literal["line", "paragraph"]
_SPACE = 32


def iter_spans(
    file: SourceFile, documents: Unit = "paragraph", *, block_bytes: int = BLOCK_BYTES
) -> Iterator[np.ndarray]:
    """Find the documents of a file, reading it once in blocks.

    Args:
        file: uncompressed JSON lines or text.
        documents: what a document of a text file is; of JSON lines it is always a line.
        block_bytes: bytes read at a time, unless one document is longer.

    Yields:
        uint64 [n, 2]: first byte, and the one after the last.

    Raises:
        ConfigError: the file is compressed or of another kind, so its documents have no byte ranges.
        StoreError: it can't be read.
    """
    check_choice("documents", documents, get_args(Unit))
    if file.compression is not None or file.kind not in ("jsonl", "text"):
        raise ConfigError(
            f"{file.path} cannot be read at random places: only uncompressed JSON lines and text can. Unpack it, or "
            "tokenize it ahead"
        )
    paragraphs = file.kind == "text" and documents == "paragraph"
    last_end = end_of_last_paragraph if paragraphs else end_of_last_line
    for block, end in iter_blocks(file, 0, block_bytes, last_end):
        starts, ends = lines_of(block)
        firsts = lasts = _has_text(block, starts, ends, is_json=file.kind == "jsonl")
        if paragraphs:
            firsts, lasts = _edges(firsts)
        base = end - len(block)
        yield np.stack([starts[firsts] + base, ends[lasts] + base], axis=1).astype(SPAN_DTYPE)


def write_spans(path: str | os.PathLike[str], file: SourceFile, documents: Unit = "paragraph") -> None:
    """Write the table of a file's documents, atomically; see `iter_spans`."""
    with atomic_write(path) as out:
        for spans in iter_spans(file, documents):
            out.write(spans.tobytes())


def open_spans(path: str | os.PathLike[str]) -> np.ndarray:
    """Map a table written by `write_spans`: uint64 [n, 2], read-only.

    Raises:
        BadBlock: its size is no multiple of a row's.
    """
    size, row = os.stat(path).st_size, 2 * SPAN_DTYPE.itemsize
    if size % row:
        raise BadBlock(f"{os.fspath(path)} has {size} bytes, no multiple of {row}: truncated; remove it to rebuild it")
    if not size:
        return np.empty((0, 2), SPAN_DTYPE)
    return np.memmap(path, SPAN_DTYPE, mode="r").reshape(-1, 2).view(np.ndarray)


def _has_text(block: np.ndarray, starts: np.ndarray, ends: np.ndarray, *, is_json: bool) -> np.ndarray:
    """Tell which lines are not blank, bool [lines]."""
    if not len(starts):
        return np.zeros(0, bool)
    found = np.logical_or.reduceat(block > _SPACE, starts)
    if is_json:
        # JSON knows four kinds of white space; a line of other control characters is a malformed record.
        for line in np.flatnonzero(~found & (ends > starts)).tolist():
            found[line] = bool(block[starts[line] : ends[line]].tobytes().strip(b" \t\r"))
    return found


def _edges(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mark the first and the last line of each run of lines."""
    outside = np.zeros(1, bool)
    firsts = inside & ~np.concatenate([outside, inside[:-1]])
    return firsts, inside & ~np.concatenate([inside[1:], outside])
