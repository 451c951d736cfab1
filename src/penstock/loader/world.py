"""Where this process stands among those that train together.

Asked at first use, not at import or construction, so a loader may be built before
`init_process_group`. Two sources are believed, and they must agree: torch.distributed once it is
initialised, and torchrun's RANK and WORLD_SIZE, if both are set. Nothing else is guessed from.
"""

from __future__ import annotations

import os
import sys

from penstock.errors import ConfigError
from penstock.types import World


def detect_world(*, tp_size: int = 1, pp_size: int = 1) -> World:
    """Find this process's place: torch.distributed if initialised, else torchrun's variables, else alone.

    Args:
        tp_size: tensor-parallel ranks per replica; they are neighbours in rank order.
        pp_size: pipeline stages per replica. A mesh laid out otherwise is given as a `World` by hand.

    Raises:
        ConfigError: torch.distributed and the variables contradict each other, only one of the two
            variables is set before torch.distributed is initialised, or they do not hold what they should.

    Cost: microseconds; torch is not imported for it.
    """
    group = _from_process_group()
    torchrun = _from_torchrun(is_needed=group is None)
    if torchrun and group and torchrun != group:
        raise ConfigError(
            f"torch.distributed says rank {group[0]} of {group[1]}, but RANK and WORLD_SIZE say rank {torchrun[0]} of "
            f"{torchrun[1]}: unset the variables, or pass world=World(dp_rank=…, dp_size=…) to say which holds"
        )
    rank, world_size = group or torchrun or (0, 1)
    return World.of(rank=rank, world_size=world_size, tp_size=tp_size, pp_size=pp_size)


def _from_process_group() -> tuple[int, int] | None:
    """Read rank and size from an initialised default process group."""
    torch = sys.modules.get("torch")
    distributed = getattr(torch, "distributed", None)
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return None
    return distributed.get_rank(), distributed.get_world_size()


def _from_torchrun(*, is_needed: bool) -> tuple[int, int] | None:
    """Read rank and size from RANK and WORLD_SIZE."""
    values = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE")}
    given = [name for name, value in values.items() if value is not None]
    if not given:
        return None
    if len(given) == 1:
        if not is_needed:
            # Lightning's launcher sets WORLD_SIZE alone, and then initialises the group.
            return None
        missing = "WORLD_SIZE" if given == ["RANK"] else "RANK"
        raise ConfigError(f"{given[0]} is set but {missing} is not: set both, as torchrun does, or neither")
    try:
        return int(values["RANK"] or ""), int(values["WORLD_SIZE"] or "")
    except ValueError:
        raise ConfigError(
            f"RANK and WORLD_SIZE must be integers, got {values['RANK']!r} and {values['WORLD_SIZE']!r}"
        ) from None


class WorldOnce:
    """A process's place: given, or detected at first use and then the same.

    Args:
        world: None detects it.
    """

    def __init__(self, world: World | None) -> None:
        self._world = world
        self._detects = world is None

    def get(self) -> World:
        """Give the place, detecting it now if it is not known yet."""
        if self._world is None:
            self._world = detect_world()
        return self._world

    def check(self) -> None:
        """Refuse to go on if the place was detected too early and has changed since."""
        if self._detects and self._world is not None and (now := detect_world()) != self._world:
            raise ConfigError(
                f"this loader was first used as data-parallel rank {self._world.dp_rank} of {self._world.dp_size}, but "
                f"now this is rank {now.dp_rank} of {now.dp_size}: use it between init_process_group and "
                "destroy_process_group only, or pass world="
            )
