"""Several datasets as one, in exact proportions.

A mix is a dataset whose samples have ids, like any other; what makes it a mixture is its order, which it
builds for the loader that reads it (`plan.mixture`). Each stream keeps its own order, passes and randomness,
all keyed by its name.

    loader ──ids──▶ mix ──each stream's own ids, in one call──▶ streams
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np

from penstock.datasets.answers import as_samples, own_transforms
from penstock.datasets.gathered import Answer, gather
from penstock.datasets.ids import check_id
from penstock.datasets.leased import Leased, lease_of
from penstock.datasets.streams import StreamIds, Streams
from penstock.errors import ConfigError
from penstock.plan.mixture import Batches, Mixture, Part, Stop
from penstock.plan.order import Order
from penstock.plan.ratios import as_written, check_weights
from penstock.seeds import uniform
from penstock.transforms.chain import Chain, takes
from penstock.transforms.collate import stack_present
from penstock.transforms.reused_buffers import NamedBuffers, ReusedBuffers
from penstock.types import check_choice

OrderOf = Callable[[Any, int], Order]
"""From a stream's dataset and a seed to the order of its samples."""


def mix(
    streams: Mapping[str, Any],
    weights: Mapping[str, float] | None = None,
    *,
    by: Literal["samples", "tokens"] = "samples",
    stop: Stop = "first",
    batches: Batches = "mixed",
    batch_size: int | None = None,
) -> Mix:
    """Mix datasets in exact proportions, for a StreamingDataLoader.

    After any number of samples each stream has had its part of them, to within 4. Each is used up before any of
    its samples comes again, in an order that depends on the seed and its name only: another stream more, or other
    weights, change when samples come, not which of a stream comes after which.

    Args:
        streams: name → dataset, any that a loader takes.
        weights: name → its part, in whatever unit: 0.7 and 0.3, or 7 and 3; 0 leaves a stream out. None: in
            proportion to their samples, so that an epoch is one pass over all of them.
        by: what weights count: "samples", or "tokens", for which each stream needs `lengths` or `seq_len`: it is
            picked as often as makes its tokens the part that is asked for, by their mean number in its samples.
        stop: an epoch ends before the "first" stream would begin anew, when "all" have been used up (those that are
            by then begin anew), or "never". The next epoch goes on where the streams are.
        batches: "mixed": batches hold what the proportions bring. "stratified": each holds the same number of samples
            of each stream, the nearest to the weights. "per_stream": each is of one stream, and weights are parts of
            the batches.
        batch_size: samples a step of all ranks, the loader's `global_batch_size`; for the latter two.

    Raises:
        ConfigError: an argument cannot work.

    >>> from penstock import StreamingDataLoader
    >>> both = mix({"web": list(range(100)), "code": list(range(100, 200))}, {"web": 0.75, "code": 0.25})
    >>> batch = next(iter(StreamingDataLoader(both, 8, shuffle=True)))
    >>> int((batch < 100).sum()), int((batch >= 100).sum())
    (6, 2)
    """
    return Mix(Streams(streams), weights, by=by, stop=stop, batches=batches, batch_size=batch_size)


