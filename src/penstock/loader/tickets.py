"""The unit of scheduling, and what every lane does with it.

A lane is a place where recipes are carried out ahead of the trainer: threads or processes. It is
given tickets in order, works on them in any order, and is asked for their results in order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from penstock.loader.recipe import Made
from penstock.plan.plan import Cursor, Share

CLOSED_MEANWHILE = "the loader was closed by another thread while this one waited for a batch"


@dataclass(frozen=True, kw_only=True, slots=True)
class Ticket:
    """One step of one rank, to be made somewhere."""

    number: int
    """Unique in its lane, ascending."""
    share: Share
    step: int
    """Which of the share's steps."""

    @property
    def epochs(self) -> int | np.ndarray:
        """The epoch of the step's ids: one for all, or int64 [b]."""
        return self.share.epochs(self.step)

    @property
    def cursor(self) -> Cursor:
        """Where the stream stands before this step."""
        return Cursor(epoch=self.share.epoch, samples=self.share.start + self.step * self.share.taken)

    @property
    def ids(self) -> np.ndarray:
        """int64 [b]."""
        return self.share.ids[self.step]


class Lane(Protocol):
    """Where tickets are worked on."""

    def tell(self, share: Share) -> None:
        """Hint the samples of a share to the dataset, in the process that will ask for them; returns at once."""

    def submit(self, ticket: Ticket) -> None:
        """Begin to work on a ticket, now or when there is room; returns at once."""

    def result(self, ticket: Ticket, timeout: float) -> Made:
        """Wait for a ticket, at most `timeout` seconds, and forget it.

        Raises:
            SampleError: one of its samples failed.
            LoaderTimeout: it was not ready in time; names its samples and where they are.
            WorkerDied: the process that worked on it is gone.
            LoaderClosed: the lane was closed meanwhile, by another thread.
        """

    def settle(self) -> None:
        """Let go of what was kept for batches that are over, where nothing more may be asked for soon."""

    def discard(self) -> None:
        """Forget all tickets: what is being worked on comes to nothing."""

    def close(self) -> None:
        """End all threads and processes, within a second."""
