"""Samples of unequal lengths → one batch.

[{input_ids [2]}, {input_ids [3]}] ──pad──▶ {input_ids [2, 3], labels [2, 3], attention_mask [2, 3]}
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from penstock.transforms.collate import stack

IGNORED = -100
"""The label that torch's losses leave out."""


def pad(samples: Sequence[dict[str, Any]], *, pad_id: int = 0, length: int | None = None) -> dict[str, Any]:
    """Pad token samples on the right and stack them.

    `input_ids` is filled with pad_id, `labels` with -100 and `attention_mask` with 0; where samples have
    no `attention_mask` it is added: int64, 1 at the tokens of a sample and 0 at the padding. Whatever
    else samples hold is stacked.

    Args:
        samples: dicts with `input_ids` [n] and, all or none of them, `labels` [n]; arrays, or tensors.
        pad_id: id that fills `input_ids`.
        length: tokens per row. None: those of the longest sample.

    Returns:
        A dict of int64 [len(samples), length]: tensors where the samples hold tensors, else arrays.

    Raises:
        ValueError: a sample is longer than `length`, or has another number of labels than of ids.

    >>> pad([{"input_ids": np.array([5, 6])}, {"input_ids": np.array([7])}])["attention_mask"].tolist()
    [[1, 1], [1, 0]]
    """
    fills = {"input_ids": pad_id, "labels": IGNORED, "attention_mask": 0}
    sizes = np.array([len(sample["input_ids"]) for sample in samples])
    width = int(sizes.max()) if length is None else length
    if width < sizes.max():
        raise ValueError(f"a sample has {sizes.max()} tokens, rows are to have {width}: cut it first")
    batch: dict[str, Any] = {}
    for name in fills.keys() & samples[0].keys():
        rows = np.full((len(samples), width), fills[name], np.int64)
        for row, size, sample in zip(rows, sizes.tolist(), samples, strict=True):
            if len(sample[name]) != size:
                raise ValueError(f"a sample has {size} input_ids and {len(sample[name])} {name}")
            row[:size] = sample[name]
        batch[name] = rows
    batch.setdefault("attention_mask", (np.arange(width) < sizes[:, None]).astype(np.int64))
    batch = {name: batch[name] for name in fills if name in batch}
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(samples[0]["input_ids"], torch.Tensor):
        batch = {name: torch.from_numpy(values) for name, values in batch.items()}
    others = [{name: value for name, value in sample.items() if name not in batch} for sample in samples]
    return {**batch, **stack(others)}
