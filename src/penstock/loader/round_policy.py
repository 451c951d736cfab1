"""Rounds whose length is decided as training goes: a policy is told what became of the rounds before.

history ──▶ policy ──▶ batches of the next round ──▶ kept in the state, so that a resumed run asks nothing twice
   ▲── report(**metrics) ── validation ◀── round ◀──┘
"""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from penstock.errors import ConfigError, StateMismatch
from penstock.plan.rounds import check_round_size

ROUNDS_KEPT = 8
"""Rounds of which a policy is told: what a state holds stays small."""
METRICS_BYTES = 48
"""Of JSON, the metrics of one round: eight rounds of them and all else stay below a state's 1000 bytes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundRecord:
    """One completed round."""

    number: int
    num_batches: int
    metrics: dict[str, float] | None = None
    """As reported after it, to six digits, so that they are the same in a resumed run, and without those that are not
    finite; None: nothing was, or nothing finite."""


RoundPolicy = Callable[[Sequence[RoundRecord]], int]
"""Takes the last completed rounds, oldest first, and gives the batches per rank of the next one."""


def check_policy(policy: Callable[..., Any]) -> RoundPolicy:
    """Return a policy, if it can be called with the history alone.

    Raises:
        ConfigError: it takes nothing, or needs more.
    """
    try:
        signature = inspect.signature(policy)
    except ValueError:
        # Of what is compiled nobody knows before it is called.
        return policy
    try:
        signature.bind(())
    except TypeError as error:
        raise ConfigError(
            f"a policy for round_batches= is called with one argument, the history of rounds, and {policy!r} takes "
            f"{signature}: {error}"
        ) from None
    return policy


class History:
    """The last completed rounds, and the policy that is told of them.

    Args:
        policy: asked before each round; None: rounds are all of one length, and nothing is kept.
    """

    def __init__(self, policy: RoundPolicy | None, records: tuple[RoundRecord, ...] = ()) -> None:
        self._policy = policy
        self._records = records[-ROUNDS_KEPT:]

    def completed(self, number: int, num_batches: int) -> History:
        """Give the history with one more round complete."""
        if self._policy is None:
            return self
        return History(self._policy, (*self._records, RoundRecord(number=number, num_batches=num_batches)))

    def reported(self, metrics: dict[str, Any]) -> History:
        """Give the history with what became of the last completed round; a later report adds to an earlier one.

        Warns of metrics that are not finite, and leaves them out: a diverging model is no reason to end its run.

        Raises:
            ConfigError: no policy would read it, no round is complete, or the metrics are no few numbers.
        """
        if self._policy is None:
            raise ConfigError(
                "nothing would read this report: it is for a policy, so give round_batches= a function of the history"
            )
        if not self._records:
            raise ConfigError("no round is complete yet: report what came of a round after its last batch")
        last = self._records[-1]
        numbers = {name: _number(name, value) for name, value in metrics.items()}
        if infinite := {name: number for name, number in numbers.items() if not math.isfinite(number)}:
            # A state is JSON, which has no word for them.
            warnings.warn(f"{infinite} of round {last.number} is kept from the policy: not finite", stacklevel=4)
        found = {**(last.metrics or {}), **{name: number for name, number in numbers.items() if name not in infinite}}
        if (size := len(json.dumps(found))) > METRICS_BYTES:
            raise ConfigError(
                f"the metrics of a round are {size} bytes of JSON, and a state has room for {METRICS_BYTES}: report "
                f"one or two numbers that the policy needs, under short names; got {found}"
            )
        return History(self._policy, (*self._records[:-1], replace(last, metrics=found)))

    def ask(self) -> int:
        """Ask the policy for the batches of the next round.

        Raises:
            ConfigError: it gives no integer from 1 to 2**62.
        """
        assert self._policy is not None
        # That a round was reported on and nothing of it was finite is for awaits_report only.
        told = tuple(replace(record, metrics=record.metrics or None) for record in self._records)
        return check_round_size("batches of a round, as the policy gives them,", self._policy(told))

    @property
    def awaits_report(self) -> bool:
        """Tell whether a policy has not been told what became of the last completed round."""
        return self._policy is not None and bool(self._records) and self._records[-1].metrics is None

    def state(self) -> list[list[Any]]:
        """Give the records as JSON has them."""
        return [[record.number, record.num_batches, record.metrics] for record in self._records]

    def loaded(self, state: Any) -> History:
        """Give the history that a state has; None: none.

        Raises:
            StateMismatch: these are no records.
        """
        try:
            records = [
                RoundRecord(number=number, num_batches=batches, metrics=metrics)
                for number, batches, metrics in state or ()
            ]
        except (TypeError, ValueError):
            raise StateMismatch(f"the state was edited: history must be a list of rounds, got {state!r}") from None
        return History(self._policy, tuple(records))


def _number(name: str, value: Any) -> float:
    """Take a number, to six digits, finite or not."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise ConfigError(f"metric {name!r} must be a number, got {value!r}") from None
    return float(f"{number:.6g}")
