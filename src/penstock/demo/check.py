"""The demo's proof: what the interrupted run saw, compared step by step with an uninterrupted pass.

The uninterrupted pass reads the same bins through a loader of its own, start to end, and trains nothing.
Its running hashes must be those in the training logs at every step, those included that the killed process
took after its last checkpoint and the resumed one took again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.demo.settings import FIRST_HASH, DemoSettings, steps_of
from penstock.demo.train import open_train_loader, running_hash

_TIMED_S = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether the logs agree with the uninterrupted pass."""

    num_steps: int
    """Steps of the whole run."""
    num_compared: int
    """Lines of the logs compared: more than the steps by those that were taken twice."""
    problem: str | None
    """The first thing that is not as it should be; None if all is."""
    hash: str
    """Running hash of the uninterrupted pass after its last step."""

    @property
    def identical(self) -> bool:
        """Whether interrupted and uninterrupted runs saw identical batches."""
        return self.problem is None


def uninterrupted_hashes(folder: Path, settings: DemoSettings) -> list[str]:
    """Read all batches of the run once more, in one go, and give the running hash after each."""
    hashes: list[str] = []
    seen = FIRST_HASH
    with open_train_loader(folder, settings, num_workers=0) as loader:
        for batch in _endless(loader):
            if len(hashes) == settings.steps:
                return hashes
            seen = running_hash(seen, batch)
            hashes.append(seen)
    raise AssertionError("an endless stream has ended")


def compare(expected: Sequence[str], logs: Sequence[Sequence[dict[str, Any]]]) -> Verdict:
    """Compare the logs of a run's processes, in their order, with the hashes of an uninterrupted pass.

    Args:
        expected: running hash after each step, from step 1.
        logs: the records of each process; each must go on from a step that those before it had reached.
    """
    steps = [steps_of(log) for log in logs]
    return Verdict(
        num_steps=len(expected),
        num_compared=sum(map(len, steps)),
        problem=next(_problems(expected, steps), None),
        hash=expected[-1],
    )


def _problems(expected: Sequence[str], processes: Sequence[Sequence[dict[str, Any]]]) -> Iterator[str]:
    """Yield what is not as it should be, in the order of the logs."""
    reached = 0
    for process, records in enumerate(processes, start=1):
        before = min(reached, records[0]["step"] - 1) if records else reached
        for record in records:
            step, found = record["step"], record["hash"]
            if step != before + 1:
                yield f"process {process} logged step {step} where {before + 1} was due"
            if not 1 <= step <= len(expected):
                yield f"process {process} logged step {step}, and the run has {len(expected)}"
            elif found != expected[step - 1]:
                yield (
                    f"at step {step} process {process} had seen other batches: its running hash is {found}, that of "
                    f"the uninterrupted pass {expected[step - 1]}"
                )
            before = step
        reached = max(reached, before)
    if reached != len(expected):
        yield f"the logs end at step {reached}, and the run has {len(expected)}"


def time_data_alone(folder: Path, settings: DemoSettings) -> float:
    """Give the tokens per second of the loader when nothing is done with the batches."""
    with open_train_loader(folder, settings, num_workers=0) as loader:
        batches = _endless(loader)
        next(batches)
        count, started = 0, time.perf_counter()
        while (took := time.perf_counter() - started) < _TIMED_S:
            for _ in range(100):
                next(batches)
            count += 100
    return count * settings.tokens_per_step / took


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
