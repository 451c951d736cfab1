"""The fast way through JSON lines gives what the careful way gives, or steps aside."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.formats import json_lines
from penstock.formats.json_lines import read_json_array, read_json_lines
from penstock.formats.streams import lines_of

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
texts = st.text(st.characters() | st.sampled_from('\n\r\0"\\{}\u2028\ud800\udc00é😀'), max_size=12)
objects = st.builds(
    lambda text, other: {"id": 1, **other, "text": text}, texts, st.dictionaries(st.text(max_size=3), values)
)


def written(value, ascii_only):
    return json.dumps(value, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass")


BEYOND_PYTHON = {
    "digits": b'{"text":"a","n":' + b"1" * 5000 + b"}",
    "infinity": b'{"text":"a","n":Inf}',
    "minus infinity": b'{"n":[-Inf],"text":"a"}',
    "nested lists": b'{"text":"a","n":' + b"[" * 3000 + b"]" * 3000 + b"}",
    "nested objects": b'{"text":"a","n":' + b'{"a":' * 3000 + b"1" + b"}" * 3000 + b"}",
}
"""Records that the fast parser reads and Python's refuse, for what is in a field nobody asked for."""

lines = st.one_of(
    st.sampled_from(list(BEYOND_PYTHON.values())),
    st.builds(written, objects, st.booleans()),
    st.builds(lambda value: written({"text": value}, True), values),
    st.sampled_from(
        [
            b"", b"  ", b"{}", b"[]", b"{", b"}", b'{"text":"a"}{"text":"b"}', b'{"text": "a"} ', b' {}',
            b'{"text":"\\udc00"}', b'{"text":"\\ud83d\\ude00"}', b'{"text":"a","text":"b"}', b'{"text":"\xff"}',
            b'{"text":"a","x":"\xc3"}', b'{"text":"a\0"}', b'{"text":"a"}\0', b'\0{"text":"a"}', b'{"te\\u0078t":"k"}',
            b'{"text":"a","x":01}', b'{"text":"a","x":1.}', b'{"text":"a","x":NaN}', b'{"text":"a",}', b'{"text":1}',
            b'{"x":{"text":"inner"}}', b'{"text":"tab\there"}', b'{"x":[{"y":"}', b'{"z"}],"text":"a"}', b"{'text':1}",
            b'{"text":"a"}//{}', b'/*{*/{"text":"a"}', b'{"text":"\\q"}', b'{"text":""}', b'{"x":{}', b'{"text":"a"}}',
        ]
    ),
)  # fmt: skip


def both_ways(block: bytes, field: str = "text"):
    data = np.frombuffer(block, np.uint8)
    starts, ends = lines_of(data)
    fast = json_lines._read_fast(data, field, starts, ends, 1) if len(data) else None
    return fast, json_lines._read_carefully(data, field, starts, ends, 1)


@settings(max_examples=600, deadline=None)
@given(st.lists(lines, min_size=1, max_size=5), st.sampled_from([b"\n", b"\r\n"]), st.booleans())
def test_where_the_fast_way_answers_it_gives_the_same_bytes(rows, newline, closed):
    fast, careful = both_ways(newline.join(rows) + (newline if closed else b""))
    if fast is not None:
        assert not careful.faults
        assert fast.data[fast.offsets[0] : fast.offsets[-1]].tobytes() == careful.data.tobytes()
        assert (fast.offsets - fast.offsets[0]).tolist() == careful.offsets.tolist()
        assert fast.lines.tolist() == careful.lines.tolist()


def fates(block: bytes) -> list:
    """For each row its text, or the reason that it has none."""
    column, _ = read_json_lines(np.frombuffer(block, np.uint8), "text", 1)
    reasons = {fault.row: fault.reason for fault in column.faults}
    ends = zip(column.offsets, column.offsets[1:], strict=False)
    return [reasons.get(row, column.data[a:b].tobytes()) for row, (a, b) in enumerate(ends)]


@settings(max_examples=300, deadline=None)
@given(st.lists(lines, min_size=1, max_size=5))
def test_what_becomes_of_a_row_does_not_depend_on_its_neighbours(rows):
    assert fates(b"\n".join(rows)) == [fate for row in rows if row for fate in fates(row)]


@pytest.mark.parametrize("line", BEYOND_PYTHON.values(), ids=BEYOND_PYTHON)
@pytest.mark.parametrize("neighbour", [b'{"text":"b"}', b"{broken", b'{"text":7}', b'{"text":"b","n":NaN} '])
def test_what_is_beyond_python_in_other_fields_does_not_cost_a_text(line, neighbour):
    alone = fates(neighbour)
    assert fates(line) == [b"a"]
    assert fates(line + b"\n" + neighbour) == [b"a", *alone]
    assert fates(neighbour + b"\n" + line + b"\n") == [*alone, b"a"]


@given(st.lists(st.text(max_size=20), min_size=1, max_size=8), st.booleans())
def test_ordinary_lines_take_the_fast_way_and_come_back(rows, ascii_):
    block = "".join(json.dumps({"n": i, "text": text}, ensure_ascii=ascii_) + "\n" for i, text in enumerate(rows))
    block = block.replace("\0", "\\u0000").encode()
    fast, careful = both_ways(block)
    assert fast is not None
    raw = fast.data.tobytes()
    assert [raw[a:b].decode() for a, b in zip(fast.offsets, fast.offsets[1:], strict=False)] == rows
    assert careful.data.tobytes() == raw


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a"', "malformed-json"),
        (b'{"text": "a"} trailing', "malformed-json"),
        (b'{"text": "a"}{"text": "b"}', "malformed-json"),
        (b'["a"]', "not-an-object"),
        (b'"a"', "not-an-object"),
        (b'{"body": "a"}', "missing-field"),
        (b'{"text": null}', "null"),
        (b'{"text": 7}', "not-a-string"),
        (b'{"text": ["a"]}', "not-a-string"),
        (b'{"text": "a\\ud800b"}', "lone-surrogate"),
        (b'{"text": "a\\udc00b"}', "lone-surrogate"),
        (b'{"text": "a\xff"}', "invalid-utf8"),
        (b'{"text": "a", "other": "\xed\xa0\x80"}', "invalid-utf8"),
        (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "malformed-json"),
    ],
)
def test_each_bad_line_has_its_reason_and_its_neighbours_live(line, reason):
    column, lines = read_json_lines(
        np.frombuffer(b'{"text": "one"}\n\n' + line + b'\n{"text": "two"}', np.uint8), "text", 10
    )
    assert lines == 4
    assert column.lines.tolist() == [10, 12, 13]
    assert [(fault.row, fault.reason) for fault in column.faults] == [(1, reason)]
    assert column.data.tobytes() == b"onetwo"
    assert column.offsets.tolist() == [0, 3, 3, 6]


def test_what_python_writes_in_other_fields_does_not_cost_a_text():
    block = b'{"text": "a", "score": NaN}\n{"text": "b", "x": "\\ud800", "y": -Infinity}\n'
    column, _ = read_json_lines(np.frombuffer(block, np.uint8), "text", 1)
    assert (column.data.tobytes(), list(column.faults)) == (b"ab", [])


def test_arrays_of_records_are_judged_like_lines():
    column = read_json_array(b'[{"text": "a"}, {"text": null}, 3, {"text": "\\ud800"}, {"text": "b"}]', "text")
    assert [fault.reason for fault in column.faults] == ["null", "not-an-object", "lone-surrogate"]
    assert column.data.tobytes() == b"ab"
    assert read_json_array(b'{"text": "a"}', "text") is None
    assert read_json_array(b'[{"text": "a"}', "text") is None
