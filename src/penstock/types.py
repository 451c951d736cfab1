"""The values that cross layers: who we are among the processes, what a dataset is.

Nothing here reads the environment or opens anything; `World.current()` asks the loader's
detection, which does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from penstock.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """One process's place among those that train together.

    Only the data-parallel coordinates decide who reads what: tensor- and pipeline-parallel peers
    of one replica have the same `dp_rank` and so read the same samples.

    >>> World(dp_rank=1, dp_size=4)
    World(dp_rank=1, dp_size=4, tp_rank=0, tp_size=1, pp_rank=0, pp_size=1)
    >>> World.of(rank=5, world_size=8, tp_size=2).dp_rank
    2
    """

    dp_rank: int = 0
    dp_size: int = 1
    tp_rank: int = 0
    tp_size: int = 1
    pp_rank: int = 0
    pp_size: int = 1

    def __post_init__(self) -> None:
        for axis in ("dp", "tp", "pp"):
            rank, size = getattr(self, f"{axis}_rank"), getattr(self, f"{axis}_size")
            check_int(f"{axis}_size", size, minimum=1)
            check_int(f"{axis}_rank", rank, minimum=0)
            if rank >= size:
                raise ConfigError(f"{axis}_rank is {rank} but {axis}_size is {size}: ranks run from 0 to {size - 1}")

    @staticmethod
    def of(*, rank: int, world_size: int, tp_size: int = 1, pp_size: int = 1) -> World:
        """Place a global rank on a mesh in which tensor-parallel ranks are neighbours, then pipeline, then data.

        Raises:
            ConfigError: rank outside the world, or tp_size × pp_size does not divide it.
        """
        check_int("world_size", world_size, minimum=1)
        check_int("rank", rank, minimum=0)
        check_int("tp_size", tp_size, minimum=1)
        check_int("pp_size", pp_size, minimum=1)
        if rank >= world_size:
            raise ConfigError(f"rank is {rank} but world_size is {world_size}: ranks run from 0 to {world_size - 1}")
        replica = tp_size * pp_size
        if world_size % replica:
            raise ConfigError(f"world_size {world_size} is not a multiple of tp_size {tp_size} × pp_size {pp_size}")
        return World(
            dp_rank=rank // replica,
            dp_size=world_size // replica,
            tp_rank=rank % tp_size,
            tp_size=tp_size,
            pp_rank=rank // tp_size % pp_size,
            pp_size=pp_size,
        )

    @staticmethod
    def current(*, tp_size: int = 1, pp_size: int = 1) -> World:
        """Detect this process's place: torch.distributed if initialised, else torchrun's variables, else alone.

        Raises:
            ConfigError: the two contradict each other, or only one of RANK and WORLD_SIZE is set.
        """
        from penstock.loader.world import detect_world

        return detect_world(tp_size=tp_size, pp_size=pp_size)


@runtime_checkable
class Dataset(Protocol):
    """Samples by id: what every dataset of penstock offers and the loader makes use of.

    `fetch` is the hot path: one call for many ids, its I/O concurrent, its result either a list of
    samples or a dict of arrays whose row i belongs to `ids[i]` and to nothing else in the call. In a
    list, an exception may stand in the place of a sample that failed, so that the others are not lost with it.
    Optional members: `block_ends` (int64, for shuffles that respect locality), `lengths` (int64,
    for buckets and packing), `collate` (list of samples → batch, where stacking will not do), `inline`
    (True: `fetch` is a mere memory copy, so working ahead in threads would not pay), `filters` (True: a sample
    that is None is left out, counted as "filtered"), `transforms` (a tuple: `fetch` runs none of them, the loader
    runs them before its own).

    A dataset of several streams has `build_mixture(order_of, seed)`, which builds its own order, and `peers(id)`, the
    ids [start, stop) of which one may stand in the place of one that failed.

    A dataset whose samples come from afar has `prefetch(ids)`: a hint, which returns at once, of what will be
    fetched soon. Its `discard(id)` throws away what is kept of a sample that failed, and tells whether it can be got
    anew. Where `fetch` or `prefetch` has a parameter `epochs`, it is given the epoch of each id, int64 [n].
    `on_error`, `shuffle_seed`, `default_shuffle`, `num_downloading_workers` and `prefetch_tickets`, unless None, are
    what a loader does if it is not told otherwise. `list_failures(failures, substitutes)` is told of each batch from
    which samples were left out (`loader.recipe.Failure`s, and id → the id that stands in its place).

    A dataset with `fetch` promises that threads may call it at the same time. A plain torch
    map-style dataset (`__len__` and `__getitem__`) is accepted wherever this is.
    """

    @property
    def fingerprint(self) -> str:
        """What the samples are, as a hex digest: the same on every host, changed when they change."""

    def __len__(self) -> int:
        """Count the samples."""

    def __getitem__(self, index: int) -> Any:
        """Give one sample."""

    def fetch(self, ids: np.ndarray) -> list[Any] | dict[str, np.ndarray]:
        """Give the samples of ids, int64 [n]."""


def check_int(name: str, value: object, *, minimum: int, maximum: int | None = None) -> int:
    """Return value if it is an integer within the bounds, else raise ConfigError naming all three."""
    allowed = f"an integer >= {minimum}" if maximum is None else f"an integer from {minimum} to {maximum}"
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise ConfigError(f"{name} must be {allowed}, got {value!r} ({type(value).__name__})")
    if value < minimum or (maximum is not None and value > maximum):
        raise ConfigError(f"{name} must be {allowed}, got {value}")
    return int(value)


def check_number(
    name: str,
    value: Any,
    *,
    above: float | None = None,
    below: float | None = None,
    maximum: float | None = None,
    unit: str = "",
) -> float:
    """Return value if it is a finite number within the bounds, else raise ConfigError naming all of them.

    Args:
        name: what errors call it.
        value: an integer, float or fraction; numpy's too.
        above: what it must be more than. None: it must be 0 or more.
        below: what it must be less than, or None.
        maximum: what it must be at most, or None.
        unit: what it is a number of, for errors.

    >>> check_number("ratio", 1, below=1)
    Traceback (most recent call last):
    penstock.errors.ConfigError: ratio must be a number from 0 to below 1, got 1
    """
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:
        number = math.inf
    # No comparison holds for NaN.
    is_enough = number >= 0 if above is None else number > above
    if is_enough and number < (math.inf if below is None else below) and (maximum is None or number <= maximum):
        return number
    lower, joined = ("from 0", "to") if above is None else (f"above {above}", "and")
    upper = ""
    if below is not None:
        upper = f" {joined} below {below}"
    elif maximum is not None:
        upper = f" to {maximum}" if above is None else f" and up to {maximum}"
    raise ConfigError(f"{name} must be a number{unit and f' of {unit}'} {lower}{upper}, got {value!r}")


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ConfigError unless value is one of those allowed."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in allowed):
        choices = ", ".join(repr(option) for option in allowed)
        raise ConfigError(f"{name} must be one of {choices}; got {value!r}")


def check_device(device: Any) -> torch.device | None:
    """Return the device that an argument means; None stays None.

    Raises:
        ConfigError: there is no such kind of device, or this machine has none of it; says what it has.
    """
    import torch

    if device is None:
        return None
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device must be None, a torch.device or its name, got {device!r}: {error}") from None
    if found.type == "cuda":
        count = torch.cuda.device_count()
        if (found.index or 0) >= count:
            here = f"CUDA devices from cuda:0 to cuda:{count - 1}" if count else "no CUDA device, only the CPU"
            why = "" if count or torch.version.cuda else f" (torch {torch.__version__} is built without CUDA)"
            raise ConfigError(f"device={str(found)!r}, but torch finds {here}{why}: use one of these, or device='cpu'")
    return found
