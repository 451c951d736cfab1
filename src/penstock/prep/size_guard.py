"""Room for a download: how large it will be, about, and whether the disk has that.

An estimate is made of what the source says about itself, before anything is written; while blocks are
written the disk is looked at again, because others write to it too.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.errors import StoreError
from penstock.formats.sources import SourceFile
from penstock.formats.streams import Opener, open_raw

FREE_SPACE_MARGIN = 5_000_000_000
_COMPRESSED = 4.0
"""What compressed text grows to, about."""
_ZSTD = 0.4
"""What compressed blocks shrink to, about."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a source is about to become."""

    num_bytes: int
    """Bytes of the blocks, about."""
    num_samples: int | None
    """None where only reading would tell."""


def estimate(
    files: Sequence[SourceFile],
    *,
    columns: Sequence[str] | None,
    max_samples: int,
    compression: str | None,
    opener: Opener = open_raw,
) -> Estimate:
    """Estimate the blocks that files become; of Parquet the first file's footer is read.

    Raises:
        StoreError: it can't be read.
    """
    total, samples = sum(file.size_bytes * _growth(file) for file in files), None
    tables = [file for file in files if file.kind == "parquet"]
    if tables and len(tables) == len(files):
        rows, size = _footer(tables[0], columns, opener)
        scale = sum(file.size_bytes for file in files) / max(1, tables[0].size_bytes)
        total, samples = size * scale, rows if len(files) == 1 else int(rows * scale)
    if max_samples and samples:
        total, samples = total * min(1.0, max_samples / samples), min(samples, max_samples)
    elif max_samples:
        # How long a sample is nobody knows yet; the looks at the disk while writing have to do.
        total = 0
    return Estimate(num_bytes=int(total * (_ZSTD if compression else 1.0)), num_samples=samples)


def _growth(file: SourceFile) -> float:
    return _COMPRESSED if file.compression else 1.0


def _footer(file: SourceFile, columns: Sequence[str] | None, opener: Opener) -> tuple[int, int]:
    """Give a Parquet file's number of rows and the bytes of its columns, uncompressed."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with opener(file) as raw:
            meta: Any = pq.read_metadata(pa.PythonFile(raw, mode="r"))
    except pa.ArrowException:
        # The reader will say what is wrong with it, and in which file.
        return 0, file.size_bytes
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    size = sum(
        group.column(number).total_uncompressed_size
        for group in groups
        for number in range(group.num_columns)
        if columns is None or group.column(number).path_in_schema.partition(".")[0] in columns
    )
    return int(meta.num_rows), size


class SizeGuard:
    """Refuse to fill the disk.

    Args:
        folder: where the blocks go.
        margin: bytes of the disk that stay free.
        cap: most bytes that the blocks may take. None: any number.
    """

    def __init__(self, folder: Path, margin: int, cap: int | None) -> None:
        self._folder, self._margin, self._cap = folder, margin, cap

    def check_start(self, expected: Estimate, there: int) -> None:
        """Look whether an estimate fits, of which some bytes are there already.

        Raises:
            StoreError: it does not.
        """
        needed = max(0, expected.num_bytes - there)
        if self._cap is not None and expected.num_bytes > self._cap:
            raise StoreError(
                f"the blocks would take about {_mb(expected.num_bytes)}, storage_cap (--storage-cap) is "
                f"{_mb(self._cap)}: raise it, or take fewer samples (max_samples, --max-samples)"
            )
        free = self._free()
        if free - needed < self._margin:
            raise StoreError(
                f"{self._folder} has {_mb(free)} free, the blocks would take about {_mb(needed)} more and "
                f"{_mb(self._margin)} must stay free (free_space_margin, --free-space-margin): free some space, choose "
                "another disk, or take fewer samples (max_samples, --max-samples)"
            )

    def check_now(self, num_bytes: int) -> None:
        """Look whether there is room to go on after so many bytes of blocks.

        Raises:
            StoreError: there is not; complete blocks stay.
        """
        if self._cap is not None and num_bytes > self._cap:
            raise StoreError(
                f"the blocks take {_mb(num_bytes)}, storage_cap (--storage-cap) is {_mb(self._cap)}: complete "
                "blocks are kept, the same command with a higher cap goes on"
            )
        free = self._free()
        if free < self._margin:
            raise StoreError(
                f"{self._folder} has {_mb(free)} free, {_mb(self._margin)} must stay free (free_space_margin, "
                "--free-space-margin): complete blocks are kept; free some space, then run the same command again"
            )

    def _free(self) -> int:
        place = self._folder
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
