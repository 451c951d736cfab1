"""Claim: rounds add less than 2 % to an epoch, and from one round to the next nothing is started again.

The same batches, shuffled, once by plain epochs and once in rounds of several lengths: rows of 1,024 tokens from
memory in the trainer's own thread, batches of 32; the same in two threads; and samples that take some work each, in
two threads. Processor time of this process per batch, in alternating pairs, so that others on the machine hardly
count. Then the time from a round's last batch to the next round's first one, beside that between two batches of a
round, with two worker processes.

Run: python benchmarks/rounds.py [pairs]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from penstock import StreamingDataLoader
from side_by_side import compare

BATCH = 32
ROUNDS = (1000, 100, 20, 1)


class Tokens:
    """Rows of a long array of tokens, as a token dataset gives them."""

    inline = True

    def __init__(self, num_samples: int, length: int = 1024) -> None:
        self.rows = np.arange(num_samples * length, dtype=np.uint16).reshape(num_samples, length)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"tokens": self.rows[index]}

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Gather rows."""
        return {"tokens": self.rows[ids].astype(np.int64)}


class Decoded(Tokens):
    """Samples that cost about 20 µs each, as small decoded ones do."""

    inline = False

    def fetch(self, ids: np.ndarray) -> Any:
        """Make samples one by one."""
        return [{"x": np.sort(self.rows[id_][:256]).astype(np.float32)} for id_ in ids.tolist()]


def per_cpu_second(loader: StreamingDataLoader, batches: int) -> float:
    """Read batches, through as many epochs or rounds as it takes; batches per second of processor time."""
    start = time.process_time()
    left = batches
    while left > 0:
        for _ in loader:
            left -= 1
    return (batches - left) / (time.process_time() - start)


def costs(title: str, dataset: Any, workers: int, batches: int, pairs: int) -> None:
    """Compare epochs with rounds."""
    options: dict[str, Any] = {"shuffle": True, "num_workers": workers, "worker_type": "thread", "remainder": "carry"}
    loaders = {"epochs": StreamingDataLoader(dataset, BATCH, **options)}
    for length in ROUNDS:
        loaders[f"rounds of {length}"] = StreamingDataLoader(dataset, BATCH, round_batches=length, **options)
    # What the same thing twice differs by is the noise.
    loaders["epochs, again"] = StreamingDataLoader(dataset, BATCH, **options)
    runs: dict[str, Callable[[], float]] = {
        name: partial(per_cpu_second, one, batches) for name, one in loaders.items()
    }
    ratios = compare(title, runs, reference="epochs", unit="batches/s of processor time", rounds=pairs)
    batch_s = 1 / runs["epochs"]()
    change_s = (1 / ratios["rounds of 1"] - 1) * batch_s
    print(f"  a change of rounds: {change_s * 1e6:.1f} µs; a batch: {batch_s * 1e6:.1f} µs")
    for loader in loaders.values():
        loader.close()


def changes(dataset: Any) -> None:
    """Print what the first batch of a round is waited for, beside the others."""
    with StreamingDataLoader(
        dataset, BATCH, shuffle=True, num_workers=2, worker_type="process", round_batches=50
    ) as loader:
        first, others = [], []
        for round_ in loader.rounds(20):
            times = [time.perf_counter()]
            for _ in round_:
                times.append(time.perf_counter())
            waits = [later - earlier for earlier, later in pairwise(times)]
            first.append(waits[0])
            others += waits[1:]
        shown = ", ".join(f"{statistics.median(series) * 1e6:,.0f} µs" for series in (first[1:], others))
        print(
            f"\nFirst batch of a round, and another batch, medians: {shown}; the very first: {first[0] * 1e3:,.0f} ms"
        )


def main() -> None:
    """Compare in the trainer's thread and in two threads, then the change of rounds in processes."""
    pairs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    tokens, decoded = Tokens(64_000), Decoded(64_000)
    costs("tokens, trainer's thread", tokens, 0, 4_000, pairs)
    costs("tokens, two threads", tokens, 2, 2_000, pairs)
    costs("made samples, two threads", decoded, 2, 1_000, pairs)
    changes(Decoded(4_000))


if __name__ == "__main__":
    main()
