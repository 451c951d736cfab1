"""Validation by rounds: a loader that gives the round it was put at, every time it is iterated over.

    training   ── 0 ──┃── 1 ──┃── 2 ──┃─ …        each a round completed
    validation        1       2       3           the loader is put there; [loader, loader] see the same

A training loader moves on by itself when a round is over. Evaluation must not: the same round is read twice
where a model is compared with its averaged weights, and one that was broken off begins anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penstock.loader.loader import StreamingDataLoader


class EvaluationRounds:
    """One round of a loader, from its start, as often as it is asked for.

    Args:
        loader: has rounds (`round_batches=`). This object is the only one that moves it.

    >>> loader = EvaluationRounds(StreamingDataLoader(list(range(6)), batch_size=2, round_batches=2))
    >>> loader.set_round(1)
    >>> [[batch.tolist() for batch in loader] for _ in range(2)]
    [[[4, 5], [0, 1]], [[4, 5], [0, 1]]]
    """

    def __init__(self, loader: StreamingDataLoader) -> None:
        self._loader = loader
        self._round = 0
        self._length: int | None = None
        """Batches of the round; None: not asked for yet."""

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the whole round; nothing happens before the first `next`."""
        self._loader.set_round(self._round)
        self._length = len(self._loader)
        yield from self._loader

    def __len__(self) -> int:
        """Count the batches of the round."""
        if self._length is None:
            self._loader.set_round(self._round)
            self._length = len(self._loader)
        return self._length

    def __repr__(self) -> str:
        return f"EvaluationRounds(round {self._round} of {self._loader!r})"

    @property
    def loader(self) -> StreamingDataLoader:
        """The loader that is moved."""
        return self._loader

    @property
    def dataset(self) -> Any:
        """What is read."""
        return self._loader.dataset

    @property
    def batch_size(self) -> int | None:
        """Samples of a batch of this rank."""
        return self._loader.batch_size

    @property
    def round(self) -> int:
        """The round that is given."""
        return self._round

    @property
    def total_rounds(self) -> int:
        """Rounds in a cycle."""
        return self._loader.total_rounds

    def set_round(self, number: int) -> None:
        """Go to a round, for all iterations that begin from now on.

        Args:
            number: 0 or more; counted through cycles, so any number is a round.

        Raises:
            ConfigError: it is no such number.
        """
        self._loader.set_round(number)
        self._round, self._length = number, None

    def close(self) -> None:
        """End the loader's workers; it can be iterated over again afterwards."""
        self._loader.close()
