"""Where a folder of blocks is: on a disk of this machine, or in a store. What readers ask of either.

A local folder may be of any layout, and tables that it lacks are made beside its blocks. A remote one
has a manifest, and tables it lacks live in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson

from penstock.errors import BadBlock, BadManifest, ObjectMissing
from penstock.formats.block_bytes import BlockBytes, LocalBytes, MappedBytes, RemoteBytes, read_scattered
from penstock.formats.block_frames import Frames
from penstock.formats.block_layout import BlockEntry, find_blocks, idx_path, is_compressed, listed_blocks
from penstock.formats.block_manifest import MANIFEST_NAME, DatasetBlockInfo, parse_block_manifest
from penstock.formats.block_offsets import (
    ENTRY_BYTES,
    OFFSET_DTYPE,
    build_offsets,
    checked_offsets,
    count_lines,
    expect_lines,
    read_offsets,
    scan_offsets,
)
from penstock.store.store import open_store
from penstock.store.urls import is_url, parse_url

MAX_OPEN = 4096
WHOLE_TABLE_ROWS = 1 << 17
"""Remote tables of up to so many rows are fetched whole, at the first look at their block: one request, 1 MB."""


class BlockPlace(Protocol):
    """A folder of blocks, as its reader sees it."""

    is_local: bool
    info: DatasetBlockInfo | None
    blocks: list[BlockEntry]
    max_open: int
    """Blocks to keep open at a time."""

    def counts(self) -> list[int]:
        """Count the samples of every block."""

    def open(self, number: int, *, mapped: bool) -> BlockBytes:
        """Open a block and hold its length to the manifest."""

    def offsets(self, number: int, file: BlockBytes) -> np.ndarray:
        """Read or make a block's whole table, int64 [count + 1]."""

    def has_table(self, number: int, file: BlockBytes) -> bool:
        """Whether the table lies where `entries` can read it."""

    def entries(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read the byte ranges of rows [n] of blocks [n], int64 [n, 2], where they lie."""

    def entry_range(self, number: int, start: int, stop: int) -> np.ndarray:
        """Read the offsets of rows [start, stop) and the one that ends the last, where they lie."""

    def after_fork(self) -> None:
        """Be usable in a forked child, whatever threads of its parent were doing."""


def open_place(location: str | Path, storage_options: Mapping[str, Any]) -> BlockPlace:
    """Open a folder of blocks: a path, a `file://` URL, or the URL of a store."""
    if not is_url(location):
        return LocalPlace(Path(location))
    place = parse_url(location)
    return LocalPlace(Path(place.key)) if place.scheme == "file" else RemotePlace(str(location), storage_options)


class LocalPlace:
    """Blocks on a disk of this machine."""

    is_local = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.info, self.blocks = find_blocks(folder)
        self.max_open = _most_open()
        self._paths: dict[int, Path] = {}
        self._sound: dict[int, LocalBytes] = {}
        """Tables that were found to be those of their blocks."""
        self._lock = threading.Lock()

    def counts(self) -> list[int]:
        """Count the samples: as the manifest says, else as the tables do, which are made if need be."""
        found = []
        for block in self.blocks:
            count = block.sample_count
            if count is None:
                file = self.open(block.block_id, mapped=False)
                count = count_lines(self._table_path(block.block_id), file, self._mtime_ns(block.block_id))
            found.append(count)
        return found

    def open(self, number: int, *, mapped: bool) -> BlockBytes:
        """Open a block and hold its length to the manifest."""
        path, block = self._path(number), self.blocks[number]
        packed = is_compressed(path.name)
        file = MappedBytes(path) if mapped and not packed else LocalBytes(path)
        _expect_size(file, block)
        return Frames(file) if packed else file

    def offsets(self, number: int, file: BlockBytes) -> np.ndarray:
        """Read or make a block's whole table."""
        path = self._table_path(number)
        table = read_offsets(path, file, self._mtime_ns(number))
        count = self.blocks[number].sample_count
        if table is None or (count is not None and len(table) - 1 != count):
            table = build_offsets(path, file)
        return expect_lines(table, count, file.name)

    def has_table(self, number: int, file: BlockBytes) -> bool:
        """Whether there is a table, of the block as it is now."""
        if number in self._sound:
            return True
        path, count = self._table_path(number), self.blocks[number].sample_count
        if not path.is_file():
            return False
        table = LocalBytes(path)
        is_sound = (
            table.mtime_ns >= self._mtime_ns(number)
            and table.size >= ENTRY_BYTES
            and (count is None or table.size == (count + 1) * ENTRY_BYTES)
            and int.from_bytes(table.read(table.size - ENTRY_BYTES, table.size), "little") == file.size
        )
        if is_sound:
            self._keep(number, table)
        return is_sound

    def entries(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Read the byte ranges of rows of blocks."""
        listed = numbers.tolist()
        tables = {number: self._table(number) for number in set(listed)}
        starts, sizes = (rows * ENTRY_BYTES).tolist(), [2 * ENTRY_BYTES] * len(rows)
        return _spans(read_scattered([tables[number] for number in listed], starts, sizes), self.folder)

    def entry_range(self, number: int, start: int, stop: int) -> np.ndarray:
        """Read the offsets of consecutive rows."""
        return _entry_range(self._table(number), start, stop)

    def after_fork(self) -> None:
        """Have a lock that no thread of the parent holds."""
        self._lock = threading.Lock()

    def _table(self, number: int) -> LocalBytes:
        if (table := self._sound.get(number)) is None:
            table = LocalBytes(self._table_path(number))
            self._keep(number, table)
        return table

    def _keep(self, number: int, table: LocalBytes) -> None:
        """Keep a table open; one that is put aside for it is closed when nobody reads it any more."""
        with self._lock:
            while len(self._sound) >= self.max_open:
                self._sound.pop(next(iter(self._sound)))
            self._sound[number] = table

    def _path(self, number: int) -> Path:
        """Find a block's file: where the manifest says, else under the other names it may have."""
        if (path := self._paths.get(number)) is None:
            candidates = [self.folder / name for name in self.blocks[number].candidates]
            path = next((candidate for candidate in candidates if candidate.is_file()), candidates[0])
            self._paths[number] = path
        return path

    def _table_path(self, number: int) -> Path:
        path = self._path(number)
        return path.parent / idx_path(path.name)

    def _mtime_ns(self, number: int) -> int:
        return self._path(number).stat().st_mtime_ns


class RemotePlace:
    """Blocks in a store, read by ranges.

    Raises:
        ObjectMissing: there is no manifest.
        BadManifest: it can't be used.
    """

    is_local = False
    max_open = 1 << 20

    def __init__(self, url: str, storage_options: Mapping[str, Any]) -> None:
        self._store = open_store(url, **storage_options)
        self._name = self._store.url.rstrip("/")
        try:
            raw = self._store.get(MANIFEST_NAME)
        except ObjectMissing as error:
            raise ObjectMissing(
                f"{self._name} has no {MANIFEST_NAME}: a remote folder of blocks needs one; download others first, "
                "with `penstock download`"
            ) from error
        try:
            value = orjson.loads(raw)
        except orjson.JSONDecodeError as error:
            raise BadManifest(f"{self._name}/{MANIFEST_NAME} is not valid JSON ({error}): upload it again") from error
        self.info: DatasetBlockInfo | None = parse_block_manifest(value, f"{self._name}/{MANIFEST_NAME}")
        self.blocks = listed_blocks(self.info)

    def counts(self) -> list[int]:
        """Count the samples, as the manifest says."""
        return [block.sample_count or 0 for block in self.blocks]

    def open(self, number: int, *, mapped: bool) -> BlockBytes:
        """Open a block, by its length in the manifest if it says that; no request for one that is not compressed."""
        block = self.blocks[number]
        size = block.size_bytes
        if size is None:
            try:
                size = self._store.head(block.path).size
            except ObjectMissing as error:
                raise BadBlock(f"{self._name}/{block.path} is missing: upload it again") from error
        file = RemoteBytes(self._store, block.path, f"{self._name}/{block.path}", size)
        return Frames(file) if is_compressed(block.path) else file

    def offsets(self, number: int, file: BlockBytes) -> np.ndarray:
        """Fetch a block's table, or make it by reading the block."""
        try:
            table = checked_offsets(self._store.get(idx_path(self.blocks[number].path)), file.size)
        except ObjectMissing:
            table = None
        count = self.blocks[number].sample_count
        if table is None or len(table) - 1 != count:
            table = scan_offsets(file)
        return expect_lines(table, count, file.name)

    def has_table(self, number: int, file: BlockBytes) -> bool:
        """Whether there is a table that is worth reading in parts: of very many rows."""
        count = self.blocks[number].sample_count or 0
        if count <= WHOLE_TABLE_ROWS:
            return False
        try:
            size = self._store.head(idx_path(self.blocks[number].path)).size
        except ObjectMissing:
            return False
        return size == (count + 1) * ENTRY_BYTES

    def entries(self, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Fetch the byte ranges of rows of blocks; those of one block side by side."""
        spans = np.empty((len(rows), 2), np.int64)
        for number in set(numbers.tolist()):
            mine, table = np.flatnonzero(numbers == number), self._table(number)
            wanted = np.stack([rows[mine] * ENTRY_BYTES, (rows[mine] + 2) * ENTRY_BYTES], axis=1)
            spans[mine] = _spans(table.read_many(wanted), table.name)
        return spans

    def entry_range(self, number: int, start: int, stop: int) -> np.ndarray:
        """Fetch the offsets of consecutive rows."""
        return _entry_range(self._table(number), start, stop)

    def after_fork(self) -> None:
        """Nothing is held; a store says itself whether a child may use it."""

    def _table(self, number: int) -> RemoteBytes:
        block = self.blocks[number]
        path = idx_path(block.path)
        return RemoteBytes(self._store, path, f"{self._name}/{path}", ((block.sample_count or 0) + 1) * ENTRY_BYTES)


def _spans(entries: list[bytes], where: object) -> np.ndarray:
    """View pairs of entries as byte ranges, int64 [n, 2]."""
    return _ascending(np.frombuffer(b"".join(entries), OFFSET_DTYPE).reshape(-1, 2).view(np.int64), where)


def _entry_range(table: BlockBytes, start: int, stop: int) -> np.ndarray:
    raw = table.read(start * ENTRY_BYTES, (stop + 1) * ENTRY_BYTES)
    return _ascending(np.frombuffer(raw, OFFSET_DTYPE).view(np.int64), table.name)


def _ascending(found: np.ndarray, where: object) -> np.ndarray:
    if not (np.diff(found, axis=-1) > 0).all() or found.min() < 0:
        raise BadBlock(f"an offset table of {where} is damaged: remove its .idx files to have them made again")
    return found


def _expect_size(file: LocalBytes | MappedBytes, block: BlockEntry) -> None:
    """Hold a file to the length the manifest says."""
    if block.size_bytes is not None and file.size != block.size_bytes:
        how = "shorter" if file.size < block.size_bytes else "longer"
        raise BadBlock(
            f"{file.name} has {file.size:,} bytes and is {how} than the manifest says ({block.size_bytes:,}): it was "
            "cut or written to; fetch it again, or build the blocks anew"
        )


def _most_open() -> int:
    """Say how many files a folder's reader may keep open, of those that this process may open in all."""
    try:
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    except (ImportError, OSError):
        return 64
    # As many tables may be open as blocks; a quarter is left to others.
    return max(16, min(MAX_OPEN, (soft if soft > 0 else 1024) * 3 // 8))
