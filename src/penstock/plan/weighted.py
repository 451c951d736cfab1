"""Some of a dataset more often than the rest, and all of it within a bounded number of cycles.

The dataset is cut into equal consecutive chunks, one for each weight. Each is an endless stream of its own passes,
every pass another permutation, and a quota decides whose turn it is at each position:

    dataset    ├── chunk 0 ──┼── chunk 1 ──┼── chunk 2 ──┤    weights 1, 4, 1
    positions  1 0 1 2 1 1 0 1 2 1 …                          of any stretch, each chunk its exact part

A floor mixes the weights with equal ones. So no chunk is given up, and how long its samples may take to come round
is known beforehand.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from fractions import Fraction
from hashlib import blake2b
from itertools import islice, pairwise
from typing import Any

import numpy as np

from penstock.errors import ConfigError, PlanError
from penstock.plan.mixture import ENDLESS, STIRRED, Mixture, Part
from penstock.plan.order import GlobalShuffle, Order, Sequential
from penstock.plan.quota import QuotaTree
from penstock.plan.ratios import as_written, check_weights
from penstock.seeds import uniform
from penstock.types import check_int

MAX_CHUNKS = 2**16
"""Beyond this many, telling whose turn it is would cost more than reading small samples does."""


class WeightedChunks:
    """An order in which chunks of the dataset come in proportion to weights.

    A cycle has as many positions as the dataset has samples, but samples of a heavy chunk come several times in it, and
    those of a light one not in each. Relative to the mean over all samples, a sample comes `floor + (1 - floor) ·
    weight / mean weight` times a cycle: `floor` times at least. So each comes at least once in the first
    `cycles_to_see_all` cycles, which is about 1 / floor, and in any 2 / floor later ones, rounding apart: a chunk of
    few samples may take up to two samples' turns longer.

    Args:
        num_samples: of the dataset.
        weights: one for each chunk, 0 or more, one of them above. Chunk j of m holds samples
            [j · num_samples // m, (j + 1) · num_samples // m).
        floor: above 0, at most 1, where all weights are alike.
        seed: key of the permutations of each chunk's passes, and of how turns are stirred; None: all in order.

    Raises:
        ConfigError: an argument cannot work.

    Cost: in calls of thousands, about 0.2 µs an id with few chunks, 0.5 with a hundred, 1.4 with a thousand.

    >>> order = WeightedChunks(12, [1, 4, 1], floor=0.25, seed=None)
    >>> np.bincount(order.ids(0, np.arange(12)) // 4).tolist(), order.cycles_to_see_all
    ([2, 7, 3], 3)
    """

    def __init__(self, num_samples: int, weights: Iterable[Any], *, floor: float, seed: int | None) -> None:
        self.num_samples = check_int("num_samples", num_samples, minimum=1)
        if isinstance(weights, str | Mapping) or not isinstance(weights, Iterable):
            raise ConfigError(f"chunk_weights must be a list of numbers, one for each chunk, got {weights!r}")
        # Of a generator no more than tells that there are too many.
        counted = weights if isinstance(weights, Sized) else list(islice(weights, MAX_CHUNKS + 1))
        listed = np.asarray(counted, object).ravel().tolist()
        count = check_int("the number of chunk_weights", len(listed), minimum=1, maximum=min(num_samples, MAX_CHUNKS))
        named = {str(chunk): weight for chunk, weight in enumerate(listed)}
        check_weights("chunk_weights", {f"chunk {name}": weight for name, weight in named.items()})
        is_number = isinstance(floor, int | float | np.integer | np.floating) and not isinstance(floor, bool)
        if not is_number or not 0 < floor <= 1:
            raise ConfigError(
                f"weight_floor must be above 0 and at most 1, got {floor!r}: samples of a chunk with weight 0 come so "
                "many times a cycle, and never to see some of them is a smaller dataset"
            )
        starts = [chunk * num_samples // count for chunk in range(count + 1)]
        self.chunk_sizes = [stop - start for start, stop in pairwise(starts)]
        parts = [
            Part(name=name, order=_order_of(size, chunk, seed), first_id=start)
            for chunk, (name, start, size) in enumerate(zip(named, starts, self.chunk_sizes, strict=False))
        ]
        self._mixture = Mixture(parts, _turns(named, self.chunk_sizes, as_written(floor)), stop="never", seed=seed)
        described = repr(list(self._mixture.weights.items())).encode()
        self.name = f"weighted{count}:{self._mixture.name}:{blake2b(described, digest_size=8).hexdigest()}"

    @property
    def cycles_to_see_all(self) -> int:
        """Cycles from the stream's start in which every sample comes at least once."""
        names = list(self._mixture.weights)
        tree = QuotaTree(list(self._mixture.weights.values()), names)
        # Stirring moves a turn by less than the positions that it stirs.
        last = max(tree.picks_until(chunk, size) for chunk, size in enumerate(self.chunk_sizes)) + STIRRED
        return -(-last // self.num_samples)

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        return self.places(epoch, offsets)[0]

    def places(self, epoch: int, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give what stands at offsets of a cycle: the ids, and the pass over its chunk that each belongs to.

        Args:
            epoch: the cycle.
            offsets: int64 of any shape, in [0, num_samples).

        Returns:
            Both int64 of that shape.

        Raises:
            PlanError: the cycle is beyond 2**48 positions.
        """
        if (epoch + 1) * self.num_samples > ENDLESS:
            raise PlanError(f"cycle {epoch} of {self.num_samples:,} samples each is beyond 2**48 positions")
        return self._mixture.places(0, epoch * self.num_samples + np.asarray(offsets, np.int64))


def _turns(weights: dict[str, Any], sizes: Sequence[int], floor: Fraction) -> dict[str, Fraction]:
    """Give the proportions of chunks: the weights, mixed with equal ones."""
    exact = [as_written(weight) for weight in weights.values()]
    whole = sum(weight * size for weight, size in zip(exact, sizes, strict=True))
    shares = [
        size * (floor * whole + (1 - floor) * weight * sum(sizes)) for weight, size in zip(exact, sizes, strict=True)
    ]
    return dict(zip(weights, shares, strict=True))


def _order_of(size: int, chunk: int, seed: int | None) -> Order:
    """Give the order of one chunk."""
    return Sequential(size) if seed is None else GlobalShuffle(size, uniform(seed, "chunk", chunk))
