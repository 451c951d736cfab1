"""Which stream's turn it is: an endless sequence of picks, in rounds that hold exact counts of each.

A round, a meta-iteration, has as many picks as the counts have in sum. Kinds, by counts 2, 3, 4:

    consecutive               001112222 001112222 …
    consecutive_interleaved   012012122 012012122 …
    fixed_random_order        021221210 021221210 …   one order, drawn once
    random_order              021221210 212001212 …   a new order each round
    random                    as random_order, with a key of its own
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Literal, get_args

import numpy as np

from penstock.plan.memo import Memo
from penstock.plan.permutation import ORDER_NAME, permute
from penstock.plan.ratios import check_weights, whole_numbers
from penstock.seeds import key
from penstock.types import check_choice

Kind = Literal["random", "consecutive", "consecutive_interleaved", "random_order", "fixed_random_order"]

MOST_PICKS = 10**6
"""In a round: ratios keep six decimals."""


class Schedule:
    """Picks among named items, by ratios.

    Args:
        ratios: name → how often, in whatever unit: whole numbers are the counts of a round as they are, others become
            the whole numbers that say the same, to six decimals. An item of 0 or less is never picked.
        kind: how a round is ordered.
        seed: key of random orders.

    Raises:
        ConfigError: a ratio is no number, or none is above 0.

    >>> Schedule({"a": 2, "b": 3, "c": 4}, "consecutive_interleaved").picks(np.arange(9)).tolist()
    [0, 1, 2, 0, 1, 2, 1, 2, 2]
    >>> Schedule({"a": 0.4, "b": 0.6}, "random_order", seed=1).counts
    {'a': 2, 'b': 3}
    """

    def __init__(self, ratios: Mapping[str, Any], kind: Kind = "fixed_random_order", *, seed: int = 0) -> None:
        check_choice("schedule", kind, get_args(Kind))
        kept = {name: max(ratio, 0) if isinstance(ratio, int | float) else ratio for name, ratio in ratios.items()}
        check_weights("the ratio", kept)
        self.counts = _counts({name: ratio for name, ratio in kept.items() if ratio > 0})
        self.items = tuple(self.counts)
        self.length = sum(self.counts.values())
        self._kind = kind
        self._seed = seed
        summary = blake2b(repr(self.counts).encode(), digest_size=8).hexdigest()
        self.name = f"{kind}:{ORDER_NAME}:{summary}" if "random" in kind else f"{kind}:{summary}"
        self._base = np.repeat(np.arange(len(self.items)), list(self.counts.values()))
        if kind == "consecutive_interleaved":
            turns = np.concatenate([np.arange(count) for count in self.counts.values()])
            self._base = self._base[np.argsort(turns, kind="stable")]
        self._rounds = Memo(self._round)

    def picks(self, places: np.ndarray) -> np.ndarray:
        """Give the number, in `items`, of what is picked at places, int64 [n] of 0 or more, as int64 [n].

        Cost: O(n), and O(length) for each random round entered.
        """
        rounds, within = np.divmod(np.asarray(places, np.int64), self.length)
        if not self._has_rounds:
            return self._rounds.get(0)[0][within]
        picked = np.empty_like(within)
        for number in np.unique(rounds).tolist():
            chosen = rounds == number
            picked[chosen] = self._rounds.get(number)[0][within[chosen]]
        return picked

    def before(self, place: int) -> np.ndarray:
        """Count the picks of each item before a place, int64 [items]."""
        rounds, within = divmod(place, self.length)
        where = self._rounds.get(rounds if self._has_rounds else 0)[1]
        whole = np.array(list(self.counts.values())) * rounds
        return whole + np.array([places.searchsorted(within) for places in where], np.int64)

    @property
    def _has_rounds(self) -> bool:
        """Whether rounds differ."""
        return self._kind in ("random", "random_order")

    def _round(self, number: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """Give the picks of a round, int64 [length], and the places of each item in it."""
        picks = self._base
        if "random" in self._kind:
            # An order that is fixed has the key of a round that never comes.
            turn = key(self._seed, "schedule", self._kind, number if self._has_rounds else -1)
            picks = picks[permute(np.arange(self.length), self.length, turn)]
        places = np.argsort(picks, kind="stable")
        return picks, np.split(places, np.cumsum(list(self.counts.values()))[:-1])


def _counts(ratios: Mapping[str, Any]) -> dict[str, int]:
    """Turn ratios into the counts of a round."""
    given = list(ratios.values())
    if all(isinstance(ratio, int | np.integer) for ratio in given) and sum(given) <= MOST_PICKS:
        return {name: int(ratio) for name, ratio in ratios.items()}
    return dict(zip(ratios, whole_numbers(given, MOST_PICKS), strict=True))
