"""Which documents share a sequence: many short ones in place of padding.

    documents   aaaaaaaaaaaaaa │ bbb │ ccccc │ dd │ e          seq_len 8
    pieces      aaaaaaaa aaaaaa│ bbb │ ccccc │ dd │ e          only what is longer than a sequence is cut
    sequences   [aaaaaaaa] [aaaaaadd] [bbbccccc] [e·······]    each token exactly once

Documents are packed inside fixed windows of them, so what a sequence holds depends on its window only.
Inside one, pieces are placed from the longest to the shortest, each where it leaves least space:
best-fit decreasing. Equal lengths are placed together, so the work grows with the number of
different lengths, not of documents.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

from penstock.errors import PlanError
from penstock.types import check_int

PACKING_NAME = "best-fit-v1"
"""Names this exact arithmetic: other sequences from the same documents are another dataset, with a new name."""
WINDOW = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Packing:
    """Sequences, each a row of pieces of documents: sequence s holds the pieces [ends[s - 1], ends[s])."""

    seq_len: int
    starts: np.ndarray
    """int64 [P], first token of every piece in the stream of all documents."""
    lengths: np.ndarray
    """int32 [P], tokens of every piece, 1 <= lengths <= seq_len."""
    goes_on: np.ndarray
    """bool [P], whether the token after the piece belongs to the same document."""
    ends: np.ndarray
    """int64 [S], pieces up to and with sequence s."""
    window_ends: np.ndarray
    """int64 [W], sequences up to and with window w."""

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def fill(self) -> float:
        """Share of all places that hold a token, the rest being padding."""
        return int(self.lengths.sum(dtype=np.int64)) / (len(self) * self.seq_len) if len(self) else 1.0


def pack(doc_ends: np.ndarray, seq_len: int, *, window: int = WINDOW) -> Packing:
    """Pack documents into sequences of seq_len tokens.

    Args:
        doc_ends: integers [D], not descending: document d is the tokens [doc_ends[d - 1], doc_ends[d]).
        seq_len: tokens per sequence. Longer documents are cut into pieces of it; no other is cut.
        window: documents that are packed together. It is part of what the sequences are.

    Returns:
        Sequences in the order of the first document in each, window after window; documents of a sequence in
        theirs. Every token is in exactly one piece. Empty documents are in none.

    Raises:
        PlanError: document ends go down.

    Cost: 0.2 to 0.5 µs a document in windows of 65,536; 13 bytes a piece and 8 a sequence are kept.
    Source: Johnson et al., "Worst-Case Performance Bounds for Simple One-Dimensional Packing Algorithms", 1974.

    >>> packed = pack(np.array([14, 17, 22, 24, 25]), 8)
    >>> [piece.tolist() for piece in np.split(packed.lengths, packed.ends[:-1])]
    [[8], [6, 2], [3, 5], [1]]
    """
    check_int("seq_len", seq_len, minimum=1, maximum=2**31 - 1)
    check_int("window", window, minimum=1)
    parts = []
    for first in range(0, len(doc_ends), window):
        ends = np.asarray(doc_ends[first : first + window]).astype(np.int64)
        parts.append(_pack_window(ends, int(doc_ends[first - 1]) if first else 0, seq_len))
    counts = np.array([len(part[3]) for part in parts], np.int64)
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)] if parts else [np.empty(0, np.int64)] * 4
    return Packing(
        seq_len=seq_len,
        starts=columns[0],
        lengths=columns[1].astype(np.int32),
        goes_on=columns[2].astype(bool),
        ends=np.cumsum(columns[3]),
        window_ends=np.cumsum(counts),
    )


def best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Place items in as few bins as best-fit decreasing does.

    Args:
        lengths: integers [n], each from 1 to capacity.
        capacity: what a bin holds.

    Returns:
        int64 [n], the bin of each item; bins are numbered from 0 without gaps.

    Cost: sorting, and a few µs for each different length; O(n) memory.

    >>> best_fit(np.array([6, 3, 5, 2, 1]), 8).tolist()
    [0, 1, 1, 0, 2]
    """
    order = _stable_argsort(capacity - np.asarray(lengths, np.int64))
    longest_first = np.asarray(lengths)[order]
    changes = np.flatnonzero(np.diff(longest_first, prepend=0, append=0))
    steps = _best_fit_steps(longest_first[changes[:-1]].tolist(), np.diff(changes).tolist(), capacity)
    bins, each, taken = np.array(steps, np.int64).reshape(-1, 3).T
    numbers = np.arange(len(order)) - np.repeat(np.cumsum(taken) - taken, taken)
    found = np.empty(len(order), np.int64)
    found[order] = np.repeat(bins, taken) + numbers // np.repeat(each, taken)
    return found


