"""What a dataset answers when it is asked for samples: a list of them, or a table of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np

if TYPE_CHECKING:
    import torch

Rows = list[Any] | dict[str, Any]


def is_table(rows: Any) -> TypeGuard[dict[str, np.ndarray]]:
    """Whether rows are arrays that can be cut and joined."""
    return isinstance(rows, dict) and all(isinstance(values, np.ndarray) for values in rows.values())


def as_samples(rows: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Split a dict of arrays [n, ...] into n samples."""
    return [{name: values[j] for name, values in rows.items()} for j in range(count)]


def as_tensors(rows: Mapping[str, np.ndarray]) -> list[dict[str, torch.Tensor]]:
    """Split a dict of arrays [n, ...] into n samples of tensors, in memory of their own."""
    import torch

    columns = {name: torch.from_numpy(values.copy()) for name, values in rows.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def own_transforms(dataset: Any) -> tuple[Callable[..., Any], ...]:
    """List the transforms that a dataset leaves to whoever reads it: a tuple, beside a `fetch` that runs none of them.

    Those of other map-style datasets, torchvision's say, are run by their own `__getitem__`.
    """
    transforms = getattr(dataset, "transforms", ())
    return transforms if isinstance(transforms, tuple) and hasattr(dataset, "fetch") else ()