class Mix:
    """Several datasets as one; made by `mix`.

    Its ids are those of its streams, one stream after the other, and `len()` counts them all.
    """

    default_shuffle = "own"

    def __init__(
        self,
        streams: Streams,
        weights: Mapping[str, float] | None,
        *,
        by: Literal["samples", "tokens"],
        stop: Stop,
        batches: Batches,
        batch_size: int | None,
    ) -> None:
        check_choice("by", by, ("samples", "tokens"))
        for name, dataset in zip(streams.names, streams.datasets, strict=True):
            if isinstance(dataset, Mix):
                raise ConfigError(
                    f"the stream {name!r} is a mix itself: mix all streams at once, by products of weights"
                )
        if weights is not None and (not isinstance(weights, Mapping) or set(weights) != set(streams.names)):
            raise ConfigError(
                f"weights must be a dict with a number for each of {list(streams.names)}, got {weights!r}"
            )
        self._streams = streams
        self._weights = _in_samples(streams, weights) if by == "tokens" else weights
        self._stop: Stop = stop
        self._batches: Batches = batches
        self._batch_size = batch_size
        self._buffers = ReusedBuffers()
        # What cannot work is said here, not when a loader is made of it.
        self.build_mixture(lambda dataset, seed: _Counted(len(dataset)), None)
        self.on_error = self._policy()
        self.inline = all(getattr(dataset, "inline", False) for dataset in streams.datasets)
        self.filters = any(streams.attributes("filters"))
        self.is_plain = streams.is_plain
        self.num_downloading_workers = max(streams.attributes("num_downloading_workers"), default=None)
        self.prefetch_tickets = max(streams.attributes("prefetch_tickets"), default=None)
        self._transforms = any(own_transforms(dataset) for dataset in streams.datasets)
        # A loader asks what there is: what no stream has, a mix has not either.
        for name in ("prefetch", "discard"):
            if hasattr(streams, name):
                setattr(self, name, getattr(streams, name))
        if streams.attributes("collate"):
            self.collate = self._collate

    def __len__(self) -> int:
        """Count the samples of all streams."""
        return len(self._streams)

    def __repr__(self) -> str:
        return f"mix({', '.join(f'{name}: {size:,}' for name, size in self.sizes.items())}; stop={self._stop!r})"

    def __getitem__(self, index: int) -> Any:
        """Give one sample, as its stream gives it.

        Raises:
            IndexError: there is no such sample.
        """
        id_ = check_id(index, len(self), self)
        stream = self._streams.stream_of(id_)
        return self._streams.datasets[stream][id_ - self._streams.firsts[stream]]

    @property
    def streams(self) -> dict[str, Any]:
        """The datasets by name."""
        return dict(zip(self._streams.names, self._streams.datasets, strict=True))

    @property
    def sizes(self) -> dict[str, int]:
        """Samples of each stream."""
        return dict(zip(self._streams.names, self._streams.sizes, strict=True))

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the streams' names, and what they say of theirs."""
        return self._streams.fingerprint()

    def stream_of(self, id_: int) -> str:
        """Give the name of the stream that an id belongs to."""
        return self._streams.names[self._streams.stream_of(id_)]

    def peers(self, id_: int) -> tuple[int, int]:
        """Give the ids [start, stop) among which a substitute for an id is drawn: its stream's."""
        stream = self._streams.stream_of(id_)
        return self._streams.firsts[stream], self._streams.firsts[stream] + self._streams.sizes[stream]

    def build_mixture(self, order_of: OrderOf, seed: int | None) -> Mixture:
        """Build the order of the mixture.

        Args:
            order_of: gives the order of one stream by its dataset and a seed.
            seed: key of everything; None: picks are left in their pattern.
        """
        named = zip(self._streams.names, self._streams.datasets, self._streams.firsts, strict=True)
        parts = [
            Part(name=name, order=order_of(dataset, stream_seed(dataset, name, seed or 0)), first_id=first)
            for name, dataset, first in named
        ]
        return Mixture(parts, self._weights, stop=self._stop, batches=self._batches, batch=self._batch_size, seed=seed)

    def fetch(self, ids: np.ndarray, epochs: np.ndarray | None = None) -> list[Any] | dict[str, Any]:
        """Give the samples of ids, int64 [n]: one call for each stream that they are of.

        Args:
            ids: int64 [n].
            epochs: int64 [n], the pass of its stream that each sample is of. None: 0.

        Returns:
            A dict of arrays if all streams give the same columns, else a list: samples, or what stands for one that
            was filtered or failed; with a mark of their stream where streams have transforms of their own.

        Raises:
            IndexError: there is no such sample.
        """
        places, parts = self._streams.parted(ids, self)
        if len(parts) == 1 and not self._transforms:
            # As they were asked for, they need not be put back.
            stream = parts[0][0]
            return self._streams.rows_of(stream, ids - self._streams.firsts[stream], epochs)
        passes = None if epochs is None else epochs[places]
        answers = self._streams.fetch(parts, passes)
        if self._transforms:
            return gather(places, _marked(parts, passes, answers), None)
        return gather(places, answers, self._buffers)

    def keyed_transforms(self, seed: int) -> tuple[Callable[..., Any], ...]:
        """Give what runs the streams' own transforms, with the randomness of a seed and the stream's name."""
        if not self._transforms:
            return ()
        named = zip(self._streams.names, self._streams.datasets, strict=True)
        return (_OwnTransforms([(own_transforms(one), stream_seed(one, name, seed)) for name, one in named]),)

    def list_failures(self, failures: Sequence[Any], substitutes: Mapping[int, int]) -> None:
        """Tell each stream of its samples that were left out or replaced; a loader calls it."""
        self._streams.list_failures(failures, substitutes)

    def close(self) -> None:
        """Close the streams that can be closed."""
        for close in self._streams.attributes("close"):
            close()

    def _collate(self, samples: list[Any], buffers: NamedBuffers | None = None) -> Any:
        """Stack samples as the streams do, if all of them do it in one way, else by the fields that are there."""
        ways = {type(dataset) for dataset in self._streams.datasets}
        collate = self._streams.datasets[0].collate if len(ways) == 1 else stack_present
        return collate(samples, buffers=buffers) if takes(collate, "buffers") else collate(samples)

    def _policy(self) -> str | None:
        """Give what the streams want done with a failing sample."""
        said = sorted(set(self._streams.attributes("on_error")) - {"raise"})
        if len(said) > 1:
            raise ConfigError(f"streams contradict each other, on_error is {' and '.join(map(repr, said))}: choose one")
        return said[0] if said else None