def _best_fit_steps(lengths: list[int], counts: list[int], capacity: int) -> list[tuple[int, int, int]]:
    """Place `counts` items of each of the descending `lengths`, many at a time.

    Returns:
        Steps of (bin, each, taken): the next `taken` items go `each` into a bin, from this bin on.
    """
    steps: list[tuple[int, int, int]] = []
    # Bins that have space left: space → runs of them as (first bin, how many), and the spaces there are, ascending.
    rooms: dict[int, list[tuple[int, int]]] = {}
    spaces: list[int] = []
    num_bins = 0
    for length, left in zip(lengths, counts, strict=True):
        while left:
            place = bisect_left(spaces, length)
            if place < len(spaces):
                space = spaces[place]
                first, size = rooms[space].pop()
                if not rooms[space]:
                    del rooms[space], spaces[place]
            else:
                space, first, size = capacity, num_bins, -(-left // (capacity // length))
                num_bins += size
            # A bin that was the best fit stays it until it holds no further item of this length.
            each = space // length
            full = min(size, left // each)
            rest = min(left - full * each, each) if full < size else 0
            started = full + (rest > 0)
            steps.append((first, each, full * each))
            steps.append((first + full, capacity, rest))
            left -= full * each + rest
            runs = ((first, full, space - each * length), (first + full, started - full, space - rest * length))
            for begin, count, room in (*runs, (first + started, size - started, space)):
                if count and room:
                    if room not in rooms:
                        rooms[room] = []
                        insort(spaces, room)
                    rooms[room].append((begin, count))
    return steps


def _pack_window(ends: np.ndarray, start: int, seq_len: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pack the documents of one window: starts, lengths and goes_on of the pieces, and pieces per sequence."""
    begins = np.concatenate([np.array([start], np.int64), ends[:-1]])
    sizes = ends - begins
    if (sizes < 0).any():
        raise PlanError(f"document ends go down, from {int(begins[sizes < 0][0])} to {int(ends[sizes < 0][0])}")
    counts = -(-sizes // seq_len)  # pieces of each document
    documents = np.repeat(np.arange(len(sizes)), counts)
    numbers = np.arange(len(documents)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = begins[documents] + numbers * seq_len
    lengths = np.minimum(ends[documents] - starts, seq_len)
    bins = best_fit(lengths, seq_len)
    # Sequences in the order of their first piece, whatever the order they were filled in.
    places = np.arange(len(bins))
    firsts = np.empty(int(bins.max(initial=-1)) + 1, np.int64)
    firsts[bins[::-1]] = places[::-1]  # of the pieces of a bin the first is written last
    rank = np.empty_like(firsts)
    rank[np.argsort(firsts)] = np.arange(len(firsts))
    bins = rank[bins]
    order = _stable_argsort(bins)
    goes_on = starts + lengths < ends[documents]
    return starts[order], lengths[order], goes_on[order], np.bincount(bins)


def _stable_argsort(values: np.ndarray) -> np.ndarray:
    """Sort numbers >= 0 by counting where they are small, which takes a tenth of the time."""
    small = not len(values) or int(values.max()) < 1 << 16
    return np.argsort(values.astype(np.uint16) if small else values, kind="stable")
