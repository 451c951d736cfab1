"""A disk that is full, or may not be written, is told of, and nothing half-made stays."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import StoreError
from penstock.index.build import build_index


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_a_full_disk_is_told_of_and_nothing_stays(suffix, tmp_path, small_disk):
    keys = [f"{number:0100}" for number in range(40_000)]
    path = tmp_path / f"rows.{suffix}"
    if suffix == "csv":
        path.write_text("index\n" + "\n".join(keys))
    else:
        pq.write_table(pa.table({"index": keys}), path)
    with pytest.raises(StoreError, match="no space left on the disk"):
        build_index(path, folder=small_disk / "node").rows([0])
    assert [each.name for each in small_disk.rglob("*.arrow")] == []
    assert [each.name for each in small_disk.rglob("*.tmp")] == []
