"""What a dataset answers when it is asked for samples: a list of them, or a table of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import numpy as np


def is_table(rows: Any) -> TypeGuard[dict[str, np.ndarray]]:
    """Whether rows are arrays that can be cut and joined."""
    return isinstance(rows, dict) and all(isinstance(values, np.ndarray) for values in rows.values())


def as_samples(rows: Mapping[str, Any], count: int) -> list[dict[str, Any]]:
    """Split a dict of arrays [n, ...] into n samples."""
    return [{name: values[j] for name, values in rows.items()} for j in range(count)]


def own_transforms(dataset: Any) -> tuple[Callable[..., Any], ...]:
    """List the transforms that a dataset leaves to whoever reads it: a tuple, beside a `fetch` that runs none of them.

    Those of other map-style datasets, torchvision's say, are run by their own `__getitem__`.
    """
    transforms = getattr(dataset, "transforms", ())
    return transforms if isinstance(transforms, tuple) and hasattr(dataset, "fetch") else ()
