"""Where the blocks of a folder lie, whoever wrote it: by its manifest, or by how its files are named.

Older writers left folders without a manifest, or with one that names files otherwise than they are;
their names are tried in one fixed order, so every reader finds the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from penstock.errors import BadBlock, ConfigError, ObjectMissing
from penstock.formats.block_manifest import MANIFEST_NAME, DatasetBlockInfo, read_block_manifest

LAYOUTS = (
    "blocks/block_{:05d}.jsonl",
    "blocks/block_{:05d}.jsonl.zst",
    "blocks/block_{:d}.jsonl",
    "block_{:05d}.jsonl",
    "block_{:d}.jsonl",
    "block_{:d}/samples.txt",
)
"""Names a block may have below its folder, the first that exists counts; the second is the first one compressed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockEntry:
    """One block as its folder describes it; what is None is known only after a look at the file."""

    block_id: int
    path: str
    """Below the folder, with /; where the manifest's own is no more than a first guess, see `candidates`."""
    sample_count: int | None = None
    size_bytes: int | None = None
    checksum: str | None = None

    @property
    def candidates(self) -> Iterator[str]:
        """Paths under which the block may lie, the likeliest first."""
        yield self.path
        yield from (path for layout in LAYOUTS if (path := layout.format(self.block_id)) != self.path)


def is_text(path: str) -> bool:
    """Whether a block holds one text a line, as the oldest layout does, instead of JSON objects."""
    return path.endswith(".txt")


def is_compressed(path: str) -> bool:
    """Whether a block is compressed."""
    return path.endswith(".zst")


def idx_path(path: str) -> str:
    """Name the offset table beside a block.

    >>> idx_path("blocks/block_00000.jsonl.zst")
    'blocks/block_00000.idx'
    """
    return re.sub(r"(\.jsonl)?\.(jsonl|zst|txt)$", "", path) + ".idx"


def find_blocks(folder: Path) -> tuple[DatasetBlockInfo | None, list[BlockEntry]]:
    """List the blocks of a local folder, and its manifest if it has one.

    Raises:
        ObjectMissing: there is no such folder.
        ConfigError: it holds no blocks.
        BadBlock: one is missing between others.
        BadManifest: the manifest can't be used.
    """
    if not folder.is_dir():
        raise ObjectMissing(f"{folder} is no folder: give the one that holds {MANIFEST_NAME} or the blocks")
    if (folder / MANIFEST_NAME).is_file():
        info = read_block_manifest(folder)
        return info, listed_blocks(info)
    for layout in LAYOUTS:
        if found := _numbered(folder, layout):
            if found != set(range(len(found))):
                missing = min(set(range(max(found))) - found)
                raise BadBlock(
                    f"{folder / layout.format(missing)} is missing, block {max(found)} is there: fetch it again"
                )
            return None, [BlockEntry(block_id=number, path=layout.format(number)) for number in sorted(found)]
    raise ConfigError(
        f"{folder} holds neither {MANIFEST_NAME} nor blocks named as {LAYOUTS[0].format(0)}: make them with "
        "`penstock blocks`, or give another folder"
    )


def listed_blocks(info: DatasetBlockInfo) -> list[BlockEntry]:
    """List the complete blocks of a manifest."""
    below = "" if info.output_dir in (None, "", ".") else f"{info.output_dir.replace(chr(92), '/').strip('/')}/"
    return [
        BlockEntry(
            block_id=block.block_id,
            path=below + block.file_path,
            sample_count=block.sample_count,
            size_bytes=block.size_bytes or None,
            checksum=block.checksum,
        )
        for block in info.blocks
        if block.is_complete
    ]


def _numbered(folder: Path, layout: str) -> set[int]:
    """Collect the numbers of the files named by a layout."""
    pattern = re.compile(re.escape(layout).replace(r"\{:05d\}", r"(\d{5,})").replace(r"\{:d\}", r"(0|[1-9]\d*)"))
    depth = layout.count("/")
    names = folder.glob("/".join(["*"] * (depth + 1)))
    found = (pattern.fullmatch(name.relative_to(folder).as_posix()) for name in names)
    return {int(match[1]) for match in found if match}
