"""The checks. Each docstring's first line is the law it holds a dataset or a loader to."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from penstock.seeds import rng
from penstock.testing.comparing import as_plain, expect_same, expect_same_batches, rows_of
from penstock.testing.datasets import LatencyDataset
from penstock.testing.footprint import Footprint
from penstock.transforms.collate import stack
from penstock.types import World

IdsOf = Callable[[Any], Iterable[int]]
STATE_BYTES = 1000
TOLERANCE = 10
"""A deadline's allowance on busy machines."""


def check_fetch(dataset: Any, ids: Sequence[int] | None = None) -> None:
    """Check that `fetch` is row-pure: row i depends on `ids[i]` only, is `dataset[ids[i]]`, and stays what it was.

    Args:
        dataset: one with `__len__`, `__getitem__` and `fetch`.
        ids: those to try; None tries up to 24 spread over all.
    """
    if ids is None:
        size = len(dataset)
        ids = sorted({int(id_) for id_ in np.linspace(0, size - 1, min(size, 24))})
    tried = np.array(ids, dtype=np.int64)
    # Out of order and with a repeat, which no promise of `fetch` excludes.
    asked = np.concatenate([rng(0, "check_fetch").permutation(tried), tried[:1]])
    given = dataset.fetch(asked.copy())
    before = as_plain(given)
    for id_, row in zip(asked.tolist(), as_plain(rows_of(given, len(asked))), strict=True):
        alone = as_plain(rows_of(dataset.fetch(np.array([id_])), 1)[0])
        expect_same(alone, row, f"fetch: sample {id_} depends on what it is asked with")
        expect_same(as_plain(dataset[id_]), row, f"fetch: sample {id_} is not dataset[{id_}]")
    expect_same(before, as_plain(given), "fetch: what it had handed out was overwritten by a later call")


def check_order_law(
    make_loader: Callable[..., Any], variations: Sequence[Mapping[str, Any]], *, epochs: int = 2
) -> None:
    """Check that settings which may only change speed do not change a single batch.

    Args:
        make_loader: called with each variation's entries as keyword arguments.
        variations: settings that must all give the batches of the first.
        epochs: how many are compared.
    """
    reference: list[list[Any]] = []
    for number, variation in enumerate(variations):
        loader = make_loader(**variation)
        try:
            found = [list(loader) for _ in range(epochs)]
        finally:
            loader.close()
        reference = reference or found
        for epoch, (expected, batches) in enumerate(zip(reference, found, strict=True)):
            expect_same_batches(expected, batches, f"order: {variation} against {variations[0]}, epoch {epoch}")
        assert number or any(reference), f"order: {variation} gives no batch at all, so nothing was compared"


def check_lanes(
    dataset: Any,
    *,
    workers: Sequence[int] = (0, 1, 2, 4),
    lanes: Sequence[str] = ("thread", "process"),
    prefetch: Sequence[int] = (1, 5),
    latency_s: float = 0.003,
    epochs: int = 1,
    **options: Any,
) -> None:
    """Check that a StreamingDataLoader's batches depend on no worker, lane, prefetch or latency.

    Args:
        dataset: any that the loader takes; it must be picklable for the process lane.
        workers: counts to compare; 0 is the trainer's own thread.
        lanes: worker types to compare.
        prefetch: batches ahead to compare.
        latency_s: longest of the random delays injected into reading.
        epochs: how many are compared.
        options: the loader's other arguments: batch_size, shuffle, transform, …
    """
    # Not at the top: worker processes import this package for its datasets, and this would bring torch along.
    from penstock.loader.loader import StreamingDataLoader

    slow = LatencyDataset(dataset, max_s=latency_s)
    variations: list[dict[str, Any]] = [{"num_workers": 0}] if 0 in workers else []
    for lane, count, ahead in itertools.product(lanes, workers, prefetch):
        if count:
            variations.append({"num_workers": count, "worker_type": lane, "prefetch": ahead})
    check_order_law(
        lambda **how: StreamingDataLoader(slow if how["num_workers"] else dataset, **how, **options),
        variations,
        epochs=epochs,
    )


