"""Packing: every token once, nothing cut that fits, and as few sequences as best-fit decreasing needs."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import ConfigError, PlanError
from penstock.plan.packing import PACKING_NAME, best_fit, pack

documents = st.lists(st.integers(0, 40), max_size=60)


def pieces_of(packing) -> list[tuple[int, int, bool]]:
    columns = (packing.starts, packing.lengths, packing.goes_on)
    return list(zip(*(column.tolist() for column in columns), strict=True))


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(1, 20), st.integers(1, 70))
def test_every_token_is_in_exactly_one_place(lengths, seq_len, window):
    packing = pack(np.cumsum(lengths, dtype=np.int64), seq_len, window=window)
    covered = sorted(token for start, size, _ in pieces_of(packing) for token in range(start, start + size))
    assert covered == list(range(sum(lengths)))
    per_sequence = [int(part.sum()) for part in np.split(packing.lengths, packing.ends)[:-1]]
    assert all(0 < tokens <= seq_len for tokens in per_sequence)
    assert len(packing) == len(per_sequence)
    assert packing.fill == (sum(lengths) / (len(packing) * seq_len) if packing.ends.size else 1)


@settings(max_examples=200, deadline=None)
@given(documents, st.integers(1, 20))
def test_only_documents_that_do_not_fit_are_cut(lengths, seq_len):
    ends = np.cumsum(lengths, dtype=np.int64)
    begins = ends - lengths
    for start, size, goes_on in pieces_of(pack(ends, seq_len)):
        document = int(np.searchsorted(ends, start, side="right"))
        assert (start - begins[document]) % seq_len == 0
        assert size == min(seq_len, ends[document] - start)
        assert goes_on == (start + size < ends[document])


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(1, 20), st.integers(1, 20))
def test_a_window_is_packed_the_same_whatever_surrounds_it(lengths, seq_len, window):
    ends = np.cumsum(lengths, dtype=np.int64)
    whole = pack(ends, seq_len, window=window)
    starts, sizes, num_sequences = [], [], []
    for first in range(0, len(lengths), window):
        alone = pack(ends[first : first + window] - (ends[first - 1] if first else 0), seq_len)
        starts.append(alone.starts + (ends[first - 1] if first else 0))
        sizes.append(alone.lengths)
        num_sequences.append(len(alone))
    assert whole.starts.tolist() == [start for part in starts for start in part.tolist()]
    assert whole.lengths.tolist() == [size for part in sizes for size in part.tolist()]
    assert whole.window_ends.tolist() == np.cumsum(num_sequences, dtype=np.int64).tolist()


@settings(max_examples=100, deadline=None)
@given(documents, st.integers(1, 20))
def test_documents_and_sequences_stand_in_the_order_of_the_text(lengths, seq_len):
    packing = pack(np.cumsum(lengths, dtype=np.int64), seq_len)
    sequences = [part.tolist() for part in np.split(packing.starts, packing.ends)[:-1]]
    assert all(starts == sorted(starts) for starts in sequences)
    firsts = [starts[0] for starts in sequences]
    assert firsts == sorted(firsts)


def best_fit_decreasing(lengths: list[int], capacity: int) -> list[int]:
    """The algorithm as its definition says: what the bins hold in the end."""
    loads: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [bin_ for bin_, load in enumerate(loads) if load + length <= capacity]
        if fitting:
            loads[max(fitting, key=lambda bin_: loads[bin_])] += length
        else:
            loads.append(length)
    return sorted(loads)


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 60))
def test_many_at_a_time_is_best_fit_decreasing_one_by_one(data, capacity):
    lengths = data.draw(st.lists(st.integers(1, capacity), max_size=80))
    bins = best_fit(np.array(lengths, np.int64), capacity)
    loads = np.bincount(bins, weights=lengths).astype(int)
    assert sorted(loads.tolist()) == best_fit_decreasing(lengths, capacity)


def first_fit(lengths: np.ndarray, capacity: int) -> int:
    """Greedy first-fit in the order of the text: how many bins."""
    spaces = np.full(len(lengths), capacity)
    for length in lengths.tolist():
        spaces[np.argmax(spaces >= length)] -= length
    return int((spaces < capacity).sum())


@pytest.mark.parametrize("mean", [100, 400, 900])
def test_it_fills_better_than_first_fit(mean):
    lengths = np.clip(np.random.default_rng(0).lognormal(np.log(mean), 1, 20_000), 1, 1024).astype(np.int64)
    packing = pack(np.cumsum(lengths), 1024)
    greedy = lengths.sum() / first_fit(lengths, 1024) / 1024
    assert packing.fill > greedy
    # No packing can be better than one sequence for each that is more than half full, and full ones otherwise.
    least = max(-(-int(lengths.sum()) // 1024), int((lengths > 512).sum()))
    assert len(packing) <= 1.01 * least


def test_the_arithmetic_stays_what_it_is():
    """Sequences are samples: other ones would make every saved position mean something else."""
    lengths = np.random.default_rng(7).integers(0, 3000, 5000)
    packing = pack(np.cumsum(lengths), 1024, window=2000)
    columns = (packing.starts, packing.lengths.astype(np.int64), packing.ends, packing.window_ends)
    seen = blake2b(b"".join(column.astype("<i8").tobytes() for column in columns), digest_size=16).hexdigest()
    assert (PACKING_NAME, len(packing), seen) == ("best-fit-v1", 7412, "3db2929d273f7345f5102a61e7bf9dbe")


def test_unsigned_ends_and_none_at_all():
    packing = pack(np.array([14, 17, 22, 24, 25], np.uint64), 8)
    assert packing.starts.dtype == np.int64
    assert packing.starts.tolist() == [0, 8, 22, 14, 17, 24]
    empty = pack(np.array([], np.uint64), 8)
    assert (len(empty), empty.fill, empty.window_ends.tolist()) == (0, 1.0, [])
    assert len(pack(np.zeros(5, np.uint64), 8)) == 0


@pytest.mark.parametrize("values", [{"seq_len": 0}, {"seq_len": 8, "window": 0}])
def test_sizes_that_cannot_work_are_refused(values):
    with pytest.raises(ConfigError, match="must be an integer"):
        pack(np.array([5]), **values)


def test_ends_that_go_down_are_refused():
    with pytest.raises(PlanError, match="document ends go down, from 8 to 5"):
        pack(np.array([8, 5, 10]), 4)
    with pytest.raises(PlanError, match="document ends go down, from 8 to 5"):
        pack(np.array([8, 5, 10], np.uint64), 4, window=1)
