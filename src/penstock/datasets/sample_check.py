"""Is everything there that an index names, and is it what the index says?

    index ──rows──▶ objects ──asked for, many at a time──▶ sizes ──┬──▶ problems, each with its sample's key
                              read whole, if asked to ──▶ digests ─┘

What is known of an object is in columns beside the one that names it: `NAME__length`, and for parts of objects
`NAME__offset`, as in the indexes of folders and archives; `NAME__md5`, `NAME__sha1`, `NAME__sha256` and
`NAME__blake2b` (32 hex digits) are compared where contents are read.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from threading import Lock
from typing import Any
from urllib.parse import unquote

import numpy as np

from penstock.datasets.locations import Download, Locations, is_local, read_downloads
from penstock.errors import ConfigError, FormatError, ObjectMissing, PenstockError, StoreError
from penstock.index.grouping import LENGTH
from penstock.index.table import Index
from penstock.progress import Meter
from penstock.store.ranged_file import RangedFile
from penstock.store.store import ObjectInfo, Store, open_store
from penstock.store.urls import is_url, redact
from penstock.store.wanted import Wanted
from penstock.types import check_int

AT_A_TIME = 64
"""Objects that are asked for at the same time."""
MAX_LISTED = 1000
"""Problems that are kept; the others are counted."""
_STEP = 4096
_MAX_STORES = 256
_MAX_KNOWN = 65_536
_PIECE = 4 << 20
_DIGESTS: dict[str, Callable[[], Any]] = {
    "__md5": partial(hashlib.md5, usedforsecurity=False),
    "__sha1": partial(hashlib.sha1, usedforsecurity=False),
    "__sha256": hashlib.sha256,
    "__blake2b": partial(hashlib.blake2b, digest_size=16),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Why a file of a sample can't be used."""

    key: str
    """The sample."""
    column: str
    """The column that names the file."""
    reason: str
    """"missing", "denied", "size", "digest", "location" or "unreadable"."""
    message: str


@dataclass(kw_only=True, slots=True)
class SampleReport:
    """What `verify_samples` found."""

    samples: int = 0
    files: int = 0
    """Files named by the samples; None counts as none."""
    bytes_read: int = 0
    digests: int = 0
    """Files whose content was compared with a digest."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many problems there are, by reason."""
    problems: list[Problem] = field(default_factory=list)
    """The first of them, in the order of the index."""

    @property
    def ok(self) -> bool:
        """Whether there are none."""
        return not self.counts


def verify_samples(
    index: Index,
    columns: Sequence[Any] | None = None,
    *,
    contents: bool = False,
    at_a_time: int = AT_A_TIME,
    show: bool = False,
    allow_local_paths: bool | None = None,
    **storage_options: Any,
) -> SampleReport:
    """Ask for every file that an index names, many at a time.

    Args:
        index: what names them.
        columns: which columns do, as StreamingDataset's `columns_to_download` says it. None: those beside which the
            index notes lengths.
        contents: read the files, compare digests that the index has, and lengths.
        at_a_time: files asked for, or read, at the same time.
        show: draw a bar.
        allow_local_paths: rows may name files of this machine. None: if what relative locations are below is of this
            machine. Give False where somebody else wrote the index: what it names would be read, and told of.
        storage_options: see `open_store`.

    Raises:
        ConfigError: no columns are given, and the index does not say which name files; or it has no such column.

    Cost: a request for each file, or for each archive or other object that samples are parts of.
    """
    check_int("at_a_time", at_a_time, minimum=1)
    downloads = _downloads(index, columns)
    local = (index.base is None or is_local(index.base)) if allow_local_paths is None else allow_local_paths
    checker = _Checker(index, downloads, contents=contents, local=local, options=storage_options)
    report = SampleReport()
    with (
        Meter("verifying samples", total=len(index), unit="samples", show=show) as meter,
        ThreadPoolExecutor(at_a_time, thread_name_prefix="penstock-verify") as pool,
    ):
        try:
            for start in range(0, len(index), _STEP):
                rows = index.rows(np.arange(start, min(start + _STEP, len(index))))
                for checked in pool.map(checker.check, rows):
                    for one in checked:
                        _add(report, one)
                report.samples += len(rows)
                meter.add(len(rows), note=f"{sum(report.counts.values()):,} problems")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return report


@dataclass(frozen=True, kw_only=True, slots=True)
class _Checked:
    """What came of one file."""

    bytes_read: int = 0
    digests: int = 0
    problem: Problem | None = None


def _add(report: SampleReport, one: _Checked) -> None:
    report.files += 1
    report.bytes_read += one.bytes_read
    report.digests += one.digests
    if one.problem is not None:
        report.counts[one.problem.reason] = report.counts.get(one.problem.reason, 0) + 1
        if len(report.problems) < MAX_LISTED:
            report.problems.append(one.problem)


