"""What the options of a StreamingDataset may be: checked once, before anything is opened."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from penstock.datasets.locations import Download
from penstock.errors import ConfigError
from penstock.store.urls import redact
from penstock.types import check_choice, check_int

Policy = Literal["raise", "skip", "substitute"]
DATA_TYPES = ("image", "video", "audio", "text")
SAMPLE_KEY, DATA_TYPE = "__sample_key__", "__data_type__"
"""Fields that each sample gets beside the columns of its row."""


def check_source(src: Any) -> None:
    """Refuse what can't be the description of samples."""
    several = src if isinstance(src, list | tuple) and src else [src]
    if callable(src) or hasattr(src, "rows") or all(isinstance(one, str | os.PathLike) for one in several):
        return
    raise ConfigError(
        "src must be a path or URL of an index, a folder or an archive, a list of these, a data provider, or an Index; "
        f"got {src!r:.100}"
    )


def check_data_type(data_type: Any) -> None:
    """Refuse a kind of data that is not known."""
    if data_type is None or data_type in DATA_TYPES or (isinstance(data_type, str) and data_type.endswith("_latent")):
        return
    raise ConfigError(
        f"data_type must be None, one of {', '.join(DATA_TYPES)}, or end in _latent, as video_latent does; got "
        f"{data_type!r}"
    )


def check_callables(name: str, given: Any) -> tuple[Callable[..., Any], ...]:
    """List the callables of an option: one, several or none."""
    if given is None:
        return ()
    found = (given,) if callable(given) else given
    if not isinstance(found, list | tuple) or not all(callable(one) for one in found):
        raise ConfigError(f"{name} must be a callable or a list of them, got {given!r}")
    return tuple(found)


def check_seed(shuffle_seed: Any) -> int | None:
    """Give the seed of the shuffle; None: no shuffle."""
    return None if shuffle_seed is None else check_int("shuffle_seed", shuffle_seed, minimum=0)


def check_flag(name: str, value: Any) -> bool:
    """Give a truth value."""
    check_choice(name, value, (True, False))
    return bool(value)


def check_storage_options(options: Any, retries: int) -> dict[str, Any]:
    """Give the options of the stores, with the number of retries among them."""
    if options is None:
        return {"retries": retries}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise ConfigError(f"storage_options must be a mapping of names, got a {type(options).__name__}")
    return {"retries": retries, **options}


def hidden_columns(
    columns: Iterable[str], downloads: Sequence[Download], key_column: str, kept: Sequence[str] | None
) -> tuple[str, ...]:
    """List the columns that only serve to find the objects.

    Those that say which bytes of an object are meant are not part of a sample unless they were asked for; nor, where
    `kept` says what is, is any other that is not among them.
    """
    parts = {name for download in downloads for name in (download.offset, download.length)}
    own = {key_column, *(download.name for download in downloads)}
    asked = () if kept is None else kept
    return tuple(
        name for name in columns if name not in own and name not in asked and (kept is not None or name in parts)
    )


def check_own_fields(
    columns: Iterable[str], hidden: Iterable[str], key_column: str, downloads: Sequence[Download]
) -> None:
    """Refuse columns that what each sample gets besides would overwrite; that of the keys holds the same."""
    same = SAMPLE_KEY if key_column == SAMPLE_KEY else None
    taken = [name for name in columns if name in (SAMPLE_KEY, DATA_TYPE) and name not in hidden and name != same]
    if taken:
        renamed = ", ".join(f'"{name}" AS "{name.strip("_")}"' for name in taken)
        raise ConfigError(
            f"the index has the column {' and '.join(map(repr, taken))}, and each sample gets a field of that name: "
            f"rename it, sql_query='SELECT * RENAME ({renamed}) FROM dataframe', or leave it out with "
            "index_cols_to_keep"
        )
    for download in downloads:
        if download.name in (SAMPLE_KEY, DATA_TYPE):
            raise ConfigError(
                f"columns_to_download fills {download.name!r}, which each sample gets besides: give the entry another "
                "'name'"
            )


def cache_folder(dst: str | os.PathLike[str] | None) -> Path:
    """Give the folder of the index, the cache and the lists; by default the user's cache folder."""
    if dst is None:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "penstock", "streaming")
    if not isinstance(dst, str | os.PathLike) or "://" in os.fspath(dst):
        raise ConfigError(f"dst must be a folder of this machine, or None, got {redact(repr(dst))}")
    folder = Path(dst).absolute()
    if taken := next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), None):
        raise ConfigError(f"dst must be a folder, and {taken} is a file: name another place")
    return folder


def check_apart(src: Any, dst: Path) -> None:
    """Refuse a folder of samples in which the cache would lie: what is cached would be taken for samples."""
    if not isinstance(src, str | os.PathLike) or "://" in os.fspath(src):
        return
    source = Path(src).resolve()
    if source.is_dir() and dst.resolve().is_relative_to(source):
        raise ConfigError(f"dst {dst} lies in the folder of samples {source}: name a folder beside it")
