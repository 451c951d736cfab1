"""Keys differ, or an error says which do not; the same keys have the same fingerprint."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import FormatError
from penstock.index.keys import check_keys, hash_texts

texts = st.text(alphabet="ab\0ü", min_size=1, max_size=20)


def checked(keys, cuts=(), kind=None):
    """Check keys that lie in several chunks."""
    whole = pa.array(keys, kind or pa.string())
    ends = [0, *sorted(cuts), len(keys)]
    chunks = [whole[start:stop] for start, stop in pairwise(ends)]
    return check_keys(lambda: chunks, "index", ["index", "url"], "here")


@settings(deadline=None)
@given(st.lists(texts, max_size=40), st.lists(st.integers(0, 40), max_size=3))
def test_keys_pass_exactly_if_they_differ(keys, cuts):
    cuts = [min(cut, len(keys)) for cut in cuts]
    if len(set(keys)) == len(keys):
        checked(keys, cuts)
    else:
        with pytest.raises(FormatError, match="there twice"):
            checked(keys, cuts)


@settings(deadline=None)
@given(st.lists(texts, unique=True, min_size=1), st.lists(st.integers(0, 40), max_size=3))
def test_the_fingerprint_depends_on_the_keys_and_not_on_how_they_lie(keys, cuts):
    cuts = [min(cut, len(keys)) for cut in cuts]
    assert checked(keys, cuts) == checked(keys) == checked(keys, kind=pa.large_string())
    assert checked([*keys, "c"]) != checked(keys)
    if len(keys) > 1:
        assert checked(keys[::-1]) != checked(keys)


def test_keys_joined_differently_have_another_fingerprint():
    assert checked(["ab", "c"]) != checked(["a", "bc"])


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=30))
def test_a_hash_depends_on_the_text_alone(values):
    hashes = hash_texts(pa.array(["before", *values, "after"], pa.string())[1:-1])
    alone = [int(hash_texts(pa.array([value], pa.string()))[0]) for value in values]
    assert hashes.tolist() == alone
    assert len(set(alone)) == len(set(values))


def test_hashes_of_millions_of_like_keys_differ():
    numbers = pa.array(np.arange(1_000_000)).cast(pa.string())
    assert len(np.unique(hash_texts(numbers))) == 1_000_000
