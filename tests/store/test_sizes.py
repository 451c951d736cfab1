"""Sizes in words."""

import pytest

from penstock.errors import ConfigError
from penstock.store.sizes import parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (0, 0),
        ("0", 0),
        ("7b", 7),
        ("2 KB", 2048),
        ("100mb", 100 << 20),
        ("1.5gb", 3 << 29),
        ("2TB", 2 << 40),
        (5, 5),
        (1.5e9, 1_500_000_000),
        ("1TiB", 1 << 40),
        ("3 kib", 3072),
    ],
)
def test_a_size_is_a_number_or_a_text_with_a_unit_of_base_1024(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["", "mb", "-1", -1, "1 zb", "10 mb 3", "1,000", None, True, 1.5, "nan", "1e3"])
def test_what_is_no_size_is_refused_and_shown(size):
    with pytest.raises(ConfigError, match="size") as raised:
        parse_size(size)
    assert str(size) in str(raised.value)
