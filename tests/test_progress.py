"""What a long job says of itself where nobody looks at a terminal."""

from __future__ import annotations

from penstock import progress
from penstock.progress import Meter


def lines(capsys) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_a_line_now_and_then_and_one_at_the_end_each_once(capsys, monkeypatch):
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    with Meter("copying", total=10, unit="files") as meter:
        meter.add(4)
        meter.add(6, note="all of them")
    first, last = lines(capsys)
    assert first.startswith("copying: 4 files of 10 files")
    assert last.startswith("copying: 10 files of 10 files")
    assert last.endswith("all of them")


def test_what_was_done_since_the_last_line_is_said_at_the_end(capsys):
    with Meter("copying", unit="B") as meter:
        meter.add(2_500_000)
    assert [line.split(",")[0] for line in lines(capsys)] == ["copying: 2.5 MB"]


def test_nothing_is_said_of_nothing_or_where_it_is_not_to_be_shown(capsys):
    with Meter("copying"):
        pass
    with Meter("copying", show=False) as meter:
        meter.add(1)
    assert lines(capsys) == []
