"""StreamingDataLoader: the public face of the engine.

It owns two things: the assignment, which decides what comes next and remembers how far the trainer
is, and the engine that makes batches of it. A checkpoint is what the assignment remembers, nothing else.
"""

from __future__ import annotations

import copy
import inspect
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, get_args

from penstock.errors import ConfigError, LoaderClosed
from penstock.loader.assignment import Assignment, Planned
from penstock.loader.claims import Claimed, StopAfter
from penstock.loader.engine import Engine, InlineEngine, LaneEngine, run_ahead
from penstock.loader.hints import Hints, hinted
from penstock.loader.processes import ProcessLane
from penstock.loader.recipe import Made, Policy, Recipe
from penstock.loader.settings import (
    block_sizes_of,
    build_order,
    check_assignment,
    check_collate,
    check_remainder,
    check_timeout,
    check_transforms,
    check_workers,
    choose_policy,
    choose_prefetch,
    choose_seed,
    choose_shuffle,
    refuse_for_claims,
    refuse_unknown,
)
from penstock.loader.stats import BatchInfo, LoaderStats
from penstock.loader.threads import ThreadLane
from penstock.loader.transfer import Mover
from penstock.loader.world import WorldOnce
from penstock.plan.chunks import ChunkPlan
from penstock.plan.plan import Remainder
from penstock.types import World, check_choice, check_device, check_int

if TYPE_CHECKING:
    from penstock.ledger.chunk_tracker import ChunkTracker

Transform = Callable[..., Any]


