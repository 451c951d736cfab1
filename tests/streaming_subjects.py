"""A small table of samples with a file each, and transforms of them: ordinary ones, and ones that misbehave."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

COUNT = 103


def content(number: int) -> bytes:
    """What the file of a sample holds."""
    return f"image {number} ".encode() * (50 + number)


def key(number: int) -> str:
    return f"s{number:03}"


def images(count: int = COUNT) -> dict[str, bytes]:
    """The files of the samples, by name."""
    return {f"images/{number:03}.bin": content(number) for number in range(count)}


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    """The rows that describe them."""
    return [
        {"index": key(number), "image": f"images/{number:03}.bin", "caption": f"caption {number}", "width": number * 3}
        for number in range(count)
    ]


def as_csv(table: Iterable[Mapping[str, Any]]) -> bytes:
    table = list(table)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return text.getvalue().encode()


def served(count: int = COUNT) -> dict[str, bytes]:
    """The table and its files, for a server."""
    return {"samples.csv": as_csv(rows(count)), **images(count)}


def write(folder: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def numbers(samples: Iterable[Mapping[str, Any]]) -> list[int]:
    """Which samples these are, by what their files hold."""
    return [int(Path(sample["image"]).read_bytes().split()[1]) for sample in samples]


def read_image(sample: dict[str, Any]) -> dict[str, Any]:
    """Put the content of the file in the place of its path."""
    return {**sample, "image": Path(sample["image"]).read_bytes()}


def decode(sample: dict[str, Any]) -> dict[str, Any]:
    """Read the file as what it should be, and fail if it is not."""
    data = Path(sample["image"]).read_bytes()
    number = int(data.split()[1])
    if data != content(number):
        raise ValueError(f"{len(data)} bytes are not image {number}")
    return {**sample, "number": number}


def jitter(sample: dict[str, Any], rng) -> dict[str, Any]:
    """Draw a number."""
    return {**sample, "draw": int(rng.integers(1 << 40))}


def twice(sample: dict[str, Any]) -> list[dict[str, Any]]:
    """Make two samples of one."""
    return [{**sample, "half": 0}, {**sample, "half": 1}]


def odd_only(sample: dict[str, Any]) -> dict[str, Any] | None:
    """Leave out every second sample."""
    return sample if int(sample["index"][1:]) % 2 else None


def pick_caption(row: dict[str, Any], rng) -> dict[str, Any]:
    """Choose one of two captions before anything is downloaded."""
    return {**row, "caption": row["caption"] if rng.random() < 0.5 else "none"}


def hide_path(sample: dict[str, Any]) -> dict[str, Any]:
    """Give the path as something that does not show what it is a path of."""
    return {"name": Path(sample["file"])}


def folder_of_files(count: int = 120, size: int = 100_000) -> dict[str, bytes]:
    """A table of files of one size, for a server."""
    rows = [{"index": f"k{number}", "file": f"{number}.bin"} for number in range(count)]
    return {"i.csv": as_csv(rows), **{f"{number}.bin": number.to_bytes(4) * (size // 4) for number in range(count)}}
