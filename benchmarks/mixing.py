"""Claim: mixing 8 streams in memory costs less than a tenth over reading one of the same samples.

Small images and labels in memory, shuffled, batches of 128, made in the trainer's own thread: the same number of the
same samples in one dataset, and in 8 that are mixed, in proportion or by weights. Once given as arrays, once one by
one as people's datasets do, and once as JPEGs that are decoded one by one. Beside them torch's DataLoader over
ConcatDataset, which shuffles in no proportion.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial
from typing import Any

import cv2
import numpy as np

from penstock import StreamingDataLoader, mix
from penstock.transforms.collate import stack
from penstock.transforms.reused_buffers import NamedBuffers
from side_by_side import compare

SAMPLES, STREAMS, BATCH = 160_000, 8, 128
SIDE = 32
BUFFERS = NamedBuffers()


class Arrays:
    """Images and labels in memory, rows of which are gathered in one call."""

    inline = True

    def __init__(self, images: Any, labels: np.ndarray) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": self.images[index], "label": int(self.labels[index])}

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Gather rows."""
        return {"image": self.images[ids], "label": self.labels[ids]}


class Samples(Arrays):
    """The same, given one by one."""

    def fetch(self, ids: np.ndarray) -> Any:
        """List samples."""
        return [self[id_] for id_ in ids.tolist()]


class Encoded(Samples):
    """Images as JPEGs in memory, decoded one by one."""

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": cv2.imdecode(self.images[index], cv2.IMREAD_COLOR), "label": int(self.labels[index])}


def rate(loader: Any, batches: int) -> float:
    """Read batches and give thousands of samples a second."""
    coming = itertools.chain.from_iterable(itertools.repeat(loader))
    next(coming)
    start = time.perf_counter()
    for _ in itertools.islice(coming, batches):
        pass
    return batches * BATCH / (time.perf_counter() - start) / 1000


def rate_bare(parts: list[Any], batches: int) -> float:
    """Make batches of several datasets in an order that is known beforehand: thousands of samples a second."""
    ends = np.cumsum([len(part) for part in parts])
    drawn = np.random.default_rng(0).permutation(int(ends[-1]))[: batches * BATCH].reshape(batches, BATCH)
    firsts, plans = ends - [len(part) for part in parts], []
    for ids in drawn:
        streams = np.searchsorted(ends, ids, side="right")
        plans.append([(where, ids[where] - firsts[j]) for j in range(len(parts)) if (where := streams == j).any()])
    make = gather if type(parts[0]) is Arrays else put_together
    batch: dict[str, np.ndarray] = {}
    start = time.perf_counter()
    for plan in plans:
        make(parts, plan, batch)
    return batches * BATCH / (time.perf_counter() - start) / 1000


def gather(parts: list[Any], plan: list[Any], batch: dict[str, np.ndarray]) -> None:
    for part, (where, own) in zip(parts, plan, strict=True):
        rows = part.fetch(own)
        if len(parts) == 1:
            continue
        for name, values in rows.items():
            batch.setdefault(name, np.empty((BATCH, *values.shape[1:]), values.dtype))[where] = values


def put_together(parts: list[Any], plan: list[Any], batch: dict[str, np.ndarray]) -> None:
    samples: list[Any] = [None] * BATCH
    for part, (where, own) in zip(parts, plan, strict=True):
        for place, sample in zip(where.nonzero()[0].tolist(), part.fetch(own), strict=True):
            samples[place] = sample
    batch.update(stack(samples, BUFFERS))


def main() -> None:
    """Compare, once with arrays and once with samples."""
    import torch
    from torch.utils.data import ConcatDataset, DataLoader

    torch.set_num_threads(1)
    images = np.random.default_rng(0).integers(0, 256, (SAMPLES, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(SAMPLES)
    size = SAMPLES // STREAMS
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    jpegs = [cv2.imencode(".jpg", image)[1] for image in images]
    for kind, held, batches in ((Arrays, images, 4000), (Samples, images, 1500), (Encoded, jpegs, 200)):
        parts = {
            f"stream {j}": kind(held[j * size : (j + 1) * size], labels[j * size : (j + 1) * size])
            for j in range(STREAMS)
        }
        weights = dict(zip(parts, (0.3, 0.2, 0.15, 0.12, 0.1, 0.08, 0.04, 0.01), strict=True))
        loaders = {
            "one": StreamingDataLoader(kind(held, labels), BATCH, shuffle=True, num_workers=0),
            "8 mixed": StreamingDataLoader(mix(parts), BATCH, shuffle=True, num_workers=0),
            "8 mixed by weights": StreamingDataLoader(
                mix(parts, weights, stop="never"), BATCH, shuffle=True, num_workers=0
            ),
        }
        contenders = {
            name: (lambda loader=loader, batches=batches: rate(loader, batches)) for name, loader in loaders.items()
        }
        torchs = DataLoader(ConcatDataset(list(parts.values())), BATCH, shuffle=True)
        contenders["torch ConcatDataset"] = partial(rate, torchs, 200)
        contenders["a bare loop, one"] = partial(rate_bare, [kind(held, labels)], min(batches, 1000))
        contenders["a bare loop, 8"] = partial(rate_bare, list(parts.values()), min(batches, 1000))
        compare(
            f"mixing {STREAMS} streams in memory, {kind.__name__.lower()}",
            contenders,
            reference="one",
            unit="k samples/s",
            rounds=rounds,
        )


if __name__ == "__main__":
    main()
