"""Which sample stands at which position of an epoch: the shuffle policies.

An order is a pure function (epoch, offsets) → ids over [0, num_samples). It holds settings, opens
nothing, and costs memory in proportion to blocks or to one window, never to samples.

    Sequential        ids = offsets
    GlobalShuffle     one permutation of everything
    WindowShuffle     blocks permuted, then samples permuted inside disjoint groups of blocks
    LengthBuckets     another order, re-sorted inside fixed windows so that neighbours have like lengths
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Protocol

import numpy as np

from penstock.errors import ConfigError
from penstock.plan.memo import Memo
from penstock.plan.permutation import ORDER_NAME, permute
from penstock.seeds import key
from penstock.types import check_int


class Order(Protocol):
    """A pure function from places in an epoch to samples."""

    num_samples: int

    @property
    def name(self) -> str:
        """What decides the order, the seed apart; part of every saved state."""

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets, int64 of any shape in [0, num_samples), as int64 of that shape."""


class Sequential:
    """Samples as they are stored.

    >>> Sequential(4).ids(0, np.arange(4)).tolist()
    [0, 1, 2, 3]
    """

    name = "sequential"

    def __init__(self, num_samples: int) -> None:
        self.num_samples = check_int("num_samples", num_samples, minimum=1)

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        return np.array(offsets, dtype=np.int64)


class GlobalShuffle:
    """One permutation of all samples per epoch, in O(1) memory.

    >>> sorted(GlobalShuffle(4, seed=1).ids(0, np.arange(4)).tolist())
    [0, 1, 2, 3]
    """

    name = f"global:{ORDER_NAME}"

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples = check_int("num_samples", num_samples, minimum=1)
        self.seed = seed

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        return permute(offsets, self.num_samples, self.key(epoch))

    def key(self, epoch: int) -> np.ndarray:
        """Give the key of an epoch's permutation, uint64 [4]."""
        return key(self.seed, "order", epoch)


class WindowShuffle:
    """A shuffle that stays near: for blocks that are costly to open, such as remote ones.

    Each epoch permutes the blocks, takes them in disjoint groups of `window`, and permutes the
    samples inside each group. Reading in this order keeps at most two groups of blocks open.

    Args:
        block_ends: int64 [num_blocks], ascending; block j holds samples [block_ends[j - 1], block_ends[j]).
        seed: key of the permutations.
        window: blocks per group. It belongs to the order, so it never depends on cache, world or batch size.

    Cost: O(num_blocks) memory, built once per epoch.
    """

    def __init__(self, block_ends: np.ndarray, seed: int, window: int = 16) -> None:
        ends = np.asarray(block_ends, dtype=np.int64)
        if ends.ndim != 1 or ends.size == 0 or ends[0] < 0 or (np.diff(ends) < 0).any() or ends[-1] < 1:
            raise ConfigError("block_ends must be ascending sample counts, one per block, the last one positive")
        self.num_samples = int(ends[-1])
        self.seed = seed
        self.window = check_int("window", window, minimum=1)
        self._starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
        self._sizes = ends - self._starts
        self._tables = Memo(self._table)
        self.name = f"window{self.window}:{ORDER_NAME}:{_digest(ends)}"

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        blocks, ends, group_ends = self._tables.get(epoch)
        flat = np.asarray(offsets, dtype=np.int64).ravel()
        shuffled = np.empty_like(flat)
        groups = np.searchsorted(group_ends, flat, side="right")
        for group in np.unique(groups).tolist():
            start = int(group_ends[group - 1]) if group else 0
            chosen = groups == group
            size = int(group_ends[group]) - start
            shuffled[chosen] = start + permute(flat[chosen] - start, size, key(self.seed, "window", epoch, group))
        places = np.searchsorted(ends, shuffled, side="right")
        first = ends[places] - self._sizes[blocks[places]]
        return (self._starts[blocks[places]] + shuffled - first).reshape(np.shape(offsets))

    def _table(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the blocks in this epoch's order, their cumulative ends, and those of the groups."""
        count = len(self._sizes)
        blocks = permute(np.arange(count), count, key(self.seed, "blocks", epoch))
        ends = np.cumsum(self._sizes[blocks])
        lasts = np.minimum(np.arange(self.window, count + self.window, self.window), count) - 1
        return blocks, ends, ends[lasts]


class LengthBuckets:
    """Another order, rearranged so that samples of like length stand together.

    The base order is cut into fixed windows of positions. Inside a window samples are sorted by
    length and cut into buckets, and the buckets are permuted. So any position is found by looking
    at its own window only, and a batch cut from a bucket wastes little padding.

    Args:
        base: the order to rearrange.
        lengths: int64 [num_samples], length of every sample.
        bucket: samples per bucket; the global batch size or a multiple of it wastes least.
        window: samples per window, a multiple of bucket.
        seed: key of the buckets' permutation.

    Cost: O(window) time per window entered, O(window) memory.
    """

    def __init__(self, base: Order, lengths: np.ndarray, *, bucket: int, window: int, seed: int) -> None:
        check_int("bucket", bucket, minimum=1)
        check_int("window", window, minimum=bucket)
        if len(lengths) != base.num_samples:
            raise ConfigError(f"lengths has {len(lengths)} entries for {base.num_samples} samples: one each is needed")
        if window % bucket:
            raise ConfigError(f"window ({window}) must be a multiple of bucket ({bucket})")
        self.num_samples = base.num_samples
        self.base = base
        self.bucket = bucket
        self.window = window
        self.seed = seed
        self._lengths = lengths
        # Of very many lengths some are enough to tell one dataset from another; all would cost O(num_samples).
        places = np.linspace(0, len(lengths) - 1, min(len(lengths), 4096)).astype(np.int64)
        self.name = f"lengths{bucket}/{window}:{_digest(lengths[places])}:{base.name}"
        self._windows = Memo(self._window)

    def ids(self, epoch: int, offsets: np.ndarray) -> np.ndarray:
        """Give the samples at offsets."""
        flat = np.asarray(offsets, dtype=np.int64).ravel()
        found = np.empty_like(flat)
        windows, places = np.divmod(flat, self.window)
        for number in np.unique(windows).tolist():
            chosen = windows == number
            found[chosen] = self._windows.get((epoch, number))[places[chosen]]
        return found.reshape(np.shape(offsets))

    def _window(self, place: tuple[int, int]) -> np.ndarray:
        """Give the ids of one window in their final order, int64 [<= window]."""
        epoch, number = place
        start = number * self.window
        ids = self.base.ids(epoch, np.arange(start, min(start + self.window, self.num_samples)))
        ids = ids[np.argsort(self._lengths[ids], kind="stable")]
        count = -(-len(ids) // self.bucket)
        turn = permute(np.arange(count), count, key(self.seed, "buckets", epoch, number))
        return np.concatenate([ids[j * self.bucket : (j + 1) * self.bucket] for j in turn.tolist()])


def _digest(sizes: np.ndarray) -> str:
    return blake2b(sizes.astype("<i8").tobytes(), digest_size=8).hexdigest()
