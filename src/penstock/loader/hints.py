"""Hints: what a dataset that fetches from afar is told long before it is asked.

Latency is hidden by asking early. Order is arithmetic, so what comes is known; a dataset that has
`prefetch` is told so many steps ahead that hundreds of requests can be under way, however small the
batches are. A dataset without it meets nothing of this file.

    walk ──shares──▶ hinted ──the same shares, later──▶ engine
                       └──▶ lane ──ids, epochs──▶ dataset.prefetch
"""

from __future__ import annotations

import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from penstock.loader.recipe import each_epoch
from penstock.plan.plan import Cursor, Share
from penstock.transforms.chain import takes

HINTED_SAMPLES = 512
"""Samples of a rank that are hinted ahead at the least: twice the requests that may be under way."""
FIRST_SAMPLES = 256
"""As many as that before the first are handed on, so that a first batch waits for no more hints than are of use."""
SAMPLES_A_HINT = 128
"""Samples in one hint, about: a hint costs something in itself, whatever it holds."""

Walk = Callable[[Cursor], Iterator[Share]]
"""From a cursor to this rank's shares, in order: a plan's, or chunks as they are claimed."""

Tell = Callable[[Share], None]
"""Takes the hint that the steps of a share are to come."""


class Hints:
    """Tells a dataset what comes. A dataset that fails to take a hint is told no more: `fetch` gives the verdict."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._by_epoch = takes(dataset.prefetch, "epochs")
        self._works = True

    def __call__(self, shares: Sequence[Share]) -> None:
        """Hint all steps of some shares at once."""
        if not self._works or not shares:
            return
        ids = np.concatenate([share.ids.ravel() for share in shares])
        try:
            if self._by_epoch:
                epochs = np.concatenate(
                    [each_epoch(share.epochs(0, len(share.ids)), share.ids.ravel()) for share in shares]
                )
                self._dataset.prefetch(ids, epochs=epochs)
            else:
                self._dataset.prefetch(ids)
        except Exception as error:  # noqa: BLE001 - a hint may come to nothing, and only costs speed if it does
            self._works = False
            warnings.warn(
                f"{type(self._dataset).__name__}.prefetch failed ({type(error).__name__}: {error}): it is hinted no "
                "more, and each of its samples is fetched only when its turn has come",
                RuntimeWarning,
                stacklevel=2,
            )


class HintThread:
    """Tells a dataset what comes from a thread of its own, so that neither trainer nor workers wait for it.

    Args:
        hints: takes them.
    """

    def __init__(self, hints: Hints) -> None:
        self._hints = hints
        self._queue: SimpleQueue[Share | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="penstock-hints", daemon=True)
        self._thread.start()

    def tell(self, share: Share) -> None:
        """Queue a hint; returns at once."""
        self._queue.put(share)

    def discard(self) -> None:
        """Forget the hints that are still in the queue."""
        self._taken()

    def end(self) -> threading.Thread:
        """Ask the thread to end; returns it, to be waited for."""
        self.discard()
        self._queue.put(None)
        return self._thread

    def _taken(self) -> list[Share | None]:
        shares: list[Share | None] = []
        try:
            while True:
                shares.append(self._queue.get_nowait())
        except Empty:
            return shares

    def _work(self) -> None:
        while (share := self._queue.get()) is not None:
            more = self._taken()
            self._hints([share, *(other for other in more if other is not None)])
            if None in more:
                return


def hinted(walk: Walk, tell: Tell, *, steps_ahead: int, steps_taken: int, samples: int = HINTED_SAMPLES) -> Walk:
    """Tell what comes along a walk, each step once, some steps before it is handed on.

    Args:
        walk: from a cursor to shares.
        tell: takes the hints.
        steps_ahead: steps to look ahead at the least.
        steps_taken: steps that are handed on before the trainer asks for them.
        samples: as many as to look ahead of the trainer at the least.
    """

    def walk_and_tell(cursor: Cursor) -> Iterator[Share]:
        told: deque[Share] = deque()
        steps = handed_on = 0
        coming = (piece for share in walk(cursor) for piece in _cut(share))
        while True:
            batch = told[0].ids.shape[1] if told else 0
            short = steps <= steps_ahead or (steps + steps_taken) * batch < samples
            if short and (handed_on or steps * batch < FIRST_SAMPLES):
                if (share := next(coming, None)) is not None:
                    tell(share)
                    told.append(share)
                    steps += len(share.ids)
                    continue
                if not told:
                    return
            share = told.popleft()
            steps -= len(share.ids)
            handed_on += 1
            yield share

    return walk_and_tell


def _cut(share: Share) -> Iterator[Share]:
    """Cut a share into shares of a hint's size."""
    steps = max(1, SAMPLES_A_HINT // share.ids.shape[1])
    if len(share.ids) <= steps:
        yield share
        return
    for first in range(0, len(share.ids), steps):
        cut = slice(first, first + steps)
        carried = None if share.carried is None else share.carried[cut]
        yield replace(share, start=share.start + first * share.taken, ids=share.ids[cut], carried=carried)
