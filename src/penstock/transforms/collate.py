"""Samples → one batch.

Arrays are stacked into numpy arrays, so that a worker needs no torch and big results can cross
processes without a copy; the loader turns them into tensors where it hands them out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_WHOLE = {int, bool}


def stack(samples: Sequence[Any]) -> Any:
    """Stack like things of n samples into one thing with a leading axis of n.

    What each becomes is what torch's default collate makes of it, tensors being numpy arrays here:
    arrays [...] → [n, ...]; Python and numpy numbers → [n]; torch tensors → torch.stack; dicts, lists,
    tuples and named tuples are entered (a tuple comes back as a list); anything else, text included,
    is kept as a list of n.

    Raises:
        ValueError: shapes, lengths, keys or kinds differ between samples; says where.

    >>> stack([{"x": np.zeros(3), "name": "a"}, {"x": np.ones(3), "name": "b"}])["name"]
    ['a', 'b']
    """
    return _stack(samples, "samples")


def stack_present(samples: Sequence[Any]) -> Any:
    """Stack samples like `stack`, if they are dicts: a field that is None in one of them is a list of n.

    >>> stack_present([{"x": 1, "y": 2}, {"x": 3, "y": None}])
    {'x': array([1, 3]), 'y': [2, None]}
    """
    if not isinstance(samples[0], Mapping):
        return stack(samples)
    missing = {name for sample in samples for name, value in sample.items() if value is None}
    if not missing:
        return stack(samples)
    present = stack([{name: value for name, value in sample.items() if name not in missing} for sample in samples])
    return {name: _column(samples, name, "samples") if name in missing else present[name] for name in samples[0]}


def _stack(values: Sequence[Any], path: str) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return list(values) if first.dtype == object else _stacked(np.stack, values, path)
    if isinstance(first, str | bytes) or first is None:
        return list(values)
    if isinstance(first, bool | int | float | complex | np.generic):
        return _numbers(values, path)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        return _stacked(torch.stack, values, path)
    if isinstance(first, Mapping):
        return {name: _stack(_column(values, name, path), f"{path}[{name!r}]") for name in first}
    if isinstance(first, tuple | list):
        if len({len(value) for value in values}) > 1:
            raise ValueError(
                f"{path} have {sorted({len(value) for value in values})} elements: they must all have as many"
            )
        columns = [_stack(column, f"{path}[{j}]") for j, column in enumerate(zip(*values, strict=True))]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    return list(values)


def _numbers(values: Sequence[Any], path: str) -> np.ndarray:
    """Make an array of numbers, if it loses nothing: numpy makes texts of 1 and "a", floats of 2**63 and -1."""
    numbers = np.array(values)
    whole = _WHOLE.issuperset(map(type, values)) or all(
        isinstance(value, int | np.integer | np.bool_) for value in values
    )
    if numbers.dtype.kind not in "biufc" or (whole and numbers.dtype.kind not in "biu"):
        kinds = sorted({type(value).__name__ for value in values})
        raise ValueError(f"{path} are of types {kinds}, or too large, and make no array of numbers: pass a collate_fn")
    return numbers


def _column(samples: Sequence[Mapping[str, Any]], name: str, path: str) -> list[Any]:
    try:
        return [sample[name] for sample in samples]
    except KeyError:
        raise ValueError(
            f"one of {path} has no {name!r}, the first one has: all must have the same keys. Leave the others out by "
            "the dataset's fields= (BlockDataset) or by a transform, or pass a collate_fn"
        ) from None


def _stacked(function: Any, values: Sequence[Any], path: str) -> Any:
    try:
        return function(list(values))
    except (ValueError, TypeError, RuntimeError):
        shapes = sorted({tuple(value.shape) for value in values})
        raise ValueError(f"{path} have shapes {shapes}, which do not stack: pass a collate_fn that pads them") from None
