"""Start a stand-in for BigQuery (`bigquery.py`) in a process of its own, give it tables, and read what it was asked.

def test_something(bigquery):                  # the fixture of tests/conftest.py
    bigquery.add_table("words", [{"name": "word", "type": "STRING"}], [["a"], ["b"]])
    ...                                        # SELECT * FROM words, at bigquery.url
    assert len(bigquery.requests("/queries/")) == 1
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from servers.bigquery import error_body
from servers.http_process import ServerProcess


class BigQuery(ServerProcess):
    """A stand-in for BigQuery in its own process.

    Args:
        folder: where its tables and its log lie.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__("servers.bigquery", folder / "tables", folder / "access.jsonl")

    def add_table(
        self, name: str, schema: Sequence[dict[str, Any]] | None = None, rows: Sequence[Any] = (), **more: Any
    ) -> None:
        """Add a table, of rows or, without a schema, of what `more` says; see `bigquery.py`."""
        table = more if schema is None else {"schema": list(schema), "rows": list(rows), **more}
        (self.folder / f"{name}.json").write_text(json.dumps(table))

    def refuse(self, status: int, reason: str, message: str, **fault: Any) -> None:
        """Let the next requests that fit be refused as the API does."""
        headers = {"Content-Type": "application/json"}
        self.fault(status=status, body=error_body(status, reason, message).decode(), headers=headers, **fault)
