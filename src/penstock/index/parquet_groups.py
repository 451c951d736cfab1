"""Row groups of Parquet files, local or not: what the footers say, and one group at a time.

A footer takes a round trip or two, a row group one: the bytes of its columns, side by side, neighbours in one
request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.errors import StoreError
from penstock.formats.files import digest
from penstock.formats.record_tables import extents
from penstock.formats.sources import SourceFile
from penstock.formats.streams import open_raw
from penstock.formats.tables import table_errors
from penstock.index.parquet import BATCH_ROWS, plain_schema
from penstock.store.seekable import SeekableFile
from penstock.store.store import open_store

AT_A_TIME = 32
"""Footers that are read at the same time."""
_END = 8
"""Bytes behind the footer: its length, and the magic."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footer:
    """What the footer of a Parquet file says."""

    schema: pa.Schema
    sizes: np.ndarray
    """int64 [g], the rows of each row group."""
    digest: str
    """Digest of the footer's bytes, which hold the bounds and lengths of all columns of all groups."""


def read_footers(files: Sequence[SourceFile], storage_options: Mapping[str, Any]) -> list[Footer]:
    """Read the footers of files, many at a time.

    Raises:
        BadBlock: a file is damaged, or no Parquet.
        StoreError: it can't be read.
    """
    with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="penstock-footers") as pool:
        try:
            return list(pool.map(lambda file: read_footer(file, storage_options), files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def read_footer(file: SourceFile, storage_options: Mapping[str, Any]) -> Footer:
    """Read the footer of one file; see `read_footers`."""
    metadata = read_metadata(file, storage_options)
    with table_errors(file.place), open_raw(file, **storage_options) as raw:
        raw.seek(file.size_bytes - _END)
        length = int.from_bytes(raw.read(_END)[:4], "little")
        raw.seek(file.size_bytes - _END - length)
        said = raw.read(length)
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return Footer(
        schema=plain_schema(metadata.schema.to_arrow_schema()), sizes=np.array(sizes, np.int64), digest=digest(said)
    )


def read_metadata(file: SourceFile, storage_options: Mapping[str, Any]) -> Any:
    """Read the footer of one file as pyarrow's FileMetaData; raises as `read_footers`."""
    import pyarrow.parquet as pq

    with table_errors(file.place), open_raw(file, **storage_options) as raw:
        return pq.read_metadata(pa.PythonFile(raw, mode="r"))


def iter_groups(
    file: SourceFile, metadata: Any, groups: Sequence[int], columns: Sequence[str], storage_options: Mapping[str, Any]
) -> Iterator[pa.RecordBatch]:
    """Read some columns of some row groups, those columns that the file has.

    Args:
        file: which.
        metadata: its FileMetaData.
        groups: row groups, in order.
        columns: names.
        storage_options: see `open_store`.

    Raises:
        BadBlock: the file is damaged.
        ObjectChanged: a remote file is no longer what it was.
        StoreError: it can't be read.
    """
    import pyarrow.parquet as pq

    names = [name for name in metadata.schema.to_arrow_schema().names if name in columns]
    with table_errors(file.place), open_raw(file, **storage_options) as raw:
        source = raw
        if file.url is not None:
            places = [place for group in groups for place in extents(metadata.row_group(group), names)]
            source = _fetched(file, places, storage_options)
        with pq.ParquetFile(pa.PythonFile(source, mode="r"), metadata=metadata, pre_buffer=False) as table:
            yield from table.iter_batches(
                batch_size=BATCH_ROWS, row_groups=list(groups), columns=names, use_threads=False
            )


def _fetched(file: SourceFile, places: Sequence[tuple[int, int]], storage_options: Mapping[str, Any]) -> Pieces:
    assert file.url is not None
    store = open_store(file.url, **storage_options)
    starts, stops = [start for start, _ in places], [stop for _, stop in places]
    return Pieces(file.size_bytes, starts, store.get_ranges("", starts, stops, etag=file.etag))


class Pieces(SeekableFile):
    """A file of which only some ranges are there; reads must lie within one of them.

    Args:
        size: bytes of the whole file.
        starts: where the ranges begin.
        pieces: their bytes.
    """

    def __init__(self, size: int, starts: Sequence[int], pieces: Sequence[bytes]) -> None:
        super().__init__()
        self.size, self._pieces = size, sorted(zip(starts, pieces, strict=True))

    def read(self, size: int | None = -1) -> bytes:
        """Read bytes that are there."""
        wanted = self.size - self._at if size is None or size < 0 else size
        for start, piece in self._pieces:
            if start <= self._at and self._at + wanted <= start + len(piece):
                data = piece[self._at - start : self._at - start + wanted]
                self._at += wanted
                return data
        raise StoreError(f"bytes {self._at:,} to {self._at + wanted:,} of a Parquet file were not fetched")
