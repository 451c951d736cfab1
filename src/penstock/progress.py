"""Meters and progress bars, one look for every long job.

A job reports to a `Meter`; where standard error is a terminal the meter draws a bar, elsewhere it
prints a line now and then, so logs stay readable.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_EVERY_S = 10.0


class Meter:
    """Count work as it is done, and show it.

    Args:
        label: what is going on, two or three words.
        total: units of work in all; None where nobody knows.
        unit: "B" prints bytes as MB; anything else is printed as it is.
        show: False counts without printing.

    >>> with Meter("copying", total=10, unit="files", show=False) as meter:
    ...     meter.add(10, note="done")
    >>> meter.done
    10
    """

    def __init__(self, label: str, *, total: int | None = None, unit: str = "it", show: bool = True) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self.note = ""
        self._show = show
        self._started = self._last_line = time.monotonic()
        self._printed = 0
        """How much was done when a line was last printed."""
        self._bar: Progress | None = None
        self._task: Any = None

    def __enter__(self) -> Meter:
        self._started = self._last_line = time.monotonic()
        if self._show and sys.stderr.isatty():
            self._bar, self._task = _open_bar(self.label, self.total)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._show and self.done != self._printed:
            self._print()

    def add(self, amount: int, note: str = "") -> None:
        """Record that `amount` more units are done; `note` replaces the text beside the bar."""
        self.done += amount
        self.note = note or self.note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=f"{self._rate()}  {self.note}")
        elif self._show and time.monotonic() - self._last_line > LINE_EVERY_S:
            self._print()

    def _print(self) -> None:
        self._last_line, self._printed = time.monotonic(), self.done
        print(self._line(), file=sys.stderr, flush=True)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the meter was entered."""
        return time.monotonic() - self._started

    def _rate(self) -> str:
        return f"{_human(self.done / max(self.elapsed_s, 1e-9), self.unit)}/s"

    def _line(self) -> str:
        goal = "" if self.total is None else f" of {_human(self.total, self.unit)}"
        note = f", {self.note}" if self.note else ""
        return f"{self.label}: {_human(self.done, self.unit)}{goal}, {self._rate()}{note}{self._left()}"

    def _left(self) -> str:
        """Say how long the rest will take, where that can be known."""
        if self.total is None or not 0 < self.done < self.total:
            return ""
        seconds = round(self.elapsed_s * (self.total - self.done) / self.done)
        return "" if not seconds else f", {seconds // 3600}:{seconds // 60 % 60:02}:{seconds % 60:02} left"


def _human(amount: float, unit: str) -> str:
    if unit == "B":
        return f"{amount / 1e6:,.1f} MB"
    return f"{amount:,.0f} {unit}"


def _open_bar(label: str, total: int | None) -> tuple[Progress, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        "{task.description}",
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    bar = Progress(*columns, console=Console(stderr=True))
    bar.start()
    return bar, bar.add_task(label, total=total, note="")
