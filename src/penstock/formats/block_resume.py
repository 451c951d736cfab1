"""A folder of blocks as a writer finds it: new, begun by an earlier writer, or not for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from penstock.errors import BadBlock, ConfigError, ObjectChanged
from penstock.formats.block_layout import is_compressed
from penstock.formats.block_manifest import (
    ASSETS_FOLDER,
    BLOCKS_FOLDER,
    MANIFEST_NAME,
    DatasetBlockInfo,
    block_name,
    read_block_manifest,
    write_block_manifest,
)
from penstock.formats.files import store_errors


def begin_or_resume(new: DatasetBlockInfo, folder: Path, compression: str | None) -> DatasetBlockInfo:
    """Give what is there already, after removing what a killed writer left behind it; else begin with `new`.

    Args:
        new: the manifest of an empty dataset: what the folder was begun with must be the same.
        folder: the dataset's, which exists and is held by the caller.
        compression: of the blocks.

    Raises:
        ConfigError: it was begun with other settings, or holds blocks that no writer of this kind made.
        ObjectChanged: it was begun from another source.
        BadManifest: its manifest can't be read.
        BadBlock: a complete block is missing or has another size.
    """
    there = read_block_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if there is not None and (there.blocks or there.finished):
        info = there
        _check_settings(info, new, folder, compression)
        _check_source(info, new, folder)
        _check_sizes(info, folder)
    else:
        info = new
        if there is None:
            _check_unclaimed(folder)
        # From the first moment on the folder is known for what it is.
        write_block_manifest(folder, info)
    _clear(folder, len(info.blocks))
    return info


def _check_settings(info: DatasetBlockInfo, new: DatasetBlockInfo, folder: Path, compression: str | None) -> None:
    found = compression
    if info.blocks:
        found = "zstd" if is_compressed(info.blocks[0].file_path) else None
    wrong = [
        f"{name}={was!r}, not {now!r}"
        for name, was, now in (
            ("format_version", info.format_version, new.format_version),
            ("dataset_name", info.dataset_name, new.dataset_name),
            ("block_size", info.block_size, new.block_size),
            ("compression", found, compression),
        )
        if was != now
    ]
    if wrong:
        raise ConfigError(f"{folder} was begun with {' and '.join(wrong)}; give the same, or choose another folder")


def _check_source(info: DatasetBlockInfo, new: DatasetBlockInfo, folder: Path) -> None:
    begun, now = ((each.source or {}).get("from") for each in (info, new))
    if begun != now:
        raise ObjectChanged(
            f"{folder} was begun from another source: {first_difference(begun, now)}; restore the source, or choose "
            "another folder"
        )


def first_difference(begun: Any, now: Any, name: str = "source") -> str:
    """Say where two JSON values part, and how.

    >>> first_difference({"files": [["a", 1]]}, {"files": [["a", 2]]})
    'source.files[0][1] was 1 and is 2 now'
    """
    if isinstance(begun, dict) and isinstance(now, dict) and begun.keys() == now.keys():
        key = next(key for key in begun if begun[key] != now[key])
        return first_difference(begun[key], now[key], f"{name}.{key}")
    if isinstance(begun, list) and isinstance(now, list) and len(begun) == len(now):
        place = next(i for i, pair in enumerate(zip(begun, now, strict=True)) if pair[0] != pair[1])
        return first_difference(begun[place], now[place], f"{name}[{place}]")
    return f"{name} was {_short(begun)} and is {_short(now)} now"


def _short(value: Any) -> str:
    text = orjson.dumps(value).decode()
    return text if len(text) <= 200 else f"{text[:199]}…"


def _check_sizes(info: DatasetBlockInfo, folder: Path) -> None:
    for block in info.blocks:
        path = folder / block.file_path
        size = path.stat().st_size if path.is_file() else None
        if size != block.size_bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise BadBlock(
                f"{path} {found}, the manifest says {block.size_bytes}; restore it, or build the blocks anew"
            )


def _check_unclaimed(folder: Path) -> None:
    """Refuse a folder without a manifest that holds blocks: they are not ours."""
    foreign = next((place for below in (folder / BLOCKS_FOLDER, folder) for place in below.glob("block_*")), None)
    if foreign is not None:
        raise ConfigError(
            f"{folder} has no {MANIFEST_NAME} but holds {foreign.relative_to(folder)}, which no writer of such blocks "
            "left; choose another folder"
        )


def _clear(folder: Path, num_blocks: int) -> None:
    """Remove what a killed writer left: files without their name yet, and a block the manifest does not know."""
    blocks = folder / BLOCKS_FOLDER
    left = [*blocks.glob("*.partial"), *blocks.glob(f"{block_name(num_blocks)}.*"), *blocks.glob(".*.tmp")]
    left += [*folder.glob(f".{MANIFEST_NAME}.*.tmp"), *(folder / ASSETS_FOLDER).glob("*/.*.tmp")]
    for place in left:
        with store_errors(place):
            place.unlink(missing_ok=True)
