"""The key column: there for every row, unlike for any two, and what an index is recognised by.

Keys are text. That they differ is shown without holding them: either they ascend, which takes one
comparison each as they pass, or their 64-bit hashes, eight bytes a row, are sorted; only keys whose hashes
are equal are compared themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penstock.errors import FormatError

_STEP = np.uint64(0x9E3779B97F4A7C15)
_SHOWN = 3
_CHUNK = 1 << 18


class KeyCheck:
    """Looks at the keys of an index as they are read, in order.

    Args:
        column: name of the key's column.
        place: whose keys they are, for people.

    Cost: about 25 ns a key, if keys ascend; 100 ns and 16 bytes of memory otherwise.
    """

    def __init__(self, column: str, place: str) -> None:
        self.column, self._place = column, place
        self.begin()

    def begin(self) -> None:
        """Forget what was seen."""
        self._texts, self._lengths = blake2b(digest_size=16), blake2b(digest_size=16)
        self._last: pa.Scalar | None = None
        self._ascend = True
        self.count = 0

    def add(self, keys: pa.Array) -> None:
        """Look at the next keys.

        Raises:
            FormatError: one is missing or empty.
        """
        if not len(keys):
            return
        starts, data = _places(keys)
        lengths = np.diff(starts)
        if keys.null_count or not lengths.all():
            self._refuse_empty(keys, lengths)
        self._ascend = self._ascend and self._goes_on(keys)
        self._texts.update(data.data)
        self._lengths.update(lengths.astype("<i8").data)
        self.count += len(keys)

    def _refuse_empty(self, keys: pa.Array, lengths: np.ndarray) -> None:
        row = next(row for row in range(len(keys)) if not lengths[row] or not keys[row].is_valid)
        raise FormatError(
            f"{self._place}: row {self.count + row:,} has no key in column {self.column!r}: give each row a key, or "
            "name another column (index_col_name)"
        )

    def _goes_on(self, keys: pa.Array) -> bool:
        """Whether each key is greater than the one before it."""
        if self._last is not None and not pc.less(self._last, keys[0]).as_py():
            return False
        self._last = keys[-1]
        return bool(pc.all(pc.less(keys[:-1], keys[1:]), min_count=0).as_py())

    def finish(self, again: Callable[[], Iterable[pa.Array]], columns: Iterable[str]) -> str:
        """Look for keys that are there twice, and give the fingerprint of the index.

        Args:
            again: reads the keys once more, should they not ascend.
            columns: names of all columns.

        Returns:
            A digest of the keys, in order, and of the names, in any order: the same however the index was made,
            where it lies and how its rows are cut into batches.

        Raises:
            FormatError: naming keys and their rows, from 0.
        """
        if not self._ascend:
            self._refuse_twins(again)
        names = "\0".join(sorted(columns)).encode()
        return blake2b(self._texts.digest() + self._lengths.digest() + names, digest_size=16).hexdigest()

    def _refuse_twins(self, again: Callable[[], Iterable[pa.Array]]) -> None:
        hashes = np.empty(self.count, np.uint64)
        at = 0
        for keys in again():
            for start in range(0, len(keys), _CHUNK):
                part = keys[start : start + _CHUNK]
                hashes[at : at + len(part)] = hash_texts(part)
                at += len(part)
        ordered = np.sort(hashes)
        twins = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
        if len(twins):
            self._compare(again(), np.flatnonzero(np.isin(hashes, twins)))

    def _compare(self, chunks: Iterable[pa.Array], rows: np.ndarray) -> None:
        """Compare the keys of rows whose hashes are equal; differing ones may have equal hashes."""
        seen, found, start = dict[str, int](), list[str](), 0
        for keys in chunks:
            for row in rows[np.searchsorted(rows, start) : np.searchsorted(rows, start + len(keys))].tolist():
                key = keys[row - start].as_py()
                if key in seen and len(found) <= _SHOWN:
                    found.append(f"{key!r:.200} (rows {seen[key]:,} and {row:,})")
                seen.setdefault(key, row)
            start += len(keys)
            if len(found) > _SHOWN:
                break
        if found:
            raise FormatError(
                f"{self._place}: column {self.column!r} has keys that are there twice: {', '.join(found[:_SHOWN])}"
                f"{' …' if len(found) > _SHOWN else ''}; drop the rows, or take another column for the key "
                "(index_col_name)"
            )


def check_keys(chunks: Callable[[], Iterable[pa.Array]], column: str, columns: Iterable[str], place: str) -> str:
    """Check keys that can be read twice, and give the fingerprint of their index; see `KeyCheck`."""
    check = KeyCheck(column, place)
    for keys in chunks():
        check.add(keys)
    return check.finish(chunks, columns)


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
