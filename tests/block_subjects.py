"""Folders of blocks for tests: sample i says i, in the field `id` and in its text."""

from __future__ import annotations

import json
from pathlib import Path

from penstock.formats.block_writer import StreamingBlockWriter


def sample(number: int) -> dict:
    return {"id": number, "text": f"sample {number}, " + "drop " * (number % 7)}


def write_blocks(folder: Path, count: int, block_size: int, *, compression: str | None = None, make=sample) -> Path:
    with StreamingBlockWriter(folder, "water", block_size, compression=compression) as writer:
        for number in range(count):
            writer.add_sample(make(number))
    return folder


def write_lines(path: Path, numbers) -> None:
    """A block as older writers left it: no manifest, no table."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample(number)) + "\n" for number in numbers))


def ids(rows) -> list[int]:
    return [row["id"] for row in rows]
