"""ChunkedSampler: a dataset's samples in chunks, for torch's own DataLoader.

The same arithmetic as the rounds of a loader, in samples: chunk k is positions [k·C, (k + 1)·C) of an endless stream
in which each cycle is one permutation of the dataset.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from torch.utils.data import Sampler

from penstock.errors import ConfigError, StateMismatch
from penstock.loader.world import WorldOnce
from penstock.plan.order import GlobalShuffle, Order, Sequential
from penstock.plan.permutation import MAX_RANGE
from penstock.plan.plan import Plan, places_beyond
from penstock.plan.rounds import Boundary, Rounds, WithinRounds, check_boundary, check_round_size
from penstock.types import World, check_choice, check_int

STATE_VERSION = 1
IDS_AT_ONCE = 8192


class ChunkedSampler(Sampler[int]):
    """Yields this rank's samples of one chunk after another.

    Iterating gives the current chunk and changes nothing, for a DataLoader iterates well ahead of the trainer; to go
    on to the next chunk is said, by `advance_chunk()`, or `set_epoch(k)` where a trainer calls that before each pass.

    Args:
        dataset_size: samples in the dataset.
        chunk_size: samples of a chunk over all ranks; it may be more than the dataset has.
        seed: key of the shuffles.
        shuffle: "global" permutes each cycle; "within" leaves each sample in the chunk that it would be in unshuffled;
            False: as stored.
        boundary: where a cycle ends within a chunk, "carry" goes on with the next cycle, "short" ends the chunk, "pad"
            (or "wrap") fills it from the cycle's start, "drop" leaves it out.
        world: this process's place. None detects it at first use.

    Raises:
        ConfigError: an argument cannot work; or chunks cannot be dealt evenly to the ranks, found at first use.

    >>> sampler = ChunkedSampler(4, 10, shuffle=False, world=World())
    >>> list(sampler), len(sampler)
    ([0, 1, 2, 3, 0, 1, 2, 3, 0, 1], 10)
    >>> sampler.advance_chunk()
    >>> sampler.get_chunk_indices(1).tolist() == list(sampler) == [2, 3, 0, 1, 2, 3, 0, 1, 2, 3]
    True
    """

    def __init__(
        self,
        dataset_size: int,
        chunk_size: int,
        seed: int = 42,
        *,
        shuffle: Literal["global", "within", False] = "global",
        boundary: Boundary = "carry",
        world: World | None = None,
    ) -> None:
        size = check_int("dataset_size", dataset_size, minimum=1, maximum=MAX_RANGE)
        chunk = check_round_size("chunk_size, in samples,", chunk_size)
        seed = check_int("seed", seed, minimum=0)
        check_choice("shuffle", shuffle, ("global", "within", False))
        kept = check_boundary("boundary", boundary)
        order: Order = GlobalShuffle(size, seed) if shuffle == "global" else Sequential(size)
        if shuffle == "within":
            order = WithinRounds(size, chunk, seed=seed, across=kept == "carry")
        # One sample a step: a chunk is as many steps as it has samples, whatever the world.
        plan = Plan(order=order, global_batch=1, remainder=kept)
        self._rounds = Rounds(plan=plan, num_batches=chunk, boundary=kept)
        self._seed = seed
        self._world = WorldOnce(world)
        self._chunk = 0

    def __len__(self) -> int:
        """Count this rank's samples of the current chunk, which is what a DataLoader counts its batches by."""
        return -(-self._size(self._chunk) // self._ranks())

    def __iter__(self) -> Iterator[int]:
        """Yield this rank's samples of the chunk that is current now; every rank the same number.

        Where the last chunk of a cycle cannot be dealt evenly, the ranks that would get one less repeat one of it.
        """
        chunk, world, size = self._chunk, self._world.get(), self._size(self._chunk)
        rows = -(-size // self._ranks())
        for first in range(0, rows, IDS_AT_ONCE):
            slots = world.dp_rank + world.dp_size * np.arange(first, min(first + IDS_AT_ONCE, rows))
            yield from self._ids(chunk, slots % size).tolist()

    @property
    def total_chunks(self) -> int:
        """Chunks in a cycle, an incomplete one counted unless it is dropped."""
        return self._rounds.total

    @property
    def current_chunk(self) -> int:
        """The chunk that iterating gives, counted through all cycles."""
        return self._chunk

    def get_chunk_indices(self, chunk: int) -> np.ndarray:
        """Give the samples of a chunk over all ranks, in their order, int64 [chunk_size] (fewer, if it is "short")."""
        check_int("chunk", chunk, minimum=0)
        return self._ids(chunk, np.arange(self._size(chunk)))

    def set_chunk(self, chunk: int) -> None:
        """Go to a chunk, counted from the first one of the first cycle."""
        number = check_int("chunk", chunk, minimum=0)
        # Raises, if it is too far to be counted.
        self._rounds.begin(number)
        self._chunk = number

    def advance_chunk(self) -> None:
        """Go to the next chunk."""
        self._chunk += 1

    def reset(self) -> None:
        """Go to the first chunk."""
        self._chunk = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to chunk `epoch`: what a trainer calls an epoch is one pass over its loader, which is one chunk."""
        self.set_chunk(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Say which chunk is current; the same on every rank, and small.

        How far into the chunk the trainer is, only the trainer knows: a DataLoader asks ahead. For a state that is
        exact within a round, use ChunkedDataLoader, or StreamingDataLoader with round_batches=.
        """
        return {"version": STATE_VERSION, "chunk": self._chunk, **self._belongs_to()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the chunk of a state, on whatever number of ranks.

        Raises:
            StateMismatch: it is of another dataset, chunk size, seed or order; says what differs.
        """
        here = {"version": STATE_VERSION, **self._belongs_to()}
        if not isinstance(state, dict) or "chunk" not in state:
            raise StateMismatch(
                f"this is no state of a ChunkedSampler: expected what state_dict() returned, got {state!r}"
            )
        differing = [
            f"{name} is {state.get(name)!r}, here {here[name]!r}" for name in here if state.get(name) != here[name]
        ]
        if differing:
            raise StateMismatch(
                f"the state belongs to other chunks: {'; '.join(differing)}. Give the sampler what it was saved with, "
                "or start afresh without the state"
            )
        try:
            self.set_chunk(state["chunk"])
        except ConfigError as error:
            raise StateMismatch(f"the state was edited: {error}") from None

    def _belongs_to(self) -> dict[str, Any]:
        order = self._rounds.plan.order
        sizes = {"num_samples": order.num_samples, "chunk_size": self._rounds.num_batches}
        return {"order": order.name, "seed": self._seed, **sizes, "boundary": self._rounds.boundary}

    def _size(self, chunk: int) -> int:
        """Count the samples of a chunk over all ranks."""
        return self._rounds.length(self._rounds.begin(chunk))

    def _ids(self, chunk: int, slots: np.ndarray) -> np.ndarray:
        """Give the samples at places in a chunk, int64 of that shape."""
        begin = self._rounds.begin(chunk)
        carries = self._rounds.boundary == "carry"
        return places_beyond(self._rounds.plan.order, begin.epoch, begin.samples + slots, carries=carries)[0]

    def _ranks(self) -> int:
        """Count the ranks, who must get equally many samples of every chunk."""
        ranks, chunk = self._world.get().dp_size, self._rounds.num_batches
        if chunk % ranks and self._rounds.boundary != "short":
            raise ConfigError(
                f"a chunk of {chunk} samples cannot be dealt evenly to {ranks} ranks: use a multiple of {ranks}, or "
                "boundary='short'"
            )
        return ranks
