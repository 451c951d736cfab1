"""A path whose file stays where it is for as long as the path is there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from penstock.store.cache_pins import Pins


class CachedFile(str):
    """The path of a cached file, which stays there for as long as this object, or one it was sent to, exists.

    A plain `str` made of it holds nothing.
    """

    __slots__ = ("_pins", "_spot")
    _pins: Pins | None
    _spot: int

    def __del__(self) -> None:
        if (pins := getattr(self, "_pins", None)) is not None:
            pins.let_go(self._spot)

    def __copy__(self) -> CachedFile:
        return self

    def __deepcopy__(self, memo: object) -> CachedFile:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (unpinned_file, (str(self), 0)) if self._pins is None else self._pins.sent(str(self), self._spot)


def unpinned_file(path: str, spot: int) -> CachedFile:
    """Make a path that holds nothing until `Pins.pin`, which counts it at its spot."""
    file = CachedFile(path)
    file._pins, file._spot = None, spot
    return file
