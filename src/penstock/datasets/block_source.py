"""Where a BlockManager's blocks come from: they are there already, or they are made of raw data on demand."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from penstock.datasets.block_filling import FilledBlocks, cache_folder
from penstock.errors import ObjectMissing
from penstock.formats.block_manifest import MANIFEST_NAME
from penstock.formats.block_reader import BlockReader
from penstock.store.urls import is_url

Rows = list[dict[str, Any]]


class BlockSource(Protocol):
    """Blocks by number, as far as they are known."""

    block_size: int
    """Samples of every block but the last."""

    def text_column(self) -> str | None:
        """Name the key of the text."""

    def sample_count(self, block: int) -> int | None:
        """Count the samples of a block, waiting until that is known; None past the last one."""

    def known_count(self, block: int) -> int | None:
        """Count the samples of a block that is there now."""

    def total_blocks(self) -> int | None:
        """Count the blocks; None while that is not known."""

    def is_last(self, block: int) -> bool:
        """Whether a block exists and none follows, waiting until that is known."""

    def read(self, block: int, start: int, stop: int) -> Rows | None:
        """Read rows [start, stop) of a block, as many as there are; None if there are none."""

    def release(self, block: int) -> None:
        """Close what is open of a block."""

    def request(self, blocks: int) -> None:
        """Begin to make the first `blocks` blocks, in the background."""

    def close(self) -> None:
        """End what runs in the background, and close all files."""


class ReadyBlocks:
    """A folder of blocks, local or remote, that is as it is."""

    def __init__(self, reader: BlockReader, samples_per_block: int) -> None:
        self._reader = reader
        self.block_size = samples_per_block if reader.info is None else reader.info.block_size

    def text_column(self) -> str | None:
        """Name the key of the text."""
        return self._reader.text_column()

    def sample_count(self, block: int) -> int | None:
        """Count the samples of a block."""
        return self.known_count(block)

    def known_count(self, block: int) -> int | None:
        """Count the samples of a block."""
        return int(self._reader.counts[block]) if block < len(self._reader.counts) else None

    def total_blocks(self) -> int | None:
        """Count the blocks."""
        return len(self._reader.counts)

    def is_last(self, block: int) -> bool:
        """Whether a block exists and none follows."""
        return block == len(self._reader.counts) - 1

    def read(self, block: int, start: int, stop: int) -> Rows | None:
        """Read rows of a block."""
        if (count := self.known_count(block)) is None or start >= count:
            return None
        return self._reader.read(block, start, stop)

    def release(self, block: int) -> None:
        """Close a block's file."""
        self._reader.release(block)

    def request(self, blocks: int) -> None:
        """Nothing is missing."""

    def close(self) -> None:
        """Close all files."""
        self._reader.close()


def open_block_source(
    path: str,
    *,
    samples_per_block: int,
    cache_dir: str | os.PathLike[str] | None,
    timeout: float,
    storage_options: Mapping[str, Any] | None,
) -> BlockSource:
    """Open a folder of blocks, or raw data of which blocks are made; the arguments are those of `BlockManager`."""
    options = dict(storage_options or {})
    folder = cache_folder(path, samples_per_block, cache_dir)
    filled = partial(FilledBlocks, path, folder, block_size=samples_per_block, timeout=timeout, storage_options=options)
    if (folder / MANIFEST_NAME).is_file() or os.path.isfile(path) or _is_part_of_hub(path):
        return filled()
    try:
        return ReadyBlocks(BlockReader(path, mapped_bytes=0, storage_options=options), samples_per_block)
    except ObjectMissing:
        if not is_url(path):
            raise
        return filled()


def _is_part_of_hub(path: str) -> bool:
    """Whether a path names a configuration or split of a Hub dataset, so rows and no folder."""
    return path.startswith("hf://") and ":" in path.removeprefix("hf://")
