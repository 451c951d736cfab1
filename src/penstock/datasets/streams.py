"""Several datasets behind one range of ids, each asked once however its samples are mixed.

id = where the stream's ids begin + the stream's own id
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from penstock.datasets.answers import Rows
from penstock.datasets.gathered import Answer
from penstock.datasets.ids import check_ids
from penstock.errors import ConfigError
from penstock.formats.files import digest
from penstock.transforms.chain import takes

StreamIds = tuple[int, slice, np.ndarray]
"""A stream, which of the ids that were brought together are its, and these as its own, int64 [m]."""


class Streams:
    """Named datasets, one after the other.

    Args:
        datasets: name → dataset: map-style, with `fetch` or without.

    Raises:
        ConfigError: there are none, or one of them is empty, has no length or no name.
    """

    def __init__(self, datasets: Mapping[str, Any]) -> None:
        if not isinstance(datasets, Mapping) or not datasets:
            raise ConfigError(f"streams must be a dict of name → dataset with one at least, got {datasets!r}")
        for name, dataset in datasets.items():
            if not isinstance(name, str) or not name:
                raise ConfigError(f"a stream's name must be a text, got {name!r}")
            if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
                raise ConfigError(f"the stream {name!r} has no __len__ and __getitem__: give a map-style dataset")
            if isinstance(dataset, str | bytes) or not len(dataset):
                raise ConfigError(f"the stream {name!r} holds no samples: got {dataset!r}")
        self.names = tuple(datasets)
        self.datasets = tuple(datasets.values())
        self.sizes = tuple(len(dataset) for dataset in self.datasets)
        self._bounds = np.cumsum([0, *self.sizes])
        self._starts = self._bounds[:-1]
        self.firsts = tuple(self._starts.tolist())
        self._fetchers = [_fetcher(dataset) for dataset in self.datasets]
        self.is_plain = not all(hasattr(dataset, "fetch") for dataset in self.datasets)
        # A loader asks what there is: what no stream has, all of them together have not either.
        if any(callable(one) for one in self.attributes("prefetch")):
            self.prefetch = self._prefetch
        if self.attributes("discard"):
            self.discard = self._discard

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def stream_of(self, id_: int) -> int:
        """Give the number of the stream that an id belongs to."""
        return int(self._starts.searchsorted(id_, side="right")) - 1

    def parted(self, ids: np.ndarray, whose: object) -> tuple[np.ndarray, list[StreamIds]]:
        """Bring ids of one stream together.

        Args:
            ids: int64 [n].
            whose: they are; said in errors only.

        Returns:
            int64 [n], where each id so brought stood, and a part for each stream that occurs.

        Raises:
            IndexError: there is no such sample.
        """
        places = ids.argsort()
        together = ids[places]
        bounds = together.searchsorted(self._bounds)
        if bounds[0] or bounds[-1] < len(ids):
            check_ids(ids, len(self), whose)
        own = together - self._starts.repeat(bounds[1:] - bounds[:-1])
        parts, start = [], 0
        for stream, stop in enumerate(bounds[1:].tolist()):
            if start < stop:
                its = slice(start, stop)
                parts.append((stream, its, own[its]))
                start = stop
        return places, parts

    def fetch(self, parts: Sequence[StreamIds], epochs: np.ndarray | None) -> Iterator[Answer]:
        """Give the samples of parts, one after the other: which ones, and a list of m or a dict of arrays [m, …].

        Args:
            parts: see `parted`.
            epochs: int64 [n], of all ids that were parted, as they were brought together. None: 0.

        Raises:
            ConfigError: a stream gave another number of them.
        """
        for stream, its, ids in parts:
            yield its, self.rows_of(stream, ids, None if epochs is None else epochs[its])

    def rows_of(self, stream: int, ids: np.ndarray, epochs: np.ndarray | None) -> Rows:
        """Give the samples of a stream's own ids, int64 [m]; see `fetch`."""
        fetch, by_epoch = self._fetchers[stream]
        passes = np.zeros(len(ids), np.int64) if epochs is None and by_epoch else epochs
        rows = fetch(ids, epochs=passes) if by_epoch else fetch(ids)
        heights = {len(values) for values in rows.values()} if isinstance(rows, dict) else {len(rows)}
        if heights != {len(ids)}:
            raise ConfigError(f"the stream {self.names[stream]!r} gave {sorted(heights)} rows for {len(ids)} ids")
        return rows

    def attributes(self, name: str) -> list[Any]:
        """List what the streams say of something, where it is not None."""
        said = [getattr(dataset, name, None) for dataset in self.datasets]
        return [one for one in said if one is not None]

    def fingerprint(self) -> str:
        """What the samples are: the streams' names, and what they say of theirs."""
        said = [getattr(dataset, "fingerprint", None) for dataset in self.datasets]
        return digest(repr(list(zip(self.names, self.sizes, said, strict=True))).encode())

    def list_failures(self, failures: Sequence[Any], substitutes: Mapping[int, int]) -> None:
        """Tell each stream of its samples that were left out or replaced."""
        by_id = sorted(failures, key=lambda failure: failure.id)
        for stream, own in groupby(by_id, lambda failure: self.stream_of(failure.id)):
            first = self.firsts[stream]
            if (tell := getattr(self.datasets[stream], "list_failures", None)) is not None:
                its = [replace(failure, id=failure.id - first) for failure in own]
                mine = {failure.id for failure in its}
                tell(its, {old - first: new - first for old, new in substitutes.items() if old - first in mine})

    def _prefetch(self, ids: np.ndarray, epochs: np.ndarray) -> None:
        """Tell each stream what comes of it."""
        places, parts = self.parted(ids, self)
        for stream, its, _ in parts:
            hint = getattr(self.datasets[stream], "prefetch", None)
            if callable(hint):
                # In the order in which they will be wanted.
                where = np.sort(places[its])
                own = ids[where] - self.firsts[stream]
                hint(own, **({"epochs": epochs[where]} if takes(hint, "epochs") else {}))

    def _discard(self, id_: int) -> bool:
        """Have a stream throw away what is kept of a sample that failed."""
        stream = self.stream_of(id_)
        discard = getattr(self.datasets[stream], "discard", None)
        return discard is not None and discard(id_ - self.firsts[stream])

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_fetchers"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._fetchers = [_fetcher(dataset) for dataset in self.datasets]


def _fetcher(dataset: Any) -> tuple[Callable[..., Any], bool]:
    """Give the quickest way to ask a dataset for several samples, and whether it wants to know their epochs."""
    if hasattr(dataset, "fetch"):
        return dataset.fetch, takes(dataset.fetch, "epochs")
    if (getitems := getattr(dataset, "__getitems__", None)) is not None:
        return lambda ids: getitems(ids.tolist()), False
    return lambda ids: [dataset[id_] for id_ in ids.tolist()], False