def check_resume(make_loader: Callable[[], Any], *, at: Iterable[int] | None = None) -> None:
    """Check that a state saved after any step gives exactly the rest, then the next epoch; and so does a resume of it.

    Args:
        make_loader: makes a fresh loader, as a new process would.
        at: steps after which to save; None tries each, the epoch's start and end included.
    """
    with closing(make_loader()) as loader:
        states = [loader.state_dict()]
        batches = []
        for batch in loader:
            batches.append(batch)
            states.append(loader.state_dict())
        following = next(iter(loader))
    for step in range(len(states)) if at is None else at:
        with closing(make_loader()) as loader:
            loader.load_state_dict(json.loads(json.dumps(states[step])))
            rest = iter(loader)
            first = list(itertools.islice(rest, 1))
            again = loader.state_dict()
            expect_same_batches(batches[step:], [*first, *rest], f"resume: saved after step {step}", start=step)
            expect_same(
                following, next(iter(loader)), f"resume: saved after step {step}, first batch of the next epoch"
            )
        with closing(make_loader()) as loader:
            loader.load_state_dict(again)
            start = step + len(first)
            # A state taken behind an epoch's end belongs to the next one.
            if first:
                expect_same_batches(
                    batches[start:], list(loader), f"resume of a resume: after step {start}", start=start
                )


def check_epoch_is_permutation(
    make_loader: Callable[[World], Any],
    num_samples: int,
    *,
    world_sizes: Sequence[int] = (1, 2, 3, 4),
    epochs: int = 2,
    ids_of: IdsOf | None = None,
) -> None:
    """Check that all ranks together read each sample once an epoch, flagged repeats apart, in equally many batches.

    Args:
        make_loader: makes the loader of one rank. With remainder "short" or "pad"; "drop" leaves samples out.
        num_samples: samples in an epoch.
        world_sizes: numbers of ranks to try.
        epochs: how many to read.
        ids_of: batch → ids of its samples. None takes those of `loader.batch_info`, if the batch is what the samples
            of `loader.dataset` of these ids make; give it if the loader has a transform or a collate_fn.
    """
    for size in world_sizes:
        with RanksInStep(make_loader, size, ids_of) as world:
            for epoch in range(epochs):
                found = np.sort(np.array(world.read(), dtype=np.int64))
                where = f"permutation: epoch {epoch} on {size} ranks"
                missing = np.setdiff1d(np.arange(num_samples), found)
                assert not missing.size, f"{where} lacks {missing.size} samples: {missing[:8].tolist()}"
                twice = found[1:][found[1:] == found[:-1]]
                assert not twice.size, f"{where} repeats samples without a flag: {twice[:8].tolist()}"
                assert len(found) == num_samples, f"{where} has ids outside [0, {num_samples}): {found[-8:].tolist()}"


def check_elastic(
    make_loader: Callable[[World, int], Any],
    num_samples: int,
    *,
    saved_on: Sequence[int] = (1, 2, 4),
    resumed_on: Sequence[int] = (1, 2, 3, 4, 8),
    batch_sizes: tuple[int, int] = (4, 3),
    steps: int = 2,
    ids_of: IdsOf | None = None,
) -> None:
    """Check that a state saved on W ranks resumes on W' with another batch size: no sample lost, doubled or moved.

    Args:
        make_loader: makes the loader of one rank with a batch size.
        num_samples: samples in an epoch.
        saved_on: numbers of ranks to save on.
        resumed_on: numbers of ranks to resume on.
        batch_sizes: per rank, before and after.
        steps: how many to take before saving.
        ids_of: batch → ids of its samples. None takes those of `loader.batch_info`, if the batch is what the samples
            of `loader.dataset` of these ids make; give it if the loader has a transform or a collate_fn.
    """
    before, after = batch_sizes
    with RanksInStep(lambda world: make_loader(world, before), 1, ids_of) as alone:
        expected = alone.read() + alone.read()
    for saved, resumed in itertools.product(saved_on, resumed_on):
        where = f"elastic: {steps} steps on {saved} × {before}, the rest on {resumed} × {after}"
        with RanksInStep(lambda world: make_loader(world, before), saved, ids_of) as world:
            found = world.read(steps)
            states = [loader.state_dict() for loader in world.loaders]
        assert all(state == states[0] for state in states), f"{where}: the ranks' states differ: {states}"
        with RanksInStep(lambda world: make_loader(world, after), resumed, ids_of) as world:
            for loader in world.loaders:
                loader.load_state_dict(json.loads(json.dumps(states[-1])))
            found += world.read()
        assert len(found) >= num_samples, f"{where}: only {len(found)} of {num_samples} samples were read"
        wrong = [place for place, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b]
        assert not wrong, f"{where}: position {wrong[0]} holds {found[wrong[0]]}, and {expected[wrong[0]]} on one rank"


