"""What a source is: a table, a database, a folder of files, tar archives, several of these, or a program's rows.

    path · URL · glob · braces · list of files · Hub dataset · provider ──open_source──▶ Source

A name says what is behind it: suffixes of tables, databases, archives and lists are known, everything else is
a folder. Nothing is read but what it takes to tell.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from penstock.errors import BadManifest, ConfigError, ObjectMissing
from penstock.formats.remote_sources import find_remote, is_hub_dataset, remote_file
from penstock.formats.sources import RECORD_KINDS, described, find_files, source_file
from penstock.index.databases import is_database, open_database_file
from penstock.index.folders import FolderSource, without_markers
from penstock.index.joined import JoinedSource
from penstock.index.places import (
    AT_A_TIME,
    below,
    describe_all,
    expand_braces,
    folder_above,
    matching,
    name_of,
    shared_folder,
)
from penstock.index.providers import ProviderSource, check_provider
from penstock.index.scan import SMALL_BYTES, Source, open_table
from penstock.index.tars import TarSource, is_tar
from penstock.store.store import ObjectInfo, open_store
from penstock.store.urls import CLOUD, HTTP, is_url, lasting, redact

TABLE_KINDS = {suffix: kind for suffix, kind in RECORD_KINDS.items() if kind != "text"}
LISTS = ("split_file_paths.txt", "split_file_texts.txt")
"""Lists of index files that a folder is taken by, if it has one."""
START_BYTES = 256 << 10
"""A table of text that is no larger comes with its description."""
FOOTER_BYTES = 64 << 10
"""So does what stands at the end of a Parquet file, which says where the rest is, and any that is as small."""
KEPT_BYTES = 16 << 20
"""What the small files of a source may take in memory together, between a first look at them and their reading."""


def open_source(
    src: Any,
    *,
    key: str = "index",
    text_columns: Iterable[str] = (),
    storage_options: Mapping[str, Any] | None = None,
) -> Source:
    """Find out what a source is; little or nothing of it is read.

    Args:
        src: a path or URL of
            - a .csv, .tsv, .json, .jsonl, .parquet or .arrow file, text also as .gz or .zst;
            - an SQLite or DuckDB database, with `#TABLE` if it has several;
            - a .tar, whose members are samples; as are those of a folder that holds nothing else;
            - a .txt that lists index files, one a line, relative to itself;
            - a folder, whose files are samples;
            - several tables or archives by a glob (`*`, `**`) or in braces (`{000..099}`, `{a,b}`);
            - a dataset of the Hub, `hf://ORG/NAME[:CONFIG][:SPLIT]`.
            Or a list of these; or a data provider, see `providers`.
        key: name of the column of keys, where the source has none of its own.
        text_columns: columns that are text though they look like numbers, where the source has no types.
        storage_options: see `open_store`.

    Raises:
        ConfigError: it is nothing that can be indexed.
        ObjectMissing, AccessDenied, StoreUnavailable: see `open_store`.
    """
    opener = _Opener(key=key, text_columns=frozenset(text_columns), options=dict(storage_options or {}))
    if isinstance(src, str | os.PathLike):
        return opener.one(os.fspath(src))
    if isinstance(src, Sequence) and src and all(isinstance(place, str | os.PathLike) for place in src):
        places = [os.fspath(place) for place in src]
        return opener.several(places, f"{redact(places[0])} and {len(places) - 1:,} more", {})
    check_provider(src)
    return ProviderSource(src)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Opener:
    """Opens sources with the same settings."""

    key: str
    text_columns: frozenset[str]
    options: dict[str, Any]
    small_bytes: int = SMALL_BYTES

    def one(self, src: str) -> Source:
        """Open what one path or URL means."""
        remote = is_url(src)
        if not remote and os.path.isdir(src):
            return self.folder(src)
        if remote and is_hub_dataset(src):
            files = find_remote(src, TABLE_KINDS, **self.options)
            small = min(SMALL_BYTES, KEPT_BYTES // max(1, len(files)))
            tables = [open_table(file, self.text_columns, self.options, small_bytes=small) for file in files]
            return self._joined(redact(src), [file.url or file.name for file in files], tables)
        if not remote and os.path.exists(src):
            return self.file(src)
        places = expand_braces(src)
        if len(places) > 1:
            return self.several(places, redact(src), {})
        # In a web address a question mark begins the query.
        if glob.has_magic(src.partition("?")[0] if src.startswith(HTTP) else src):
            base, infos = matching(src, self.options)
            return self.several([below(base, info.path) for info in infos], redact(src), {"infos": infos, "base": base})
        name = name_of(src)
        if is_database(name) or is_tar(name) or _is_list(name):
            return self.file(src)
        if remote:
            return self._remote(src, name)
        # Says that there is no such thing, and what may have been meant.
        find_files(src, TABLE_KINDS)
        raise AssertionError(src)

    def _remote(self, src: str, name: str) -> Source:
        if not src.endswith("/") and described(PurePosixPath(name))[0] in TABLE_KINDS:
            try:
                return self._table(src, name)
            except ObjectMissing:
                if src.startswith(HTTP):
                    raise
        return self.folder(src)

    def _table(self, src: str, name: str) -> Source:
        """Open a table by one request, that says what it is and brings what is read of it first."""
        at_end = described(PurePosixPath(name))[0] == ".parquet"
        count = FOOTER_BYTES if at_end else START_BYTES
        info, data = open_store(src, **self.options).peek(num_bytes=count, at_end=at_end)
        known = (info.size - len(data) if at_end else 0, data)
        file = replace(remote_file(src, name, info, TABLE_KINDS), known=known)
        return open_table(file, self.text_columns, self.options, small_bytes=self.small_bytes)

    def folder(self, src: str) -> Source:
        """Open a folder: by its list, as archives if that is all there is, else as files that make samples."""
        base = lasting(src).rstrip("/") or "/"
        infos = sorted(open_store(base, **self.options).list(), key=lambda info: info.path)
        visible = without_markers([info for info in infos if "/." not in f"/{info.path}"])
        if not visible:
            # A store of objects has no empty folders.
            is_nothing = base.partition("://")[0].lower() in CLOUD and not infos
            what = "does not exist, neither as an object nor as a folder" if is_nothing else "holds no files"
            raise ObjectMissing(f"{redact(src)} {what}: check its name")
        names = {info.path for info in visible}
        found = next((name for name in LISTS if name in names), None)
        if found is not None:
            return self.file(below(base, found))
        if all(info.path.lower().endswith(".tar") for info in visible):
            return TarSource(base, visible, self.key, self.options)
        if described(PurePosixPath(name_of(base)))[0] in TABLE_KINDS:
            # A table that was written by many writers is a folder that has its name, with notes they left.
            parts = [info for info in visible if not name_of(info.path).startswith("_")]
            return self.several([below(base, info.path) for info in parts], redact(src), {"infos": parts, "base": base})
        return FolderSource(base, visible, self.key)

    def several(self, places: Sequence[str], shown: str, known: Mapping[str, Any]) -> Source:
        """Open several files as one source."""
        tars = [is_tar(name_of(place)) for place in places]
        if all(tars):
            base, infos = (known["base"], known["infos"]) if known else describe_all(places, self.options)
            return TarSource(base, infos, self.key, self.options)
        if any(tars):
            raise ConfigError(f"{shown} holds tar archives and other files: take one kind at a time")
        infos = known.get("infos", [None] * len(places))
        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="penstock-places") as pool:
            try:
                opener = replace(self, small_bytes=min(SMALL_BYTES, KEPT_BYTES // max(1, len(places))))
                sources = list(pool.map(opener.file, places, infos))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return self._joined(shown, places, sources)

    def _joined(self, shown: str, places: Sequence[str], sources: Sequence[Source]) -> Source:
        if len(sources) == 1:
            return sources[0]
        base = shared_folder([lasting(place) for place in places]) or folder_above(places[0])
        return JoinedSource(shown, base, sources)

    def file(self, place: str, info: ObjectInfo | None = None) -> Source:
        """Open a file by its name."""
        name = name_of(place)
        if is_database(name):
            return open_database_file(place, self.options)
        if is_tar(name):
            base, infos = describe_all([place], self.options)
            return TarSource(base, infos, self.key, self.options)
        if _is_list(name):
            return self._list(place)
        if not is_url(place):
            return open_table(source_file(place, kinds=TABLE_KINDS), self.text_columns, self.options)
        # A listing may not say what tells one version from another; the object itself does.
        found = info if info is not None and info.etag else open_store(place, **self.options).head()
        file = remote_file(place, name, found, TABLE_KINDS)
        return open_table(file, self.text_columns, self.options, small_bytes=self.small_bytes)

    def _list(self, path: str) -> Source:
        """Open the index files that a list names."""
        try:
            options = self.options if is_url(path) else {}
            text = open_store(path, **options).get().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise BadManifest(f"{redact(path)} is no list of files: it is not UTF-8 ({error})") from None
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"{redact(path)} is empty: it must list index files, one a line")
        nested = next((line for line in lines if _is_list(name_of(line))), None)
        if nested is not None:
            raise ConfigError(f"{redact(path)} lists {redact(nested)!r:.200}, another list: it must name index files")
        folder = folder_above(path)
        places = [line if is_url(line) or os.path.isabs(line) else below(folder, line) for line in lines]
        return self.several(places, redact(path), {})


def _is_list(name: str) -> bool:
    return name.lower().endswith(".txt")
