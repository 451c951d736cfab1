"""How every benchmark here compares: contenders take turns in one run, and ratios are quoted.

Machines are shared and noisy, so a figure alone says little. In each round every contender runs once,
a round's figures are divided by the reference's of the same round, and the median over rounds counts.
"""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Callable, Mapping


def compare(
    title: str, contenders: Mapping[str, Callable[[], float]], *, reference: str, unit: str, rounds: int = 5
) -> dict[str, float]:
    """Run contenders in turns and print a table of ratios and one line of JSON.

    Args:
        title: what is compared, for people and for the JSON line.
        contenders: name → function that works for about a second and returns units per second (more is better).
        reference: the contender that the others are divided by.
        unit: what the figures count, such as "Mtok/s".
        rounds: turns each contender gets, after one that is not counted.

    Returns:
        name → median ratio to the reference.
    """
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, run in contenders.items():
            figure = run()
            if turn:
                figures[name].append(figure)
    ratios = {
        name: statistics.median(own / base for own, base in zip(series, figures[reference], strict=True))
        for name, series in figures.items()
    }
    medians = {name: statistics.median(series) for name, series in figures.items()}
    width = max(len(name) for name in contenders)
    print(f"\n{title} ({rounds} rounds, medians)")
    for name in contenders:
        spread = f"{min(figures[name]):,.4g} … {max(figures[name]):,.4g}"
        print(f"  {name:<{width}}  {ratios[name]:8.3f} ×  {medians[name]:>12,.4g} {unit}   ({spread})")
    line = {"benchmark": title, "reference": reference, "unit": unit, "ratios": ratios, "medians": medians}
    print(
        json.dumps({**line, "machine": f"{platform.machine()} {platform.system()} Python {platform.python_version()}"})
    )
    return ratios
