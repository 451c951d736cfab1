"""What a folder of blocks says about itself.

    NAME/block_manifest.json         this file: which blocks there are, and what is in them
    NAME/blocks/block_00000.jsonl    one JSON object a line; .jsonl.zst where blocks are compressed
    NAME/blocks/block_00000.idx      where its lines start
    NAME/assets/                     what JSON can't hold, referenced from the lines by relative path

Law: the manifest never speaks of a block that is not on the disk, whole. It is replaced after every block,
so at any moment it is true of what can be read; `finished` says that nothing will follow.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from penstock.errors import BadManifest
from penstock.formats.files import read_json, write_json
from penstock.types import check_int

MANIFEST_NAME = "block_manifest.json"
BLOCKS_FOLDER = "blocks"
ASSETS_FOLDER = "assets"
FORMAT_VERSION = 1
"""0 are manifests without one: no checksums, and always taken for finished."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockMetadata:
    """One immutable file of consecutive samples."""

    block_id: int
    sample_count: int
    start_index: int
    end_index: int
    """Number in the dataset of the first sample, and of the one after the last."""
    file_path: str
    """Relative to the manifest's folder, with `/` on every system."""
    size_bytes: int
    """Length of the file as it lies there, compressed or not."""
    is_complete: bool = True
    checksum: str | None = None
    """blake2b-128 of the file's bytes, hex; None in manifests that others wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetBlockInfo:
    """A dataset in blocks: what its manifest says."""

    dataset_name: str
    total_samples: int
    total_blocks: int
    block_size: int
    """Samples of every block but the last."""
    text_column: str | None
    """Key of the text; None as long as there is no sample."""
    output_dir: str | None = None
    """Where the blocks are, relative to the manifest; None: beside it."""
    blocks: tuple[BlockMetadata, ...] = ()
    format_version: int = FORMAT_VERSION
    finished: bool = True
    source: dict[str, Any] | None = None
    """Where the samples came from and how far it got: {"from", "position", "skip"}, see `StreamingBlockWriter`."""
    counts: dict[str, int] = field(default_factory=dict)
    """What was left out or changed on the way, by reason."""

    def to_json(self) -> dict[str, Any]:
        """Give the manifest's content."""
        value = asdict(self)
        return {**value, "blocks": list(value["blocks"])}

    @staticmethod
    def from_json(value: Any) -> DatasetBlockInfo:
        """Read a manifest's content; keys that are not known are passed over.

        Raises:
            BadManifest: of a newer version, or not a manifest, or one that contradicts itself.
        """
        try:
            version = value.get("format_version", 0)
            if not isinstance(version, int) or not 0 <= version <= FORMAT_VERSION:
                raise BadManifest(
                    f"it has format version {version!r}, this penstock reads up to {FORMAT_VERSION}: upgrade penstock"
                )
            blocks = tuple(map(_block_from_json, value["blocks"]))
            info = DatasetBlockInfo(
                dataset_name=str(value["dataset_name"]),
                total_samples=int(value["total_samples"]),
                total_blocks=int(value["total_blocks"]),
                block_size=int(value["block_size"]),
                text_column=value.get("text_column"),
                output_dir=value.get("output_dir"),
                blocks=blocks,
                format_version=version,
                finished=bool(value.get("finished", version == 0)),
                source=value.get("source"),
                counts=dict(value.get("counts") or {}),
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, BadManifest):
                raise
            raise BadManifest(
                f"it is not a whole manifest ({error!r}): restore it, or build the blocks anew"
            ) from error
        _check(info)
        return info


def _block_from_json(value: dict[str, Any]) -> BlockMetadata:
    return BlockMetadata(
        block_id=int(value["block_id"]),
        sample_count=int(value["sample_count"]),
        start_index=int(value["start_index"]),
        end_index=int(value["end_index"]),
        file_path=str(value["file_path"]).replace("\\", "/"),
        size_bytes=int(value["size_bytes"]),
        is_complete=bool(value.get("is_complete", True)),
        checksum=value.get("checksum"),
    )


def _check(info: DatasetBlockInfo) -> None:
    """Refuse a manifest whose numbers do not fit together, naming the first that does not."""
    wrong = None
    at = 0
    for place, block in enumerate(info.blocks):
        span = (block.block_id, block.start_index, block.end_index)
        if span != (place, at, at + block.sample_count):
            wrong = f"block {place} is numbered {span[0]} and holds samples {span[1]} to {span[2]}, expected {at} on"
            break
        if place and block.is_complete > info.blocks[place - 1].is_complete:
            wrong = f"block {place} is complete, and block {place - 1} before it is not"
            break
        at = block.end_index
    if wrong is None and info.total_blocks != len(info.blocks):
        wrong = f"total_blocks is {info.total_blocks}, it lists {len(info.blocks)}"
    if wrong is None and info.total_samples != at:
        wrong = f"total_samples is {info.total_samples}, its blocks hold {at}"
    if wrong is None and not isinstance(info.source, dict | None):
        wrong = f"source is a {type(info.source).__name__}, no object"
    if wrong is not None:
        raise BadManifest(f"it contradicts itself: {wrong}; restore it, or build the blocks anew")


def parse_block_manifest(value: Any, place: str) -> DatasetBlockInfo:
    """Read a manifest's parsed JSON, which lies at `place`.

    Raises:
        BadManifest: see `DatasetBlockInfo.from_json`; names the place.
    """
    try:
        return DatasetBlockInfo.from_json(value)
    except BadManifest as error:
        raise BadManifest(f"{place} cannot be read: {error}") from error


def read_block_manifest(folder: str | os.PathLike[str]) -> DatasetBlockInfo:
    """Read the manifest of a folder.

    Raises:
        ObjectMissing: there is none.
        BadManifest: it is damaged, or of a newer version.
    """
    path = Path(folder) / MANIFEST_NAME
    return parse_block_manifest(read_json(path), os.fspath(path))


def write_block_manifest(folder: str | os.PathLike[str], info: DatasetBlockInfo) -> None:
    """Replace the manifest of a folder, atomically.

    Raises:
        StoreError: the disk is full, or can't be written; the manifest before stays.
    """
    # The JSON writer takes it as it is: turned into dicts first, ten thousand blocks would take a tenth of a second.
    write_json(Path(folder) / MANIFEST_NAME, info)


def block_name(block_id: int) -> str:
    """Name a block's file without its suffix.

    >>> block_name(7)
    'block_00007'
    """
    return f"block_{block_id:05d}"


def estimate_block_count(n: int, block_size: int) -> int:
    """Say into how many blocks n samples go.

    Raises:
        ConfigError: n < 0 or block_size < 1.

    >>> estimate_block_count(250, 100)
    3
    """
    return -(-check_int("n", n, minimum=0) // check_int("block_size", block_size, minimum=1))