class Picked(NamedTuple):
    """A sample on its way to the transforms of its stream."""

    stream: int
    epoch: int
    id: int
    sample: Any


def _marked(parts: Sequence[StreamIds], passes: np.ndarray | None, answers: Iterable[Answer]) -> Iterator[Answer]:
    """Mark samples with their stream, but for what was left out or failed."""
    for (stream, _, ids), (its, rows) in zip(parts, answers, strict=True):
        samples = as_samples(rows, len(ids)) if isinstance(rows, dict) else rows
        epochs = [0] * len(ids) if passes is None else passes[its].tolist()
        marked = [
            row if row is None or isinstance(row, Exception) else Picked(stream, epoch, id_, row)
            for epoch, id_, row in zip(epochs, ids.tolist(), samples, strict=True)
        ]
        yield its, marked if (lease := lease_of(rows)) is None else Leased.of(marked, lease)


class _OwnTransforms:
    """Runs the chain of the stream that a sample is of.

    Args:
        chains: of each stream the transforms and the seed of their randomness.
    """

    def __init__(self, chains: Sequence[tuple[tuple[Callable[..., Any], ...], int]]) -> None:
        self._chains = [Chain(transforms, seed=seed) for transforms, seed in chains]

    def __call__(self, picked: Picked) -> Any:
        return self._chains[picked.stream](picked.sample, picked.epoch, picked.id)


class _Counted:
    """As many samples as a dataset has, in an order that nobody asks for."""

    name = "counted"

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        raise AssertionError("an order that was made to be counted was read")


def stream_seed(dataset: Any, name: str, seed: int) -> int:
    """Give the key of all randomness of a stream: of its name, and of its own `shuffle_seed` if it has one."""
    own = getattr(dataset, "shuffle_seed", None)
    return uniform(seed if own is None else own, "stream", name)


def _in_samples(streams: Streams, weights: Mapping[str, float] | None) -> dict[str, Fraction] | None:
    """Turn parts of tokens into parts of samples."""
    if weights is None:
        return None
    check_weights("the weight", weights)
    return {
        name: as_written(weights[name]) / _mean_length(name, dataset)
        for name, dataset in zip(streams.names, streams.datasets, strict=True)
    }


def _mean_length(name: str, dataset: Any) -> Fraction:
    """Give the mean number of tokens in a sample."""
    lengths, seq_len = getattr(dataset, "lengths", None), getattr(dataset, "seq_len", None)
    if lengths is not None:
        mean = Fraction(int(np.sum(lengths)), len(dataset))
    elif seq_len is not None:
        mean = Fraction(int(seq_len))
    else:
        raise ConfigError(
            f"by='tokens' needs to know how long samples are, and the stream {name!r} ({type(dataset).__name__}) has "
            "neither `lengths` nor `seq_len`: give weights by='samples'"
        )
    if mean <= 0:
        raise ConfigError(f"by='tokens': the samples of stream {name!r} have no tokens")
    return mean
