"""Batches of several streams by schedule: the assignment and the recipe of a MultiStreamDataLoader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from penstock.datasets.streams import Streams
from penstock.errors import ConfigError, StateMismatch
from penstock.formats.files import digest
from penstock.loader.assignment import Handed
from penstock.loader.engine import Delivery
from penstock.loader.hints import Walk
from penstock.loader.recipe import IsWanted, Made, Part, Recipe
from penstock.loader.state import STATE_VERSION
from penstock.loader.stream_options import StreamOptions
from penstock.loader.worker import ShareAt
from penstock.loader.world import WorldOnce
from penstock.plan.order import Order
from penstock.plan.plan import Cursor, Share
from penstock.plan.schedule import Schedule
from penstock.plan.stream_plan import Standing, StreamPlan, StreamTurn, start_of
from penstock.types import World

Shown = dict[str, Any]


class Scheduled:
    """Endless batches of streams, one pick after the other: the same on every world, resumed anywhere in O(1).

    Args:
        streams: the datasets, in the order of the options.
        options: of each stream.
        orders: of each stream.
        schedule: over groups of streams.
        groups: the streams of each group.
        draws: over the streams of each group.
        seed: key of everything, for the state.
        world: this process's place.
    """

    def __init__(
        self,
        streams: Streams,
        options: Sequence[StreamOptions],
        orders: Sequence[Order],
        *,
        schedule: Schedule,
        groups: Sequence[Sequence[int]],
        draws: Sequence[Schedule],
        seed: int,
        world: WorldOnce,
    ) -> None:
        self.at: Handed | None = None
        self.last: Handed | None = None
        self._streams = streams
        self._options = tuple(options)
        self._orders = tuple(orders)
        self._schedule = schedule
        self._groups = tuple(tuple(members) for members in groups)
        self._draws = tuple(draws)
        self._seed = seed
        self._world = world
        self._start = start_of(groups, len(options))
        self._known_plan: StreamPlan | None = None

    @property
    def description(self) -> str:
        """Say what is read in which order, and where it stands."""
        ratios = ", ".join(f"{name}: {count}" for name, count in self._schedule.counts.items())
        return f"{len(self._options)} streams, {self._schedule.name.split(':')[0]} of {ratios}"

    @property
    def epoch(self) -> int:
        """The epoch of the main stream's next sample; without a main stream, of the first one's."""
        main = next((number for number, one in enumerate(self._options) if one.is_main), 0)
        return self._standing().samples[main] // self._orders[main].num_samples

    def stream_of(self, share: Share) -> int:
        """Give the number of the stream that a share is of."""
        return self._streams.stream_of(int(share.ids[0, 0]))

    def num_batches(self) -> int:
        """Refuse to count what has no end."""
        raise TypeError("a MultiStreamDataLoader has no length: its streams are endless")

    def walk(self) -> Walk:
        """Walk the plan as this rank."""
        plan, world = self._plan, self._world.get()

        def walk(cursor: Cursor) -> Iterator[Share]:
            while True:
                share = plan.share(cursor, world)
                yield share
                cursor = plan.after(share, len(share.ids) - 1)

        return walk

    def share_at(self) -> ShareAt:
        """Tell a worker process this rank's ids."""
        return partial(_share_at, self._plan, self._world.get())

    def run(self, make: Callable[[Cursor], Iterator[Delivery]]) -> Iterator[Delivery]:
        """Yield batches without end."""
        yield from make(self._cursor)

    def let_go(self) -> None:
        """Integers hold nothing."""

    def set_epoch(self, epoch: int) -> bool:
        """Refuse: every stream has epochs of its own.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("streams go through epochs of their own, each at its pace: there is none to set")

    def state_dict(self) -> Shown:
        """Write where the schedule and every stream stand: after the last batch handed out, whatever is in flight."""
        standing = self._standing()
        return {
            "version": STATE_VERSION,
            **self._belongs_to(),
            "pick": standing.pick,
            "round": standing.round,
            "drawn": list(standing.drawn),
            "samples": list(standing.samples),
        }

    def load_state_dict(self, state: Any) -> None:
        """Go where a state was saved, on whatever number of ranks and batch sizes.

        Raises:
            StateMismatch: it is of other streams, or another schedule or seed; says what differs.
        """
        if not isinstance(state, dict) or "samples" not in state or "pick" not in state:
            raise StateMismatch(
                "this is no state of a MultiStreamDataLoader: expected what its state_dict() returned, got "
                f"{sorted(state)[:8] if isinstance(state, dict) else type(state).__name__}"
            )
        here = {"version": STATE_VERSION, **self._belongs_to()}
        differing = [
            f"{name} is {state.get(name)!r} in the state, {value!r} here"
            for name, value in here.items()
            if state.get(name) != value
        ]
        if differing:
            raise StateMismatch(
                f"the state belongs to other streams: {'; '.join(differing)}. Give the loader the streams and settings "
                "it was saved with, or start afresh without the state"
            )
        self._move(_standing_of(state, self._start))

    def explain(self) -> list[str]:
        """Describe the schedule and this rank's part of it."""
        standing, world = self._standing(), self._world.get()
        lines = [f"{self.description}: at pick {standing.pick:,}, round {standing.round}"]
        for one, turn, samples in zip(self._options, self._plan.streams, standing.samples, strict=True):
            lines.append(
                f"{one.name}: {turn.order.num_samples:,} samples, {turn.batch} a batch, {turn.rounds} batches a pick, "
                f"{samples:,} handed out"
            )
        return [*lines, f"data-parallel rank {world.dp_rank} of {world.dp_size}"]

    @property
    def _plan(self) -> StreamPlan:
        if self._known_plan is None:
            ranks = self._world.get().dp_size
            turns = zip(self._options, self._orders, self._streams.firsts, strict=True)
            self._known_plan = StreamPlan(
                streams=tuple(
                    StreamTurn(order=order, first_id=first, batch=one.batch_of(ranks), rounds=one.num_accum_rounds)
                    for one, order, first in turns
                ),
                schedule=self._schedule,
                groups=self._groups,
                draws=self._draws,
                start=self._start,
            )
        return self._known_plan

    @property
    def _cursor(self) -> Cursor:
        """Where the schedule stands: after the last batch handed out."""
        if self.at is None:
            return Cursor(epoch=self._start.pick, samples=self._start.round)
        return self._plan.after(self.at[0], self.at[1])

    def _standing(self) -> Standing:
        if self.at is None:
            return self._start
        return self._plan.standing(self._cursor, self._world.get().dp_size)

    def _move(self, standing: Standing) -> None:
        self.last = self.at or self.last
        self._start, self.at, self._known_plan = standing, None, None

    def _belongs_to(self) -> Shown:
        described = [
            (one.name, one.num_accum_rounds, order.name) for one, order in zip(self._options, self._orders, strict=True)
        ]
        drawn = [(members, draws.name) for members, draws in zip(self._groups, self._draws, strict=True)]
        return {
            "order": f"{self._schedule.name}:{digest(repr([described, drawn]).encode())[:16]}",
            "seed": self._seed,
            "fingerprint": self._streams.fingerprint(),
        }


