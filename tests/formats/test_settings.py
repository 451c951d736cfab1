"""Any file of settings is read by the same rules: with its lines, and against the keys its reader knows."""

from __future__ import annotations

from functools import partial

import pytest

from penstock import ConfigError, ObjectMissing
from penstock.formats.settings import read_settings
from penstock.types import check_int

CHECKS = {"rows": partial(check_int, minimum=1), "anything": lambda name, value: value}


def test_what_is_written_is_given_and_nothing_else(tmp_path):
    path = tmp_path / "settings.yaml"
    path.write_text('# a comment\nanything: "\n  SELECT *\n  FROM t\n  "\n')
    assert read_settings(path, CHECKS) == {"anything": " SELECT * FROM t "}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rows: 3\nrow: 4\n", r"line 2: there is no key 'row'; did you mean rows\?"),
        ("zzz: 4\n", "line 1: there is no key 'zzz'; the keys are rows, anything"),
        ("rows: 0\n", "line 1: rows must be an integer >= 1, got 0"),
        ("rows: 1\n\nrows: 1\n", "line 3: rows is given twice"),
        ("job:\n  rows: 1\n", "keys stand at the top level"),
        ("- rows\n", "must hold lines of `key: value`"),
        ("rows: [1\n", "this is no YAML"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, text, words):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_settings(path, CHECKS)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(ObjectMissing, match=r"absent\.yaml does not exist: give the path of a YAML file of settings$"):
        read_settings(tmp_path / "absent.yaml", CHECKS)
