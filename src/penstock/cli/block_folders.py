"""Folders of blocks, for the commands that look at folders of any kind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from penstock.errors import ConfigError

JsonDict = dict[str, Any]


def holds_blocks(folder: Path) -> bool:
    """Tell whether a folder is one of blocks, of whatever layout.

    Raises:
        BadManifest, BadBlock: it is one, and a damaged one.
    """
    from penstock.formats.block_layout import find_blocks

    try:
        find_blocks(folder)
    except ConfigError:
        return False
    return True


def block_folders_below(folder: Path) -> list[Path]:
    """Find the folders of blocks that have a manifest, a folder itself and those below it, sorted."""
    from penstock.formats.block_manifest import MANIFEST_NAME

    found = sorted(place.parent for place in folder.rglob(MANIFEST_NAME))
    return [place for place in found if not any(part.startswith(".") for part in place.relative_to(folder).parts)]


def describe_blocks(folder: Path, *, rows: int) -> JsonDict:
    """Describe a folder of blocks: how many samples in how many files, and the first samples.

    Raises:
        PenstockError: it can't be read.
    """
    from penstock.cli.inspect_files import short
    from penstock.formats.block_check import get_block_info
    from penstock.formats.block_layout import is_compressed
    from penstock.formats.block_reader import BlockReader

    info = get_block_info(folder)
    reader = BlockReader(folder)
    first: list[JsonDict] = []
    for block in range(len(reader.counts)):
        if len(first) < rows:
            first += reader.read(block, 0, rows - len(first))
    source = info.source or {}
    return {
        "kind": "folder of blocks" if info.finished else "unfinished folder of blocks: its writer goes on after them",
        "path": os.fspath(folder),
        "dataset_name": info.dataset_name,
        "samples": info.total_samples,
        "blocks": info.total_blocks,
        "block_size": info.block_size,
        "bytes": sum(block.size_bytes for block in info.blocks),
        "compression": "zstd" if info.blocks and is_compressed(info.blocks[0].file_path) else None,
        "text_column": info.text_column,
        "finished": info.finished,
        "format_version": info.format_version,
        "counts": info.counts or None,
        "source": short(_source(source.get("from"))),
        "first_rows": [short(sample) for sample in first],
    }


def _source(begun: Any) -> Any:
    """Give the files as names and sizes: times of change and etags say nothing to a reader."""
    if not isinstance(begun, dict) or "files" not in begun:
        return begun
    sizes = {str(name): size for name, size, *_ in begun["files"]}
    return {**{name: value for name, value in begun.items() if value is not None}, "files": sizes}
