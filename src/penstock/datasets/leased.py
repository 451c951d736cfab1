"""Files in use: a path in a sample is good for as long as its lease is kept, whatever became of the path itself.

fetch ──▶ Leased samples ──transforms──▶ batch ── the loader keeps the lease until the next batch is asked for
                                     └──▶ ds[i] ── the sample that is handed out keeps it
"""

from __future__ import annotations

import weakref
from typing import Any


class Leased(list[Any]):
    """What a dataset's `fetch` gives: samples, and in `lease` what has to be kept while their files are in use."""

    __slots__ = ("lease",)
    lease: Any

    @classmethod
    def of(cls, samples: list[Any], lease: Any) -> Leased:
        """Join samples with the lease of their files."""
        leased = cls(samples)
        leased.lease = lease
        return leased


class LeasedSample(dict[str, Any]):
    """A sample that keeps the files in place that it was made from, wherever it is sent."""

    __slots__ = ("lease",)
    lease: Any


def lease_of(rows: Any) -> Any:
    """Give what has to be kept for the files of rows; None if there is nothing."""
    return rows.lease if type(rows) is Leased else None


def keep_with(sample: Any, lease: Any) -> Any:
    """Let a lease last as long as a sample that was made under it, or as each of several.

    Returns:
        The sample. A dict becomes a `LeasedSample`; what can have neither a slot nor a weak reference, a tuple say,
        keeps nothing.
    """
    if type(sample) is list:
        return [keep_with(one, lease) for one in sample]
    if type(sample) is dict:
        held = LeasedSample(sample)
        held.lease = lease
        return held
    if sample is not None:
        try:
            weakref.finalize(sample, _end, lease).atexit = False
        except TypeError:
            return sample
    return sample


def _end(lease: Any) -> None:
    """Let go of a lease, which this call was the last to hold."""