class StreamsRecipe:
    """A recipe for each stream; ids say which one is meant.

    Args:
        streams: the datasets.
        recipes: how each one's own ids become a batch.
    """

    keeps_arrays = False

    def __init__(self, streams: Streams, recipes: Sequence[Recipe]) -> None:
        self.dataset = streams
        self._recipes = tuple(recipes)

    def gives_arrays_of(self, ids: np.ndarray) -> bool:
        """Whether the arrays of a batch of these ids become tensors."""
        return self._recipes[self.dataset.stream_of(int(ids[0]))].gives_arrays

    def make(self, epochs: int | np.ndarray, ids: np.ndarray) -> Made:
        """Make the batch of ids, all of one stream."""
        return self.assemble(epochs, ids, [self.part(epochs, ids)])

    def part(self, epochs: int | np.ndarray, ids: np.ndarray, is_wanted: IsWanted | None = None) -> Part:
        """Fetch and transform some of a step's ids, as long as they are wanted."""
        recipe, first = self._of(ids)
        return recipe.part(epochs, ids - first, is_wanted)

    def assemble(
        self, epochs: int | np.ndarray, ids: np.ndarray, parts: Sequence[Part], is_wanted: IsWanted | None = None
    ) -> Made:
        """Put the parts of a step together and collate them."""
        recipe, first = self._of(ids)
        made = recipe.assemble(epochs, ids - first, parts, is_wanted)
        if made.failures or made.substitutes:
            made.failures = [replace(failure, id=failure.id + first) for failure in made.failures]
            made.substitutes = {old + first: new + first for old, new in made.substitutes.items()}
        return made

    def _of(self, ids: np.ndarray) -> tuple[Recipe, int]:
        stream = self.dataset.stream_of(int(ids[0]))
        return self._recipes[stream], self.dataset.firsts[stream]


def _share_at(plan: StreamPlan, world: World, cursor: Cursor) -> Share:
    return plan.share(cursor, world)


def _standing_of(state: Shown, like: Standing) -> Standing:
    """Take the integers out of a state."""
    drawn, samples = state.get("drawn"), state["samples"]
    for name, numbers, wanted in (("drawn", drawn, like.drawn), ("samples", samples, like.samples)):
        if not isinstance(numbers, list) or len(numbers) != len(wanted):
            raise StateMismatch(f"the state was edited: {name} must be {len(wanted)} integers, got {numbers!r}")
    numbers = [state["pick"], state.get("round"), *samples, *(drawn or ())]
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise StateMismatch(f"the state was edited: {asdict(like).keys()} must be integers of 0 or more")
    return Standing(pick=numbers[0], round=numbers[1], drawn=tuple(drawn or ()), samples=tuple(samples))
