"""Tar archives (WebDataset shards) as an index: one row a sample, its files as ranges of the archives.

    shard-000.tar: 0001.jpg 0001.txt 0002.jpg … ──▶ index "0001": jpg "shard-000.tar",
                                                     jpg__offset 512, jpg__length 20480, txt …

Each sample is read by its bytes alone afterwards. Samples keep the order of the archives, and have their
keys from the paths in them. Where a key is in two archives, as where each of them counts from 0, all keys of
all archives begin with the archive's path: "shard-000/0001".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from penstock.errors import ConfigError, ObjectMissing
from penstock.index.folders import BATCH_ROWS, listing_digest
from penstock.index.grouping import Grouping, grouped_table
from penstock.index.places import below, location_below
from penstock.index.tar_members import SKIP, iter_members
from penstock.store.ranged_file import RangedFile
from penstock.store.store import ObjectInfo, open_store
from penstock.store.urls import is_url, redact

AT_A_TIME = 16
"""Archives whose headers are read at the same time."""
READ_AHEAD = 2 << 20
SUFFIX = ".tar"
_COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4")


class TarSource:
    """The members of tar archives, by sample; see `penstock.index.scan.Source`.

    Args:
        base: the folder or URL that the archives' paths begin at.
        shards: the archives.
        key_column: name of the column of keys.
        storage_options: see `open_store`.
    """

    def __init__(
        self, base: str, shards: Sequence[ObjectInfo], key_column: str, storage_options: Mapping[str, Any]
    ) -> None:
        self.base = base
        self._shards, self._key_column, self._storage_options = shards, key_column, storage_options
        self._table: pa.Table | None = None

    @property
    def place(self) -> str:
        """Where it is, for people."""
        return redact(self.base)

    def signature(self) -> list[Any]:
        """Say which archives these are: how many, and a digest of their names, sizes and etags."""
        return ["tar", len(self._shards), listing_digest(self._shards)]

    @property
    def schema(self) -> pa.Schema:
        """Names and types of the columns; reads the headers of all archives the first time."""
        return self._grouped().schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Give the rows, in the order of the archives.

        Raises:
            BadBlock: an archive is truncated, damaged, compressed, or has sparse members or links.
            FormatError: a sample has two files of one extension.
            StoreError: an archive can't be read.
        """
        yield from self._grouped().to_batches(max_chunksize=BATCH_ROWS)

    def _grouped(self) -> pa.Table:
        if self._table is None:
            with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="penstock-tars") as pool:
                try:
                    groupings = list(pool.map(self._members, self._shards))
                except BaseException:
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise
            if not any(grouping.rows for grouping in groupings):
                raise ObjectMissing(f"{self.place}: its {len(groupings):,} archives hold no files named KEY.EXTENSION")
            self._tell_apart(groupings)
            self._table = grouped_table(groupings, self._key_column, by_key=False)
        return self._table

    def _members(self, info: ObjectInfo) -> Grouping:
        """Read the headers of one archive."""
        store = open_store(self.base, **self._storage_options)
        place, location = below(self.base, info.path), location_below(self.base, info.path)
        skip = SKIP if is_url(self.base) else 0
        grouping = Grouping(place, parts=True)
        with RangedFile(store, info.path, info=info, read_ahead=READ_AHEAD) as file:
            for name, offset, length in iter_members(file, info.size, place, skip=skip):
                grouping.add(name, location, length, offset)
        return grouping

    def _tell_apart(self, groupings: Sequence[Grouping]) -> None:
        """Put the archive's path before every key, if any key is in two archives."""
        if len(set().union(*(grouping.rows for grouping in groupings))) == sum(len(each.rows) for each in groupings):
            return
        for info, grouping in zip(self._shards, groupings, strict=True):
            shard = info.path[: -len(SUFFIX)]
            grouping.rows = {f"{shard}/{key}": row for key, row in grouping.rows.items()}


def is_tar(name: str) -> bool:
    """Tell whether a file is a tar archive, by its name.

    Raises:
        ConfigError: it is a compressed one.

    >>> is_tar("shard-000.tar"), is_tar("index.csv")
    (True, False)
    """
    lower = name.lower()
    if lower.endswith(_COMPRESSED):
        raise ConfigError(
            f"{redact(name)} is a compressed tar, of which no member can be read alone: uncompress it to .tar"
        )
    return lower.endswith(SUFFIX)
