"""Who reads which samples at which step.

A Plan is arithmetic over sizes: it opens no file and draws from no generator. Its law: the sample
at a position depends on (size, order, seed, position) only; the world decides who takes a row,
never which row comes next. So any world can resume any other's cursor.

    order, global batch ──▶ Plan ──share(cursor, world)──▶ this rank's ids [steps, b] ──▶ cursor
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from penstock.errors import ConfigError, PlanError
from penstock.plan.order import Order
from penstock.types import World, check_choice, check_int

Remainder = Literal["short", "drop", "pad", "carry"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Cursor:
    """A place in the endless stream of samples, the same for every rank."""

    epoch: int = 0
    samples: int = 0
    """Samples of this epoch already handed out, over all ranks."""

    def __post_init__(self) -> None:
        check_int("epoch", self.epoch, minimum=0)
        check_int("samples", self.samples, minimum=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """One rank's part of some consecutive steps of one epoch."""

    epoch: int
    start: int
    """Offset in the epoch of the first global batch."""
    taken: int
    """Samples by which each step moves the cursor on."""
    ids: np.ndarray
    """int64 [steps, b]."""
    repeats: int = 0
    """How many of the last ids of the last step are there only to keep ranks in step."""
    carried: np.ndarray | None = None
    """int64 [steps, b], the epoch each id belongs to, where some may be of another; None: all to `epoch`."""

    def epochs(self, step: int, steps: int = 1) -> int | np.ndarray:
        """Give the epoch of every id of some steps: one for all, or int64 [steps · b]."""
        return self.epoch if self.carried is None else self.carried[step : step + steps].ravel()

    def after(self, step: int) -> Cursor:
        """Give the cursor once `step` (from 0) has been handed out."""
        return Cursor(epoch=self.epoch, samples=self.start + (step + 1) * self.taken)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """Cuts an order into global batches and gives each rank its rows.

    Global batch k of an epoch is positions [kG, (k+1)G), and rank r of W takes every W-th of them
    from the r-th on. From any other cursor the cut starts there. The last, incomplete batch follows
    `remainder`: "short" hands out what is left (ranks differ by at most one sample, and a rank that
    would get none repeats one), "drop" leaves it out, "pad" fills it from the epoch's start, "carry"
    fills it from the next epoch, which then starts later.

    >>> from penstock.plan.order import Sequential
    >>> plan = Plan(order=Sequential(10), global_batch=4)
    >>> [plan.batch(k).tolist() for k in range(plan.num_batches())]
    [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    >>> plan.share(Cursor(samples=4), World(dp_rank=1, dp_size=2)).ids.tolist()
    [[5, 7]]
    """

    order: Order
    global_batch: int
    remainder: Remainder = "short"

    def __post_init__(self) -> None:
        check_int("global_batch", self.global_batch, minimum=1)
        check_choice("remainder", self.remainder, get_args(Remainder))
        if self.remainder == "drop" and self.num_samples < self.global_batch:
            raise ConfigError(
                f"{self.num_samples} samples do not fill one global batch of {self.global_batch}, and the incomplete "
                "batch is dropped, so there would be none: use a smaller batch, or remainder='short'"
            )

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return self.order.num_samples

    def num_batches(self, samples: int = 0) -> int:
        """Count the global batches from an offset to the epoch's end: what every rank will be handed."""
        left = max(0, self.num_samples - samples)
        return left // self.global_batch if self.remainder == "drop" else -(-left // self.global_batch)

    def batch(self, step: int, epoch: int = 0) -> np.ndarray:
        """Give global batch `step` of an epoch, int64 [<= G], in the order in which ranks deal it out.

        Raises:
            PlanError: the epoch has no such batch.
        """
        if not 0 <= step < self.num_batches():
            raise PlanError(f"step {step} is outside the epoch: it has {self.num_batches()} global batches")
        share = self.share(Cursor(epoch=epoch, samples=step * self.global_batch), World())
        assert share is not None
        return share.ids[0]

    def share(self, cursor: Cursor, world: World, max_steps: int = 1) -> Share | None:
        """Give one rank's ids of up to `max_steps` steps from the cursor, all of them of one size.

        Returns:
            The share, or None at the end of the epoch.

        Raises:
            PlanError: the global batch cannot be dealt out evenly to this world.
        """
        rows, uneven = divmod(self.global_batch, world.dp_size)
        if uneven:
            raise PlanError(f"a global batch of {self.global_batch} cannot be dealt evenly to {world.dp_size} ranks")
        start = cursor.samples
        if self.num_batches(start) == 0:
            return None
        full = (self.num_samples - start) // self.global_batch
        if full == 0:
            return self._last(cursor, world)
        steps = np.arange(min(full, max_steps)) * self.global_batch  # [steps]
        slots = world.dp_rank + world.dp_size * np.arange(rows)  # [b]
        offsets = start + steps[:, None] + slots  # [steps, b]
        ids, epochs = places(self.order, cursor.epoch, offsets)
        return Share(epoch=cursor.epoch, start=start, taken=self.global_batch, ids=ids, carried=epochs)

    def next_epoch(self, cursor: Cursor) -> Cursor:
        """Give the start of the epoch after the cursor's: past what a last batch carried over from it."""
        if cursor.samples > self.num_samples:
            epochs, samples = divmod(cursor.samples, self.num_samples)
            return Cursor(epoch=cursor.epoch + epochs, samples=samples)
        return Cursor(epoch=cursor.epoch + 1)

    def walk(self, cursor: Cursor, world: World, max_steps: int = 64) -> Iterator[Share]:
        """Yield this rank's shares from the cursor to the end of its epoch."""
        while (share := self.share(cursor, world, max_steps)) is not None:
            yield share
            cursor = share.after(len(share.ids) - 1)

    def _last(self, cursor: Cursor, world: World) -> Share:
        """Deal out the incomplete batch at an epoch's end."""
        left = self.num_samples - cursor.samples
        filled = left if self.remainder == "short" else self.global_batch
        slots = np.arange(world.dp_rank, filled, world.dp_size)
        repeats = 0
        if len(slots) == 0:
            slots, repeats = np.array([world.dp_rank % left]), 1
        elif self.remainder == "pad":
            repeats = int((slots >= left).sum())
        carries = self.remainder == "carry"
        ids, carried = places_beyond(self.order, cursor.epoch, cursor.samples + slots[None], carries=carries)
        # Only carried samples move the cursor past the epoch's end; repeats belong to nobody.
        taken = filled if carries else left
        return Share(epoch=cursor.epoch, start=cursor.samples, taken=taken, ids=ids, repeats=repeats, carried=carried)


def places(order: Order, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Give the ids at offsets of an epoch, and the epoch of each where an order's samples have epochs of their own."""
    own = getattr(order, "places", None)
    return (order.ids(epoch, offsets), None) if own is None else own(epoch, offsets)


def places_beyond(
    order: Order, epoch: int, offsets: np.ndarray, *, carries: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Give the ids at offsets that may lie past an epoch's end, and the epoch of each where it is not `epoch` for all.

    Args:
        order: which sample stands where.
        epoch: that the offsets count from.
        offsets: int64 of any shape, 0 or more.
        carries: past its end stand the epochs after it; False: the same epoch again, from its start.
    """
    passes, offsets = np.divmod(offsets, order.num_samples)
    if not carries:
        passes = np.zeros_like(passes)
    ids, epochs, are_own = np.empty_like(offsets), epoch + passes, not passes.any()
    # Not np.unique, whose first call imports masked arrays, in the middle of a training's first batches.
    for further in np.flatnonzero(np.bincount(passes.ravel())).tolist():
        chosen = passes == further
        ids[chosen], own = places(order, epoch + further, offsets[chosen])
        if own is not None:
            epochs[chosen], are_own = own, False
    return ids, None if are_own else epochs
