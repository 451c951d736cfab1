"""Small datasets to hold a loader to its laws: one that counts what is read, one that makes reading slow."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from penstock.seeds import uniform
from penstock.types import check_int


class CountingDataset:
    """Samples that are their own ids, and a record of every one that is read, by whatever thread or process.

    Args:
        num_samples: how many there are; a billion cost nothing.
        log: file to which ids are appended as they are read; None records nothing.
        width: numbers in each sample's array `x`.
        arrays: whether `fetch` gives a dict of arrays, or a list of samples.

    >>> CountingDataset(10).fetch(np.array([7, 2]))["id"].tolist()
    [7, 2]
    """

    def __init__(self, num_samples: int, log: Path | str | None = None, *, width: int = 4, arrays: bool = True) -> None:
        self.num_samples = check_int("num_samples", num_samples, minimum=1)
        self.log = None if log is None else str(log)
        self.width = check_int("width", width, minimum=1)
        self.arrays = arrays

    @property
    def fingerprint(self) -> str:
        """What the samples are."""
        return f"counting-{self.num_samples}-{self.width}"

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._samples(self._read(np.array([index])))[0]

    def fetch(self, ids: np.ndarray) -> list[Any] | dict[str, np.ndarray]:
        """Give the samples of ids: `id`, and `x` filled with it."""
        rows = self._read(np.asarray(ids))
        return rows if self.arrays else self._samples(rows)

    def reads(self) -> np.ndarray:
        """Give every id read so far, int64, in the order of the reads."""
        assert self.log is not None, "this dataset was given no log to record its reads in"
        return np.fromfile(self.log, dtype=np.int64) if os.path.exists(self.log) else np.empty(0, dtype=np.int64)

    def _read(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        if ids.size and not 0 <= ids.min() <= ids.max() < self.num_samples:
            raise IndexError(f"ids must be in [0, {self.num_samples}), got {ids.min()} to {ids.max()}")
        if self.log is not None:
            # One unbuffered append: whole, whoever else is writing.
            with open(self.log, "ab", buffering=0) as file:
                file.write(ids.astype(np.int64).tobytes())
        return {"id": ids.astype(np.int64), "x": np.repeat(ids.astype(np.float32)[:, None], self.width, axis=1)}

    @staticmethod
    def _samples(rows: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        return [{"id": id_, "x": x} for id_, x in zip(rows["id"], rows["x"], strict=True)]


class LatencyDataset:
    """Another dataset, each read of it delayed by up to `max_s` seconds, so that work finishes in another order."""

    def __init__(self, dataset: Any, max_s: float = 0.005) -> None:
        self.dataset = dataset
        self.max_s = max_s

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        self._wait(index)
        return self.dataset[index]

    def fetch(self, ids: np.ndarray) -> list[Any] | dict[str, np.ndarray]:
        """Give the samples of ids, later."""
        self._wait(int(ids[0]))
        fetch = getattr(self.dataset, "fetch", None)
        return [self.dataset[id_] for id_ in ids.tolist()] if fetch is None else fetch(ids)

    def __getattr__(self, name: str) -> Any:
        # Only what the loader asks a dataset for: anything more would answer for pickle, too.
        if name not in ("fingerprint", "block_ends", "lengths", "collate"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def _wait(self, id_: int) -> None:
        time.sleep(uniform(id_, "latency") / 2**63 * self.max_s)
