"""The order of a mixture: which sample of which stream stands at which position.

    position ──quota tree──▶ stream, n-th of it ──▶ pass, offset ──the stream's order──▶ id
                  └── streams change places among 8 positions, so that they don't fall on ranks by turns

Streams are endless: the n-th sample taken of one that holds s is sample n mod s of its pass n div s, each pass
being another permutation keyed by the stream's name. So a stream is used up before any of it comes again,
and what it gives depends on nothing but its own name: to add a stream changes when samples of others come,
not which comes after which.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from itertools import permutations
from typing import Any, Literal, get_args

import numpy as np

from penstock.errors import ConfigError, PlanError
from penstock.plan.order import GlobalShuffle, Order
from penstock.plan.permutation import permute_each
from penstock.plan.quota import MAX_SUM, QuotaTree
from penstock.plan.ratios import check_weights, split, whole_numbers
from penstock.seeds import key
from penstock.types import check_choice, check_int

Stop = Literal["first", "all", "never"]
Batches = Literal["mixed", "stratified", "per_stream"]

STIRRED = 8
"""Positions among which picks change places. Left in their pattern, picks would fall on ranks by turns: of two
streams at half each, one rank would be given the one and another the other."""
ENDLESS = 2**48
"""Positions in an epoch of a mixture that never stops."""

_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One stream of a mixture."""

    name: str
    order: Order
    """Of its own samples, [0, order.num_samples)."""
    first_id: int
    """The mixture's id of the stream's sample 0."""


