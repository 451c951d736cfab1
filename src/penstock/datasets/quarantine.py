"""The list of samples that could not be used: one JSON object a line, appended to by all who train.

A line is written in one go, so processes never mix theirs; one that is lost with a machine costs an entry
of the list and nothing else.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from penstock.store.urls import redact


class QuarantineLog:
    """A file of entries `{"epoch", "id", "key", "locations", "stage", "reason", "message", "substitute"}`.

    Args:
        path: the file; it and its folder are made when there is a first entry.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"QuarantineLog({str(self.path)!r})"

    def add(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append entries; where the file can't be written, warn: training goes on."""
        lines = [orjson.dumps({**entry, "message": redact(str(entry["message"]))}) + b"\n" for entry in entries]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Unbuffered and appending: the system puts each write behind all others.
            with open(self.path, "ab", buffering=0) as file:
                file.write(b"".join(lines))
        except OSError as error:
            warnings.warn(
                f"{len(entries)} failed samples can't be listed in {self.path}: {error.strerror or error}. They are "
                "still counted in the loader's stats",
                RuntimeWarning,
                stacklevel=2,
            )

    def entries(self) -> list[dict[str, Any]]:
        """Read all entries, oldest first; a line cut short by a crash is left out."""
        try:
            lines = self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with suppress(orjson.JSONDecodeError):
                found.append(orjson.loads(line))
        return found
