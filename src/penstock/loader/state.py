"""What a checkpoint of a loader holds: a cursor, and what it is a cursor of.

No rank, no world, no workers, nothing in flight: so any rank's copy resumes any other set-up.
"""

from __future__ import annotations

from typing import Any, Protocol

from penstock.errors import ConfigError, StateMismatch
from penstock.plan.plan import Cursor

STATE_VERSION = 1
LARGEST_BATCH = 1 << 16
"""Samples by which any cursor may have gone past the end of an epoch that is smaller than this."""


class Stream(Protocol):
    """What a cursor is a cursor of: an order, or chunks that are claimed."""

    @property
    def name(self) -> str:
        """What decides which sample comes when, the seed apart."""

    @property
    def num_samples(self) -> int:
        """Samples in an epoch."""


def write_state(cursor: Cursor, stream: Stream, seed: int, fingerprint: str | None) -> dict[str, Any]:
    """Describe a cursor and the stream it belongs to, ready for JSON."""
    return {
        "version": STATE_VERSION,
        "epoch": cursor.epoch,
        "samples": cursor.samples,
        **_belongs_to(stream, seed, fingerprint),
    }


def read_state(state: Any, stream: Stream, seed: int, fingerprint: str | None) -> Cursor:
    """Take the cursor out of a state, if it belongs to this stream; a dataset's own has `sample_in_epoch`.

    Raises:
        StateMismatch: it does not, or it is not a state at all; every difference is named.
    """
    if not isinstance(state, dict) or "version" not in state:
        raise StateMismatch(f"this is no loader state: expected what state_dict() returned, got {_shown(state)}")
    if state["version"] != STATE_VERSION:
        raise StateMismatch(
            f"the state has version {state['version']!r}, this penstock reads version {STATE_VERSION}: load it with "
            "the release that wrote it"
        )
    if "samples" not in state and "sample_in_epoch" in state:
        state = {**state, "samples": state["sample_in_epoch"]}
    here = _belongs_to(stream, seed, fingerprint)
    missing = [name for name in ("epoch", "samples", *here) if name not in state]
    if missing:
        raise StateMismatch(f"the state lacks {', '.join(missing)}: it was cut off or edited")
    differing = [
        f"{name} is {state[name]!r} in the state, {here[name]!r} here" for name in here if state[name] != here[name]
    ]
    if differing:
        raise StateMismatch(
            f"the state belongs to another stream: {'; '.join(differing)}. Give the loader the data and settings it "
            "was saved with, or start afresh without the state"
        )
    try:
        cursor = Cursor(epoch=state["epoch"], samples=state["samples"])
    except ConfigError as error:
        raise StateMismatch(f"the state was edited: {error}") from None
    # A last batch that is filled from the next epoch goes past the end of its own, by less than a global batch,
    # which may have been another than it is here.
    if cursor.samples - stream.num_samples >= max(stream.num_samples, LARGEST_BATCH):
        raise StateMismatch(
            f"the state was edited: it is at sample {cursor.samples:,} of an epoch of {stream.num_samples:,}"
        )
    return cursor


def read_counts(state: dict[str, Any]) -> tuple[int, int, int | None, int]:
    """Take out of a state the round, how many of its batches are done, its length if known, and repeats handed out.

    Raises:
        StateMismatch: they are no such numbers. A state without rounds has a round that begins there.
    """
    number, done, length, repeats = (state.get(name, 0) for name in ("round", "batch", "round_batches", "repeats"))
    length = length or None
    for count in (number, done, repeats, *([] if length is None else [length])):
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise StateMismatch(f"the state was edited: round, batch and round_batches must be counts, got {count!r}")
    if done and (length is None or done >= length):
        raise StateMismatch(f"the state was edited: batch is {done}, and its round has {length} batches")
    return number, done, length, repeats


def _belongs_to(stream: Stream, seed: int, fingerprint: str | None) -> dict[str, Any]:
    return {"order": stream.name, "seed": seed, "num_samples": stream.num_samples, "fingerprint": fingerprint}


def _shown(state: Any) -> str:
    return f"a dict with {sorted(state)[:8]}" if isinstance(state, dict) else f"a {type(state).__name__}"
