"""The key column: there for every row, unlike for any two, and what an index is recognised by.

Keys are text. That they differ is shown without holding them: either they ascend, which takes one
comparison each, or their 64-bit hashes, eight bytes a row, are sorted; only keys whose hashes are equal are
compared themselves.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import FormatError

_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHOWN = 3
_CHUNK = 1 << 18


def check_keys(keys: pa.ChunkedArray, column: str, place: str) -> None:
    """Refuse a key column in which a key is missing, empty, or there twice.

    Raises:
        FormatError: naming the rows, from 0.

    Cost: about 15 ns a row if keys ascend; else 100 ns and 16 bytes of memory.
    """
    if keys.null_count or not pc.all(pc.greater(pc.binary_length(keys), 0), min_count=0).as_py():
        empty = pc.fill_null(pc.equal(pc.binary_length(keys), 0), True)
        row = pc.index(empty, True).as_py()
        raise FormatError(
            f"{place}: row {row:,} has no key in column {column!r}, and "
            f"{pc.sum(empty).as_py():,} of {len(keys):,} rows are like it: give each row a key, or another column"
        )
    if not _ascend(keys):
        _refuse_twins(keys, column, place)


def _ascend(keys: pa.ChunkedArray) -> bool:
    """Whether each key is greater than the one before it."""
    last: pa.Scalar | None = None
    for chunk in keys.chunks:
        if not len(chunk):
            continue
        if last is not None and not pc.less(last, chunk[0]).as_py():
            return False
        if not pc.all(pc.less(chunk[:-1], chunk[1:]), min_count=0).as_py():
            return False
        last = chunk[-1]
    return True


def _refuse_twins(keys: pa.ChunkedArray, column: str, place: str) -> None:
    hashes = np.concatenate([hash_texts(part) for part in _parts(keys)])
    ordered = np.sort(hashes)
    twins = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if not len(twins):
        return
    del ordered
    seen: dict[str, int] = {}
    found: list[str] = []
    for row in np.flatnonzero(np.isin(hashes, twins)).tolist():
        key = keys[row].as_py()
        if key in seen:
            found.append(f"{key!r:.200} (rows {seen[key]:,} and {row:,})")
            if len(found) == _SHOWN:
                break
        seen.setdefault(key, row)
    if found:
        raise FormatError(
            f"{place}: column {column!r} has keys that are there twice: {', '.join(found)}"
            f"{' …' if len(found) == _SHOWN else ''}; drop the rows, or take another column for the key "
            "(index_col_name)"
        )


def _parts(keys: pa.ChunkedArray) -> list[Any]:
    return [chunk[at : at + _CHUNK] for chunk in keys.chunks for at in range(0, len(chunk), _CHUNK)]


def hash_texts(texts: pa.Array) -> np.ndarray:
    """Hash each text of an array without nulls to 64 bits, uint64 [n]: eight bytes of all of them at a time."""
    starts, data = _places(texts)
    lengths = np.diff(starts)
    hashes = lengths.astype(np.uint64) * _STEP
    padded = np.concatenate([data, np.zeros(8, np.uint8)])
    words = np.lib.stride_tricks.as_strided(padded.view(np.uint8), (len(data) + 1, 8), (1, 1))
    rows = np.arange(len(lengths))
    at = 0
    while len(rows):
        word = words[starts[rows] + at].view("<u8")[:, 0]
        left = lengths[rows] - at
        # Bytes behind the end belong to the next text.
        short = np.minimum(left, 8).astype(np.uint64) * np.uint64(8)
        word = np.where(left >= 8, word, word & ((np.uint64(1) << (short % np.uint64(64))) - np.uint64(1)))
        hashes[rows] = _mixed(hashes[rows] ^ word)
        at += 8
        rows = rows[left > 8]
    return hashes


def _mixed(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    return (value ^ (value >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93) + _STEP


def _places(texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Give where the texts of an array lie, int64 [n + 1], and their bytes, uint8."""
    _, offsets, data = texts.buffers()
    width = np.dtype(np.int32 if pa.types.is_string(texts.type) else np.int64)
    starts = np.frombuffer(offsets, width, len(texts) + 1, texts.offset * width.itemsize).astype(np.int64)
    first = int(starts[0])
    held = np.frombuffer(data, np.uint8) if data is not None and data.size else np.empty(0, np.uint8)
    return starts - first, held[first : int(starts[-1])]


def fingerprint_of(keys: pa.ChunkedArray, columns: list[str]) -> str:
    """Say what the samples are: a digest of the keys, in order, and of the columns' names.

    It is the same however the index was made, where it lies and how its rows are cut into batches.
    """
    texts, lengths = blake2b(digest_size=16), blake2b(digest_size=16)
    for chunk in keys.chunks:
        starts, data = _places(chunk)
        texts.update(np.ascontiguousarray(data).data)
        lengths.update(np.diff(starts).astype("<i8").data)
    names = "\0".join(sorted(columns)).encode()
    return blake2b(texts.digest() + lengths.digest() + names, digest_size=16).hexdigest()
