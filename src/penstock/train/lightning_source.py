"""A Trainer's source of training loaders that puts them where they belong before anybody counts their batches.

    Trainer ──asks──▶ source ──▶ loaders ──place──▶ in the round they go on with ──▶ counted, iterated over

Lightning counts the batches of an epoch as soon as it has the loaders, and loads their states, if it does, after that.
Where rounds differ in length it would count those of another round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class PlacedSource:
    """What a Trainer asks for training loaders, in the place of its own.

    Args:
        source: the Trainer's own, or one of these, which is replaced.
        place: is given the loaders each time they are asked for, and moves them.
    """

    def __init__(self, source: Any, place: Callable[[Any], None]) -> None:
        self._plain = source.plain if isinstance(source, PlacedSource) else source
        self._place = place

    @property
    def plain(self) -> Any:
        """The Trainer's own source."""
        return self._plain

    @property
    def instance(self) -> Any:
        """The loaders, or the module that makes them."""
        return self._plain.instance

    @instance.setter
    def instance(self, instance: Any) -> None:
        self._plain.instance = instance

    @property
    def name(self) -> str:
        """The method of a module that makes them."""
        return str(self._plain.name)

    def dataloader(self) -> Any:
        """Give the loaders, put in place."""
        loaders = self._plain.dataloader()
        self._place(loaders)
        return loaders

    def is_defined(self) -> bool:
        """Tell whether there are loaders."""
        return bool(self._plain.is_defined())

    def is_module(self) -> bool:
        """Tell whether a module makes them."""
        return bool(self._plain.is_module())
