"""The last stretch: arrays become tensors, pinned or on the device, while the trainer is busy.

This is the one place of the loader that imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch

_TENSOR_KINDS = "biufc"
_LEAVES = (str, bytes, int, float, type(None))
"""What batches of text and of paths are full of: what holds nothing else is not looked through one by one."""


def as_tensors(batch: Any) -> Any:
    """Turn every numeric array in a batch into the tensor on the same memory; leave the rest as it is."""
    return _mapped(batch, np.ndarray, _tensor)


def as_steps(rows: Mapping[str, np.ndarray], steps: int) -> list[dict[str, Any]]:
    """Cut a dict of arrays [steps · b, ...] into `steps` batches of tensors [b, ...]."""
    columns = []
    for values in rows.values():
        stepped = values.reshape(steps, len(values) // steps, *values.shape[1:])
        columns.append(_tensor(stepped).unbind(0) if values.dtype.kind in _TENSOR_KINDS else list(stepped))
    names = tuple(rows)
    return [dict(zip(names, column, strict=True)) for column in zip(*columns, strict=True)]


def count_bytes(batch: Any) -> int:
    """Add up the bytes of the tensors and arrays in a batch."""
    if isinstance(batch, torch.Tensor):
        return batch.nbytes if batch.layout is torch.strided else 0
    if isinstance(batch, np.ndarray):
        return batch.nbytes
    if isinstance(batch, dict | list):
        values = batch.values() if isinstance(batch, dict) else batch
        if set(map(type, values)) == {dict} and _are_leaves(chain.from_iterable(map(dict.values, values))):
            # Samples without arrays, as a collate function that keeps them apart gives them.
            return 0
        return 0 if _are_leaves(values) else sum(map(count_bytes, values))
    if isinstance(batch, _LEAVES):
        return 0
    if isinstance(batch, Mapping):
        return sum(map(count_bytes, batch.values()))
    return sum(map(count_bytes, batch)) if isinstance(batch, tuple) else 0


class Mover:
    """Takes batches to pinned memory or to a device.

    With a CUDA device, a batch is copied on a stream of its own while the trainer works on the one
    before, and the trainer's stream waits for it on the device, not on the host.
    """

    def __init__(self, device: torch.device | None, pin_memory: bool) -> None:
        self.device = device
        self._on_cuda = self.device is not None and self.device.type == "cuda"
        self._pins = (pin_memory or self._on_cuda) and torch.cuda.is_available()
        self._stream: Any = torch.cuda.Stream(self.device) if self._on_cuda else None  # type: ignore[no-untyped-call]

    @property
    def is_idle(self) -> bool:
        """Whether batches are handed out as they come."""
        return self.device is None and not self._pins

    @property
    def runs_ahead(self) -> bool:
        """Whether it pays to begin a batch's transfer before the trainer asks for it."""
        return self._on_cuda

    def begin(self, batch: Any) -> Any:
        """Start a batch's way to where it goes."""
        if self._pins:
            batch = _mapped(batch, torch.Tensor, torch.Tensor.pin_memory)
        if self._stream is None:
            return batch if self.device is None else _mapped(batch, torch.Tensor, lambda tensor: tensor.to(self.device))
        with torch.cuda.stream(self._stream):
            return _mapped(batch, torch.Tensor, lambda tensor: tensor.to(self.device, non_blocking=True))

    def finish(self, batch: Any) -> Any:
        """Make a begun batch safe to use on the trainer's current stream."""
        if self._stream is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            # The allocator must not hand this memory out again while the trainer's stream still reads it.
            _mapped(batch, torch.Tensor, lambda tensor: tensor.record_stream(current) or tensor)
        return batch


def _tensor(values: np.ndarray) -> Any:
    if values.dtype.kind not in _TENSOR_KINDS:
        return values
    # torch takes neither read-only memory, nor the other byte order, nor steps backwards.
    if not values.flags.writeable or not values.dtype.isnative or min(values.strides, default=0) < 0:
        values = np.array(values, values.dtype.newbyteorder("="), order="C")
    return torch.from_numpy(values)


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Apply a function to every `kind` in a tree of dicts, lists and tuples."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, _LEAVES) or (type(value) is list and _are_leaves(value)):
        return value
    if isinstance(value, Mapping):
        return {name: _mapped(inner, kind, function) for name, inner in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(inner, kind, function) for inner in value))
    if isinstance(value, list | tuple):
        return type(value)(_mapped(inner, kind, function) for inner in value)
    return value


def _are_leaves(values: Iterable[Any]) -> bool:
    """Whether values hold no tensor or array, at any depth, as far as their types tell."""
    return all(issubclass(kind, _LEAVES) for kind in set(map(type, values)))
