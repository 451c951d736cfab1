"""What a loader has done, and what the trainer's last batch was made of."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import numpy as np

from penstock.loader.recipe import Failure, Made
from penstock.plan.plan import Share

QUARANTINE_KEPT = 10_000


@dataclass(kw_only=True, slots=True, repr=False)
class LoaderStats:
    """Counts since the loader was made, on this rank."""

    batches: int = 0
    samples: int = 0
    bytes: int = 0
    """Of the tensors handed out."""
    wait_s: float = 0.0
    """Time the trainer spent waiting inside `next`."""
    elapsed_s: float = 0.0
    """Time from each iterator's first `next` to its last, the trainer's own work included."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Samples left out, by reason."""
    substituted: int = 0
    quarantine: deque[Failure] = field(default_factory=lambda: deque(maxlen=QUARANTINE_KEPT))
    """The last 10,000 samples that failed or were filtered, with their reasons."""

    @property
    def samples_per_s(self) -> float:
        """Samples handed out per second of elapsed time."""
        return self.samples / self.elapsed_s if self.elapsed_s else 0.0

    @property
    def wait_share(self) -> float:
        """Part of the elapsed time that the trainer waited for data, from 0 to 1; the start of workers counts."""
        return self.wait_s / self.elapsed_s if self.elapsed_s else 0.0

    def __repr__(self) -> str:
        left_out = f", {self.skipped.total():,} skipped, {self.substituted:,} substituted"
        return (
            f"LoaderStats({self.batches:,} batches of {self.samples:,} samples, {self.samples_per_s:,.0f} samples/s, "
            f"waited {self.wait_share:.1%} of {self.elapsed_s:.1f} s{left_out})"
        )

    def note(self, made: Made) -> None:
        """Count what went wrong in a batch."""
        for failure in made.failures:
            self.quarantine.append(failure)
            if failure.id not in made.substitutes:
                self.skipped[failure.reason] += 1
        self.substituted += len(made.substitutes)


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchInfo:
    """What the last batch handed out was made of."""

    epoch: int
    start: int
    """Offset in the epoch of the global batch."""
    sample_ids: np.ndarray
    """int64 [b]: the ids of this rank's share, failed and repeated ones included."""
    repeats: int
    """How many of the last ids are there only to keep ranks in step, having been seen this epoch."""
    skipped: tuple[int, ...]
    """Ids that left a hole."""
    substitutes: dict[int, int]
    """Failed id → id whose sample stands in its place."""

    @staticmethod
    def of(share: Share, step: int, made: Made | None) -> BatchInfo:
        """Describe one step of a share."""
        failed = [] if made is None else [failure.id for failure in made.failures]
        substitutes = {} if made is None else dict(made.substitutes)
        return BatchInfo(
            epoch=share.epoch,
            start=share.start + step * share.taken,
            sample_ids=share.ids[step],
            repeats=share.repeats,
            skipped=tuple(id_ for id_ in failed if id_ not in substitutes),
            substitutes=substitutes,
        )
