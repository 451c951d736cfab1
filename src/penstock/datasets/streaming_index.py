"""The rows behind a StreamingDataset: an index that is built, or one that is there."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penstock.datasets.locations import is_local
from penstock.errors import ConfigError
from penstock.index.build import build_chosen
from penstock.index.choice import Choice
from penstock.index.scan import nearest
from penstock.index.table import Index
from penstock.store.urls import is_url


def is_of_this_machine(src: Any, index: Index) -> bool:
    """Tell whether an index was made here, by whoever may read this machine's files anyway."""
    given = src if isinstance(src, list | tuple) else [src]
    places = [os.fspath(one) for one in given if isinstance(one, str | os.PathLike)]
    return all(is_local(place) for place in (*places, index.base) if place is not None)


def index_of(src: Any, choice: Choice, folder: Path, storage_options: Mapping[str, Any]) -> Index:
    """Give the index of a source.

    Options of stores are not for a disk: where the index lies on one, they are for what it names.

    Args:
        src: see `build_index`.
        choice: what is wanted of it.
        folder: where indexes of this node lie.
        storage_options: see `open_store`.

    Raises:
        ConfigError: an argument cannot work, or has no meaning for an index that is there.
        PenstockError: see `build_index`.
    """
    if isinstance(src, Index):
        return _selected(src, choice)
    is_local = isinstance(src, str | os.PathLike) and not is_url(os.fspath(src))
    # A list of index files may name some in stores.
    given = {} if is_local and not os.fspath(src).endswith(".txt") else storage_options
    return build_chosen(src, choice, folder, given)


def _selected(index: Index, choice: Choice) -> Index:
    """Choose of an index that is there; what says how one is built has no meaning for it."""
    if choice.parts is not None:
        raise ConfigError("lazy_index_chunk_size says how an index is read, and src is an Index already: leave it out")
    chosen = index if choice.sql_query is None else index.select(choice.sql_query)
    if choice.max_size is not None:
        chosen = chosen.take(np.arange(min(choice.max_size, len(chosen))))
    missing = [name for name in (*choice.columns, *(choice.keep or ())) if name not in chosen.columns]
    if missing and not choice.allow_missing_columns:
        raise ConfigError(
            f"the index has no column {missing[0]!r}; {nearest(missing[0], chosen.columns)}. With "
            "allow_missing_columns=True its values would be None"
        )
    return chosen
