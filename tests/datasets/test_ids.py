"""Numbers of samples: the last is -1, and one that is not there is an IndexError, singly and among others."""

from __future__ import annotations

import numpy as np
import pytest

from penstock.datasets.ids import check_id, check_ids


@pytest.mark.parametrize(("index", "number"), [(0, 0), (4, 4), (-1, 4), (-5, 0), (np.int32(-2), 3)])
def test_a_negative_number_counts_from_the_end(index, number):
    assert check_id(index, 5, "here") == number


@pytest.mark.parametrize("index", [5, -6, 10**30])
def test_there_is_none_outside_the_range(index):
    with pytest.raises(IndexError, match=f"sample {index} of here: it has 5 of them, from 0 to 4"):
        check_id(index, 5, "here")


@pytest.mark.parametrize("index", [True, 1.0, "1", None, slice(2), [1], np.array([1, 2])])
def test_only_a_whole_number_is_one(index):
    with pytest.raises(TypeError, match="asked for by its number"):
        check_id(index, 5, "here")


def test_the_highest_of_several():
    assert check_ids(np.array([3, 0, 4, 1]), 5, "here") == 4
    assert check_ids(np.array([], np.int64), 5, "here") == -1


@pytest.mark.parametrize("ids", [[0, 5], [-1, 2], [0, 2**62]])
def test_none_of_several_may_be_outside(ids):
    with pytest.raises(IndexError, match=f"samples {min(ids)} to {max(ids)} of here: it has 5"):
        check_ids(np.array(ids), 5, "here")
    with pytest.raises(IndexError, match="it has none"):
        check_ids(np.array([0]), 0, "here")