def check_state_size(loader: Any, *, max_bytes: int = STATE_BYTES) -> None:
    """Check that a loader's state is plain JSON, comes back from it unchanged, and is below `max_bytes`."""
    state = loader.state_dict()
    text = json.dumps(state)
    assert json.loads(text) == state, f"state: it does not survive JSON: {state}"
    assert len(text) < max_bytes, f"state: {len(text)} bytes of JSON, {max_bytes} are allowed: {text[:200]} …"


def check_close(make_loader: Callable[[], Any], *, steps: int = 2, within_s: float = 1.0) -> None:
    """Check that close() in the middle of an epoch is quick and leaves no thread, process, descriptor or shared memory.

    Args:
        make_loader: makes a loader of which `steps` batches are taken.
        steps: batches to take before closing.
        within_s: how long close() may take; ten times as much is tolerated.
    """
    # The first loader of a process opens what the process keeps, such as a library's own threads.
    for is_counted in (False, True):
        before = Footprint.now()
        loader = make_loader()
        batches = list(itertools.islice(iter(loader), steps))
        assert batches, "close: the loader gave no batch, so nothing was open"
        del batches
        begun = time.monotonic()
        loader.close()
        took = time.monotonic() - begun
        assert took < TOLERANCE * within_s, f"close: took {took:.1f} s, {within_s} s are allowed"
        if is_counted:
            left = before.leftovers()
            assert not left, f"close: left behind {', '.join(left)}"


class RanksInStep:
    """The loaders of all ranks of a world, read in step as their trainers would."""

    def __init__(self, make_loader: Callable[[World], Any], size: int, ids_of: IdsOf | None) -> None:
        self.loaders = [make_loader(World(dp_rank=rank, dp_size=size)) for rank in range(size)]
        self._ids_of = ids_of

    def __enter__(self) -> RanksInStep:
        return self

    def __exit__(self, *error: object) -> None:
        for loader in self.loaders:
            loader.close()

    def read(self, steps: int | None = None) -> list[int]:
        """Read an epoch's rest, or some steps of it; give the ids in the order of the plan, without flagged repeats."""
        read: list[int] = []
        streams = [itertools.islice(iter(loader), steps) for loader in self.loaders]
        for step, batches in enumerate(itertools.zip_longest(*streams, fillvalue=_NOTHING)):
            short = [rank for rank, batch in enumerate(batches) if batch is _NOTHING]
            assert not short, (
                f"ranks {short} of {len(self.loaders)} have no step {step}, the others have: they would hang"
            )
            rows = [self._ids(loader, batch) for loader, batch in zip(self.loaders, batches, strict=True)]
            # Row j of rank r is row j · W + r of the global batch.
            read.extend(id_ for row in itertools.zip_longest(*rows) for id_ in row if id_ is not None)
        return read

    def _ids(self, loader: Any, batch: Any) -> list[int]:
        info = getattr(loader, "batch_info", None)
        if self._ids_of is None and info is not None:
            _expect_samples(loader, batch)
            given = info.sample_ids
        else:
            given = (self._ids_of or list)(batch)
        ids = [int(id_) for id_ in given]
        return ids[: len(ids) - info.repeats] if info is not None else ids


def _expect_samples(loader: Any, batch: Any) -> None:
    """Hold a batch to what it is said to be made of: its dataset's samples, read here one by one.

    What a loader says of itself is its plan, which would be compared with itself.
    """
    dataset: Any = getattr(loader, "dataset", None)
    info = loader.batch_info
    assert hasattr(dataset, "__getitem__"), "the loader has no dataset to compare its batches with: give ids_of"
    ids = [info.substitutes.get(id_, id_) for id_ in info.sample_ids.tolist() if id_ not in info.skipped]
    samples = [dataset[id_] for id_ in ids]
    try:
        expected = getattr(dataset, "collate", stack)(samples)
    except ValueError as error:
        raise AssertionError(f"the dataset's samples make no batch of themselves, so give ids_of: {error}") from error
    law = f"delivered: the batch is not dataset[…] of samples {ids[:8]} (with a transform or collate_fn, give ids_of)"
    expect_same(as_plain(expected), as_plain(batch), law)


_NOTHING = object()
