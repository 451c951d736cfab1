"""What is done for the ids of one step: fetch, transform, collate, and what happens when one fails.

A Recipe is the same object in every lane: the trainer's own thread, a pool of threads, worker
processes. It decides nothing about order; given (epoch, ids) its result is always the same.

    ids ──fetch──▶ samples ──transform(sample, rng(seed, epoch, id))──▶ samples ──collate──▶ batch
                      └── a failing sample: raise · leave a hole · put another in its place
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import numpy as np

from penstock.datasets.answers import Rows, as_samples, is_table, own_transforms
from penstock.datasets.leased import lease_of
from penstock.errors import ConfigError, LoaderClosed, SampleError, StoreUnavailable, reason_of
from penstock.seeds import uniform
from penstock.transforms.chain import Chain, takes
from penstock.transforms.collate import stack
from penstock.transforms.reused_buffers import NamedBuffers

Policy = Literal["raise", "skip", "substitute"]
IsWanted = Callable[[], bool]
"""Asked between two samples, whether anybody still waits for them."""

MAX_FAILED_SUBSTITUTES = 16
MAX_FILTERED_SUBSTITUTES = 1000
MAX_UNREACHED_SUBSTITUTES = 4
"""A filter may keep few samples and mean it; failures in a row mean that something is broken, and a store out of reach
four times in a row that it is away."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One sample that could not be used."""

    epoch: int
    id: int
    stage: str
    reason: str
    """See `errors.reason_of`; "filtered" where a transform, or a dataset that filters, gave None."""
    message: str


@dataclass(kw_only=True, slots=True)
class Part:
    """The samples made of some ids of a step, before they are collated."""

    rows: Rows
    failures: list[Failure] = field(default_factory=list)
    substitutes: dict[int, int] = field(default_factory=dict)
    """Failed id → the id whose sample stands in its place."""
    leases: list[Any] = field(default_factory=list)
    """What keeps the files in place that the samples may name."""


@dataclass(kw_only=True, slots=True)
class Made:
    """One finished batch of one rank, with what went wrong on the way."""

    batch: Any
    num_samples: int
    failures: list[Failure]
    substitutes: dict[int, int]
    leases: Any = ()
    """What keeps the files in place that the batch may name: kept until the trainer asks for the next."""


def _go_on(is_wanted: IsWanted | None) -> None:
    """Raise LoaderClosed where nobody wants what is being made."""
    if is_wanted is not None and not is_wanted():
        raise LoaderClosed("the samples of this batch are of no use any more")


