"""The SQLite file of a ledger."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import LedgerError
from penstock.node import database

APPLICATION_ID = 0x70736C67
FORMAT_VERSION = 1


class Database(database.Database):
    """A connection to a ledger; see `penstock.node.database.Database`.

    Args:
        path: the file.
        schema: statements that make the tables of a new file.
        timeout_s: how long any operation may wait for its turn.
    """

    def __init__(self, path: Path, *, schema: str, timeout_s: float) -> None:
        kind = database.Kind(
            noun="ledger",
            application_id=APPLICATION_ID,
            format_version=FORMAT_VERSION,
            schema=schema,
            error=LedgerError,
            recovery=(
                "To recover: move {name}, {name}-wal and {name}-shm away, open a new ledger there and call "
                "import_json with the latest export; chunks completed since then are trained again"
            ),
        )
        super().__init__(path, kind, timeout_s=timeout_s)
