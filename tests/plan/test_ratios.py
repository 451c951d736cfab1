from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.plan.ratios import check_weights, split, whole_numbers


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([0.4, 0.6], [2, 3]),
        ([0.7, 0.3], [7, 3]),
        ([0.1, 0.2, 0.7], [1, 2, 7]),
        ([2, 3, 4], [2, 3, 4]),
        ([1e-4, 0.9999], [1, 9999]),
        ([5.0], [1]),
        ([Fraction(1, 3), Fraction(2, 3)], [1, 2]),
    ],
)
def test_decimals_mean_what_they_say(weights, expected):
    assert whole_numbers(weights, 10**6) == expected


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_no_weight_becomes_nothing_and_all_keep_six_decimals(weights):
    numbers = whole_numbers(weights, 10**6)
    assert min(numbers) >= 1
    assert sum(numbers) <= 10**6
    for number, weight in zip(numbers, weights, strict=True):
        # Each of the others that would be nothing takes one part.
        assert abs(number / sum(numbers) - weight / sum(weights)) <= 1e-6 * len(weights)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=20), st.integers(20, 10**6))
def test_a_split_gives_all_there_is_to_the_nearest(weights, total):
    parts = split(total, weights)
    assert sum(parts) == total
    assert min(parts) >= 1
    if all(weight * total / sum(weights) >= 1 for weight in weights):
        assert all(
            abs(part - weight * total / sum(weights)) < 1.001 for part, weight in zip(parts, weights, strict=True)
        )


def test_there_must_be_one_part_for_each():
    with pytest.raises(ConfigError, match="2 cannot be split among 3"):
        split(2, [1, 1, 1])


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "a lot", None, True])
def test_a_weight_is_a_number_of_nothing_or_more(weight):
    with pytest.raises(ConfigError, match="the weight of 'b' must be a finite number, 0 or more"):
        check_weights("the weight", {"a": 1, "b": weight})


def test_weights_of_nothing_but_nothing_are_refused():
    with pytest.raises(ConfigError, match="above 0 for one stream at least"):
        check_weights("the weight", {"a": 0, "b": 0.0})
