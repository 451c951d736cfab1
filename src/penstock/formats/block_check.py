"""Is a folder of blocks as it was written, and what is in it?

Every block is read once, in threads: its bytes are held to their checksum, its lines are counted and
held to the manifest and to the offset table. Folders that others wrote have no checksums: there every
line is parsed instead.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from penstock.errors import BadBlock, ConfigError, FormatError, StoreError
from penstock.formats.block_bytes import LocalBytes
from penstock.formats.block_frames import Frames
from penstock.formats.block_layout import find_blocks, idx_path, is_compressed
from penstock.formats.block_manifest import (
    ASSETS_FOLDER,
    MANIFEST_NAME,
    BlockMetadata,
    DatasetBlockInfo,
    read_block_manifest,
)
from penstock.formats.block_offsets import OFFSET_DTYPE
from penstock.formats.block_reader import BlockReader
from penstock.formats.files import digest

PIECE_BYTES = 4 << 20
_ROWS = 4_000
_NEWLINE = 10
_REMEDY = "restore it, or build the blocks anew"


def verify_block_structure(path: str | os.PathLike[str]) -> tuple[bool, str]:
    """Read a folder of blocks and compare it with its manifest, checksums and offset tables.

    Args:
        path: the dataset's folder, of any layout that penstock reads.

    Returns:
        Whether all is as it was written, and a sentence: what there is, or what is wrong with the first block
        that is bad, by its number. A folder whose writer has not finished is not right, though its blocks be.

    Cost: one read of the files, on as many threads as there are cores; about 40 MB of memory a thread.
    """
    folder = Path(path)
    try:
        info = get_block_info(folder)
        _check_blocks(folder, info)
        _check_assets(folder / ASSETS_FOLDER)
    except (FormatError, StoreError, ConfigError) as error:
        return False, str(error)
    size = sum(block.size_bytes for block in info.blocks)
    found = f"{info.total_samples:,} samples in {info.total_blocks:,} blocks, {size:,} bytes"
    if lacking := [block.block_id for block in info.blocks if not block.is_complete]:
        return False, f"{folder}: block {lacking[0]} is not complete, and readers leave it out: {_REMEDY}"
    if not info.finished:
        return False, f"{folder} is not finished: {found} are there and sound; let its writer go on"
    if any(block.checksum is None for block in info.blocks):
        return True, f"{folder}: {found}, every line fit to be read; there are no checksums to compare with"
    return True, f"{folder}: {found}, as they were written"


def get_block_info(folder: str | os.PathLike[str]) -> DatasetBlockInfo:
    """Say what is in a folder of blocks: its manifest, or what one would say.

    Args:
        folder: the dataset's folder. Without a manifest its blocks are counted, by their offset tables, which
            are made beside them if they are not there.

    Raises:
        ObjectMissing: there is no such folder.
        ConfigError: it holds no blocks.
        BadManifest: the manifest is damaged, or of a newer version.
        BadBlock: a block is missing between others, or damaged.
    """
    folder = Path(folder)
    if (folder / MANIFEST_NAME).is_file():
        return read_block_manifest(folder)
    _, entries = find_blocks(folder)
    reader = BlockReader(folder)
    counts = reader.counts.tolist()
    ends = reader.ends.tolist()
    blocks = tuple(
        BlockMetadata(
            block_id=entry.block_id,
            sample_count=count,
            start_index=end - count,
            end_index=end,
            file_path=entry.path,
            size_bytes=(folder / entry.path).stat().st_size,
        )
        for entry, count, end in zip(entries, counts, ends, strict=True)
    )
    return DatasetBlockInfo(
        dataset_name=folder.absolute().name,
        total_samples=len(reader),
        total_blocks=len(blocks),
        block_size=max(counts, default=0),
        text_column=reader.text_column(),
        blocks=blocks,
        format_version=0,
    )


def _check_blocks(folder: Path, info: DatasetBlockInfo) -> None:
    """Check every block at the same time as others; raises BadBlock for the first bad one."""
    reader = BlockReader(folder)
    complete = [block for block in info.blocks if block.is_complete]
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        for problem in pool.map(partial(_problem, folder, reader), range(len(complete)), complete):
            if problem is not None:
                raise BadBlock(problem)
    finally:
        pool.shutdown(cancel_futures=True)


def _problem(folder: Path, reader: BlockReader, place: int, block: BlockMetadata) -> str | None:
    """Say what is wrong with a block; None: nothing."""
    try:
        if block.checksum is not None:
            _check_block(folder / block.file_path, block)
            return None
        for start in range(0, block.sample_count, _ROWS):
            reader.read(place, start, start + _ROWS)
    except (FormatError, StoreError) as error:
        return f"block {block.block_id}: {error}"
    return None


def _check_block(path: Path, block: BlockMetadata) -> None:
    """Read a block once, or twice if it is compressed; raises BadBlock for the first thing that is wrong."""
    raw = LocalBytes(path)
    if raw.size != block.size_bytes:
        how = "shorter" if raw.size < block.size_bytes else "longer"
        raise BadBlock(f"{path} has {raw.size:,} bytes, {how} than the manifest's {block.size_bytes:,}: {_REMEDY}")
    hasher, lines, packed = blake2b(digest_size=16), _Lines(path), is_compressed(path.name)
    for piece in _pieces(raw):
        hasher.update(piece)
        if not packed:
            lines.take(piece)
    if hasher.hexdigest() != block.checksum:
        raise BadBlock(
            f"{path} changed after it was written: its digest is {hasher.hexdigest()}, the manifest says "
            f"{block.checksum}: {_REMEDY}"
        )
    for piece in _pieces(Frames(raw)) if packed else ():
        lines.take(piece)
    lines.expect(block.sample_count)


def _pieces(file: LocalBytes | Frames) -> Iterator[bytes]:
    for start in range(0, file.size, PIECE_BYTES):
        yield file.read(start, min(start + PIECE_BYTES, file.size))


class _Lines:
    """Counts the lines of a block piece by piece, and holds their places to the offset table."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._table_path = path.parent / idx_path(path.name)
        self._table: np.ndarray | None = None
        # A table that is missing or older is made again by whoever needs it, so its absence is no fault.
        if self._table_path.is_file() and self._table_path.stat().st_mtime_ns >= path.stat().st_mtime_ns:
            whole = self._table_path.stat().st_size // OFFSET_DTYPE.itemsize
            self._table = np.fromfile(self._table_path, OFFSET_DTYPE, whole).view(np.int64)
        self._count = self._base = self._last = 0
        self._agrees = True

    def take(self, piece: bytes) -> None:
        ends = np.flatnonzero(np.frombuffer(piece, np.uint8) == _NEWLINE) + (self._base + 1)
        if self._table is not None:
            said = self._table[self._count + 1 : self._count + 1 + len(ends)]
            self._agrees = self._agrees and np.array_equal(said, ends)
        self._count += len(ends)
        self._base += len(piece)
        self._last = int(ends[-1]) if len(ends) else self._last

    def expect(self, count: int) -> None:
        """Compare with what the manifest says; raises BadBlock."""
        if self._last != self._base:
            raise BadBlock(f"{self._path} does not end with a line's end: {_REMEDY}")
        if self._count != count:
            raise BadBlock(f"{self._path} has {self._count:,} lines, the manifest says {count:,}: {_REMEDY}")
        if self._table is not None and not (self._agrees and len(self._table) == count + 1 and self._table[0] == 0):
            raise BadBlock(f"{self._table_path} does not say where the lines are: remove it to have it made again")


def _check_assets(folder: Path) -> None:
    """Hold the files beside the blocks to their names, which are their checksums; raises BadBlock."""
    files = sorted(place for place in folder.glob("*/*") if not place.name.startswith("."))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for place, found in zip(files, pool.map(lambda file: digest(file.read_bytes()), files), strict=True):
            if found != place.stem:
                raise BadBlock(f"{place} changed after it was written: its digest is {found}: {_REMEDY}")
