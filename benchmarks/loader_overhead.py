"""What a loader itself costs, on a map-style dataset in memory whose samples cost next to nothing.

Samples per second through whole epochs, shuffled, batches of 64: torch's DataLoader, torchdata's StatefulDataLoader
(where installed) and ours, inline and with 1 and 2 workers in threads and in processes, in turns. Workers are started
and warm before the clock runs. Then the time from a loader's construction to its first batch, workers included, in
fresh loaders.

Run: python benchmarks/loader_overhead.py [--samples 60000] [--rounds 5]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch.utils.data import DataLoader

from penstock import StreamingDataLoader
from side_by_side import compare

try:
    from torchdata.stateful_dataloader import StatefulDataLoader
except ImportError:
    StatefulDataLoader = None

BATCH = 64


class InMemory:
    """Sample i is row i of an array: what a small tabular or token dataset looks like."""

    def __init__(self, num_samples: int) -> None:
        self.rows = np.arange(num_samples * 16, dtype=np.float32).reshape(num_samples, 16)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"x": self.rows[index], "label": index}


class Batched(InMemory):
    """The same with `fetch`: one indexing for all samples of a call."""

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": self.rows[ids], "label": ids.copy()}

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        return [self[index] for index in indices]


def torch_loader(kind: Callable[..., Any], dataset: Any, workers: int) -> Any:
    options = {"persistent_workers": True, "multiprocessing_context": "forkserver"} if workers else {}
    return kind(dataset, batch_size=BATCH, shuffle=True, num_workers=workers, **options)


def ours(dataset: Any, workers: int, lane: str = "thread") -> StreamingDataLoader:
    return StreamingDataLoader(dataset, BATCH, shuffle=True, num_workers=workers, worker_type=lane)


def loaders(num_samples: int, workers: int) -> dict[str, Callable[[], Iterable[Any]]]:
    """Name → function that makes a loader with so many workers."""
    plain, batched = InMemory(num_samples), Batched(num_samples)
    makers: dict[str, Callable[[], Iterable[Any]]] = {
        "torch DataLoader": lambda: torch_loader(DataLoader, plain, workers)
    }
    if StatefulDataLoader is not None:
        makers["torchdata StatefulDataLoader"] = lambda: torch_loader(StatefulDataLoader, plain, workers)
    for lane in ("thread", "process") if workers else ("inline",):
        kind = lane if workers else "thread"
        makers[f"penstock, {lane}"] = lambda kind=kind: ours(plain, workers, kind)
        makers[f"penstock with fetch, {lane}"] = lambda kind=kind: ours(batched, workers, kind)
    return makers


def throughput(loader: Iterable[Any], num_samples: int) -> float:
    """Read one epoch; thousand samples a second."""
    started = time.perf_counter()
    count = sum(len(batch["label"]) for batch in loader)
    assert count == num_samples
    return count / (time.perf_counter() - started) / 1e3


def first_batch(make: Callable[[], Iterable[Any]]) -> float:
    """Make a loader and take one batch; how often a second that could be done."""
    started = time.perf_counter()
    loader = make()
    stream = iter(loader)
    next(stream)
    took = time.perf_counter() - started
    if isinstance(loader, StreamingDataLoader):
        loader.close()
    return 1 / took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=60_000)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    if StatefulDataLoader is None:
        print("torchdata is not installed: StatefulDataLoader is left out")
    for workers in (0, 1, 2):
        makers = loaders(options.samples, workers)
        opened = {name: make() for name, make in makers.items()}
        compare(
            f"loader overhead, {workers} workers",
            {name: lambda loader=loader: throughput(loader, options.samples) for name, loader in opened.items()},
            reference="torch DataLoader",
            unit="ksamples/s",
            rounds=options.rounds,
        )
        for loader in opened.values():
            if isinstance(loader, StreamingDataLoader):
                loader.close()
        del opened, loader
        compare(
            f"first batch, {workers} workers",
            {name: lambda make=make: first_batch(make) for name, make in makers.items()},
            reference="torch DataLoader",
            unit="first batches/s",
            rounds=options.rounds,
        )


if __name__ == "__main__":
    main()
