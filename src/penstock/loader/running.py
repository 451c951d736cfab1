"""What all loaders do: hand out batches of an assignment, one after the other, and remember how far the trainer is.

assignment ──cursor──▶ engine ──deliveries──▶ mover ──▶ trainer
▲───────────── at ────────────────────────┘
"""

from __future__ import annotations

import copy
import logging
import os
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from penstock.errors import LoaderClosed
from penstock.loader.assignment import Assignment
from penstock.loader.engine import Engine, InlineEngine, LaneEngine, run_ahead
from penstock.loader.hints import Hints, hinted
from penstock.loader.processes import ProcessLane
from penstock.loader.recipe import Made, Recipe
from penstock.loader.settings import check_timeout
from penstock.loader.stats import BatchInfo, LoaderStats
from penstock.loader.threads import ThreadLane
from penstock.loader.transfer import Mover
from penstock.loader.world import WorldOnce
from penstock.plan.plan import Share
from penstock.types import World, check_choice, check_device

NOT_OF_SAMPLES = ("StoreUnavailable", "AccessDenied", "ConfigError")
"""Reasons for which samples fail that others would have failed for as well."""
_log = logging.getLogger("penstock.loader")


@dataclass(frozen=True, kw_only=True, slots=True)
class Lanes:
    """Where batches are made."""

    workers: int
    kind: str
    """"thread" or "process"."""
    ahead: int
    """Batches prepared ahead."""


class Running:
    """A loader at work.

    Args:
        dataset: what is read, for its hints and its list of failures.
        recipe: how ids become a batch.
        assignment: which batches come next.
        world: this process's place.
        lane: where batches are made.
        pin_memory: copy batches to pinned memory; only where there is CUDA.
        device: copy batches there.
        timeout: seconds a batch of a worker may take.
    """

    def __init__(
        self,
        dataset: Any,
        recipe: Recipe,
        assignment: Assignment,
        *,
        world: WorldOnce,
        lane: Lanes,
        pin_memory: bool,
        device: Any,
        timeout: float,
    ) -> None:
        self.dataset = dataset
        self.timeout = check_timeout(timeout)
        self.stats = LoaderStats()
        self._not_of_samples, self._next_warning = 0, 1
        self._recipe = recipe
        self._assignment = assignment
        self._world = world
        self._lane = lane
        check_choice("pin_memory", pin_memory, (True, False))
        self._pin_memory = pin_memory
        self._device = check_device(device)
        self._engine: Engine | None = None
        self._engine_pid = 0
        self._turn: object = None
        self._finalizer: weakref.finalize | None = None

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the rest of the epoch; nothing happens before the first `next`."""
        return self._batches()

    def __getstate__(self) -> dict[str, Any]:
        # A copy stands where this one stands and has workers of its own when it is used.
        assignment = copy.copy(self._assignment)
        return {**self.__dict__, "_assignment": assignment, "_engine": None, "_finalizer": None, "_turn": None}

    def __enter__(self) -> Self:
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
        workers = f"{self._lane.workers} {self._lane.kind} workers, {self._lane.ahead} batches ahead"
        where = "made in the trainer's own thread, when asked for" if self._lane.workers == 0 else f"made by {workers}"
        return "\n".join([*self._assignment.explain(), where])

    def close(self) -> None:
        """End workers and threads, within a second; the loader can be iterated again afterwards."""
        self._turn = None
        self._assignment.let_go()
        for handed in (self._assignment.at, self._assignment.last):
            if handed is not None and handed[2] is not None:
                handed[2].leases = ()
        # Let go of first: interrupted in the middle of closing it, the loader opens another engine next time.
        finalizer, self._finalizer, self._engine = self._finalizer, None, None
        if finalizer is not None:
            finalizer()

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
                batch = self._marked(batch, share, step)
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

    def _marked(self, batch: Any, share: Share, step: int) -> Any:
        """Mark a batch with what the trainer should know of it."""
        return batch

    def _note(self, made: Made) -> None:
        """Count what went wrong in a batch, and have the dataset list it if it keeps a list."""
        self.stats.note(made)
        self._warn(made)
        if (list_failures := getattr(self.dataset, "list_failures", None)) is not None:
            list_failures(made.failures, made.substitutes)

    def _warn(self, made: Made) -> None:
        """Say it, ever less often, where samples are left out or replaced for what is not their own fault."""
        for failure in made.failures:
            if failure.reason in NOT_OF_SAMPLES:
                self._not_of_samples += 1
                if self._not_of_samples >= self._next_warning:
                    self._next_warning *= 10
                    _log.warning(
                        "%d samples were left out or replaced so far for what says nothing of them, the last one: "
                        "sample %d, %s. on_error='raise' stops in place of that",
                        *(self._not_of_samples, failure.id, failure.message),
                    )

    def _open_engine(self) -> Engine:
        """Open the engine, or go on with the one that is open."""
        if self._engine is not None and self._engine_pid == os.getpid():
            self._world.check()
            return self._engine
        walk, recipe, steps = self._assignment.walk(), self._recipe, self._lane.ahead
        self._world.check()
        takes_hints = callable(getattr(self.dataset, "prefetch", None))
        if self._lane.workers == 0:
            if takes_hints:
                hints = Hints(self.dataset)
                walk = hinted(walk, lambda share: hints([share]), steps_ahead=steps, steps_taken=0)
            self._engine = InlineEngine(walk, recipe)
        else:
            lane = (
                ThreadLane(recipe, self._lane.workers)
                if self._lane.kind == "thread"
                else ProcessLane(recipe, self._assignment.share_at(), self._lane.workers)
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
