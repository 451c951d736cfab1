"""A folder of files as an index: one row a sample, its files' paths below the folder as its columns.

    list ──▶ group by path up to the first dot ──▶ sort by key ──▶ rows

Nothing but names and sizes is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from penstock.errors import ObjectMissing
from penstock.formats.files import digest
from penstock.index.grouping import Grouping, grouped_table
from penstock.index.places import location_below
from penstock.store.store import ObjectInfo
from penstock.store.urls import redact

BATCH_ROWS = 65_536


class FolderSource:
    """The files below a folder, by sample; see `penstock.index.scan.Source`.

    Args:
        base: the folder, a path or URL.
        files: what is in it.
        key_column: name of the column of keys.
    """

    def __init__(self, base: str, files: Sequence[ObjectInfo], key_column: str) -> None:
        self.base = base
        self._files, self._key_column = files, key_column
        self._table: pa.Table | None = None
        self._digest: str | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return redact(self.base)

    def signature(self) -> list[Any]:
        """Say what the folder holds: the number of its files, and a digest of their names, sizes and etags."""
        self._digest = self._digest or listing_digest(self._files)
        return ["folder", len(self._files), self._digest]

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns."""
        return self._grouped().schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows, sorted by key.

        Raises:
            FormatError: a sample has two files of one extension, or a name can't be used.
            ObjectMissing: no file belongs to a sample.
        """
        yield from self._grouped().to_batches(max_chunksize=BATCH_ROWS)

    def _grouped(self) -> pa.Table:
        if self._table is None:
            grouping = Grouping(self.base)
            for info in self._files:
                grouping.add(info.path, location_below(self.base, info.path), info.size)
            if not grouping.rows:
                raise ObjectMissing(
                    f"{redact(self.base)} has no files that make samples, among {len(self._files):,} in all: a sample "
                    "is files named KEY.EXTENSION, in folders that are not hidden"
                )
            self._table = grouped_table([grouping], self._key_column, by_key=True)
        return self._table


def without_markers(files: Sequence[ObjectInfo]) -> list[ObjectInfo]:
    """Leave out what stands for folders: empty objects of their names, which tools make in stores that have none.

    >>> [one.path for one in without_markers([ObjectInfo(path=name, size=0) for name in ("", "a", "a/b")])]
    ['a/b']
    """
    empty = {info.path for info in files if not info.size}
    folders = {""}
    for info in files if empty - folders else ():
        folder = info.path.rpartition("/")[0]
        while folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    return [info for info in files if info.path not in empty or info.path not in folders]


def listing_digest(files: Sequence[ObjectInfo]) -> str:
    """Digest the names, sizes and etags of objects, in whatever order they were listed."""
    lines = [f"{info.path}\0{info.size}\0{info.etag or info.last_modified}\n" for info in files]
    return digest("".join(sorted(lines)).encode("utf-8", "surrogateescape"))
