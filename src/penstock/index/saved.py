"""Saved indexes, opened: mapped where they lie, or fetched once per node."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from penstock.errors import ConfigError
from penstock.index.arrow_files import ArrowSource
from penstock.index.build import build_index
from penstock.index.notes import SUFFIX
from penstock.index.rows import MappedRows
from penstock.index.sources import open_source
from penstock.index.table import Index
from penstock.store.urls import redact


def open_index(
    url: str | os.PathLike[str],
    *,
    folder: str | os.PathLike[str] | None = None,
    storage_options: Mapping[str, Any] | None = None,
    timeout_s: float = 3600.0,
) -> Index:
    """Open an index that `Index.save` wrote.

    Args:
        url: its path or URL.
        folder: where indexes of this node lie; needed for a URL, whose index is fetched to it once per node.
        storage_options: see `open_store`.
        timeout_s: how long to wait for another process that is fetching it.

    Raises:
        ObjectMissing, AccessDenied, StoreUnavailable: see `open_store`.
        ConfigError: it is no saved index, or there is no folder to fetch it to.
        BadBlock: it is damaged.
    """
    source = open_source(url, storage_options=storage_options) if os.fspath(url).endswith(SUFFIX) else None
    note = source.note if isinstance(source, ArrowSource) else None
    if not isinstance(source, ArrowSource) or note is None:
        place = redact(os.fspath(url)) if source is None else source.place
        raise ConfigError(
            f"{place} is not an index that was saved: Index.save writes one, build_index makes one of a table or folder"
        )
    if source.file.url is None and not note.compressed:
        return Index(MappedRows(source.file.path), key=note.key, base=note.base, fingerprint=note.fingerprint)
    if folder is None:
        raise ConfigError(f"{source.place} has to be fetched before it is used: say to which folder (folder=…)")
    return build_index(source, folder=folder, index_col_name=note.key, timeout_s=timeout_s)