class Recipe:
    """How ids become a batch.

    Args:
        dataset: `fetch(ids)`, or `__getitems__`, or `__getitem__`: the first there is.
        transforms: applied in turn to each sample, after the dataset's own `transforms` if it has any: one chain, see
            `transforms.chain`. A sample of which nothing comes out is left out, reason "filtered".
        collate: list of samples → batch, handed out as it is. None: the dataset's own `collate`, else
            `transforms.collate.stack`, into `buffers` if it takes them; a dict of arrays from `fetch` is a batch
            already. Their arrays become tensors, and so do those of a collate that says `gives_arrays`, such as
            `transforms.collate.Collate`.
        on_error: what a failing sample leads to.
        seed: key of the transforms' and substitutes' randomness.
    """

    def __init__(
        self,
        dataset: Any,
        *,
        transforms: Sequence[Callable[..., Any]] = (),
        collate: Callable[[list[Any]], Any] | None = None,
        on_error: Policy = "raise",
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.chain = Chain((*transforms_of(dataset, seed), *transforms), seed=seed)
        self.gives_arrays = collate is None or bool(getattr(collate, "gives_arrays", False))
        self.keeps_arrays = collate is None and not self.chain and not hasattr(dataset, "collate")
        self.collate: Callable[..., Any] = getattr(dataset, "collate", stack) if collate is None else collate
        self._buffers = NamedBuffers() if collate is None and takes(self.collate, "buffers") else None
        self.on_error = on_error
        self.seed = seed
        self._filters = bool(getattr(dataset, "filters", False))
        self._fetches = hasattr(dataset, "fetch")
        self._by_epoch = self._fetches and takes(dataset.fetch, "epochs")
        self._peers: Callable[[int], tuple[int, int]] | None = getattr(dataset, "peers", None)
        self._discard: Callable[[int], bool] | None = getattr(dataset, "discard", None)

    def gives_arrays_of(self, ids: np.ndarray) -> bool:
        """Whether the arrays in a batch of ids, int64 [b], are to become tensors."""
        return self.gives_arrays

    def make(self, epochs: int | np.ndarray, ids: np.ndarray) -> Made:
        """Make the batch of ids, int64 [b], all of one epoch or each of its own, int64 [b].

        Raises:
            SampleError: a sample failed and the policy is to raise, or no substitute could be found.
        """
        return self.assemble(epochs, ids, [self.part(epochs, ids)])

    def part(self, epochs: int | np.ndarray, ids: np.ndarray, is_wanted: IsWanted | None = None) -> Part:
        """Fetch and transform some of a step's ids.

        Raises:
            LoaderClosed: between two samples it turned out that nobody wants them any more.
        """
        leases: list[Any] = []
        try:
            rows = self._fetch(epochs, ids, leases, is_wanted)
        except LoaderClosed:
            raise
        except Exception as error:  # noqa: BLE001 - a dataset may raise anything; the policy decides what it means
            return self._one_by_one(epochs, ids, error, is_wanted)
        self._check_count(rows, len(ids))
        if isinstance(rows, dict):
            if self.keeps_arrays:
                return Part(rows=rows)
            rows = as_samples(rows, len(ids))
        if not self.chain and not (self._filters and None in rows) and not self._any_failed(rows):
            return Part(rows=rows, leases=leases)
        made: list[Any] = []
        part = Part(rows=made, leases=leases)
        for epoch, id_, sample in zip(_each(epochs, ids), ids.tolist(), rows, strict=True):
            _go_on(is_wanted)
            try:
                samples = self._transform(epoch, id_, sample)
            except SampleError as error:
                self._settle(part, epoch, id_, partial(_raised, error), is_wanted)
                continue
            if samples:
                made += samples
            else:
                self._settle(part, epoch, id_, list, is_wanted)
        return part

    def assemble(
        self, epochs: int | np.ndarray, ids: np.ndarray, parts: Sequence[Part], is_wanted: IsWanted | None = None
    ) -> Made:
        """Put the parts of a step together, in the order of its ids, and collate them."""
        failures = [failure for part in parts for failure in part.failures]
        substitutes = {old: new for part in parts for old, new in part.substitutes.items()}
        leases = [lease for part in parts for lease in part.leases]
        rows = _joined([part.rows for part in parts])
        if isinstance(rows, dict):
            return Made(batch=rows, num_samples=len(ids), failures=failures, substitutes=substitutes)
        if not rows:
            # Ranks must stay in step, so a rank whose samples all failed hands out one flagged substitute.
            first = int(ids[0])
            left_out = f"all {len(ids)} samples of a batch, {_shown(ids)}, were left out"
            epoch = _each(epochs, ids)[0]
            rows, substitutes[first] = self._substitute(epoch, first, failures, left_out, leases, is_wanted)
        try:
            batch = self.collate(rows) if self._buffers is None else self.collate(rows, buffers=self._buffers)
        except Exception as error:
            raise self._error(int(ids[0]), "collate", error, f"samples {_shown(ids)}") from error
        return Made(batch=batch, num_samples=len(rows), failures=failures, substitutes=substitutes, leases=leases)

    def _fetch(
        self, epochs: int | np.ndarray, ids: np.ndarray, leases: list[Any], is_wanted: IsWanted | None = None
    ) -> Rows:
        """Ask the dataset; what keeps the files of its answer in place is added to `leases`."""
        dataset = self.dataset
        if self._fetches:
            rows = dataset.fetch(ids, epochs=each_epoch(epochs, ids)) if self._by_epoch else dataset.fetch(ids)
            if (lease := lease_of(rows)) is not None:
                leases.append(lease)
            return rows
        if (getitems := getattr(dataset, "__getitems__", None)) is not None:
            return getitems(ids.tolist())
        if is_wanted is None:
            return [dataset[id_] for id_ in ids.tolist()]
        rows = []
        for id_ in ids.tolist():
            _go_on(is_wanted)
            rows.append(dataset[id_])
        return rows

    def _any_failed(self, rows: Sequence[Any]) -> bool:
        """Whether `fetch` gave an error in the place of a sample."""
        return self._fetches and any(issubclass(kind, Exception) for kind in set(map(type, rows)))

    def _check_count(self, rows: Rows, count: int) -> None:
        """Refuse an answer that is not one row per id: which sample is which would be anyone's guess."""
        if not isinstance(rows, dict | list | tuple):
            raise ConfigError(
                f"{type(self.dataset).__name__} gave a {type(rows).__name__} for {count} ids: its fetch must give a "
                "list of samples or a dict of arrays"
            )
        heights = {len(values) for values in rows.values()} if isinstance(rows, dict) else {len(rows)}
        if heights != {count}:
            raise ConfigError(
                f"{type(self.dataset).__name__} gave {sorted(heights)} rows for {count} ids: its fetch must give one "
                "for each, in their order"
            )

    def _one_by_one(
        self, epochs: int | np.ndarray, ids: np.ndarray, error: Exception, is_wanted: IsWanted | None
    ) -> Part:
        """Find out which sample a failed call was about, and apply the policy to that one only."""
        if len(ids) == 1 and self.on_error == "raise" and self._discard is None:
            raise self._error(int(ids[0]), "fetch", error) from error
        part = Part(rows=[])
        for epoch, id_ in zip(_each(epochs, ids), ids.tolist(), strict=True):
            _go_on(is_wanted)
            self._settle(part, epoch, id_, partial(self._sample, epoch, id_, part.leases), is_wanted)
        return part

    def _sample(self, epoch: int, id_: int, leases: list[Any]) -> list[Any]:
        """Fetch and transform one sample alone."""
        try:
            rows = self._fetch(epoch, np.array([id_]), leases)
        except LoaderClosed:
            raise
        except Exception as error:
            raise self._error(id_, "fetch", error) from error
        self._check_count(rows, 1)
        sample = (as_samples(rows, 1) if isinstance(rows, dict) else rows)[0]
        return self._transform(epoch, id_, sample)

    def _transform(self, epoch: int, id_: int, sample: Any) -> list[Any]:
        """Run the chain on one sample: none (filtered), one, or several come out."""
        if isinstance(sample, Exception):
            raise self._error(id_, "fetch", sample) from sample
        if sample is None and self._filters:
            return []
        try:
            return self.chain(sample, epoch, id_)
        except Exception as error:
            raise self._error(id_, "transform", error) from error

    def _tried(self, epoch: int, id_: int, leases: list[Any], make: Callable[[], list[Any]]) -> list[Any]:
        """Make one sample; a dataset that can get it anew, having thrown away what it kept of it, does so once."""
        try:
            return make()
        except SampleError:
            if self._discard is None or not self._discard(id_):
                raise
        return self._sample(epoch, id_, leases)

    def _settle(
        self, part: Part, epoch: int, id_: int, make: Callable[[], list[Any]], is_wanted: IsWanted | None
    ) -> None:
        """Add what `make` gives to the part, or apply the policy to its failure."""
        rows = part.rows
        assert isinstance(rows, list)
        try:
            samples = self._tried(epoch, id_, part.leases, make)
            if samples:
                rows.extend(samples)
                return
            failure = Failure(epoch=epoch, id=id_, stage="transform", reason="filtered", message="it was filtered")
        except SampleError as error:
            if self.on_error == "raise":
                raise
            cause = f"{type(error.__cause__).__name__}: {error.__cause__}"
            failure = Failure(epoch=epoch, id=id_, stage=error.stage, reason=error.reason, message=cause)
        part.failures.append(failure)
        if self.on_error == "substitute" and failure.reason != "filtered":
            left_out = f"sample {id_} was left out"
            samples, part.substitutes[id_] = self._substitute(epoch, id_, [failure], left_out, part.leases, is_wanted)
            rows.extend(samples)

    def _substitute(
        self,
        epoch: int,
        id_: int,
        failures: Sequence[Failure],
        left_out: str,
        leases: list[Any],
        is_wanted: IsWanted | None,
    ) -> tuple[list[Any], int]:
        """Give the samples of another id, drawn by (seed, epoch, id, attempt) and nothing else."""
        start, stop = self._peers(id_) if self._peers is not None else (0, len(self.dataset))
        tried: list[str] = []
        last: SampleError | None = None
        unreached = 0
        for attempt in range(MAX_FAILED_SUBSTITUTES + MAX_FILTERED_SUBSTITUTES):
            _go_on(is_wanted)
            other = start + uniform(self.seed, "substitute", epoch, id_, attempt) % (stop - start)
            try:
                if samples := self._tried(epoch, other, leases, partial(self._sample, epoch, other, leases)):
                    return samples, other
                tried.append("filtered")
                unreached = 0
            except SampleError as error:
                tried.append(error.reason)
                last = error
                unreached = unreached + 1 if isinstance(error.__cause__, StoreUnavailable) else 0
            num_failed = len(tried) - tried.count("filtered")
            if num_failed == MAX_FAILED_SUBSTITUTES or unreached == MAX_UNREACHED_SUBSTITUTES:
                break
        name, cause = type(self.dataset).__name__, last and last.__cause__
        why = f": {type(cause).__name__}: {cause}" if cause else ""
        is_outage = isinstance(cause, StoreUnavailable)
        what_now = (
            "Their store can't be reached, which says nothing of the samples: go on from the last checkpoint once it "
            "answers"
            if is_outage
            else "Too few are left: look at the data and the transforms"
        )
        raise SampleError(
            f"{name}: {left_out} ({_counted(failure.reason for failure in failures)}), and so were {len(tried)} others "
            f"tried in their place ({_counted(tried)}){why}. {what_now}",
            dataset=name,
            key=id_,
            stage=last.stage if last else "transform",
            reason=last.reason if last else "filtered",
        ) from cause

    def _error(self, id_: int, stage: str, cause: Exception, what: str | None = None) -> SampleError:
        name, kind = type(self.dataset).__name__, type(cause).__name__
        # What is set up wrongly is wrong for all of them, and a store that is away says nothing of any.
        of_all = isinstance(cause, ConfigError | StoreUnavailable)
        can_go_on = self.on_error == "raise" and stage != "collate" and not of_all
        hint = '; on_error="skip" or "substitute" goes on without it' if can_go_on else ""
        describe = getattr(self.dataset, "describe", None)
        which, advice = describe(id_, cause) if describe is not None and what is None else ("", "")
        shown = what or f"sample {id_} {which}".rstrip()
        message = f"{shown} of {name} failed in {stage}: {kind}: {cause}{advice}{hint}"
        return SampleError(message, dataset=name, key=id_, stage=stage, reason=reason_of(cause))


def _raised(error: SampleError) -> list[Any]:
    """Fail as a sample did already."""
    raise error


def transforms_of(dataset: Any, seed: int) -> tuple[Callable[..., Any], ...]:
    """List the transforms that a dataset leaves to whoever reads it; a mix keys those of its streams itself."""
    keyed = getattr(dataset, "keyed_transforms", None)
    return own_transforms(dataset) if keyed is None else keyed(seed)


def each_epoch(epochs: int | np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Give the epoch of every id, int64 [n]."""
    return np.full(len(ids), epochs, np.int64) if isinstance(epochs, int) else epochs


def _each(epochs: int | np.ndarray, ids: np.ndarray) -> list[int]:
    """List the epoch of every id."""
    return [epochs] * len(ids) if isinstance(epochs, int) else epochs.tolist()


def _joined(parts: Sequence[Rows]) -> Rows:
    """Join the rows of a step's parts, as arrays if all are."""
    if len(parts) == 1:
        return parts[0]
    tables = [part for part in parts if is_table(part)]
    if len(tables) == len(parts):
        return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}
    return [row for part in parts for row in (as_samples(part, _height(part)) if isinstance(part, dict) else part)]


def _height(rows: Mapping[str, Any]) -> int:
    return len(next(iter(rows.values())))


def _counted(reasons: Iterable[str]) -> str:
    """Print reasons with how often each occurs, the most frequent one first."""
    return ", ".join(f"{reason}: {count}" for reason, count in Counter(reasons).most_common())


def _shown(ids: np.ndarray, most: int = 8) -> str:
    """Print ids, the first few of many."""
    head = ", ".join(str(id_) for id_ in ids[:most].tolist())
    return f"[{head}{f', … {len(ids)} in all' if len(ids) > most else ''}]"
