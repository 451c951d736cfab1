"""The demo's picture: loss by step, with the place where the run was cut and went on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.demo.settings import steps_of
from penstock.demo.train import NUM_EVALUATION_BATCHES
from penstock.errors import ConfigError

_SMOOTH_STEPS = 20
_INK, _FIRST, _SECOND, _VALIDATION = "#2b2b2b", "#9fb8d1", "#1f5a94", "#d1603d"


def plot_losses(path: Path, logs: Sequence[Sequence[dict[str, Any]]], vocab_size: int) -> None:
    """Draw the training and validation losses of an interrupted run, as a PNG.

    Args:
        path: file to write.
        logs: records of the process that was killed and of the one that went on.
        vocab_size: for the line of a model that knows nothing.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("the loss plot needs matplotlib: pip install 'penstock[plot]'") from error
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first, second = (steps_of(log) for log in logs)
    resumed_at = second[0]["step"] - 1
    kept = [record for record in first if record["step"] <= resumed_at] + second
    axes.plot(*_points(kept, "loss"), color=_FIRST, linewidth=0.6, label="training loss, each step")
    steps, losses = _points(kept, "loss")
    axes.plot(steps, _smoothed(losses), color=_SECOND, linewidth=1.8, label=f"mean of the last {_SMOOTH_STEPS}")
    evaluated = {record["step"]: record for log in logs for record in log if record["event"] == "checkpoint"}
    axes.plot(
        *_points([evaluated[step] for step in sorted(evaluated)], "val_loss"),
        color=_VALIDATION,
        marker="o",
        markersize=4,
        linewidth=1.2,
        label=f"validation loss, {NUM_EVALUATION_BATCHES} batches",
    )
    _mark_interruption(axes, first[-1]["step"], resumed_at)
    axes.axhline(math.log(vocab_size), color=_INK, linewidth=0.6, linestyle=":")
    axes.annotate("guessing", (steps[-1], math.log(vocab_size)), ha="right", va="bottom", fontsize=8, color=_INK)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a token")
    axes.set_title("One run, two processes: killed, and resumed from its last checkpoint", fontsize=11, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)


def _mark_interruption(axes: Any, killed_at: int, resumed_at: int) -> None:
    """Shade the steps that were lost with the first process and taken again by the second."""
    axes.axvspan(resumed_at, killed_at, color=_INK, alpha=0.12, linewidth=0)
    axes.axvline(killed_at, color=_INK, linewidth=1)
    low, high = axes.get_ylim()
    axes.annotate(
        f"killed at step {killed_at},\nresumed from step {resumed_at}",
        (killed_at, low + 0.72 * (high - low)),
        xytext=(6, 0),
        textcoords="offset points",
        fontsize=9,
        color=_INK,
    )


def _points(records: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    return [record["step"] for record in records], [record[name] for record in records]


def _smoothed(values: list[float]) -> list[float]:
    """Average each value with those before it."""
    windows = (values[max(0, stop - _SMOOTH_STEPS) : stop] for stop in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]
