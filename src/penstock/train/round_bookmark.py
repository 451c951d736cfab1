"""Where training stands when it is saved: after the last batch trained on, whatever has been fetched.

    fetched    ─────────────── batch i ┃          the loaders' own state: one too far for a checkpoint
    trained    ── batch i − 1 ┃ ✗                 written when batch i fails
               ───────────────┃                   the bookmark

Counting what has been trained is the trainer's; the bookmark keeps the loaders' state that goes with its count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from penstock.errors import StateMismatch
from penstock.loader.loader import StreamingDataLoader


class Bookmark:
    """The state of training loaders after the last batch trained on.

    Args:
        loaders: those that are trained from.
        count_trained: counts the batches that have been trained on, ever.

    >>> trained = 0
    >>> loader = StreamingDataLoader(list(range(9)), batch_size=1, round_batches=3)
    >>> bookmark = Bookmark([loader], lambda: trained)
    >>> fetched = next(iter(loader))
    >>> bookmark.states()[0]["samples"]
    0
    >>> trained = 1
    >>> bookmark.states()[0]["samples"]
    1
    """

    def __init__(self, loaders: Sequence[StreamingDataLoader], count_trained: Callable[[], int]) -> None:
        self.loaders = list(loaders)
        self._count_trained = count_trained
        self.mark()

    def mark(self) -> None:
        """Note where the loaders stand: all that they have handed out has been trained on."""
        self._trained = self._count_trained()
        self._states = self._read()

    def states(self) -> list[dict[str, Any]]:
        """Give the loaders' states, one each; a batch that was fetched and not trained on comes again."""
        # Whoever saves after a batch was trained on and before it was marked finds nothing fetched beyond it.
        return list(self._states) if self._count_trained() == self._trained else self._read()

    def move_to(self, loaders: Sequence[StreamingDataLoader]) -> None:
        """Go on with these loaders: if they are others than before, where those stand.

        Raises:
            StateMismatch: there are more or fewer than before, or of other data.
        """
        if self.loaders != list(loaders):
            load_states(self.states(), loaders)
        self.loaders = list(loaders)
        self.mark()

    def _read(self) -> list[dict[str, Any]]:
        return [loader.state_dict() for loader in self.loaders]


def load_states(states: Sequence[dict[str, Any]], loaders: Sequence[StreamingDataLoader]) -> None:
    """Put loaders where those stood whose states these are.

    Raises:
        StateMismatch: there are more or fewer, or they are of other data.
    """
    if len(states) != len(loaders):
        raise StateMismatch(
            f"there are states of {len(states)} training loaders with rounds, and {len(loaders)} such loaders: give "
            "the trainer the loaders it had when the checkpoint was written"
        )
    for loader, state in zip(loaders, states, strict=True):
        loader.load_state_dict(state)
