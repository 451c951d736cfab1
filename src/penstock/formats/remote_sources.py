"""Files of a source that is not on this machine: a Hub dataset's split, an object, a folder or a glob of objects.

Each is pinned by what its store says changes with it, so one that is written to while it is read is refused.
"""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from penstock.errors import ConfigError, ObjectMissing
from penstock.formats.hub_dataset import HubSplit, find_hub_split, parse_hub_reference
from penstock.formats.sources import KINDS, RECORD_KINDS, TABLES, Kind, SourceFile, described, known
from penstock.store.store import ObjectInfo, open_store
from penstock.store.urls import HTTP, parse_url

_SPLITS = ("train", "validation", "test")


def find_remote(url: str, kinds: Mapping[str, Kind] = RECORD_KINDS, **storage_options: Any) -> list[SourceFile]:
    """List the files that a URL means, in sorted order.

    Args:
        url: `hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]` (split `train` if not said), or the URL of a file, or,
            where the store can list, of a folder (on the web with a slash at its end) or a glob.
        kinds: what files of which suffix are.
        storage_options: see `open_store`.

    Raises:
        ObjectMissing, AccessDenied, StoreUnavailable: see `open_store`.
        ConfigError: no file of a known kind, or several kinds in one folder.
    """
    if is_hub_dataset(url):
        return hub_files(find_hub_split(url, **storage_options), kinds)
    if glob.has_magic(url.partition("?")[0] if url.startswith(HTTP) else url):
        return _matched(url, kinds, storage_options)
    if url.partition("?")[0].endswith("/"):
        return _in_folder(url, kinds, storage_options)
    store = open_store(url, **storage_options)
    try:
        info = store.head()
    except ObjectMissing:
        if url.startswith(HTTP):
            raise
        return _in_folder(url, kinds, storage_options)
    return [remote_file(url, PurePosixPath(parse_url(url).key or url).name, info, kinds)]


def is_hub_dataset(url: str) -> bool:
    """Tell whether a URL names a dataset of the Hub, and not a file in one.

    >>> is_hub_dataset("hf://org/name:en"), is_hub_dataset("hf://org/name/data/train.csv")
    (True, False)
    """
    if not url.startswith("hf://"):
        return False
    try:
        parse_hub_reference(url)
    except ConfigError:
        return False
    return True


def find_hub_splits(url: str, kinds: Mapping[str, Kind] = KINDS) -> dict[str, list[SourceFile]]:
    """List the files of each of train, validation and test that a Hub dataset has; of the one split if the URL says it.

    Raises:
        As `find_remote`.
    """
    reference = parse_hub_reference(url)
    if url.rstrip("/").count(":") >= 3:
        return {reference.split: hub_files(find_hub_split(reference), kinds)}
    found, missing = dict[str, list[SourceFile]](), list[ConfigError]()
    for split in _SPLITS:
        try:
            found[split] = hub_files(find_hub_split(replace(reference, split=split)), kinds)
        except ConfigError as error:
            missing.append(error)
    if not found:
        raise missing[0]
    return found


def hub_files(split: HubSplit, kinds: Mapping[str, Kind] = RECORD_KINDS) -> list[SourceFile]:
    """Describe the files of a split of a Hub dataset."""
    return [remote_file(url, info.path, info, kinds) for url, info in zip(split.urls, split.files, strict=True)]


def remote_file(url: str, name: str, info: ObjectInfo, kinds: Mapping[str, Kind] = RECORD_KINDS) -> SourceFile:
    """Describe an object that holds records.

    Args:
        url: where it is.
        name: its path below its source.
        info: what its store says of it.
        kinds: what files of which suffix are.

    Raises:
        ConfigError: its suffix is not known.
    """
    suffix, compression = described(PurePosixPath(name))
    kind = kinds.get(suffix)
    if kind is None or (kind in TABLES and compression):
        raise ConfigError(f"cannot tell what is in {name} ({parse_url(url).shown()}): penstock reads {known(kinds)}")
    return SourceFile(
        path=Path(name),
        name=name,
        kind=kind,
        compression=compression,
        size_bytes=info.size,
        mtime_ns=0,
        url=url,
        etag=info.etag or (info.last_modified.isoformat() if info.last_modified else None),
    )


def _in_folder(url: str, kinds: Mapping[str, Kind], storage_options: Mapping[str, Any]) -> list[SourceFile]:
    base = url.rstrip("/")
    infos = sorted(open_store(base, **storage_options).list(), key=lambda info: info.path)
    return _of_one_kind(base, [info for info in infos if _is_visible(info.path)], kinds)


def _matched(pattern: str, kinds: Mapping[str, Kind], storage_options: Mapping[str, Any]) -> list[SourceFile]:
    base, below = split_glob(pattern)
    infos = sorted(open_store(base, **storage_options).list(), key=lambda info: info.path)
    return _of_one_kind(base, [info for info in infos if fits_glob(info.path, below)], kinds)


def split_glob(pattern: str) -> tuple[str, str]:
    """Take a glob apart into the folder that all it matches is below, and the rest.

    >>> split_glob("s3://bucket/a/*/x.csv"), split_glob("/*.csv"), split_glob("*.csv")
    (('s3://bucket/a', '*/x.csv'), ('/', '*.csv'), ('.', '*.csv'))
    """
    parts = pattern.split("/")
    fixed = next(number for number, part in enumerate(parts) if glob.has_magic(part))
    base = "/".join(parts[:fixed])
    return base or ("/" if fixed else "."), "/".join(parts[fixed:])


def fits_glob(path: str, pattern: str) -> bool:
    """Tell whether a path matches a glob; `**` is any number of folders.

    >>> fits_glob("a/b/c.csv", "**/*.csv"), fits_glob("a/c.csv", "*.csv")
    (True, False)
    """
    return _fits(path.split("/"), pattern.split("/"))


def _fits(path: list[str], pattern: list[str]) -> bool:
    """Match the parts of a path; `**` is any number of folders."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return any(_fits(path[skip:], pattern[1:]) for skip in range(len(path)))
    return bool(path) and fnmatchcase(path[0], pattern[0]) and _fits(path[1:], pattern[1:])


def _is_visible(path: str) -> bool:
    return not any(part.startswith(".") for part in path.split("/"))


def _of_one_kind(base: str, infos: Iterable[ObjectInfo], kinds: Mapping[str, Kind]) -> list[SourceFile]:
    """Keep the files of a known kind; .json files only if there is nothing else, as they often describe the data."""
    readable = [info for info in infos if described(PurePosixPath(info.path))[0] in kinds]
    data = [info for info in readable if described(PurePosixPath(info.path))[0] != ".json"] or readable
    files = [remote_file(f"{base}/{info.path}", info.path, info, kinds) for info in data]
    shown = parse_url(base).shown()
    if not files:
        raise ObjectMissing(f"{shown} holds no file that penstock reads: {known(kinds)}")
    if len({file.kind for file in files}) > 1:
        several = ", ".join(sorted({file.kind for file in files}))
        raise ConfigError(f"{shown} holds files of several kinds ({several}): say which by a glob like {shown}/*.jsonl")
    return files
