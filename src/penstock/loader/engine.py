"""Carries a plan out: from a cursor to batches, in order, whatever works on them where.

cursor ──walk──▶ shares ──tickets──▶ lane ──results, in ticket order──▶ deliveries
                    └────── inline: several steps gathered in one call ─────┘
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

from penstock.datasets.answers import is_table
from penstock.errors import SampleError
from penstock.loader.hints import Walk
from penstock.loader.recipe import Made, Recipe
from penstock.loader.tickets import Lane, Ticket
from penstock.loader.transfer import Mover, as_steps, as_tensors, count_bytes
from penstock.plan.plan import Cursor, Plan, Share
from penstock.types import World

IDS_AHEAD = 8192
"""Ids are computed in vectors of about this many: a shuffle costs little per id, but much per call."""

MAX_GROUP_STEPS = 16
MAX_GROUP_BYTES = 4 * 1024 * 1024
"""Steps whose arrays one inline call may gather ahead; a group this large still fits in a core's cache."""


Delivery = tuple[Any, Share, int, int, int, Made | None]
"""One batch, the share and step it is, its samples, its bytes, and what went wrong on the way (None where nothing can
have). A plain tuple: one is made for every batch, and a named one takes four times as long."""


class InlineEngine:
    """Makes batches in the trainer's own thread, when they are asked for.

    A dataset whose `fetch` gives a dict of arrays is asked for several steps at once, so that the
    Python cost per batch is that of cutting views; any other is asked for one step at a time.
    """

    def __init__(self, walk: Walk, recipe: Recipe) -> None:
        self._walk = walk
        self._recipe = recipe

    def run(self, cursor: Cursor) -> Iterator[Delivery]:
        """Yield the batches from the cursor to its epoch's end."""
        group = 1
        for share in self._walk(cursor):
            step = 0
            while step < len(share.ids):
                steps = min(group, len(share.ids) - step)
                if group > 1 and (rows := self._gathered(share, step, steps)) is not None:
                    size = sum(values.nbytes for values in rows.values()) // steps
                    samples = share.ids.shape[1]
                    for batch in as_steps(rows, steps):
                        yield batch, share, step, samples, size, None
                        step += 1
                    group = min(2 * group, MAX_GROUP_STEPS, max(1, MAX_GROUP_BYTES // max(1, size)))
                    del rows, batch
                    continue
                ids = share.ids[step]
                epochs = share.epochs(step)
                part = self._recipe.part(epochs, ids)
                # Each step made alone tells anew whether this dataset gives arrays.
                group = 2 if is_table(part.rows) else 1
                delivery = delivered(self._recipe.assemble(epochs, ids, [part]), share, step, self._recipe)
                del part
                yield delivery
                del delivery
                step += 1

    def close(self) -> None:
        """Nothing runs here."""

    def _gathered(self, share: Share, step: int, steps: int) -> Any:
        """Fetch several steps in one call; None where they must be made one by one."""
        try:
            part = self._recipe.part(share.epochs(step, steps), share.ids[step : step + steps].ravel())
        except SampleError:
            # The steps before the failing one are still owed: made alone, each gets its own verdict.
            return None
        return part.rows if is_table(part.rows) else None


class LaneEngine:
    """Keeps a lane busy a number of steps ahead of the trainer, and hands results out in order.

    What is in flight survives an abandoned iterator: the next one from the same cursor continues
    with it.
    """

    def __init__(self, walk: Walk, recipe: Recipe, lane: Lane, *, ahead: int, timeout: float) -> None:
        self._walk = walk
        self._recipe = recipe
        self._lane = lane
        self._ahead = ahead
        self._timeout = timeout
        self._numbers = itertools.count()
        self._pending: deque[Ticket] = deque()
        self._coming: Iterator[Ticket] = iter(())

    def run(self, cursor: Cursor) -> Iterator[Delivery]:
        """Yield the batches from the cursor to its epoch's end."""
        # What is in flight says itself where it belongs: an interrupt anywhere leaves nothing to be mistaken.
        if not self._pending or self._pending[0].cursor != cursor:
            self._lane.discard()
            self._pending.clear()
            self._coming = self._tickets(cursor)
        self._fill()
        while self._pending:
            ticket = self._pending[0]
            made = self._lane.result(ticket, self._timeout)
            self._pending.popleft()
            self._fill()
            delivery = delivered(made, ticket.share, ticket.step, self._recipe)
            del made
            yield delivery
            del delivery
        self._lane.settle()

    def close(self) -> None:
        """End the lane, and let go of it: the coming tickets hold this engine, and so the memory of its lane."""
        self._pending.clear()
        self._coming = iter(())
        self._lane.close()

    def _tickets(self, cursor: Cursor) -> Iterator[Ticket]:
        for share in self._walk(cursor):
            for step in range(len(share.ids)):
                yield Ticket(number=next(self._numbers), share=share, step=step)

    def _fill(self) -> None:
        for ticket in itertools.islice(self._coming, self._ahead - len(self._pending)):
            self._pending.append(ticket)
            self._lane.submit(ticket)


Engine = InlineEngine | LaneEngine


def planned(plan: Plan, world: World) -> Walk:
    """Walk a plan as one rank of a world."""
    steps = steps_at_once(plan, world)
    return lambda cursor: plan.walk(cursor, world, steps)


def steps_at_once(plan: Plan, world: World) -> int:
    """Count the steps whose ids are worth computing in one call."""
    return max(1, IDS_AHEAD * world.dp_size // plan.global_batch)


def run_ahead(deliveries: Iterator[Delivery], mover: Mover) -> Iterator[Delivery]:
    """Move each batch to where it goes; on CUDA, begin the next one's transfer before handing one out."""
    waiting: deque[Delivery] = deque()
    for delivery in deliveries:
        waiting.append((mover.begin(delivery[0]), *delivery[1:]))
        if len(waiting) > mover.runs_ahead:
            yield _finished(waiting.popleft(), mover)
    for delivery in waiting:
        yield _finished(delivery, mover)


def delivered(made: Made, share: Share, step: int, recipe: Recipe) -> Delivery:
    """Turn a finished batch into what the trainer is given."""
    batch = as_tensors(made.batch) if recipe.gives_arrays_of(share.ids[step]) else made.batch
    made.batch = None
    return batch, share, step, made.num_samples, count_bytes(batch), made


def _finished(delivery: Delivery, mover: Mover) -> Delivery:
    return mover.finish(delivery[0]), *delivery[1:]
