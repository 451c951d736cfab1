"""What the tests of indexes share."""

from __future__ import annotations

import csv
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROWS = [
    {
        "index": f"k{number:03}",
        "url": f"{number}.jpg",
        "score": number / 4,
        "width": number * 10 if number % 5 else None,
    }
    for number in range(60)
]


def write_rows(path, rows=ROWS):
    """Write a table in the format that its name says."""
    if path.suffix in (".csv", ".tsv"):
        with open(path, "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=25)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=25)
    return path


@pytest.fixture
def table_of(tmp_path):
    """Writes rows to a file of a given name."""
    return lambda name, rows=ROWS: write_rows(tmp_path / name, rows)
