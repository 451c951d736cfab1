"""Putting a training run's parts back to a saved state: all of them, or none.

Law: if one part refuses its state, the others are as they were. Parts whose load can be undone at no
cost go first; a loader checks before it moves; the model, of which nobody wants a second copy, goes
last, when it is known to fit.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from penstock.errors import ConfigError, PenstockError, StateMismatch

if TYPE_CHECKING:
    import torch

_LIKE_PARAMETER = frozenset({"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"})
"""What torch's optimizers keep in the shape of its parameter."""


class Stateful(Protocol):
    """Anything that can say where it stands and go back there: modules, optimizers, schedulers, loaders."""

    def state_dict(self) -> dict[str, Any]:
        """Give the state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any:
        """Go back to a state."""


def restore(
    path: str | os.PathLike[str],
    states: Mapping[str, Any],
    *,
    model: torch.nn.Module,
    optimizer: Stateful | None,
    scheduler: Stateful | None,
    loader: Stateful | None,
) -> None:
    """Give each part its state, by its name in `states`; None leaves a part out.

    Raises:
        ConfigError: the model, optimizer or scheduler is another one. `path` is for messages.
        StateMismatch: the loader's state belongs to other data or another order.
    """
    undo: list[Callable[[], Any]] = []
    try:
        if not _fits(model, states["model"]):
            # The model itself decides, as its hooks may know the names of older releases.
            undo.append(partial(_refill, model, _copied(model)))
            _load_model(path, model, states["model"])
        for name, part in (("optimizer", optimizer), ("scheduler", scheduler)):
            if part is not None:
                undo.append(partial(part.load_state_dict, part.state_dict()))
                with _refused(ConfigError, f"{path} holds another {name}"):
                    _check_shapes(part, states[name])
                    part.load_state_dict(states[name])
        if loader is not None:
            with _refused(StateMismatch, f"{path} holds another loader's state"):
                loader.load_state_dict(states["loader"])
    except BaseException:
        for step in reversed(undo):
            step()
        raise
    _load_model(path, model, states["model"])


def _fits(model: torch.nn.Module, saved: Mapping[str, Any]) -> bool:
    """Tell whether a saved state has the names and shapes of a model's, so that loading it can't fail halfway."""
    own = model.state_dict()
    return own.keys() == saved.keys() and all(_shape(saved[name]) == _shape(value) for name, value in own.items())


def _shape(value: Any) -> Any:
    """Give a tensor's shape; None for what has none, such as a lazy module's parameter."""
    from torch.nn.parameter import is_lazy

    return None if is_lazy(value) else getattr(value, "shape", None)


def _copied(model: torch.nn.Module) -> dict[str, Any]:
    own = model.state_dict()
    return {name: value.detach().clone() for name, value in own.items() if _shape(value) is not None}


def _refill(model: torch.nn.Module, values: Mapping[str, Any]) -> None:
    for name, value in model.state_dict().items():
        if name in values:
            value.detach().copy_(values[name])


def _load_model(path: str | os.PathLike[str], model: torch.nn.Module, saved: dict[str, Any]) -> None:
    with _refused(ConfigError, f"{path} holds another model"):
        model.load_state_dict(saved)


def _check_shapes(optimizer: Any, saved: Mapping[str, Any]) -> None:
    """Raise ValueError for what torch's own optimizers would take, and fail with at their next step."""
    from torch.optim import Optimizer

    if not isinstance(optimizer, Optimizer) or not type(optimizer).__module__.startswith("torch.optim."):
        return
    here = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    there = [number for group in saved["param_groups"] for number in group["params"]]
    if len(here) != len(there):
        raise ValueError(f"one of {len(there)} parameters, there are {len(here)} here")
    for number, parameter in zip(there, here, strict=True):
        for name, value in saved["state"].get(number, {}).items():
            if name in _LIKE_PARAMETER and value is not None and value.shape != parameter.shape:
                shapes = f"{tuple(value.shape)} in it, {tuple(parameter.shape)} here"
                raise ValueError(f"{name} of parameter {number} is {shapes}")


@contextmanager
def _refused(kind: type[PenstockError], what: str) -> Iterator[None]:
    """Turn what a `load_state_dict` raises of a state that is not its own into one of our errors."""
    try:
        yield
    except PenstockError:
        raise
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise kind(f"{what}: {error}") from error
