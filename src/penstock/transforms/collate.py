"""Samples → one batch.

Arrays are stacked into numpy arrays, so that a worker needs no torch and big results can cross
processes without a copy; the loader turns them into tensors where it hands them out.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.transforms.reused_buffers import NamedBuffers

_HOW_TO_HAVE_THE_SAME_KEYS = (
    "all must have the same keys. Leave the others out by a transform, or by fields= of BlockDataset, or pass a "
    "collate_fn. For a mix of datasets of different kinds: mix(…, batches='per_stream'), MultiStreamDataLoader, or "
    "collate_fn=Collate(groups=…) with a field that says what each sample is"
)
_WHOLE = {int, bool}
_LARGE_BYTES = 128 * 1024
"""From here on touching fresh memory costs more than finding memory that was used before."""


def stack(samples: Sequence[Any], buffers: NamedBuffers | None = None) -> Any:
    """Stack like things of n samples into one thing with a leading axis of n.

    What each becomes is what torch's default collate makes of it, tensors being numpy arrays here:
    arrays [...] → [n, ...]; Python and numpy numbers → [n]; torch tensors → torch.stack; dicts, lists,
    tuples and named tuples are entered (a tuple comes back as a list); anything else, text included,
    is kept as a list of n.

    Args:
        samples: n of them.
        buffers: where memory for large arrays is taken from, used again once nobody holds the batch. None: it is new.

    Raises:
        ValueError: shapes, lengths, keys or kinds differ between samples; says where.

    >>> stack([{"x": np.zeros(3), "name": "a"}, {"x": np.ones(3), "name": "b"}])["name"]
    ['a', 'b']
    """
    return _stack(samples, "samples", buffers)


def stack_present(samples: Sequence[Any], buffers: NamedBuffers | None = None) -> Any:
    """Stack samples like `stack`, if they are dicts: a field that is None in one of them is a list of n.

    >>> stack_present([{"x": 1, "y": 2}, {"x": 3, "y": None}])
    {'x': array([1, 3]), 'y': [2, None]}
    """
    if not isinstance(samples[0], Mapping):
        return stack(samples, buffers)
    missing = {name for sample in samples for name, value in sample.items() if value is None}
    if not missing:
        return stack(samples, buffers)
    whole = [{name: value for name, value in sample.items() if name not in missing} for sample in samples]
    present = stack(whole, buffers)
    return {name: _column(samples, name, "samples") if name in missing else present[name] for name in samples[0]}


class Collate:
    """Make a batch of samples that are dicts, each field in its own way; what is not named is stacked as by `stack`.

    Arrays are written into memory that is used again once nobody holds the batch it was for: as a loader's
    `collate_fn` this spares the cost of touching new memory with every batch. The loader makes tensors of them.

    Args:
        pad: field → fill value: arrays of unequal shapes are laid into [n, largest …], each at the start of every axis,
            and int64 [n, axes] `<field>_shape` says how much of each is real.
        ragged: fields whose arrays [k, …] of unequal k are joined to [sum of k, …]; int64 [n + 1] `<field>_offsets`
            says where each begins and the last ends.
        keep: fields that stay a list of n, as texts do anyway.
        groups: a field by whose values the batch is parted: {value: batch}, in the order in which values come first.

    A field that is None in some samples stays a list of n.

    Raises:
        ValueError: shapes, types or keys do not go together; says where.

    >>> batch = Collate(pad={"x": -1})([{"x": np.arange(3), "name": "a"}, {"x": np.arange(1), "name": "b"}])
    >>> batch["x"].tolist(), batch["x_shape"].tolist(), batch["name"]
    ([[0, 1, 2], [0, -1, -1]], [[3], [1]], ['a', 'b'])
    """

    gives_arrays = True

    def __init__(
        self,
        *,
        pad: Mapping[str, float] | None = None,
        ragged: Sequence[str] = (),
        keep: Sequence[str] = (),
        groups: str | None = None,
    ) -> None:
        if isinstance(ragged, str) or isinstance(keep, str):
            raise ConfigError(f"ragged and keep are lists of fields, got {ragged!r} and {keep!r}")
        self._pad = dict(pad or {})
        self._ragged, self._keep, self._groups = frozenset(ragged), frozenset(keep), groups
        named = [*self._pad, *self._ragged, *self._keep]
        if len(set(named)) < len(named):
            raise ConfigError(f"a field is padded, ragged or kept, one of them; got {named}")
        self._buffers = NamedBuffers()

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[Any, Any]:
        """Make one batch, or one for each group."""
        if self._groups is None:
            return self._batch(samples)
        parts: dict[Any, list[Mapping[str, Any]]] = {}
        for sample, value in zip(samples, _column(samples, self._groups, "samples"), strict=True):
            parts.setdefault(value, []).append(sample)
        return {value: self._batch(part) for value, part in parts.items()}

    def _batch(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        for name in samples[0]:
            values = _column(samples, name, "samples")
            if name in self._keep or any(value is None for value in values):
                batch[name] = values
            elif name in self._pad:
                batch[name], batch[f"{name}_shape"] = self._padded(name, [np.asarray(value) for value in values])
            elif name in self._ragged:
                batch[name], batch[f"{name}_offsets"] = self._joined(name, [np.asarray(value) for value in values])
            else:
                batch[name] = _stack(values, f"samples[{name!r}]", self._buffers)
        _check_same_keys(samples, "samples")
        return batch

    def _padded(self, name: str, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        self._check(name, values, axes=1, same=0)
        shapes = np.array([value.shape for value in values], np.int64).reshape(len(values), -1)
        padded = self._buffers.take(name, (len(values), *shapes.max(axis=0).tolist()), values[0].dtype)
        padded[:] = self._pad[name]
        for row, value in zip(padded, values, strict=True):
            row[tuple(map(slice, value.shape))] = value
        return padded, shapes

    def _joined(self, name: str, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        self._check(name, values, axes=1, same=1)
        offsets = np.zeros(len(values) + 1, np.int64)
        np.cumsum([len(value) for value in values], out=offsets[1:])
        joined = self._buffers.take(name, (int(offsets[-1]), *values[0].shape[1:]), values[0].dtype)
        return np.concatenate(values, out=joined), offsets

    def _check(self, name: str, values: list[np.ndarray], *, axes: int, same: int) -> None:
        """Raise ValueError unless arrays have as many axes, some of them as long, and one type of numbers."""
        kinds = {(value.dtype, value.ndim, value.shape[1:] if same else ()) for value in values}
        if len(kinds) > 1 or values[0].ndim < axes or values[0].dtype.kind not in "biufc":
            found = sorted({f"{value.dtype} {list(value.shape)}" for value in values})
            raise ValueError(f"samples[{name!r}] are {found[:8]}, which can't be {'joined' if same else 'padded'}")


def _stack(values: Sequence[Any], path: str, buffers: NamedBuffers | None) -> Any:
    first = values[0]
    if isinstance(first, np.ndarray):
        return list(values) if first.dtype == object else _arrays(values, path, buffers)
    if isinstance(first, str | bytes) or first is None:
        return list(values)
    if isinstance(first, bool | int | float | complex | np.generic):
        return _numbers(values, path)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(first, torch.Tensor):
        return _stacked(torch.stack, values, path)
    if isinstance(first, Mapping):
        stacked = {name: _stack(_column(values, name, path), f"{path}[{name!r}]", buffers) for name in first}
        _check_same_keys(values, path)
        return stacked
    if isinstance(first, tuple | list):
        if len({len(value) for value in values}) > 1:
            raise ValueError(
                f"{path} have {sorted({len(value) for value in values})} elements: they must all have as many. "
                "Collate(ragged=[…]) joins them, pad={…} fills them up, keep=[…] leaves them as lists"
            )
        columns = [_stack(column, f"{path}[{j}]", buffers) for j, column in enumerate(zip(*values, strict=True))]
        return type(first)(*columns) if hasattr(first, "_fields") else columns
    return list(values)


def _arrays(values: Sequence[Any], path: str, buffers: NamedBuffers | None) -> Any:
    first = values[0]
    if buffers is None or first.nbytes * len(values) < _LARGE_BYTES:
        return _stacked(np.stack, values, path)
    if any(getattr(value, "dtype", None) != first.dtype or value.shape != first.shape for value in values):
        return _stacked(np.stack, values, path)
    return np.stack(values, out=buffers.take(path, (len(values), *first.shape), first.dtype))


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
        raise ValueError(f"one of {path} has no {name!r}, the first one has: {_HOW_TO_HAVE_THE_SAME_KEYS}") from None


def _check_same_keys(samples: Sequence[Mapping[str, Any]], path: str) -> None:
    """Raise ValueError if one has more than the first, all of whose keys the others have."""
    if len(set(map(len, samples))) > 1:
        extra = sorted({str(name) for sample in samples for name in sample if name not in samples[0]})
        raise ValueError(f"some of {path} have {extra}, the first one has not: {_HOW_TO_HAVE_THE_SAME_KEYS}")


def _stacked(function: Any, values: Sequence[Any], path: str) -> Any:
    try:
        return function(list(values))
    except (ValueError, TypeError, RuntimeError):
        shapes = sorted({tuple(value.shape) for value in values})
        raise ValueError(f"{path} have shapes {shapes}, which do not stack: pass a collate_fn that pads them") from None
