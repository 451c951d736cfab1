"""How the files of a download are opened: remote ones through the spool, those on the disk as they are."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from penstock.formats.sources import SourceFile
from penstock.formats.streams import open_raw
from penstock.prep.read_ahead import PIECE_BYTES, ReadAheadFile
from penstock.prep.spool import Spool
from penstock.store.store import open_store


class Fetcher:
    """Open a source's files for one reader, and know how far it has got.

    Args:
        files: all of the source.
        spool: where fetched parts are kept.
        storage_options: see `open_store`.
    """

    def __init__(self, files: Sequence[SourceFile], spool: Spool, storage_options: Mapping[str, Any]) -> None:
        self._numbers = {id(file): number for number, file in enumerate(files)}
        self._before = [0]
        for file in files:
            self._before.append(self._before[-1] + file.size_bytes)
        self._files, self._spool, self._storage_options = files, spool, storage_options
        self._number, self._raw = 0, None

    @contextmanager
    def open(self, file: SourceFile) -> Iterator[Any]:
        """Open a file as it is stored; see `streams.open_raw`."""
        number = self._numbers[id(file)]
        with self._opened(number, file) as raw:
            self._number, self._raw = number, raw
            try:
                yield raw
            finally:
                self._raw = None

    @contextmanager
    def _opened(self, number: int, file: SourceFile) -> Iterator[Any]:
        if file.url is None:
            with open_raw(file) as raw:
                yield raw
            return
        store = open_store(file.url, **self._storage_options)
        try:
            begin = partial(store.begin_range, "", etag=file.etag)
            is_text = file.kind != "parquet"
            with ReadAheadFile(number, file.size_bytes, begin, self._spool, is_text=is_text) as ahead:
                yield ahead
        finally:
            store.close()

    @property
    def bytes_read(self) -> int:
        """Bytes of the source, as it is stored, up to where the reader is."""
        return self._before[self._number] + (0 if self._raw is None else self._raw.tell())

    def let_go(self, position: Mapping[str, int]) -> None:
        """Remove from the spool what reading from a position on does not need."""
        number = position["file"]
        file = self._files[number] if number < len(self._files) else None
        before = 0
        if file is not None and number == self._number and isinstance(self._raw, ReadAheadFile) and _seeks(file):
            before = self._raw.needed_from(position["offset"])
        # The first record of CSV names the columns of all others.
        has_header = file is not None and file.kind in ("csv", "tsv")
        self._spool.drop(number, before, PIECE_BYTES if has_header else 0)


def _seeks(file: SourceFile) -> bool:
    """Tell whether reading goes on anywhere: what is compressed, an array or Arrow is read from its beginning."""
    return file.kind == "parquet" or (file.kind in ("jsonl", "text", "csv", "tsv") and file.compression is None)