class StreamingDataLoader:
    """Batches of a dataset: the same samples in the same order on any number of ranks, workers and restarts.

    Names and meanings follow `torch.utils.data.DataLoader` wherever both have them. Any map-style
    dataset will do; one with `fetch(ids)` is asked for many samples at once.

    Iterating gives the rest of the current epoch. After a full epoch, `iter()` starts the next one; after
    `break` it goes on where it was. `iter()` itself does nothing: work begins with the first `next`.

    Args:
        dataset: `__len__` and `__getitem__`, or `fetch` (see `penstock.Dataset`).
        batch_size: samples per batch of this rank.
        shuffle: False, True or "global" (all samples), or "window" (near ones stay near; needs `dataset.block_ends`).
            None: as the dataset says, else False.
        seed: key of all randomness: order, transforms' `rng`, substitutes. None: the dataset's `shuffle_seed`, else 0.
        drop_last: True is `remainder="drop"`.
        remainder: the last, incomplete global batch is handed out "short" (default), "drop"ped, "pad"ded from the
            epoch's start, or "carry"-filled from the next epoch.
        num_workers: threads or processes that work ahead; 0 works in the trainer's thread. "auto": 0 for datasets that
            say `inline = True` (their fetch is a memory copy) and for plain map-style ones, else two threads per core,
            at most eight; a dataset's own `num_downloading_workers` comes first.
        worker_type: "thread", "process" (fresh interpreters, never forked), or "auto": threads for datasets with
            `fetch`, whose contract makes it safe, processes for all others. It changes speed, never data.
        prefetch: batches prepared ahead, by all workers together. None: the dataset's `prefetch_tickets`, else two per
            worker. Without workers only arrays are gathered ahead, a few MB at most. A dataset with `prefetch` is told
            what comes at least that far ahead, and some hundred samples.
        transform: sample → sample, or a list of such, run after the dataset's own `transforms`. One with a parameter
            `rng` gets a generator keyed to the sample. A list or generator it returns adds several samples to the
            batch; None leaves the sample out.
        collate_fn: list of samples → batch. None: the dataset's own `collate`, else they are stacked, as torch does.
        pin_memory: copy batches to pinned memory; only where there is CUDA.
        device: copy batches there; with CUDA the copy overlaps the trainer's work.
        world: this process's place. None detects it at first use (`penstock.detect_world`).
        global_batch_size: samples per step over all ranks, in place of `batch_size`.
        window: blocks per group of a "window" shuffle.
        length_bucket: samples per bucket of like length (needs `dataset.lengths`); the global batch size or a multiple
            of it wastes least padding. It is part of the order, so it stays when the world changes.
        on_error: a sample that fails "raise"s a SampleError, is "skip"ped (its batch is smaller by one), or
            "substitute"d by another; counted in `stats`, listed in `stats.quarantine`. None: as the dataset's own
            `on_error` says, else "raise".
        assignment: "plan": the order above says who reads what. "claim": this process claims chunks of the dataset from
            `tracker`, as others that train it do, and each is completed exactly once an epoch. Batches never cross
            chunks, `shuffle=True` shuffles inside each, and there is no `len()`. See the guide "claims".
        tracker: the ChunkTracker to claim from.
        dataset_chunk_size: samples per claimed chunk; all processes on one ledger give the same.
        stop_after: where an iteration by claims ends: "epoch", when every chunk is complete, by whomever; "block", when
            the block it began with has no chunk left; a number of batches, through epochs; None: never.
        uneven: True lets the ranks of a data-parallel group claim different numbers of batches, for training under
            torch's `Join`; without it, claims in a group need a number for `stop_after`.
        timeout: seconds a batch of a worker may take; then LoaderTimeout says what it waits for.
        unknown: refused; for torch's arguments that are not here, the error says what to use instead.

    Raises:
        ConfigError: an argument cannot work, or contradicts another.

    >>> loader = StreamingDataLoader(list(range(10)), batch_size=4)
    >>> [batch.tolist() for batch in loader]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    >>> state = loader.state_dict()
    >>> state["epoch"], state["samples"]
    (1, 0)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = None,
        *,
        shuffle: bool | Literal["global", "window"] | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        remainder: Remainder | None = None,
        num_workers: int | Literal["auto"] = "auto",
        worker_type: Literal["auto", "thread", "process"] = "auto",
        prefetch: int | None = None,
        transform: Transform | Sequence[Transform] | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        device: Any = None,
        world: World | None = None,
        global_batch_size: int | None = None,
        window: int = 16,
        length_bucket: int | None = None,
        on_error: Policy | None = None,
        assignment: Literal["plan", "claim"] = "plan",
        tracker: ChunkTracker | None = None,
        dataset_chunk_size: int = 4000,
        stop_after: StopAfter = "epoch",
        uneven: bool = False,
        timeout: float = 300.0,
        **unknown: Any,
    ) -> None:
        if unknown:
            refuse_unknown(unknown, inspect.signature(StreamingDataLoader).parameters)
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = choose_seed(seed, dataset)
        shuffle = choose_shuffle(shuffle, dataset)
        self.timeout = check_timeout(timeout)
        self.stats = LoaderStats()
        self._workers, self._worker_type = check_workers(dataset, num_workers, worker_type)
        self._prefetch = choose_prefetch(prefetch, dataset, self._workers)
        on_error = choose_policy(on_error, dataset)
        check_choice("on_error", on_error, get_args(Policy))
        if world is not None and not isinstance(world, World):
            raise ConfigError(f"world must be a penstock.World, got {world!r}")
        if batch_size is not None and global_batch_size is not None:
            raise ConfigError(f"batch_size={batch_size} and global_batch_size={global_batch_size}: give one of the two")
        if global_batch_size is None:
            self.batch_size = check_int("batch_size", 1 if batch_size is None else batch_size, minimum=1)
        else:
            check_int("global_batch_size", global_batch_size, minimum=1)
        transforms = check_transforms(transform)
        check_collate(collate_fn)
        self._recipe = Recipe(dataset, transforms=transforms, collate=collate_fn, on_error=on_error, seed=self.seed)
        check_choice("pin_memory", pin_memory, (True, False))
        self._pin_memory = pin_memory
        self._device = check_device(device)
        self._world = WorldOnce(world)
        leftover = check_remainder(drop_last, remainder)
        self._assignment: Assignment
        check_assignment(assignment, tracker, stop_after, uneven)
        if tracker is not None:
            refuse_for_claims(shuffle, leftover, global_batch_size, length_bucket)
            plan = ChunkPlan(
                block_sizes=block_sizes_of(dataset),
                chunk_size=check_int("dataset_chunk_size", dataset_chunk_size, minimum=1),
                batch_size=self.batch_size or 1,
                shuffle_seed=self.seed if shuffle else None,
                remainder="drop" if leftover == "drop" else "short",
            )
            self._assignment = Claimed(
                dataset,
                tracker,
                plan,
                seed=self.seed,
                stop_after=stop_after,
                uneven=uneven,
                world=self._world,
                timeout=self.timeout,
            )
        else:
            self._assignment = Planned(
                dataset,
                build_order(dataset, shuffle, self.seed, window, length_bucket),
                seed=self.seed,
                remainder=leftover,
                batch_size=self.batch_size,
                global_batch_size=global_batch_size,
                world=self._world,
            )
        self._engine: Engine | None = None
        self._engine_pid = 0
        self._turn: object = None
        self._finalizer: weakref.finalize | None = None

    def __len__(self) -> int:
        """Count the batches of a whole epoch, on this rank as on every other."""
        return self._assignment.num_batches()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rest of the epoch; nothing happens before the first `next`."""
        return self._batches()

    def __repr__(self) -> str:
        # Nothing that would detect the world, or count: a loader may be printed before its process group is there.
        return f"StreamingDataLoader({self._assignment.description})"

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where this one stands and has workers of its own when it is used.
        assignment = copy.copy(self._assignment)
        return {**self.__dict__, "_assignment": assignment, "_engine": None, "_finalizer": None, "_turn": None}

    def __enter__(self) -> StreamingDataLoader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def world(self) -> World:
        """This process's place among those that train; detected at first use unless it was given."""
        return self._world.get()

    @property
    def epoch(self) -> int:
        """The epoch the next batch belongs to; a finished one ends when its iterator does."""
        return self._assignment.epoch

    @property
    def batch_info(self) -> BatchInfo:
        """What the last batch handed out was made of.

        Raises:
            LoaderClosed: none has been handed out yet.
        """
        if (last := self._assignment.at or self._assignment.last) is None:
            raise LoaderClosed("no batch has been handed out yet, so there is nothing to say of it")
        return BatchInfo.of(*last)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; does nothing if the cursor is in that epoch already."""
        if self._assignment.set_epoch(check_int("epoch", epoch, minimum=0)):
            self._turn = None

    def state_dict(self) -> dict[str, Any]:
        """Say where the stream stands: after the last batch handed out, whatever is in flight.

        Returns:
            A JSON-ready dict below 1 kB, equal on all ranks. Any rank's copy resumes any number of ranks,
            any batch size and any workers.
        """
        return self._assignment.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where a state was saved; costs the same wherever that is.

        Raises:
            StateMismatch: it belongs to other data, another order or another seed; says what differs.
        """
        self._assignment.load_state_dict(state)
        self._turn = None

    def explain(self) -> str:
        """Describe in words what this loader does and how."""
        workers = f"{self._workers} {self._worker_type} workers, {self._prefetch} batches ahead"
        where = "made in the trainer's own thread, when asked for" if self._workers == 0 else f"made by {workers}"
        return "\n".join([*self._assignment.explain(), where])

    def close(self) -> None:
        """End workers and threads, within a second; the loader can be iterated again afterwards."""
        self._turn = None
        self._assignment.let_go()
        for handed in (self._assignment.at, self._assignment.last):
            if handed is not None and handed[2] is not None:
                handed[2].leases = ()
        if self._finalizer is not None:
            self._finalizer()
        self._engine = self._finalizer = None

    def _batches(self) -> Iterator[Any]:
        """Hand out the rest of the epoch, moving the cursor with each batch."""
        clock, stats = time.perf_counter, self.stats
        asked = clock()
        turn = self._turn = object()
        mover = Mover(self._device, self._pin_memory)
        assignment, engine = self._assignment, self._open_engine()
        make = engine.run if mover.is_idle else lambda cursor: run_ahead(engine.run(cursor), mover)
        try:
            for delivery in assignment.run(make):
                batch, share, step, num_samples, num_bytes, made = delivery
                stats.batches += 1
                stats.samples += num_samples
                stats.bytes += num_bytes
                if made is not None and (made.failures or made.substitutes):
                    self._note(made)
                ready = clock()
                stats.wait_s += ready - asked
                # While the trainer works, nothing here may keep its batch, and so its buffer, alive.
                del delivery
                # Last of all: an interrupt before this line leaves the batch to whoever asks next.
                assignment.at = share, step, made
                yield batch
                del batch
                if made is not None:
                    made.leases = ()
                now = clock()
                stats.elapsed_s += now - asked
                asked = now
                if self._turn is not turn:
                    raise LoaderClosed(
                        "this iterator was overtaken: another iterator, set_epoch, load_state_dict or close came after "
                        "it. A loader has one cursor, so one iterator at a time moves it"
                    )
            self._turn = None
        except GeneratorExit:
            raise
        except BaseException:
            # What was in flight behind a failure, or amid an interrupt, is of no use to whoever tries again.
            if self._turn is turn:
                self.close()
            raise

    def _note(self, made: Made) -> None:
        """Count what went wrong in a batch, and have the dataset list it if it keeps a list."""
        self.stats.note(made)
        if (list_failures := getattr(self.dataset, "list_failures", None)) is not None:
            list_failures(made.failures, made.substitutes)

    def _open_engine(self) -> Engine:
        """Open the engine, or go on with the one that is open."""
        if self._engine is not None and self._engine_pid == os.getpid():
            self._world.check()
            return self._engine
        walk, recipe, steps = self._assignment.walk(), self._recipe, self._prefetch
        self._world.check()
        takes_hints = callable(getattr(self.dataset, "prefetch", None))
        if self._workers == 0:
            if takes_hints:
                hints = Hints(self.dataset)
                walk = hinted(walk, lambda share: hints([share]), steps_ahead=steps, steps_taken=0)
            self._engine = InlineEngine(walk, recipe)
        else:
            lane = (
                ThreadLane(recipe, self._workers)
                if self._worker_type == "thread"
                else ProcessLane(recipe, self._assignment.share_at(), self._workers)
            )
            if takes_hints:
                walk = hinted(walk, lane.tell, steps_ahead=1, steps_taken=steps)
            self._engine = LaneEngine(walk, recipe, lane, ahead=steps, timeout=self.timeout)
        self._engine_pid = os.getpid()
        self._finalizer = weakref.finalize(self, _close_in, self._engine_pid, self._engine)
        return self._engine


def _close_in(pid: int, engine: Engine) -> None:
    """Close an engine, in the process that opened it only."""
    if os.getpid() == pid:
        engine.close()
