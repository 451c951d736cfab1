"""Rows of Hub datasets that only the `datasets` library can read: archives, folders of images, readers with settings.

The one file that knows that library. Rows stream through it one by one, which is slow beside what is read
here; media are not decoded: their bytes become files.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from penstock.errors import BadRecord, ConfigError
from penstock.formats.hub_dataset import HubReference, parse_hub_reference
from penstock.formats.json_values import LineEncoder
from penstock.formats.record_lines import join_lines
from penstock.formats.records import LineBatch, OnNan
from penstock.formats.text import OnError, Position, Skipped
from penstock.store.hub import hub_access, hub_commit
from penstock.store.urls import parse_url

_ROWS = 256
"""Rows of a batch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LibraryRecords:
    """A split of a Hub dataset as batches of JSON lines; offers what `Records` does."""

    reference: HubReference
    """Its revision is a commit."""
    on_error: OnError
    on_nan: OnNan
    columns: tuple[str, ...] | None
    assets: Path

    @property
    def files(self) -> tuple[()]:
        """None: which there are is the library's business."""
        return ()

    @property
    def signature(self) -> list[list[object]]:
        """The dataset and its commit: tells whether positions still mean the same."""
        return [[self.reference.repo, 0, self.reference.revision]]

    @property
    def size_bytes(self) -> int:
        """0: not known."""
        return 0

    def read(self, start: Mapping[str, Any] | None = None) -> Iterator[LineBatch]:
        """Read the records, in order; see `Records.read`. A position holds the library's own state."""
        rows = _open(self.reference, self.columns)
        row = 0
        if start is not None:
            row = start["row"]
            rows.load_state_dict(start["state"])
        name = self.reference.repo
        encoder = LineEncoder(name, self.assets, on_nan=self.on_nan)
        parts: list[bytes] = []
        bad: list[BadRecord] = []
        for sample in rows:
            _bring_media(sample)
            try:
                parts.append(encoder.encode(sample, row)[:-1])
            except BadRecord as error:
                if self.on_error == "raise":
                    raise
                bad.append(error)
            row += 1
            if len(parts) + len(bad) == _ROWS:
                yield self._batch(parts, bad, row, rows.state_dict(), encoder)
                parts, bad = [], []
        if parts or bad:
            yield self._batch(parts, bad, row, rows.state_dict(), encoder)

    def _batch(
        self, parts: list[bytes], bad: list[BadRecord], row: int, state: dict[str, Any], encoder: LineEncoder
    ) -> LineBatch:
        data, ends = join_lines(parts)
        nulled, encoder.nulled = encoder.nulled, 0
        reasons = [error.reason for error in bad]
        return LineBatch(
            data=data,
            ends=ends,
            after={**asdict(Position(offset=row, line=row + 1, row=row)), "state": state},
            skipped={reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
            listed=tuple(Skipped(row=e.line - 1, file=e.file, line=e.line, reason=e.reason) for e in bad[:100]),
            nulled=nulled,
        )


def pinned(uri: str, **storage_options: Any) -> HubReference:
    """Say which dataset a URI names, at the commit that its revision is now.

    Raises:
        ObjectMissing, AccessDenied, StoreUnavailable: see `open_store`.
    """
    reference = parse_hub_reference(uri)
    place = parse_url(f"hf://datasets/{reference.repo}@{quote(reference.revision, safe='')}")
    return replace(reference, revision=hub_commit(hub_access(place, **storage_options)))


def _open(reference: HubReference, columns: tuple[str, ...] | None) -> Any:
    """Open the split as the library streams it, with media as bytes and paths."""
    library = _library()
    try:
        rows = library.load_dataset(
            reference.repo, reference.config, split=reference.split, revision=reference.revision, streaming=True
        )
    except (ValueError, ImportError) as error:
        raise ConfigError(f"the datasets library cannot read {reference.repo}: {error}") from error
    if rows.features:
        rows = rows.decode(False)
    return rows if columns is None else rows.select_columns(list(columns))


def _bring_media(sample: dict[str, Any]) -> None:
    """Put the bytes of files that the library only names into a sample."""
    for value in sample.values():
        if isinstance(value, dict) and value.keys() == {"path", "bytes"} and value["bytes"] is None and value["path"]:
            with import_module("datasets.utils.file_utils").xopen(value["path"], "rb") as file:
                value["bytes"] = file.read()
            value["path"] = PurePosixPath(value["path"].partition("::")[0]).name


def _library() -> Any:
    try:
        return import_module("datasets")
    except ModuleNotFoundError as error:
        raise ConfigError(
            "this dataset is one that only the datasets library reads, and it is missing: pip install 'penstock[hf]'"
        ) from error
