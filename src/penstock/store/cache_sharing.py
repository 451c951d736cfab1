"""One cache for all in a process that read from the same folder in the same way: each costs descriptors and a thread.

dataset ──▶ SharedCache ──┐
dataset ──▶ SharedCache ──┴──▶ Cache, open until the last of them lets go

They may have limits of their own: as among processes, the smallest of those that are open holds.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from penstock.store.cache import Cache, open_cache


class _Open:
    """A cache, and the limits of those who have a share in it."""

    __slots__ = ("cache", "how", "limits")

    def __init__(self, cache: Cache, how: tuple[Any, ...]) -> None:
        self.cache, self.how = cache, how
        self.limits: list[int | None] = []

    @property
    def is_of_use(self) -> bool:
        """Whether files can be had from it: its folder may have been deleted, by whoever is about to begin anew."""
        return not (self.cache.closed or self.cache.is_lost)

    def keep_smallest(self) -> None:
        """Let the cache have the smallest limit, soon: a finalizer may ask for that, within any lock."""
        limit = min((limit for limit in self.limits if limit is not None), default=None)
        if limit != self.cache.limit and not self.cache.closed:
            self.cache.set_limit(limit)


_all_open: list[_Open] = []
# The collector may end a share while this very thread takes another.
_lock = threading.RLock()


class SharedCache:
    """A share in the cache of a folder, which is opened if this process has it not open with these options.

    Args:
        folder: see `open_cache`, as the others.
        limit: bytes; None: any number.
        storage_options: for the stores.
    """

    def __init__(self, folder: Path, limit: int | None, storage_options: Mapping[str, Any]) -> None:
        how = os.path.abspath(folder), dict(storage_options)
        with _lock:
            found = next((one for one in _all_open if one.how == how and one.is_of_use), None)
            if found is None:
                found = _Open(open_cache(folder, limit, storage_options=storage_options), how)
                _all_open.append(found)
            found.limits.append(limit)
            found.keep_smallest()
            self._limit = limit
            self._open: _Open | None = found
        self.cache = found.cache

    def close(self) -> None:
        """Let go; the last one closes the cache."""
        if (last := self._let_go()) is not None:
            last.close()

    def __del__(self, is_ending: Callable[[], bool] = sys.is_finalizing) -> None:
        # No more than that: a cache that nobody refers to closes itself, and not within a finalizer. When the
        # interpreter ends the names of this module are gone, but for this default.
        if getattr(self, "_open", None) is not None and not is_ending():
            self._let_go()

    def _let_go(self) -> Cache | None:
        """Give the share back; give the cache if it was the last."""
        with _lock:
            mine, self._open = self._open, None
            if mine is None:
                return None
            mine.limits.remove(self._limit)
            if mine.limits:
                mine.keep_smallest()
                return None
            _all_open.remove(mine)
        return mine.cache


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork_in_child)
