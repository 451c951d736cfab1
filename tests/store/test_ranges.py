"""Requests cover what was asked for, join what is close, and never grow without bound."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from penstock.store.ranges import HEADER_BYTES, PART_BYTES, PIECE_BYTES, WASTE, coalesce, parts, sparing

ranges = st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 10**6)), max_size=40)


@given(ranges, st.integers(0, 10**6))
def test_each_range_lies_in_one_request_and_requests_do_not_overlap(asked, gap):
    starts = [start for start, _ in asked]
    stops = [start + length for start, length in asked]
    requests = coalesce(starts, stops, gap=gap)
    served = [member for request in requests for member in request.members]
    assert sorted(served) == [place for place, (_, length) in enumerate(asked) if length]
    for request in requests:
        assert request.start == min(starts[member] for member in request.members)
        assert request.stop == max(stops[member] for member in request.members)
        assert request.stop - request.start <= PART_BYTES
    ordered = sorted(requests, key=lambda request: request.start)
    full = PART_BYTES - 10**6
    for left, right in itertools.pairwise(ordered):
        assert right.start - left.stop > gap or right.stop - left.start > full


@given(st.integers(0, 10**9), st.integers(1, 10**8), st.integers(1, 10**7))
def test_parts_follow_one_another_and_are_of_a_size(start, length, size):
    if length // size > 10_000:
        size = length // 10_000 + 1
    found = parts(start, start + length, size)
    assert found[0][0] == start
    assert found[-1][1] == start + length
    assert all(left[1] == right[0] for left, right in itertools.pairwise(found))
    lengths = [stop - begin for begin, stop in found]
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


@given(st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 3000)), max_size=60))
def test_sparing_requests_serve_all_ranges_and_hardly_a_byte_more_than_headers_between_them(asked):
    starts, stops = [start for start, _ in asked], [start + length for start, length in asked]
    requests = sparing(starts, stops)
    served = sorted(member for request in requests for member in request.members)
    assert served == [place for place in range(len(asked)) if stops[place] > starts[place]]
    for request in requests:
        used, end = 0, request.start
        for member in request.members:
            assert request.start <= starts[member]
            assert stops[member] <= request.stop
            gap = max(0, starts[member] - end)
            used += max(0, stops[member] - max(end, starts[member])) + (gap if gap <= HEADER_BYTES else 0)
            end = max(end, stops[member])
        assert request.stop - request.start <= (1 + WASTE) * used
    for left, right in itertools.pairwise(requests):
        assert right.start - left.stop > HEADER_BYTES


@given(st.integers(1, 40))
def test_sparing_requests_are_no_longer_than_a_piece(count):
    size = PIECE_BYTES // 3 + 1
    requests = sparing([size * number for number in range(count)], [size * (number + 1) for number in range(count)])
    assert {request.stop - request.start for request in requests} <= {2 * size, size}
