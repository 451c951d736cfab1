"""Batches that never cross a chunk, for loading by claims.

Blocks of samples are cut into chunks of `chunk_size` consecutive samples, the last one of a block being
what is left. Which chunk is whose is for a ledger to say; in here is only which samples a batch of a
chunk holds: a function of (sizes, seed, epoch, place), as in every plan.

    block    ├──────────────────────────┤├────────┤
    chunks   ├──────────┼──────────┼────┤├────────┤      chunk_size 10
    batches  ├───┼───┼──┼───┼───┼──┼───┼┤├───┼───┼┤      batch_size 4
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np

from penstock.errors import ConfigError, PlanError
from penstock.plan.permutation import ORDER_NAME, permute
from penstock.plan.plan import Cursor, Share
from penstock.seeds import key
from penstock.types import check_choice, check_int

ChunkRemainder = Literal["short", "drop"]


@dataclass(frozen=True, kw_only=True)
class ChunkPlan:
    """Cuts blocks into chunks, and chunks into batches.

    >>> plan = ChunkPlan(block_sizes=(25, 8), chunk_size=10, batch_size=4)
    >>> plan.chunks_per_block
    (3, 1)
    >>> plan.span(block_id=0, chunk_id=2)
    (20, 25)
    >>> [share.ids.tolist() for share in plan.walk(Cursor(samples=20))]
    [[[20, 21, 22, 23]], [[24]]]
    """

    block_sizes: tuple[int, ...]
    """Samples of each block."""
    chunk_size: int
    batch_size: int
    shuffle_seed: int | None = None
    """Key of the order inside each chunk, anew in every epoch; None: as stored."""
    remainder: ChunkRemainder = "short"
    """What becomes of a chunk's last, incomplete batch."""

    def __post_init__(self) -> None:
        check_int("chunk_size", self.chunk_size, minimum=1)
        check_int("batch_size", self.batch_size, minimum=1)
        check_choice("remainder", self.remainder, get_args(ChunkRemainder))
        for size in self.block_sizes:
            check_int("samples of a block", size, minimum=1)
        largest = min(self.chunk_size, max(self.block_sizes, default=0))
        if self.remainder == "drop" and largest < self.batch_size:
            raise ConfigError(
                f"chunks of {largest} samples do not fill one batch of {self.batch_size}, batches never cross chunks, "
                "and incomplete ones are dropped, so there would be none: use larger chunks, or drop_last=False"
            )

    @property
    def name(self) -> str:
        """What decides the batches of a chunk, the seed and the batch size apart; part of every saved state."""
        return f"chunks{self.chunk_size}:{'sequential' if self.shuffle_seed is None else ORDER_NAME}"

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""
        return int(self._ends[-1])

    @cached_property
    def chunks_per_block(self) -> tuple[int, ...]:
        """How many chunks each block has."""
        return tuple(-(-size // self.chunk_size) for size in self.block_sizes)

    def span(self, block_id: int, chunk_id: int) -> tuple[int, int]:
        """Give the positions [start, stop) of a chunk's samples in the dataset.

        Raises:
            PlanError: there is no such chunk.
        """
        if not (0 <= block_id < len(self.block_sizes) and 0 <= chunk_id < self.chunks_per_block[block_id]):
            raise PlanError(f"there is no chunk {chunk_id} of block {block_id} in {len(self.block_sizes)} blocks")
        end = int(self._ends[block_id])
        start = end - self.block_sizes[block_id] + chunk_id * self.chunk_size
        return start, min(start + self.chunk_size, end)

    def chunk_at(self, position: int) -> tuple[int, int]:
        """Give the (block_id, chunk_id) that holds a position."""
        block_id = int(self._ends.searchsorted(position, side="right"))
        return block_id, (position - int(self._ends[block_id]) + self.block_sizes[block_id]) // self.chunk_size

    def num_usable(self, num_samples: int) -> int:
        """Count the samples that come in batches, of so many that a chunk has left."""
        return num_samples - num_samples % self.batch_size if self.remainder == "drop" else num_samples

    def share(self, cursor: Cursor, max_steps: int = 1) -> Share | None:
        """Give up to `max_steps` batches of one size from a cursor on, all of the chunk that it stands in.

        Returns:
            The share, or None where what is left of the chunk is dropped.
        """
        start, stop = self.span(*self.chunk_at(cursor.samples))
        left = stop - cursor.samples
        steps, size = min(left // self.batch_size, max_steps), self.batch_size
        if steps == 0:
            if self.remainder == "drop":
                return None
            steps, size = 1, left
        places = np.arange(cursor.samples, cursor.samples + steps * size)
        if self.shuffle_seed is not None:
            places = start + permute(places - start, stop - start, key(self.shuffle_seed, "chunk", cursor.epoch, start))
        return Share(epoch=cursor.epoch, start=cursor.samples, taken=size, ids=places.reshape(steps, size))

    def walk(self, cursor: Cursor) -> Iterator[Share]:
        """Yield the batches from a cursor to the end of its chunk."""
        _, stop = self.span(*self.chunk_at(cursor.samples))
        while cursor.samples < stop and (share := self.share(cursor, self.chunk_size)) is not None:
            yield share
            cursor = share.after(len(share.ids) - 1)

    @cached_property
    def _ends(self) -> np.ndarray:
        return np.cumsum(np.asarray(self.block_sizes, np.int64))
