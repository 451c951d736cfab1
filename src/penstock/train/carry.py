"""What a model hands from one chunk of a sequence to the next: tensors, nested in any way.

carry ──detached──▶ no gradient goes back ──Held──▶ waits on the CPU, or where it is ──taken──▶ next chunk
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch

from penstock.errors import ConfigError

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)


def map_tensors(carry: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Rebuild a carry with each tensor changed, in the order in which they stand in it.

    Args:
        carry: a tensor, None, a number or text, or tuples, lists, mappings and dataclasses of carries.
        change: called with each tensor.

    Returns:
        The same structure of the same types; what was given is left as it is.

    Raises:
        ConfigError: something else, whose tensors would go unseen.

    >>> map_tensors({"h": (torch.ones(1), 3)}, torch.neg)
    {'h': (tensor([-1.]), 3)}
    """
    if isinstance(carry, torch.Tensor):
        return change(carry)
    if isinstance(carry, _PLAIN):
        return carry
    if isinstance(carry, tuple | list):
        items = [map_tensors(item, change) for item in carry]
        return type(carry)(*items) if hasattr(carry, "_fields") else type(carry)(items)
    if isinstance(carry, Mapping):
        changed = {name: map_tensors(item, change) for name, item in carry.items()}
        return changed if type(carry) is dict else _copied_mapping(carry, changed)
    if is_dataclass(carry) and not isinstance(carry, type):
        rebuilt = copy.copy(carry)
        for field in fields(carry):
            # As frozen dataclasses set their own fields.
            object.__setattr__(rebuilt, field.name, map_tensors(getattr(carry, field.name), change))
        return rebuilt
    raise ConfigError(
        f"the carry holds a {type(carry).__name__}: it must be made of tensors, numbers, tuples, lists, dicts and "
        "dataclasses, so that gradients can be cut and tensors moved"
    )


class Held:
    """A carry between two chunks: without gradients and, if asked for, on the CPU.

    Args:
        carry: as the model gave it.
        on_cpu: copy its tensors to the CPU; `taken` brings each back to where it was.
    """

    def __init__(self, carry: Any, *, on_cpu: bool) -> None:
        self._devices: list[torch.device] = []
        self._carry = map_tensors(carry, self._put_away if on_cpu else _apart)

    def taken(self) -> Any:
        """Give the carry for the next chunk and let go of it."""
        devices = iter(self._devices)
        carry, self._carry = self._carry, None
        return map_tensors(carry, lambda tensor: tensor.to(next(devices))) if self._devices else carry

    def _put_away(self, tensor: torch.Tensor) -> torch.Tensor:
        self._devices.append(tensor.device)
        return _apart(tensor.to("cpu"))


def _apart(tensor: torch.Tensor) -> torch.Tensor:
    """Cut a tensor from its graph, and from a larger one that it is a view of and would keep in memory."""
    cut = tensor.detach()
    if cut.layout is torch.strided and cut.untyped_storage().nbytes() > cut.nbytes:
        return cut.clone()
    return cut


def _copied_mapping(carry: Any, changed: dict[Any, Any]) -> Any:
    """Copy a mapping of another type than dict, with other values."""
    rebuilt = copy.copy(carry)
    for name, value in changed.items():
        rebuilt[name] = value
    return rebuilt
