"""The last few results of a pure function."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any


class Memo:
    """Remembers the last few results of a pure function: an epoch's table is asked for at every step of it."""

    def __init__(self, function: Callable[[Any], Any], keep: int = 4) -> None:
        self._function = function
        self._keep = keep
        self._known: OrderedDict[Any, Any] = OrderedDict()

    def get(self, argument: Any) -> Any:
        """Give the function's result."""
        if (value := self._known.get(argument)) is None:
            value = self._known[argument] = self._function(argument)
            while len(self._known) > self._keep:
                self._known.popitem(last=False)
        return value
