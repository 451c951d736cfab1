"""Which lines are JSON objects: the quick way and the line-by-line way must never disagree."""

from __future__ import annotations

import json
from itertools import pairwise

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.formats.record_lines import check_lines

GOOD = [
    b'{"text":"water"}',
    b'{ "text" : "\\u00e9 \\ud83d\\ude00" , "n": [1, 2.5e-3, -0, true, null, {}] }',
    '{"text":"漢字 Information about NaN and Infinity"}'.encode(),
    b'{"big": 123456789012345678901234567890}',
    b'{"a":1,"a":2}',
    b"{}",
    b'{"deep":' + b"[" * 500 + b"]" * 500 + b"}",
]
BAD = {
    b'{"text":"wat': "malformed-json",
    b'{"text":"a"} {"text":"b"}': "malformed-json",
    b'{"text":"a"},{"text":"b"}': "malformed-json",
    b'["text"]': "not-an-object",
    b'"text"': "not-an-object",
    b"null": "not-an-object",
    b"water": "malformed-json",
    b'{"text":"\xff"}': "invalid-utf8",
    b'{"text":"\\ud800"}': "lone-surrogate",
    b'{"x":NaN}': "nan",
    b'{"x":[1,-Infinity]}': "nan",
    b'{"x":Inf}': "malformed-json",
    b'{"x":1e999}': "nan",
    b'{"x":01}': "malformed-json",
    b'{"x":"a\tb"}': "malformed-json",
    b'{"x":"a\x00b"}': "malformed-json",
    b"{'x':1}": "malformed-json",
    b'{"x":1,}': "malformed-json",
    b'{"deep":' + b"[" * 2000 + b"]" * 2000 + b"}": "malformed-json",
}


def checked(*lines: bytes, end: bytes = b"\n", last: bytes = b"\n", **options: bool):
    block = np.frombuffer(end.join(lines) + last, np.uint8)
    found, count = check_lines(block, **options)
    cuts = [0, *found.ends.tolist()]
    kept = [found.data[a:b].tobytes() for a, b in pairwise(cuts)]
    return kept, found, count


@pytest.mark.parametrize("line", GOOD)
def test_a_good_line_passes_as_it_stands(line):
    assert checked(line)[0] == [line + b"\n"]
    orjson.loads(line)


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_refused_by_its_reason(line):
    kept, found, _ = checked(line)
    assert kept == []
    assert [fault.reason for fault in found.faults] == [BAD[line]]


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_among_good_ones_is_refused_alone(line):
    kept, found, _ = checked(*GOOD, line, *GOOD)
    assert kept == [good + b"\n" for good in (*GOOD, *GOOD)]
    assert [(fault.row, fault.reason) for fault in found.faults] == [(len(GOOD), BAD[line])]


def test_a_line_alone_may_end_in_a_carriage_return_and_a_newline():
    assert checked(GOOD[0], end=b"\r\n", last=b"\r\n")[0] == [GOOD[0] + b"\n"]
    assert checked(GOOD[0], b"", GOOD[0], end=b"\n", last=b"\r\n")[0] == [GOOD[0] + b"\n"] * 2


@given(
    st.lists(st.sampled_from([*GOOD, *BAD, b"", b"  "]), max_size=12), st.sampled_from([b"\n", b"\r\n"]), st.booleans()
)
def test_what_becomes_of_a_line_does_not_depend_on_its_neighbours(lines, end, closed):
    kept, found, count = checked(*lines, end=end, last=end if closed else b"")
    assert kept == [line + b"\n" for line in lines if line in GOOD]
    rows = [(number, line) for number, line in enumerate(lines) if line.strip()]
    assert found.rows == len(rows)
    numbers = list(range(len(rows))) if found.lines is None else found.lines.tolist()
    assert numbers == [number for number, _ in rows]
    assert [(numbers[fault.row], fault.reason) for fault in found.faults] == [
        (number, BAD[line]) for number, line in rows if line in BAD
    ]
    assert count == (end.join(lines) + (end if closed else b"")).count(b"\n") + (
        not closed and bool(lines and lines[-1])
    )


@given(
    st.lists(
        st.dictionaries(
            st.text(max_size=5),
            st.recursive(
                st.none()
                | st.booleans()
                | st.integers()
                | st.floats(allow_nan=False, allow_infinity=False)
                | st.text(),
                lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
            ),
            max_size=4,
        ),
        max_size=8,
    ),
    st.booleans(),
)
def test_whatever_python_writes_passes_unchanged(records, ascii):
    lines = [json.dumps(record, ensure_ascii=ascii).encode("utf-8", "surrogatepass") for record in records]
    kept, found, _ = checked(*lines)
    assert kept == [line + b"\n" for line in lines]
    assert not found.faults


def test_objects_that_span_lines_are_not_taken_for_lines():
    # Together three objects on three lines, and each line looks like one from both ends.
    kept, found, _ = checked(b'{"a":[{"x":1}', b'{"y":2}]}', b'{"a":1}{"b":2}')
    assert kept == []
    assert len(found.faults) == 3


def test_nan_becomes_null_where_that_is_asked_for_and_is_counted():
    kept, found, _ = checked(b'{"x":NaN,"y":[-Infinity,1e999]}', b'{"x":1}', null_nan=True)
    assert kept == [b'{"x":null,"y":[null,null]}\n', b'{"x":1}\n']
    assert (found.nulled, list(found.faults)) == (3, [])


def test_lines_that_are_all_good_are_not_copied():
    block = np.frombuffer(b'{"a":1}\n{"b":2}\n', np.uint8)
    found, _ = check_lines(block)
    assert np.shares_memory(found.data, block)
