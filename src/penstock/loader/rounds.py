"""What a trainer holds of a round, and what loaders ask before they go round by round."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from penstock.errors import ConfigError
from penstock.loader.round_policy import RoundPolicy, check_policy
from penstock.plan.rounds import check_boundary, check_round_size
from penstock.types import check_choice, check_int

if TYPE_CHECKING:
    from penstock.loader.loader import StreamingDataLoader


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """One round of a loader: iterate over it once, for its batches that are left.

    What it says of itself is of the moment it is asked for. Go through it before asking for the next: of several in a
    list, each says what the first does, and iterating over each gives the loader's next round all the same.
    """

    number: int
    """Rounds completed before it."""
    cycle: int
    """Passes over the dataset completed before its next batch."""
    num_batches: int
    """Batches of the whole round, on this rank as on every other."""
    loader: StreamingDataLoader = field(repr=False)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.loader)

    def __len__(self) -> int:
        return self.num_batches


def iter_rounds(loader: StreamingDataLoader, n: int | None) -> Iterator[Round]:
    """Yield a loader's rounds, from the one under way on."""
    for _ in count() if n is None else range(check_int("n", n, minimum=0)):
        yield Round(number=loader.round, cycle=loader.cycle, num_batches=len(loader), loader=loader)


def check_round_batches(round_batches: Any) -> int | RoundPolicy:
    """Return the length of rounds, or the policy that decides it."""
    if callable(round_batches):
        return check_policy(round_batches)
    return check_round_size("round_batches, unless it is a policy,", round_batches)


def choose_boundary(round_batches: int | RoundPolicy, drop_last: Any, remainder: Any, shuffle: Any) -> str:
    """Choose what happens where a cycle ends within a round.

    Raises:
        ConfigError: a policy decides the lengths where they must be known beforehand.
    """
    check_choice("drop_last", drop_last, (True, False))
    boundary = check_boundary("remainder, with rounds,", "carry" if remainder is None else remainder)
    if callable(round_batches):
        if boundary in ("pad", "drop"):
            raise ConfigError(
                f"remainder={boundary!r} with a policy for round_batches: which samples a cycle ends with would hang "
                "on answers that nobody has yet. Use 'carry' or 'short', or rounds of one length"
            )
        if shuffle == "within":
            raise ConfigError(
                "shuffle='within' with a policy for round_batches: which samples are shuffled together would hang on "
                "answers that nobody has yet. Use shuffle=True, or rounds of one length"
            )
    return boundary


def choose_stop(round_batches: int | RoundPolicy, stop_after: Any) -> int:
    """Choose where an iteration by claims ends: with its round.

    Raises:
        ConfigError: a policy is to decide, or `stop_after` says something else.
    """
    if callable(round_batches):
        raise ConfigError("by claims, rounds are of one length for every process: give round_batches= a number")
    if stop_after not in ("epoch", round_batches):
        raise ConfigError(
            f"round_batches={round_batches} and stop_after={stop_after!r} contradict each other: leave out one of them"
        )
    return round_batches


def as_stored_where_within(shuffle: Any, dataset: Any, length_bucket: int | None, chunk_weights: Any) -> Any:
    """Give the shuffle to build an order with: none below rounds that are shuffled each in itself.

    Raises:
        ConfigError: the dataset is a mix, or an order of its own is asked for too.
    """
    if shuffle != "within":
        return shuffle
    for what, is_there in (
        ("length_bucket", length_bucket is not None),
        ("chunk_weights", chunk_weights is not None),
        ("a mix", hasattr(dataset, "build_mixture")),
    ):
        if is_there:
            raise ConfigError(
                f"shuffle='within' has no meaning for {what}, which is an order of its own: use shuffle=True"
            )
    return False
