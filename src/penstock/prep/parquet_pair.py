"""Two parquet files that belong together: written at the same time, both whole or neither.

    pair.writing(schema) ──▶ rows.add(batch), val_rows.add(batch) ──end of the block──▶ both files

Row groups are sent on their way, to the disk or to a store, as they fill. Both files carry the same mark, so that
two that are of different runs are not taken for a pair.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

import pyarrow as pa
from pyarrow import parquet

from penstock.errors import AccessDenied, BadBlock, ConfigError, ObjectMissing, PenstockError, StoreError
from penstock.formats.files import atomic_write, remove_abandoned, store_errors
from penstock.store.ranged_file import open_file
from penstock.store.remote import RemoteStore
from penstock.store.store import open_store
from penstock.store.uploads import PART_BYTES
from penstock.store.urls import HTTP, parse_url, redact

_MARK = b"penstock.export"
_CLOUDS = ("s3", "gs", "az")


class _Enough(Exception):
    """Ends an upload that is not to be completed."""


class Rows:
    """A parquet file that is being written: rows are kept until there is a row group of them.

    Args:
        file: where it goes.
        schema: of the rows.
        row_group_size: rows of each group but the last.
    """

    def __init__(self, file: BinaryIO, schema: pa.Schema, row_group_size: int) -> None:
        self._writer = parquet.ParquetWriter(file, schema, compression="zstd")
        self._schema, self._size = schema, row_group_size
        self._kept: list[pa.RecordBatch] = []
        self._num_kept = 0
        self.num_rows = 0

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows."""
        self._kept.append(batch)
        self._num_kept += batch.num_rows
        self.num_rows += batch.num_rows
        while self._num_kept >= self._size:
            self._write(self._size)

    def close(self) -> None:
        """Write what is left, and the footer."""
        if self._num_kept:
            self._write(self._num_kept)
        self._writer.close()

    def drop(self) -> None:
        """Let go of a file that will be thrown away."""
        with suppress(OSError, ValueError):
            self._writer.close()
        # Else it would try again when it is collected, and its file is closed by then.
        self._writer.is_open = False

    def _write(self, count: int) -> None:
        table = pa.Table.from_batches(self._kept, self._schema)
        self._writer.write_table(table.slice(0, count), row_group_size=self._size)
        # A slice would keep all of its page in memory for a few rows.
        rest = table.slice(count).combine_chunks()
        self._kept, self._num_kept = rest.to_batches(), rest.num_rows


