"""Samples as lines: the bytes are those of JSON, and what JSON has not is never lost silently."""

from __future__ import annotations

import errno
import json
import math
import os
from datetime import UTC, date, datetime, time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import BadRecord
from penstock.formats.assets import keep_asset
from penstock.formats.files import digest
from penstock.formats.json_values import LineEncoder

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(-1e15, 1e15).map(lambda x: round(x, 3)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def encoded(sample, **options) -> bytes:
    return LineEncoder("web", **options).encode(sample, 0)


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_a_line_is_the_json_of_its_sample(sample):
    line = encoded(sample)
    assert line.endswith(b"}\n")
    assert line.count(b"\n") == 1
    assert line.decode() == json.dumps(sample, ensure_ascii=False, separators=(",", ":")) + "\n" or any_number(sample)
    assert json.loads(line) == sample


def any_number(value) -> bool:
    """Whether there is a number that has several spellings."""
    if isinstance(value, dict | list):
        return any(map(any_number, value.values() if isinstance(value, dict) else value))
    return isinstance(value, float)


def test_characters_stay_as_they_are_and_line_ends_do_not_break_the_line():
    assert encoded({"text": "água\r\n漢\u2028😀"}).decode() == '{"text":"água\\r\\n漢\u2028😀"}\n'


def test_integers_of_any_length_are_exact():
    assert json.loads(encoded({"n": 2**200, "m": -(2**64)})) == {"n": 2**200, "m": -(2**64)}


def test_keys_that_are_no_texts_become_texts():
    assert json.loads(encoded({1: "a", None: "b"})) == {"1": "a", "null": "b"}


def test_times_are_iso_8601():
    line = encoded(
        {
            "at": datetime(2026, 2, 3, 4, 5, 6, 7, tzinfo=UTC),
            "day": date(2026, 2, 3),
            "time": time(4, 5, tzinfo=UTC),
            "numpy": np.datetime64("2026-02-03T04:05:06"),
        }
    )
    assert json.loads(line) == {
        "at": "2026-02-03T04:05:06.000007+00:00",
        "day": "2026-02-03",
        "time": "04:05:00+00:00",
        "numpy": "2026-02-03T04:05:06",
    }


def test_numbers_and_arrays_of_numpy_are_numbers_and_lists():
    line = encoded({"a": np.arange(3), "b": np.float32(0.5), "c": np.arange(6).reshape(2, 3).T, "d": np.bool_(True)})
    assert json.loads(line) == {"a": [0, 1, 2], "b": 0.5, "c": [[0, 3], [1, 4], [2, 5]], "d": True}


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        np.float32("nan"),
        [1.0, {"x": math.nan}],
        np.array([1.0, np.inf]),
        np.array(["a", math.nan], dtype=object),
        np.datetime64("NaT"),
        np.array(["2020-01-01", "NaT"], "datetime64[s]"),
    ],
    ids=["nan", "inf", "-inf", "numpy", "nested", "array", "objects", "no time", "times"],
)
def test_nan_is_refused_or_counted_but_never_silent(value):
    sample = {"text": "null is a word", "x": value, "y": None}
    with pytest.raises(BadRecord, match=r"sample 7 of web .* holds NaN") as caught:
        LineEncoder("web").encode(sample, 7)
    assert (caught.value.reason, caught.value.line) == ("nan", 8)
    encoder = LineEncoder("web", on_nan="null")
    line = encoder.encode(sample, 7)
    assert encoder.nulled == 1
    assert b"NaN" not in line
    assert json.loads(line)["text"] == "null is a word"
    encoder.encode({"text": "null", "y": None}, 8)
    assert encoder.nulled == 1, "null itself is no NaN"


def test_bytes_become_files_named_by_their_content(tmp_path):
    image = b"\x89PNG\r\n and so on"
    sample = {"image": {"bytes": image, "path": "x.png"}, "more": [memoryview(b"abc"), bytearray(image)]}
    line = json.loads(encoded(sample, assets=tmp_path / "assets"))
    name, other = digest(image), digest(b"abc")
    assert line["image"] == {"bytes": f"assets/{name[:2]}/{name}.png", "path": "x.png"}
    assert line["more"] == [f"assets/{other[:2]}/{other}.dat", line["image"]["bytes"]]
    assert (tmp_path / line["image"]["bytes"]).read_bytes() == image
    assert len([place for place in tmp_path.rglob("*") if place.is_file()]) == 2, "the same bytes are one file"


def test_a_name_without_its_bytes_is_written_again(tmp_path):
    place = tmp_path / keep_asset(tmp_path / "assets", b"the bytes")
    place.write_bytes(b"\0" * 9)
    keep_asset(tmp_path / "assets", b"the bytes")
    assert place.read_bytes() == b"the bytes"


@pytest.mark.parametrize(
    ("value", "reason"),
    [({1, 2}, "not-json"), (object(), "not-json"), (b"no folder", "not-json"), ("\ud800", "lone-surrogate")],
)
def test_what_json_can_not_say_is_refused_by_name(value, reason):
    with pytest.raises(BadRecord, match="sample 0 of web cannot be written") as caught:
        encoded({"x": value})
    assert caught.value.reason == reason


def test_a_sample_that_holds_itself_is_refused():
    sample: dict = {}
    sample["self"] = sample
    with pytest.raises(BadRecord) as caught:
        encoded(sample)
    assert caught.value.reason == "not-json"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of one process need one of its own")
def test_a_full_disk_under_the_assets_is_not_taken_for_a_bad_sample(tmp_path):
    """Limited to 1 kB a file, the system refuses to write as a full disk does."""
    import subprocess
    import sys

    program = f"""
import resource, signal
from pathlib import Path
from penstock import StoreError
from penstock.formats.json_values import LineEncoder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
try:
    LineEncoder("web", Path({str(tmp_path / "assets")!r})).encode({{"x": bytes(5000)}}, 0)
except StoreError as error:
    print(error.errno)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == str(errno.EFBIG), done.stderr
    assert [place for place in tmp_path.rglob("*") if place.is_file()] == []
