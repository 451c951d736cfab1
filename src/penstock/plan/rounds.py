"""Rounds: stretches of a fixed number of batches, cut from the endless stream that a plan's epochs make.

Training goes round by round and validates between them, whatever the size of the dataset; a *cycle* is one
pass over it, which is an epoch of the plan. Rounds change nothing of which sample stands where:

    cycles   ├────────── 0 ──────────┼────────── 1 ──────────┼─ 2 …    each one permutation of the dataset
    carry    ├── 0 ──┼── 1 ──┼── 2 ──┼─ … 2 ─┼── 3 ──┼── 4 ──┼         rounds go on through cycles
    short    ├── 0 ──┼── 1 ──┼─ 2 ─┤ ├── 3 ──┼── 4 ──┼─ 5 ─┤           a cycle's last round is shorter
    pad      ├── 0 ──┼── 1 ──┼─ 2 ─rr├── 3 ──┼ …                       and filled up with flagged repeats
    drop     ├── 0 ──┼── 1 ──┤ - - - ├── 2 ──┼ …                       or left out
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penstock.errors import ConfigError, PlanError
from penstock.plan.permutation import MAX_RANGE, ORDER_NAME, permute_each
from penstock.plan.plan import Cursor, Plan, Share, places_beyond
from penstock.seeds import key
from penstock.types import World, check_choice, check_int

Boundary = Literal["carry", "short", "pad", "wrap", "drop"]
"""What happens where a cycle ends within a round; "wrap" is another word for "pad"."""
BOUNDARIES = ("carry", "short", "pad", "drop")


def check_round_size(name: str, size: object) -> int:
    """Return the size of a round, in batches or samples, if it is an integer from 1 to 2**62."""
    return check_int(name, size, minimum=1, maximum=MAX_RANGE)


def check_boundary(name: str, boundary: object) -> Literal["carry", "short", "pad", "drop"]:
    """Return the boundary that a word means, else raise ConfigError."""
    check_choice(name, boundary, (*BOUNDARIES, "wrap"))
    return "pad" if boundary == "wrap" else boundary  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rounds:
    """Cuts a plan's stream into rounds of so many global batches.

    Args:
        plan: which batches there are. With boundary "carry" its remainder is "carry" too.
        num_batches: global batches in a round.
        boundary: what happens where a cycle ends within a round.

    Raises:
        ConfigError: a round is larger than a cycle and incomplete ones are dropped, or its samples are beyond 2**62.

    >>> from penstock.plan.order import Sequential
    >>> plan = Plan(order=Sequential(10), global_batch=1, remainder="carry")
    >>> rounds = Rounds(plan=plan, num_batches=4, boundary="carry")
    >>> rounds.total, rounds.begin(2), rounds.begin(5)
    (3, Cursor(epoch=0, samples=8), Cursor(epoch=2, samples=0))
    """

    plan: Plan
    num_batches: int
    boundary: Literal["carry", "short", "pad", "drop"]

    def __post_init__(self) -> None:
        check_int("round_batches", self.num_batches, minimum=1, maximum=MAX_RANGE // self.plan.global_batch)
        check_choice("boundary", self.boundary, BOUNDARIES)
        assert (self.boundary == "carry") == (self.plan.remainder == "carry")
        if self.total == 0:
            raise ConfigError(
                f"a round of {self.num_batches} batches is more than the {self.plan.num_batches()} of a whole cycle, "
                "and incomplete rounds are dropped, so there would be none: use smaller rounds, or 'carry'"
            )

    @property
    def total(self) -> int:
        """Rounds in a cycle, an incomplete one counted unless it is dropped."""
        batches = self.plan.num_batches()
        return batches // self.num_batches if self.boundary == "drop" else -(-batches // self.num_batches)

    @property
    def num_samples(self) -> int:
        """Samples of a round over all ranks, where it is complete."""
        return self.num_batches * self.plan.global_batch

    def begin(self, number: int) -> Cursor:
        """Give the start of round `number`, counted from the stream's start.

        Raises:
            ConfigError: it is no such number, or so large that its cycle's is beyond 2**62.
        """
        check_int("round", number, minimum=0)
        if self.boundary == "carry":
            epoch, samples = divmod(number * self.num_samples, self.plan.num_samples)
        else:
            epoch, place = divmod(number, self.total)
            samples = place * self.num_samples
        if epoch > MAX_RANGE:
            raise ConfigError(f"round {number} begins in cycle {epoch}, and cycles are counted up to 2**62")
        return Cursor(epoch=epoch, samples=samples)

    def settle(self, cursor: Cursor) -> Cursor:
        """Give the same place as a cursor whose cycle has batches left: at a cycle's end, the next one's start."""
        if self.boundary == "carry":
            epochs, samples = divmod(cursor.samples, self.plan.num_samples)
            if not epochs:
                return cursor
            return Cursor(epoch=cursor.epoch + epochs, samples=samples)
        return cursor if self._left(cursor.samples) else Cursor(epoch=cursor.epoch + 1)

    def length(self, begin: Cursor, wanted: int | None = None) -> int:
        """Count the batches from a cursor to the end of a round that is to have `wanted` more, 0 at a cycle's end."""
        wanted = self.num_batches if wanted is None else wanted
        return wanted if self.boundary == "carry" else min(wanted, self._left(begin.samples))

    def batches_between(self, start: Cursor, cursor: Cursor) -> int:
        """Count the batches from one place in a round to a later one."""
        samples = (cursor.epoch - start.epoch) * self.plan.num_samples + cursor.samples - start.samples
        return -(-samples // self.plan.global_batch)

    def share(self, cursor: Cursor, world: World, max_steps: int = 1) -> Share | None:
        """Give one rank's ids of up to `max_steps` steps from the cursor, as `Plan.share` does; None at a cycle's end.

        With boundary "pad", what comes after a cycle's last sample is repeated from its start, and flagged.
        """
        plan, size = self.plan, self.plan.num_samples
        if self.boundary in ("pad", "drop"):
            max_steps = min(max_steps, self._left(cursor.samples))
        if max_steps == 0 or self.boundary != "pad" or cursor.samples + plan.global_batch <= size:
            return plan.share(cursor, world, max_steps) if max_steps else None
        rows, uneven = divmod(plan.global_batch, world.dp_size)
        if uneven:
            raise PlanError(f"a global batch of {plan.global_batch} cannot be dealt evenly to {world.dp_size} ranks")
        steps = np.arange(max_steps if cursor.samples >= size else 1) * plan.global_batch  # [steps]
        offsets = cursor.samples + steps[:, None] + world.dp_rank + world.dp_size * np.arange(rows)  # [steps, b]
        ids, epochs = places_beyond(plan.order, cursor.epoch, offsets, carries=False)
        return Share(
            epoch=cursor.epoch,
            start=cursor.samples,
            taken=plan.global_batch,
            ids=ids,
            repeats=int((offsets[0] >= size).sum()),
            carried=epochs,
        )

    def walk(self, cursor: Cursor, world: World, max_steps: int = 64) -> Iterator[Share]:
        """Yield this rank's shares from a cursor on, through rounds and cycles without end."""
        while True:
            while (share := self.share(cursor, world, max_steps)) is not None:
                yield share
                cursor = share.after(len(share.ids) - 1)
            cursor = self.settle(cursor)

    def _left(self, samples: int) -> int:
        """Count the batches from an offset to its cycle's end, where a cycle has one."""
        if self.boundary == "short":
            return self.plan.num_batches(samples)
        left = max(0, self.total * self.num_samples - samples)
        return left // self.plan.global_batch if self.boundary == "drop" else -(-left // self.plan.global_batch)


class WithinRounds:
    """Samples as stored, shuffled inside each round: which round a sample is in never changes by chance.

    Args:
        num_samples: of the dataset.
        round_samples: samples of a round over all ranks. It is part of the order, so it stays when the world changes.
        seed: key of the permutations, one for each round.
        across: rounds go on through cycles, as with boundary "carry"; False: each cycle begins with a new round.

    >>> order = WithinRounds(10, 4, seed=0, across=True)
    >>> [sorted(order.ids(0, np.arange(start, start + 4)).tolist()) for start in (0, 4)]
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    def __init__(self, num_samples: int, round_samples: int, *, seed: int, across: bool) -> None:
        self.num_samples = check_int("num_samples", num_samples, minimum=1)
        self.round_samples = check_int("samples of a round", round_samples, minimum=1, maximum=MAX_RANGE)
        self.seed = seed
        self.across = across
        self.name = f"within{round_samples}:{'carry' if across else 'cycle'}:{ORDER_NAME}"

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        return self.places(epoch, offsets)[0]

    def places(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Give what stands at offsets of a cycle: the ids, and the cycle each is of where some are of another.

        A round that goes on through a cycle's end is shuffled as a whole, so samples of both change places.

        Args:
            epoch: the cycle.
            offsets: int64 of any shape, in [0, num_samples).

        Returns:
            int64 of that shape; int64 of that shape, or None: all are of `epoch`.

        Cost: one permutation of each round touched.
        """
        # In whole numbers of any size: a position of the endless stream may be beyond 64 bits.
        first, begun = divmod(epoch * self.num_samples, self.round_samples) if self.across else (0, 0)
        flat = np.asarray(offsets, np.int64).ravel()
        if not flat.size:
            return flat.reshape(np.shape(offsets)), None
        rounds, slots = np.divmod(flat + begun, self.round_samples)
        numbers, counts = (values.tolist() for values in np.unique(rounds, return_counts=True))
        starts = [number * self.round_samples - begun for number in numbers]
        if self.across:
            sizes = [self.round_samples] * len(numbers)
            keys = [key(self.seed, "round", first + number) for number in numbers]
        else:
            sizes = [min(self.round_samples, self.num_samples - start) for start in starts]
            keys = [key(self.seed, "round", epoch, number) for number in numbers]
        by_round = np.argsort(rounds, kind="stable")
        found = np.empty_like(flat)  # offsets from the cycle's start, below 0 and past its end where rounds cross
        found[by_round] = permute_each(slots[by_round], counts, sizes, keys) + np.repeat(
            np.array(starts, np.int64), counts
        )
        passes, ids = np.divmod(found, self.num_samples)
        shape = np.shape(offsets)
        return ids.reshape(shape), (epoch + passes).reshape(shape) if passes.any() else None
