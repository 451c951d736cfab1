"""How rows become samples: what they name is downloaded, all of a call at once.

    prefetch(ids) ──▶ rows, locations ──▶ lookahead ──▶ cache.begin
    fetch(ids)    ──▶ rows, locations ──▶ cache.acquire ──▶ samples, an error in the place of each that failed
    once more     ──▶ rows ─────────────▶ cache.again ────▶ samples

A hint costs nothing twice: what was worked out for it is taken up by the fetch. What was fetched and is still
there needs no hint.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from penstock.datasets.leased import Leased
from penstock.datasets.locations import Download, Locations, Place, Row, blanks_in
from penstock.datasets.lookahead import At, Lookahead
from penstock.datasets.places_known import PlacesKnown
from penstock.datasets.streaming_options import DATA_TYPE, SAMPLE_KEY
from penstock.errors import ConfigError, LoaderClosed, ObjectMissing, PenstockError, StoreError
from penstock.index.table import Index
from penstock.store.cache import Cache
from penstock.store.cache_sharing import SharedCache
from penstock.store.cached_file import CachedFile
from penstock.store.urls import redact
from penstock.store.wanted import Wanted
from penstock.transforms.chain import Chain

FETCH_WITHIN_S = 600.0
"""How long a call may wait for its objects; each request has its own, far shorter patience."""
MOST_EPOCHS = 4096
"""Samples of which it is remembered in which epoch they were fetched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recital:
    """What is done to every row."""

    key_column: str
    data_type: str | None
    downloads: tuple[Download, ...]
    hidden: tuple[str, ...]
    """Columns that are needed to find the objects, and are not part of the sample."""
    predownload: Chain
    local: bool = True
    """Whether rows may name files of this machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheSettings:
    """How to open the cache, in whatever process."""

    folder: Path
    limit: int | None
    options: dict[str, Any] = field(repr=False)
    """For the stores; may hold secrets."""


class CacheDoor:
    """The cache of one dataset in one process, opened when it is first needed.

    Args:
        settings: how to open it.
    """

    def __init__(self, settings: CacheSettings) -> None:
        self._settings = settings
        self._share: SharedCache | None = None
        self._lock = threading.Lock()
        _doors.add(self)

    @property
    def cache(self) -> Cache:
        """The cache, opened now if it is not open yet."""
        with self._lock:
            if self._share is None:
                settings = self._settings
                self._share = SharedCache(settings.folder, settings.limit, settings.options)
            return self._share.cache

    @property
    def opened(self) -> Cache | None:
        """The cache; None if it is not open."""
        share = self._share
        return None if share is None else share.cache

    def begin(self, wanted: Sequence[Wanted]) -> None:
        """Have objects fetched and held."""
        self.cache.begin(wanted)

    def forget(self, wanted: Sequence[Wanted]) -> None:
        """Let go of objects that were begun."""
        if self._share is not None:
            self._share.cache.forget(wanted)

    def close(self) -> None:
        """Let go of the cache; it is opened again when it is needed."""
        with self._lock:
            share, self._share = self._share, None
        if share is not None:
            share.close()


class _Planned(NamedTuple):
    """A sample that lacks its downloads."""

    sample: Row
    places: Sequence[Place]
    """One for each download."""


Plan = _Planned | Exception | None
"""What is known of a sample before anything is fetched; None: it was filtered."""


class SampleFetcher:
    """Gives the samples of ids; any number of threads may call it.

    Args:
        index: the rows.
        recital: what is done to them.
        settings: of the cache, which is opened when there is something to download.
    """

    def __init__(self, index: Index, recital: Recital, settings: CacheSettings) -> None:
        self._index = index
        self._recital = recital
        self._names = tuple(download.name for download in recital.downloads)
        self._spare = frozenset({*self._names, *recital.hidden}) - {recital.key_column}
        """Columns that a sample need not be given, if it is known where its files are."""
        self._locations = Locations(recital.downloads, index.base, local=recital.local)
        self._settings = settings
        self._door = CacheDoor(settings)
        self._lookahead = Lookahead(settings.limit, self._door.begin, self._door.forget)
        self._known = PlacesKnown()
        self._epochs: dict[int, int] = {}
        """Of the latest samples, where predownload transforms may choose another object every epoch."""
        self._unfetched: set[int] = set()

    def fetch(self, ids: np.ndarray, epochs: np.ndarray | None) -> list[Any]:
        """Give the samples of ids, int64 [n]; None for a filtered one, an exception for one that failed."""
        numbers = ids.tolist()
        places = list(zip(_each(epochs, len(ids)), numbers, strict=True))
        if not self._lookahead.expects(places) and (again := self._again(ids, numbers)) is not None:
            return again
        self._lookahead.go_on()
        plans = self._lookahead.take(places, in_turn=epochs is not None)
        missing = [j for j, plan in enumerate(plans) if plan is self._lookahead]
        if missing:
            rows = self._index.rows(ids if len(missing) == len(ids) else ids[missing])
            for j, row in zip(missing, rows, strict=True):
                plans[j] = self._plan(row, *places[j])
        if not self._names:
            return [plan.sample if type(plan) is _Planned else plan for plan in plans]
        wanted = [one for plan in plans for one in _wanted(plan)]
        files = self._acquired(wanted) if wanted else []
        if files:
            self._lookahead.land(len(places), None if self._settings.limit is None else _size_of(files[0]))
        arrived = iter(files)
        samples = [
            self._filled(id_, plan, arrived) if type(plan) is _Planned else plan
            for (_, id_), plan in zip(places, plans, strict=True)
        ]
        self._note(samples, plans, places)
        return Leased.of(samples, files) if files else samples

    def _acquired(self, wanted: Sequence[Wanted]) -> list[CachedFile | StoreError]:
        """Have files fetched.

        Raises:
            LoaderClosed: somebody closed the cache meanwhile, which is no fault of a sample.
        """
        cache = self.cache
        try:
            files = cache.acquire(wanted, FETCH_WITHIN_S)
        except StoreError:
            if not cache.closed:
                raise
        else:
            if not (cache.closed and any(isinstance(file, StoreError) for file in files)):
                return files
        raise LoaderClosed(
            "the dataset was closed while samples were on their way. Nothing is lost: iterate again to go on"
        )

    def _again(self, ids: np.ndarray, numbers: Sequence[int]) -> list[Any] | None:
        """Give samples that were given before and whose files are all still there; else None."""
        kept = self._known.kept(numbers)
        files = self.cache.kept.again(*kept) if kept else None
        if files is None and (known := self._known.of(numbers)):
            files = self.cache.again([one for several in known for one in several])
        if files is None:
            return None
        rows, names, key = self._index.rows(ids, spare=self._spare), self._names, self._recital.key_column
        arrived = iter(files)
        for row in rows:
            self._dress(row, row[key])
            for name in names:
                row[name] = next(arrived)
        return Leased.of(rows, files)

    def _note(self, samples: Sequence[Any], plans: Sequence[Plan], places: Sequence[At]) -> None:
        """Remember what samples needed that all came from elsewhere, where no transform may choose otherwise."""
        if not self._recital.predownload:
            found: dict[int, tuple[Wanted, ...]] = {
                id_: tuple(plan.places)  # type: ignore[arg-type]
                for sample, plan, (_, id_) in zip(samples, plans, places, strict=True)
                if type(plan) is _Planned and type(sample) is dict and len(_wanted(plan)) == len(self._names)
            }
            self._known.note(found)
            self._keep(found)

    def _keep(self, found: Mapping[int, tuple[Wanted, ...]]) -> None:
        """Remember the files of samples that are there; not if the cache was closed meanwhile."""
        if found and (cache := self._door.opened) is not None:
            stamp, kept = cache.kept.of([*found.values()])
            if stamp is not None:
                there = zip(found, kept, strict=True)
                self._known.keep({id_: files for id_, files in there if files is not None}, stamp)

    def prefetch(self, ids: np.ndarray, epochs: np.ndarray | None) -> None:
        """Begin to download what the samples of ids need; waits for rows at most, and leaves errors to `fetch`."""
        numbers = ids.tolist()
        if self._names and (kept := self._known.kept(numbers)) and self.cache.kept.touch(*kept):
            return
        places = list(zip(_each(epochs, len(ids)), numbers, strict=True))
        there = self._there(numbers)
        new = [j for j, is_new in enumerate(self._lookahead.unknown(places)) if is_new and j not in there]
        if not new:
            return
        self._index.prefetch(ids[new])
        hints = []
        for j, row in zip(new, self._index.rows(ids[new]), strict=True):
            plan = self._plan(row, *places[j])
            hints.append((places[j], plan, _wanted(plan)))
        self._lookahead.add(hints, in_turn=epochs is not None)

    def _there(self, ids: Sequence[int]) -> set[int]:
        """Tell which of the samples, by their place in ids, are in the cache as they were when they were given."""
        known = self._known.some_of(ids)
        if not known:
            return set()
        there = {j for j, is_there in zip(known, self.cache.are_there([*known.values()]), strict=True) if is_there}
        self._keep({ids[j]: known[j] for j in there})
        return there

    def discard(self, id_: int) -> bool:
        """Throw away what is cached of a sample that failed; tell whether it can be had anew."""
        if id_ in self._unfetched:
            # It was never there: whoever fetches has retried already.
            self._unfetched.discard(id_)
            return False
        (row,) = self._index.rows(np.array([id_]))
        wanted = _wanted(self._plan(row, self._epochs.get(id_, 0), id_))
        if wanted:
            self.cache.discard(wanted)
        return bool(wanted)

    def locations_of(self, id_: int) -> list[str]:
        """List where the files of a sample lie, without secrets; none where that can't be said."""
        (row,) = self._index.rows(np.array([id_]))
        plan = self._plan(row, self._epochs.get(id_, 0), id_)
        places = plan.places if type(plan) is _Planned else ()
        return [redact(place.url) if type(place) is Wanted else str(place) for place in places if place is not None]

    @property
    def cache(self) -> Cache:
        """The cache, opened now if it is not open yet."""
        return self._door.cache

    def close(self) -> None:
        """End the downloads and let go of the cache; it is opened again when it is needed."""
        self._lookahead.clear()
        self._door.close()

    def _plan(self, row: Row, epoch: int, id_: int) -> Plan:
        """Work out what one sample needs."""
        recital = self._recital
        key = row[recital.key_column]
        try:
            if recital.predownload:
                self._note_epoch(id_, epoch)
                chosen = self._chosen(row, key, epoch, id_)
                if chosen is None:
                    return None
                row = chosen
            places = self._locations.wanted(row) if self._names else ()
        except PenstockError as error:
            return _told(error, key)
        except Exception as error:  # noqa: BLE001 - a transform may raise anything; it belongs to its sample
            error.add_note(f"in predownload_transforms, of the sample {key!r}")
            return error
        self._dress(row, key)
        return _Planned(row, places)

    def _dress(self, row: Row, key: Any) -> None:
        """Make a row a sample that lacks its downloads."""
        recital = self._recital
        for name in recital.hidden:
            row.pop(name, None)
        row[SAMPLE_KEY] = key
        row[DATA_TYPE] = recital.data_type

    def _note_epoch(self, id_: int, epoch: int) -> None:
        """Remember which epoch's choice was fetched, should it have to be thrown away."""
        self._epochs[id_] = epoch
        if len(self._epochs) > MOST_EPOCHS:
            self._epochs.pop(next(iter(self._epochs)), None)

    def _chosen(self, row: Row, key: Any, epoch: int, id_: int) -> Row | None:
        rows = self._recital.predownload(row, epoch, id_)
        if len(rows) > 1 or not all(isinstance(one, dict) for one in rows):
            raise ConfigError(
                f"predownload_transforms made {len(rows)} rows of the sample {key!r}, of types "
                f"{sorted({type(one).__name__ for one in rows})}: they must give one dict, or None to leave it out"
            )
        return rows[0] if rows else None

    def _filled(self, id_: int, plan: _Planned, files: Any) -> Row | Exception:
        """Put the paths of what was downloaded into a sample."""
        sample, failure = plan.sample, None
        for name, place in zip(self._names, plan.places, strict=True):
            file = next(files) if type(place) is Wanted else place
            if type(place) is str and not os.path.isfile(place):
                file = ObjectMissing(f"{place} does not exist, or is no file")
            if isinstance(file, StoreError):
                failure = failure or _told(file, sample[SAMPLE_KEY], name, place)
            sample[name] = file
        if failure is not None:
            self._unfetched.add(id_)
        return failure or sample


def _wanted(plan: Plan) -> list[Wanted]:
    """List what is to be fetched for a sample."""
    return [place for place in plan.places if type(place) is Wanted] if type(plan) is _Planned else []


def _size_of(file: str | StoreError) -> int | None:
    """Give the bytes of a file that has just arrived."""
    if isinstance(file, StoreError):
        return None
    try:
        return os.path.getsize(file)
    except OSError:
        return None


def _each(epochs: np.ndarray | None, count: int) -> list[int]:
    return [0] * count if epochs is None else epochs.tolist()


def _told(error: PenstockError, key: Any, column: str | None = None, place: Place = None) -> PenstockError:
    """Say which sample an error belongs to, in an error of the same type; of what is missing, why it may be."""
    where = f"sample {key!r}" if column is None else f"sample {key!r}, column {column!r}"
    url = place.url if isinstance(place, Wanted) else place
    why = blanks_in(url) if isinstance(error, ObjectMissing) and url is not None else ""
    told = type(error)(f"{where}: {error}{why}")
    told.__cause__ = error
    return told


_doors: weakref.WeakSet[CacheDoor] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    # A thread that was opening one is not there any more.
    for door in list(_doors):
        door._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork_in_child)