def _downloads(index: Index, columns: Sequence[Any] | None) -> tuple[Download, ...]:
    named = [name for name in index.columns if name + LENGTH in index.columns] if columns is None else columns
    downloads = tuple(download.beside(index.columns) for download in read_downloads(named))
    if not downloads:
        raise ConfigError(
            "the index does not say which of its columns name files: give them as columns (--columns); it has "
            f"{', '.join(map(repr, index.columns))}"
        )
    for name in (name for download in downloads for name in download.columns):
        if name not in index.columns:
            raise ConfigError(f"the index has no column {name!r}; it has {', '.join(map(repr, index.columns))}")
    return downloads


class _Checker:
    """Checks the files of rows; any number of threads may call it."""

    def __init__(
        self, index: Index, downloads: Sequence[Download], *, contents: bool, local: bool, options: dict[str, Any]
    ) -> None:
        self._key, self._downloads, self._contents, self._options = index.key, downloads, contents, options
        self._locations = [Locations([download], index.base, local=local) for download in downloads]
        columns = set(index.columns)
        self._digests = [[end for end in _DIGESTS if download.column + end in columns] for download in downloads]
        self._lock = Lock()
        self._stores: OrderedDict[str, Store] = OrderedDict()
        self._known: OrderedDict[str, ObjectInfo | StoreError] = OrderedDict()

    def check(self, row: dict[str, Any]) -> list[_Checked]:
        """Check the files of one row."""
        found = []
        for download, locations, digests in zip(self._downloads, self._locations, self._digests, strict=True):
            try:
                place = locations.wanted(row)[0]
                if place is not None:
                    found.append(self._checked(row, download, place, digests))
            except PenstockError as error:
                found.append(_Checked(problem=self._problem(row, download, _reason(error), str(error))))
        return found

    def _problem(self, row: dict[str, Any], download: Download, reason: str, message: str) -> Problem:
        return Problem(key=str(row[self._key]), column=download.name, reason=reason, message=message)

    def _checked(self, row: dict[str, Any], download: Download, place: Wanted | str, digests: list[str]) -> _Checked:
        url = place.url if isinstance(place, Wanted) else place
        start, stop = (place.start or 0, place.stop) if isinstance(place, Wanted) else (0, None)
        info = self._info(url, keep=stop is not None)
        said = row.get(download.length) if download.length else None
        if stop is not None and info.size < stop:
            message = f"{redact(url)} has {info.size:,} bytes, and the sample is bytes {start:,} to {stop:,} of it"
            return _Checked(problem=self._problem(row, download, "size", message))
        if stop is None and said is not None and said != info.size:
            message = f"{redact(url)} has {info.size:,} bytes, the index says {said:,}: one of them is old"
            return _Checked(problem=self._problem(row, download, "size", message))
        if not self._contents:
            return _Checked()
        wanted = {end: row[download.column + end] for end in digests if row[download.column + end] is not None}
        hashes = {end: _DIGESTS[end]() for end in wanted}
        count = 0
        for data in self._pieces(url, start, info.size if stop is None else stop, info):
            count += len(data)
            for running in hashes.values():
                running.update(data)
        wrong = next((end for end in wanted if hashes[end].hexdigest() != str(wanted[end]).lower()), None)
        problem = None
        if wrong is not None:
            message = (
                f"{redact(url)} has the {wrong.strip('_')} {hashes[wrong].hexdigest()}, the index says "
                f"{wanted[wrong]}: its content changed, or was damaged"
            )
            problem = self._problem(row, download, "digest", message)
        return _Checked(bytes_read=count, digests=int(bool(wanted)), problem=problem)

    def _pieces(self, url: str, start: int, stop: int, info: ObjectInfo) -> Iterator[bytes]:
        store, name = self._store(url)
        with RangedFile(store, name, info=info) as file:
            file.seek(start)
            while start < stop:
                data = file.read(min(_PIECE, stop - start))
                start += len(data)
                yield data

    def _info(self, url: str, *, keep: bool) -> ObjectInfo:
        """Describe an object; one that many samples are parts of, once."""
        known = self._known.get(url) if keep else None
        if known is None:
            store, name = self._store(url)
            try:
                known = store.head(name)
            except StoreError as error:
                known = error
            if keep:
                with self._lock:
                    self._known[url] = known
                    while len(self._known) > _MAX_KNOWN:
                        self._known.popitem(last=False)
        if isinstance(known, StoreError):
            raise known
        return known

    def _store(self, url: str) -> tuple[Store, str]:
        """Give the store of the folder that an object is in, and its name there."""
        folder, _, name = url.rpartition("/")
        if "?" in url or not is_url(url):
            # A query belongs to the whole URL; a path needs no connection.
            return open_store(url, **(self._options if is_url(url) else {})), ""
        with self._lock:
            store = self._stores.get(folder)
            if store is None:
                store = self._stores[folder] = open_store(folder, **self._options)
                while len(self._stores) > _MAX_STORES:
                    self._stores.popitem(last=False)
        return store, _unquoted(url, name)


def _unquoted(url: str, name: str) -> str:
    return unquote(name) if url.startswith(("http://", "https://", "file://")) else name


def _reason(error: PenstockError) -> str:
    if isinstance(error, ObjectMissing):
        return "missing"
    if isinstance(error, PermissionError):
        return "denied"
    return "location" if isinstance(error, FormatError) else "unreadable"
