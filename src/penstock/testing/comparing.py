"""Where two batches, or two epochs of them, differ."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def first_difference(expected: Any, found: Any, path: str = "") -> str | None:
    """Say where two batches differ, type, dtype and shape included; None if they do not."""
    if type(expected) is not type(found):
        return f"{path or 'it'} is a {type(found).__name__}, not a {type(expected).__name__}"
    if isinstance(expected, Mapping):
        if list(expected) != list(found):
            return f"{path or 'it'} has keys {list(found)}, not {list(expected)}"
        pairs = [(expected[name], found[name], f"{path}[{name!r}]") for name in expected]
    elif isinstance(expected, list | tuple):
        if len(expected) != len(found):
            return f"{path or 'it'} has {len(found)} elements, not {len(expected)}"
        pairs = [(a, b, f"{path}[{j}]") for j, (a, b) in enumerate(zip(expected, found, strict=True))]
    elif hasattr(expected, "dtype") and hasattr(expected, "shape"):
        if (expected.dtype, tuple(expected.shape)) != (found.dtype, tuple(found.shape)):
            shapes = f"{found.dtype} {tuple(found.shape)}, not {expected.dtype} {tuple(expected.shape)}"
            return f"{path or 'it'} is {shapes}"
        return None if _bytes(expected) == _bytes(found) else f"{path or 'it'} differs"
    else:
        return None if expected == found else f"{path or 'it'} is {found!r}, not {expected!r}"
    return next((said for pair in pairs if (said := first_difference(*pair)) is not None), None)


def _bytes(values: Any) -> bytes:
    """Give the content of an array or a tensor, of types that numpy does not know too."""
    if (torch := sys.modules.get("torch")) is not None and isinstance(values, torch.Tensor):
        values = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return np.asarray(values).tobytes()


def expect_same(expected: Any, found: Any, law: str) -> None:
    """Raise an AssertionError that names the law if two things differ."""
    said = first_difference(expected, found)
    assert said is None, f"{law}: {said}"


def expect_same_batches(expected: Sequence[Any], found: Sequence[Any], law: str, *, start: int = 0) -> None:
    """Raise an AssertionError that names the law and the step, counted from `start`, if batches differ."""
    assert len(expected) == len(found), f"{law}: {len(found)} batches, not {len(expected)}"
    for step, (one, other) in enumerate(zip(expected, found, strict=True), start=start):
        expect_same(one, other, f"{law}, step {step}")


def rows_of(fetched: Any, count: int) -> list[Any]:
    """List the samples of what `fetch` gave for `count` ids."""
    if isinstance(fetched, Mapping):
        heights = {name: len(values) for name, values in fetched.items()}
        assert set(heights.values()) == {count}, f"fetch: {count} ids were asked for, the arrays have {heights} rows"
        return [{name: values[j] for name, values in fetched.items()} for j in range(count)]
    assert len(fetched) == count, f"fetch: {count} ids were asked for, {len(fetched)} samples came"
    return list(fetched)


def as_plain(value: Any) -> Any:
    """Copy a sample deeply, its tensors and numbers as numpy arrays: `fetch` may give what `__getitem__` wraps."""
    if isinstance(value, Mapping):
        return {name: as_plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(inner) for inner in value]
    if hasattr(value, "dtype") or isinstance(value, bool | int | float):
        # By its own method: numpy's way to copy a tensor is one that torch warns of.
        return np.array(value.detach().cpu().numpy() if hasattr(value, "numpy") else value)
    return value
