"""Whose turn it is among several streams, and which of its samples each rank is given then.

A pick chooses a group of streams, by a schedule; within the group every rank draws a stream, by the group's own
schedule, in (pick, rank) order. A pick is some rounds of one batch each. The n-th batch drawn of a stream, over all
ranks, is its n-th: samples [nb, (n + 1)b) of its endless sequence of epochs. So where the streams stand is a few
integers, whatever the number of ranks.

    pick ──schedule──▶ group ──(pick, rank)──▶ stream ──batches before──▶ offsets ──order──▶ ids
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from penstock.plan.order import Order
from penstock.plan.plan import Cursor, Share, places
from penstock.plan.schedule import Schedule
from penstock.types import World


@dataclass(frozen=True, kw_only=True, slots=True)
class StreamTurn:
    """One stream of a plan."""

    order: Order
    first_id: int
    """Where the stream's ids begin among all."""
    batch: int
    """Samples of one batch of one rank."""
    rounds: int
    """Batches in a pick."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Standing:
    """Where all streams stand, the same for every rank."""

    pick: int
    round: int
    drawn: tuple[int, ...]
    """Of each group, the draws of all ranks in picks that are over."""
    samples: tuple[int, ...]
    """Of each stream, what was handed out."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Gives every rank its batches from a standing on. A cursor is (pick, round)."""

    streams: tuple[StreamTurn, ...]
    schedule: Schedule
    """Over groups."""
    groups: tuple[tuple[int, ...], ...]
    """The streams of each group; their `rounds` are the same."""
    draws: tuple[Schedule, ...]
    """Over each group's streams."""
    start: Standing

    def rounds(self, pick: int) -> int:
        """Count the batches of a pick."""
        return self.streams[self.groups[self._group(pick)][0]].rounds

    def share(self, cursor: Cursor, world: World) -> Share:
        """Give one rank's batches of a pick, from the cursor's round on."""
        pick, round_ = cursor.epoch, cursor.samples
        group = self._group(pick)
        drawn = self._drawn(pick, world.dp_size)[group]
        ranks = self.draws[group].picks(drawn + np.arange(world.dp_size))  # [ranks]
        mine = int(ranks[world.dp_rank])
        number = self.groups[group][mine]
        stream = self.streams[number]
        beside = int((ranks == mine).sum())
        ahead = int((ranks[: world.dp_rank] == mine).sum())
        first = self._samples(cursor, world.dp_size)[number] + ahead * stream.batch
        rounds = np.arange(stream.rounds - round_)
        positions = first + rounds[:, None] * beside * stream.batch + np.arange(stream.batch)  # [rounds, b]
        ids, passes = _endless(stream.order, positions)
        return Share(epoch=pick, start=round_, taken=1, ids=stream.first_id + ids, carried=passes)

    def standing(self, cursor: Cursor, ranks: int) -> Standing:
        """Say where all streams stand at a cursor."""
        return Standing(
            pick=cursor.epoch,
            round=cursor.samples,
            # The draws of a group of one stream are all the same.
            drawn=tuple(
                drawn if len(group) > 1 else 0
                for drawn, group in zip(self._drawn(cursor.epoch, ranks), self.groups, strict=True)
            ),
            samples=tuple(self._samples(cursor, ranks)),
        )

    def after(self, share: Share, step: int) -> Cursor:
        """Give the cursor once a share's step has been handed out."""
        cursor = share.after(step)
        if cursor.samples < self.rounds(cursor.epoch):
            return cursor
        return Cursor(epoch=cursor.epoch + 1)

    def _group(self, pick: int) -> int:
        return int(self.schedule.picks(np.array([pick]))[0])

    @cached_property
    def _before_start(self) -> np.ndarray:
        """Count the picks of each group before the start."""
        return self.schedule.before(self.start.pick)

    @cached_property
    def _drawn_before_start(self) -> list[np.ndarray]:
        """Count the draws of each stream, group by group, before the start."""
        return [draws.before(drawn) for draws, drawn in zip(self.draws, self.start.drawn, strict=True)]

    def _drawn(self, pick: int, ranks: int) -> list[int]:
        """Count the draws of each group in the picks before one."""
        picks = self.schedule.before(pick) - self._before_start
        return [before + ranks * count for before, count in zip(self.start.drawn, picks.tolist(), strict=True)]

    def _samples(self, cursor: Cursor, ranks: int) -> list[int]:
        """Count the samples of each stream that were handed out before a cursor."""
        samples = list(self.start.samples)
        for group, (members, draws, drawn) in enumerate(
            zip(self.groups, self.draws, self._drawn(cursor.epoch, ranks), strict=True)
        ):
            counts = (draws.before(drawn) - self._drawn_before_start[group]).tolist()
            for member, count in zip(members, counts, strict=True):
                samples[member] += count * self.streams[member].rounds * self.streams[member].batch
        self._add_rounds(samples, cursor.epoch, cursor.samples, ranks)
        # Rounds of the pick at the start that were over by then are in its samples already.
        self._add_rounds(samples, self.start.pick, -self.start.round, ranks)
        return samples

    def _add_rounds(self, samples: list[int], pick: int, rounds: int, ranks: int) -> None:
        """Add some rounds of a pick to the samples handed out."""
        if rounds == 0:
            return
        group = self._group(pick)
        drawn = self._drawn(pick, ranks)[group]
        counts = np.bincount(self.draws[group].picks(drawn + np.arange(ranks)), minlength=len(self.groups[group]))
        for member, count in zip(self.groups[group], counts.tolist(), strict=True):
            samples[member] += count * rounds * self.streams[member].batch


def start_of(groups: Sequence[Sequence[int]], num_streams: int) -> Standing:
    """Give the very beginning."""
    return Standing(pick=0, round=0, drawn=(0,) * len(groups), samples=(0,) * num_streams)


def _endless(order: Order, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the ids and epochs at positions of an endless sequence of epochs, int64 of their shape."""
    epochs, offsets = np.divmod(positions, order.num_samples)
    ids, passes = np.empty_like(positions), epochs.copy()
    for epoch in np.unique(epochs).tolist():
        chosen = epochs == epoch
        ids[chosen], own = places(order, epoch, offsets[chosen])
        if own is not None:
            passes[chosen] = own
    return ids, passes