class ParquetPair:
    """Two parquet files, at URLs or paths.

    Args:
        path: the first.
        other: the second, in the same store.
        storage_options: of the store, see `open_store`.

    Raises:
        ConfigError: the store is only read.
    """

    def __init__(self, path: str, other: str, storage_options: Mapping[str, Any]) -> None:
        self._paths = path, other
        self._place = parse_url(path)
        self._is_local = self._place.scheme == "file"
        self._options = {} if self._is_local else dict(storage_options)
        if self._place.scheme in (*HTTP, "hf"):
            raise ConfigError(f"{redact(path)} cannot be written: give a store that can be, or a path")

    def bucket_region(self) -> str | None:
        """Ask where the bucket of S3 is; None where the server does not say, or there is none."""
        store = None if self._is_local else open_store(self._paths[0], **self._options)
        return store.bucket_region() if isinstance(store, RemoteStore) else None

    def check_writable(self) -> None:
        """Find out, before there is anything to write, that it could not be; a folder on this machine is made.

        Raises:
            ConfigError: a path is that of a folder.
            ObjectMissing: there is no bucket.
            AccessDenied: the store refuses the credentials.
            StoreError: the folder may not be written.
        """
        if not self._is_local:
            self._check_bucket()
            return
        for path in self._paths:
            local = Path(parse_url(path).key)
            if local.is_dir():
                raise ConfigError(f"{local} is a folder: give the path of a file that is to be, or remove it")
            with store_errors(local):
                local.parent.mkdir(parents=True, exist_ok=True)
                TemporaryFile(dir=local.parent).close()

    def remove_abandoned(self) -> None:
        """Remove what processes that were killed while they wrote the two have left on this machine."""
        for path in self._paths if self._is_local else ():
            remove_abandoned(parse_url(path).key)

    def is_there(self) -> bool:
        """Tell whether both files are there.

        Raises:
            StoreError: there is but one of them, or they are of two runs.
        """
        first, second = map(redact, self._paths)
        there = [self._exists(path) for path in self._paths]
        if there[0] != there[1]:
            found, lacking = (first, second) if there[0] else (second, first)
            raise StoreError(f"{found} is there, {lacking} is not: set recompute: true to make both anew, or remove it")
        if not all(there):
            return False
        marks = [(self._footer(path).metadata or {}).get(_MARK) for path in self._paths]
        if marks[0] != marks[1]:
            raise StoreError(
                f"{first} and {second} are of two exports, the later of which ended early: set recompute: true to "
                "make both anew"
            )
        return True

    def num_rows(self) -> tuple[int, int]:
        """Count the rows of both, as their footers say."""
        first, second = (self._footer(path).num_rows for path in self._paths)
        return first, second

    @contextmanager
    def writing(self, schema: pa.Schema, row_group_size: int) -> Iterator[tuple[Rows, Rows]]:
        """Open both for writing: they take the place of what was there once the block ends without an error.

        Raises:
            StoreError: one can't be written. If that happens after the second has its name and before the first has,
                the error says so, and `is_there` refuses the two.
        """
        marked = schema.with_metadata({**(schema.metadata or {}), _MARK: secrets.token_hex(16).encode()})
        half_done = ""
        try:
            with self._open(self._paths[0]) as file:
                with self._open(self._paths[1]) as other:
                    with _both(file, other, marked, row_group_size) as pair:
                        yield pair
                    half_done = "may be"
                half_done = "is"
        except PenstockError as error:
            # Who is refused knows that nothing was written.
            if half_done == "is" or (half_done and not isinstance(error, AccessDenied | ObjectMissing)):
                first, second = map(redact, self._paths)
                error.add_note(f"{second} {half_done} new, {first} is not: run it again with recompute: true")
            raise

    def _open(self, path: str) -> AbstractContextManager[BinaryIO]:
        if not self._is_local:
            return open_store(path, **self._options).upload("")
        return atomic_write(Path(parse_url(path).key))

    def _exists(self, path: str) -> bool:
        try:
            open_store(path, **self._options).head()
        except ObjectMissing:
            return False
        return True

    def _check_bucket(self) -> None:
        """Find out that there is no bucket: a store says of both that the object is missing."""
        if self._place.scheme not in _CLOUDS:
            return
        store = open_store(self._paths[0], **self._options)
        try:
            next(store.list(), None)
        except AccessDenied:
            # Who may write need not be one who may list: a part is sent, and thrown away.
            with suppress(_Enough), store.upload("") as file:
                file.write(bytes(PART_BYTES + 1))
                # The client tells of the first when it is given the next.
                file.write(bytes(PART_BYTES + 1))
                raise _Enough from None

    def _footer(self, path: str) -> parquet.FileMetaData:
        try:
            with open_file(path, **self._options) as file:
                return parquet.read_metadata(file)
        except pa.ArrowException as error:
            raise BadBlock(
                f"{redact(os.fspath(path))} is there and is no parquet: set recompute: true to replace it"
            ) from error


@contextmanager
def _both(file: BinaryIO, other: BinaryIO, schema: pa.Schema, row_group_size: int) -> Iterator[tuple[Rows, Rows]]:
    pair = Rows(file, schema, row_group_size), Rows(other, schema, row_group_size)
    try:
        yield pair
        for rows in pair:
            rows.close()
        # What can fail is to fail before either file has its name.
        for each in (file, other):
            each.flush()
    except BaseException:
        for rows in pair:
            rows.drop()
        raise