class Mixture:
    """An order over several streams, with exact proportions at every position.

    After any number of picks each stream has been picked within 4 of its exact part. Weights become whole
    numbers, exactly where such with a sum of at most 2**31 exist.

    Args:
        parts: the streams.
        weights: name → how much of the mixture; 0 leaves a stream out. None: in proportion to their samples, so
            that an epoch is one pass over each.
        stop: an epoch ends before the "first" stream would begin anew, once "all" have been used up, or "never".
            The next one goes on from there.
        batches: "mixed": streams mix freely. "stratified": every `batch` positions hold the same count of each.
            "per_stream": every `batch` positions are of one stream, and the proportions are those of batches.
        batch: the global batch size, for the latter two.
        seed: key of how picks are stirred; None: not at all.

    Raises:
        ConfigError: an argument cannot work.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        weights: Mapping[str, Any] | None,
        *,
        stop: Stop = "first",
        batches: Batches = "mixed",
        batch: int | None = None,
        seed: int | None = None,
    ) -> None:
        check_choice("stop", stop, get_args(Stop))
        check_choice("batches", batches, get_args(Batches))
        if (batch is None) is (batches != "mixed"):
            raise ConfigError(
                f"batches={batches!r} needs batch_size=, the samples a step of all ranks"
                if batch is None
                else f"batch_size={batch} has no meaning with batches='mixed': give it to the loader"
            )
        self._batch = 1 if batch is None else check_int("batch_size", batch, minimum=1)
        self._batches = batches
        self._seed = seed
        shares = {part.name: part.order.num_samples for part in parts} if weights is None else dict(weights)
        check_weights("the weight", shares)
        self._parts = tuple(part for part in parts if shares[part.name] > 0)
        names = [part.name for part in self._parts]
        wanted = [shares[name] for name in names]
        if batches == "stratified" and len(names) > self._batch:
            raise ConfigError(f"batch_size={batch} has no room for a sample of each of {len(names)} streams")
        # With a sum that divides the batch, the counts of a quota tree are exact at every batch's end.
        whole = split(self._batch, wanted) if batches == "stratified" else whole_numbers(wanted, MAX_SUM)
        self.weights: dict[str, int] = dict(zip(names, whole, strict=True))
        self._tree = QuotaTree(whole, names)
        self.num_samples = ENDLESS - ENDLESS % self._batch if stop == "never" else self._end(stop)
        described = [(part.name, part.order.name, part.order.num_samples) for part in self._parts]
        summary = blake2b(repr((described, whole, self._batch)).encode(), digest_size=8).hexdigest()
        self.name = f"mix:{batches}:{stop}:{'as-stored' if seed is None else 'stirred8-v1'}:{summary}"

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        return self.places(epoch, offsets)[0]

    def places(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give what stands at offsets of an epoch.

        Args:
            epoch: of the mixture.
            offsets: int64 of any shape, in [0, num_samples).

        Returns:
            The ids and the pass of its own stream that each belongs to, both int64 of that shape.

        Raises:
            PlanError: the epoch is beyond 2**62 positions.
        """
        if (epoch + 1) * self.num_samples > 2**62:
            raise PlanError(f"epoch {epoch} of {self.num_samples:,} positions each is more than 2**62 positions")
        flat = np.asarray(offsets, np.int64).ravel()
        if not flat.size:
            return np.array(offsets, np.int64), np.array(offsets, np.int64)
        streams, ordinals = self._picks(epoch, flat)
        ids, passes = np.empty_like(flat), np.empty_like(flat)
        by_stream = np.argsort(_narrow(streams, len(self._parts)), kind="stable")
        counts = np.bincount(streams, minlength=len(self._parts))
        ids[by_stream], passes[by_stream] = self._of_each(counts, ordinals.take(by_stream))
        shape = np.shape(offsets)
        return ids.reshape(shape), passes.reshape(shape)

    def counts(self, positions: int) -> dict[str, int]:
        """Count what the mixture takes of each stream in so many positions, from its beginning; exact up to stirring.

        Raises:
            PlanError: a negative number.
        """
        if positions < 0:
            raise PlanError(f"cannot count the picks of {positions} positions")
        whole, rest = divmod(positions, self._batch) if self._batches == "per_stream" else (positions, 0)
        counts = [count * (self._batch if self._batches == "per_stream" else 1) for count in self._tree.counts(whole)]
        if rest:
            counts[int(self._tree.pick(np.array([whole]))[0][0])] += rest
        return dict(zip(self.weights, counts, strict=True))

    def check_batch(self, global_batch: int) -> None:
        """Refuse a global batch that would not hold what `batches` promises.

        Raises:
            ConfigError: it has another size than the mixture's.
        """
        if self._batches != "mixed" and global_batch != self._batch:
            raise ConfigError(
                f"the mixture was made for batches of {self._batch} samples over all ranks "
                f"(batches={self._batches!r}), and the loader's have {global_batch}: give both the same number, to the "
                "loader as global_batch_size="
            )

    def _picks(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the stream at each offset, whole numbers [n], and how many of its samples come before, int64 [n]."""
        start = epoch * self.num_samples
        if self._batches == "per_stream":
            numbers, slots = np.divmod(start + offsets, self._batch)
            streams, ordinals = self._tree.pick(numbers)
            return streams, ordinals * self._batch + slots
        if self._seed is None:
            return self._tree.pick(start + offsets)
        # What is stirred must not cross an end: of the epoch, or of a batch with fixed counts.
        size = self._batch if self._batches == "stratified" else self.num_samples
        within = offsets % size if size < self.num_samples else offsets
        slots = within % STIRRED
        firsts, rows = _distinct(offsets - slots)
        windows = start + firsts[:, None] + np.arange(STIRRED)  # [windows, 8]
        streams, ordinals = (found.reshape(windows.shape) for found in self._tree.pick(windows.ravel()))
        whole = firsts % size + STIRRED <= size
        turns = _turns(firsts, whole, key(self._seed, "stir", epoch))
        streams, ordinals = _stirred(_narrow(streams, len(self._parts)), ordinals, turns)
        cells = rows * STIRRED + slots
        return streams.take(cells), ordinals.take(cells)

    def _of_each(self, counts: np.ndarray, ordinals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give the ids and passes of the n-th samples of streams, both int64 [B], so many of each in turn."""
        taken = np.flatnonzero(counts)
        parts, counts = [self._parts[stream] for stream in taken.tolist()], counts[taken]
        sizes, starts = np.array([part.order.num_samples for part in parts]), np.cumsum(counts) - counts
        first, last = (limit.reduceat(ordinals, starts) // sizes for limit in (np.minimum, np.maximum))
        orders = [part.order for part in parts if isinstance(part.order, GlobalShuffle)]
        if len(orders) == len(parts) and (first == last).all():
            # Each stream stays in one pass: nothing is divided sample by sample.
            keys = [order.key(number) for order, number in zip(orders, first.tolist(), strict=True)]
            places = ordinals - np.repeat(first * sizes, counts)
            own = permute_each(places, counts.tolist(), sizes.tolist(), keys)
            return own + np.repeat([part.first_id for part in parts], counts), np.repeat(first, counts)
        passes, places = np.divmod(ordinals, np.repeat(sizes, counts))
        for part, start, count in zip(parts, starts.tolist(), counts.tolist(), strict=True):
            mine = slice(start, start + count)
            places[mine] = _of_one(part, passes[mine], places[mine])
        return places, passes

    def _end(self, stop: Stop) -> int:
        """Count the positions of an epoch."""
        unit = self._batch if self._batches == "per_stream" else 1
        sizes = [part.order.num_samples for part in self._parts]
        if stop == "first":
            end = min(self._tree.picks_until(j, size // unit + 1) - 1 for j, size in enumerate(sizes))
            if end * unit < self._batch or min(sizes) < unit:
                small = min(self._parts, key=lambda part: part.order.num_samples)
                raise ConfigError(
                    f"the stream {small.name!r} has {small.order.num_samples} samples, too few for one batch of the "
                    f"mixture of {self._batch}: use stop='all' or 'never', or a smaller batch_size"
                )
        else:
            end = max(self._tree.picks_until(j, -(-size // unit)) for j, size in enumerate(sizes))
        if self._batches == "stratified":
            return end // self._batch * self._batch if stop == "first" else -(-end // self._batch) * self._batch
        return end * unit


def _of_one(part: Part, passes: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Give the ids of what stands at places of passes of one stream, int64 [n]."""
    ids = np.empty_like(places)
    for number in np.unique(passes).tolist():
        chosen = passes == number
        ids[chosen] = part.order.ids(number, places[chosen])
    return part.first_id + ids


def _distinct(firsts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List what differs, int64 [windows], and for each entry its row there, int64 [n]."""
    steps = np.diff(firsts)
    if (steps < 0).any():
        distinct, rows = np.unique(firsts, return_inverse=True)
        return distinct, rows
    # One rank's places ascend: what differs from the one before is new.
    is_new = np.concatenate([[True], steps > 0])
    return firsts[is_new], np.cumsum(is_new) - 1


def _turns(firsts: np.ndarray, whole: np.ndarray, stir_key: np.ndarray) -> np.ndarray:
    """Draw an order of 8 for each window that is whole, int64 [windows, 8]; the others stay as they are."""
    # The finisher of splitmix64 spreads a window's number over 64 bits.
    mixed = firsts.view(np.uint64) + stir_key[0]
    mixed = (mixed ^ (mixed >> np.uint64(30))) * _MIX_A
    mixed = (mixed ^ (mixed >> np.uint64(27)) ^ stir_key[1]) * _MIX_B
    orders = _orders()
    drawn = ((mixed >> np.uint64(33)) % np.uint64(len(orders))).astype(np.int64)
    return orders.take(np.where(whole, drawn, 0), axis=0).astype(np.int64)


def _stirred(streams: np.ndarray, ordinals: np.ndarray, turns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Let streams change places, [windows, 8] each; samples of one stream keep their order."""
    cells = turns + np.arange(len(turns))[:, None] * STIRRED
    stirred = streams.take(cells)
    # In a window a stream's ordinals go up by one: its first there, and what was seen of it, say which it is.
    return stirred, (ordinals - _seen(streams)).take(cells) + _seen(stirred)


def _seen(rows: np.ndarray) -> np.ndarray:
    """Count for each of [windows, 8] streams how often the same one stands before it in its window; uint8."""
    columns = np.ascontiguousarray(rows.T)
    seen = np.zeros(columns.shape, np.uint8)
    for place in range(1, len(columns)):
        np.add.reduce((columns[:place] == columns[place]).view(np.uint8), axis=0, out=seen[place])
    return seen.T


@cache
def _orders() -> np.ndarray:
    """Give all orders of 8 things, uint8 [40320, 8]: few enough bytes to stay in a core's cache."""
    return np.array(list(permutations(range(STIRRED))), np.uint8)


def _narrow(streams: np.ndarray, count: int) -> np.ndarray:
    """Give numbers below `count` in few bits: up to 16 they are sorted by their digits, several times as quickly."""
    return streams.astype(np.uint8 if count <= 2**8 else np.uint16 if count <= 2**16 else np.int64)
