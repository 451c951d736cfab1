"""Who decides which batches come next, and remembers how far the trainer is.

An assignment is all that a loader knows of order. There are two: a plan, in which every rank's
batches are arithmetic and progress is a cursor (here), and claims, in which processes take chunks as
they become free and a ledger remembers (`loader.claims`).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Protocol

from penstock.errors import ConfigError
from penstock.loader.engine import Delivery, planned
from penstock.loader.hints import Walk
from penstock.loader.recipe import Made
from penstock.loader.state import read_state, write_state
from penstock.loader.worker import ShareAt
from penstock.loader.world import WorldOnce
from penstock.plan.order import Order
from penstock.plan.plan import Cursor, Plan, Remainder, Share

Handed = tuple[Share, int, Made | None]
"""A batch that the trainer was given: its share, which step of it, and what went wrong on the way."""


class Assignment(Protocol):
    """What a loader asks of it."""

    at: Handed | None
    """The last batch handed out, set by the loader as it does so: cheaper to keep than a cursor a batch."""
    last: Handed | None
    """The one before `at` was cleared."""

    @property
    def description(self) -> str:
        """Say what is read in which order, and where it stands, without detecting or opening anything."""

    @property
    def epoch(self) -> int:
        """The epoch the next batch belongs to."""

    def num_batches(self) -> int:
        """Count the batches of a whole epoch."""

    def walk(self) -> Walk:
        """Give the way from a cursor to the shares after it."""

    def share_at(self) -> ShareAt:
        """Give what tells a worker process the ids of one step."""

    def run(self, make: Callable[[Cursor], Iterator[Delivery]]) -> Iterator[Delivery]:
        """Yield the batches of one iteration, which `make` makes from a cursor on."""

    def let_go(self) -> None:
        """Give up what an iteration holds that nobody will go on with."""

    def set_epoch(self, epoch: int) -> bool:
        """Go to an epoch's start; tells whether that was a move."""

    def state_dict(self) -> dict[str, Any]:
        """Say where the stream stands."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where a state was saved."""

    def explain(self) -> list[str]:
        """Describe it in lines."""


class Planned:
    """Batches by plan: the same on every world, resumed anywhere in O(1).

    Args:
        dataset: for its name and fingerprint.
        order: which sample stands where.
        seed: key of the order, for the state.
        remainder: what becomes of the last, incomplete global batch.
        batch_size: samples per step of this rank, or None with
        global_batch_size: samples per step of all ranks.
        world: this process's place.
    """

    def __init__(
        self,
        dataset: Any,
        order: Order,
        *,
        seed: int,
        remainder: Remainder,
        batch_size: int | None,
        global_batch_size: int | None,
        world: WorldOnce,
    ) -> None:
        self.at: Handed | None = None
        self.last: Handed | None = None
        self._dataset = dataset
        self._order = order
        self._seed = seed
        self._remainder = remainder
        self._batch_size = batch_size
        self._global_batch_size = global_batch_size
        self._world = world
        self._start = Cursor()
        self._loaded: Cursor | None = None
        """Where a state was loaded that nobody has gone on from yet."""
        self._known_plan: Plan | None = None

    @property
    def description(self) -> str:
        """Say what is read in which order, and where it stands."""
        by_rank = self._batch_size is not None
        size = f"batch_size={self._batch_size}" if by_rank else f"global_batch_size={self._global_batch_size}"
        what = f"{self._order.num_samples:,} samples of {type(self._dataset).__name__}, {size}"
        cursor = self._cursor
        return f"{what}, order {self._order.name}: at sample {cursor.samples:,} of epoch {cursor.epoch}"

    @property
    def epoch(self) -> int:
        """The epoch the next batch belongs to; a finished one ends when its iterator does."""
        return self._cursor.epoch

    def num_batches(self) -> int:
        """Count the batches of a whole epoch, on this rank as on every other."""
        return self._plan.num_batches()

    def walk(self) -> Walk:
        """Walk the plan as this rank."""
        return planned(self._plan, self._world.get())

    def share_at(self) -> ShareAt:
        """Tell a worker process this rank's ids."""
        return partial(self._plan.share, world=self._world.get())

    def run(self, make: Callable[[Cursor], Iterator[Delivery]]) -> Iterator[Delivery]:
        """Yield the rest of the epoch; after its last batch the cursor stands at the start of the next one."""
        if self.at is not None and self._plan.num_batches(self._cursor.samples) == 0:
            # The last batch was taken by somebody who counted and did not ask whether there are more.
            self._move(self._plan.next_epoch(self._cursor))
        yield from make(self._cursor)
        self._move(self._plan.next_epoch(self._cursor))

    def let_go(self) -> None:
        """A cursor holds nothing."""

    def set_epoch(self, epoch: int) -> bool:
        """Go to the start of an epoch, if the cursor is not in it already."""
        if epoch == self._cursor.epoch:
            return False
        if self._loaded == self._cursor and self._loaded.samples:
            warnings.warn(
                f"set_epoch({epoch}) leaves the position that was loaded, sample {self._loaded.samples:,} of epoch "
                f"{self._loaded.epoch}, before anything was read there. To go on from it: for epoch in "
                "range(loader.epoch, epochs), where set_epoch is not needed",
                RuntimeWarning,
                stacklevel=3,
            )
        self._move(Cursor(epoch=epoch))
        return True

    def state_dict(self) -> dict[str, Any]:
        """Write the cursor: after the last batch handed out, whatever is in flight."""
        return write_state(self._cursor, self._order, self._seed, getattr(self._dataset, "fingerprint", None))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go where a state was saved, if it is one of this stream."""
        self._move(read_state(state, self._order, self._seed, getattr(self._dataset, "fingerprint", None)))
        self._loaded = self._start

    def explain(self) -> list[str]:
        """Describe the plan and this rank's part of it."""
        plan, world = self._plan, self._world.get()
        name, rank, size = type(self._dataset).__name__, world.dp_rank, world.dp_size
        return [
            f"{plan.num_samples:,} samples of {name}, {plan.num_batches():,} global batches of {plan.global_batch:,}",
            f"remainder {plan.remainder}, order {self._order.name}, seed {self._seed}",
            f"next: sample {self._cursor.samples:,} of epoch {self._cursor.epoch}",
            f"data-parallel rank {rank} of {size} takes rows {rank}::{size}, {plan.global_batch // size:,} a batch",
        ]

    @property
    def _cursor(self) -> Cursor:
        """Where the stream stands: after the last batch handed out."""
        return self._start if self.at is None else self.at[0].after(self.at[1])

    def _move(self, cursor: Cursor) -> None:
        self.last = self.at or self.last
        self._start, self.at, self._loaded = cursor, None, None

    @property
    def _plan(self) -> Plan:
        if self._known_plan is None:
            size = self._global_batch()
            if (check_batch := getattr(self._order, "check_batch", None)) is not None:
                check_batch(size)
            self._known_plan = Plan(order=self._order, global_batch=size, remainder=self._remainder)
        return self._known_plan

    def _global_batch(self) -> int:
        """Give the samples of a step over all ranks."""
        size, ranks = self._global_batch_size, self._world.get().dp_size
        if size is None:
            assert self._batch_size is not None
            return self._batch_size * ranks
        if size % ranks:
            raise ConfigError(f"global_batch_size {size} is not a multiple of the {ranks} ranks")
        return size
