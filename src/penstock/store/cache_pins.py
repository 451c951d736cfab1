"""What is in use, for all processes to see, at the price of a memory access.

Each holder (a cache that a process has open) has a file in `holders/`, locked while it lives and mapped
by all: a table of counters, in which a file counts at the spot that its key says.

    reader:   count[spot] += 1   then   look whether the file is there
    evictor:  say that it goes   then   look at everyone's count[spot]; above 0: it stays

Whichever comes first, one of the two sees the other. Files that share a spot are kept a little longer.
A holder that ends, however it ends, loses its lock, and with it its pins.
"""

from __future__ import annotations

import mmap
import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from penstock.errors import StoreError
from penstock.node.disk import store_errors
from penstock.node.presence import Presence

SPOTS = 1 << 15
TICKETS = 1 << 12
HEADER_BYTES = 64
TABLE_BYTES = HEADER_BYTES + 4 * (SPOTS + TICKETS)
TRAVEL_S = 600.0
"""How long a file stays pinned for a process that it was sent to and that has not taken it out yet."""
NO_LIMIT = -1
_LIMIT, _RESERVED, _LEAVING = range(3)

_all_pins: weakref.WeakSet[Pins] = weakref.WeakSet()
_senders: weakref.WeakValueDictionary[str, Pins] = weakref.WeakValueDictionary()
_senders_lock = threading.RLock()


def spot_of(key: bytes) -> int:
    """Give the place of a key in the tables of counters."""
    return (key[0] << 8 | key[1]) % SPOTS


class CachedFile(str):
    """The path of a cached file, which stays there for as long as this object, or one it was sent to, exists.

    A plain `str` made of it holds nothing.
    """

    __slots__ = ("_pins", "_spot")
    _pins: Pins | None
    _spot: int

    def __del__(self) -> None:
        if self._pins is not None:
            self._pins.let_go(self._spot)

    def __copy__(self) -> CachedFile:
        return self

    def __deepcopy__(self, memo: object) -> CachedFile:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        pins = self._pins
        if pins is None:
            return _arrived, (str(self), None, 0, None)
        return _arrived, (str(self), os.fspath(pins.folder), self._spot, pins.send(self._spot))


def pinned_file(path: str, pins: Pins | None, spot: int) -> CachedFile:
    """Make a path that lets go of one pin at `spot` when it is collected; the pin is the caller's to take."""
    file = CachedFile(path)
    file._pins, file._spot = pins, spot
    return file


def _arrived(path: str, folder: str | None, spot: int, ticket: tuple[str, int, int] | None) -> CachedFile:
    """Take a path out of what another process sent."""
    if folder is None or ticket is None:
        return pinned_file(path, None, 0)
    with _senders_lock:
        pins = _senders.get(folder)
        if pins is None or pins.closed:
            pins = Pins(Path(folder), None)
            pins.untended = True
    pins.take([spot])
    pins.received(*ticket)
    return pinned_file(path, pins, spot)


class _Table:
    """One holder's file, mapped: its limit, the bytes it is about to write or to remove, its counters."""

    __slots__ = ("counts", "header", "tickets")

    def __init__(self, memory: mmap.mmap | bytearray) -> None:
        view = memoryview(memory)
        edges = HEADER_BYTES, HEADER_BYTES + 4 * SPOTS, TABLE_BYTES
        self.header = view[: edges[0]].cast("q")
        self.counts = view[edges[0] : edges[1]].cast("I")
        self.tickets = view[edges[1] : edges[2]].cast("I")

    @classmethod
    def of_file(cls, path: Path, *, new: bool) -> _Table:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if new:
                # Real blocks: a page of a hole, written to when the disk is full, would end the process.
                _allocate(descriptor, TABLE_BYTES)
            return cls(mmap.mmap(descriptor, TABLE_BYTES))
        finally:
            os.close(descriptor)


class Pins:
    """This holder's table, and a look at those of the others.

    Args:
        folder: the cache's folder.
        limit: bytes that all files together may have while this holder lives; None: any number.
    """

    def __init__(self, folder: Path, limit: int | None) -> None:
        self.folder = folder
        self.closed = False
        self.untended = False
        """Whether there is no cache any more that counts, now and then, what was let go."""
        self.released: deque[int] = deque()
        self.wake: SimpleQueue[None] | None = None
        """Where to say that something was let go; None while that helps nobody."""
        self._holders = folder / "holders"
        self._lock = threading.Lock()
        self._others: dict[str, _Table] = {}
        self._travelling: dict[int, tuple[int, float]] = {}
        self._next_ticket = 0
        self._announce(limit)
        _all_pins.add(self)
        with _senders_lock:
            _senders[os.fspath(folder)] = self

    def _announce(self, limit: int | None) -> None:
        self._presence = Presence(self._holders)
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        path = self._holders / self.name
        with store_errors(path):
            self._presence.announce(self.name)
            try:
                self._table = _Table.of_file(path, new=True)
            except BaseException:
                self._presence.forget(self.name)
                raise
        self._table.header[_LIMIT] = NO_LIMIT if limit is None else limit

    def take(self, spots: Iterable[int]) -> None:
        """Pin files, before one looks whether they are there."""
        counts = self._table.counts
        with self._lock:
            if self.released or self._travelling:
                self._settle()
            for spot in spots:
                counts[spot] += 1

    def drop(self, spots: Iterable[int]) -> None:
        """Unpin files."""
        self.released.extend(spots)
        self._settle_if_untended()

    def let_go(self, spot: int) -> None:
        """Unpin a file whose path was collected: at any time, in any thread, even within any lock."""
        self.released.append(spot)
        if self.wake is not None:
            self.wake.put(None)
        self._settle_if_untended()

    def _settle_if_untended(self) -> None:
        if self.untended and self._lock.acquire(blocking=False):
            try:
                self._settle()
            finally:
                self._lock.release()

    def settle(self) -> None:
        """Count what was let go since."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        counts, released = self._table.counts, self.released
        if self.closed:
            # At the end of the interpreter paths may be collected after the table.
            released.clear()
        while released:
            spot = released.popleft()
            # Below 0 there is nothing; an error here would end whoever happens to count.
            if counts[spot]:
                counts[spot] -= 1
        if self._travelling:
            now, tickets = time.monotonic(), self._table.tickets
            ended = [t for t, (_, until) in self._travelling.items() if (t >= 0 and not tickets[t]) or now > until]
            for ticket in ended:
                counts[self._travelling.pop(ticket)[0]] -= 1
                if ticket >= 0:
                    tickets[ticket] = 0

    def send(self, spot: int) -> tuple[str, int, int]:
        """Pin a file for another process until that has it: holder, number and secret of a ticket to give back."""
        with self._lock:
            self._settle()
            ticket = self._next_ticket % TICKETS
            self._next_ticket += 1
            word = secrets.randbits(32) | 1
            if ticket in self._travelling:
                # More under way than there are tickets: without one it stays pinned for as long as it may travel.
                ticket = -self._next_ticket
            else:
                self._table.tickets[ticket] = word
            self._table.counts[spot] += 1
            self._travelling[ticket] = spot, time.monotonic() + TRAVEL_S
        return self.name, ticket, word

    def received(self, holder: str, ticket: int, word: int) -> None:
        """Tell the holder that sent a file that it is pinned here now."""
        with self._lock:
            table = self._table if holder == self.name else self._mapped(holder)
            if ticket >= 0 and table is not None and table.tickets[ticket] == word:
                table.tickets[ticket] = 0

    def is_live(self, holder: str) -> bool:
        """Whether a holder still lives: it is found with its lock or not at all."""
        if holder == self.name:
            return True
        return (self._holders / holder).exists() and not self._presence.is_gone(holder)

    def look_around(self) -> list[str]:
        """Map the tables of all other living holders; give the names of those that died."""
        try:
            names = {name for name in os.listdir(self._holders) if name[0] != "."}
        except FileNotFoundError:
            names = set()
        if self.name not in names and not self.closed:
            raise StoreError(
                f"{self._holders} was removed, or emptied, while its cache was in use: nobody sees any more who uses "
                f"what. End what uses {self.folder}, then begin again"
            )
        names -= {self.name}
        gone = [name for name in names if self._presence.is_gone(name)]
        with self._lock:
            for name in (self._others.keys() - names) | set(gone):
                self._others.pop(name, None)
            for name in names - set(gone):
                self._mapped(name)
        return gone

    def _mapped(self, name: str) -> _Table | None:
        if name not in self._others:
            try:
                self._others[name] = _Table.of_file(self._holders / name, new=False)
            except (OSError, ValueError):
                # Gone meanwhile, or so new that its table is not there yet, and so has no pins.
                return None
        return self._others[name]

    def forget(self, holder: str) -> None:
        """Remove the file of a holder that died, once nothing of it is left."""
        self._presence.forget(holder)

    def is_pinned(self, spot: int) -> bool:
        """Whether any holder that was there at the last look around has a file at this spot in use."""
        return self._table.counts[spot] > 0 or any(table.counts[spot] for table in self._others.values())

    def num_pinned(self) -> int:
        """Count the pins of this holder."""
        return sum(self._table.counts)

    @property
    def limit(self) -> int | None:
        """The smallest limit of all living holders: what each was promised holds for all."""
        tables = (self._table, *self._others.values())
        limits = [table.header[_LIMIT] for table in tables if table.header[_LIMIT] != NO_LIMIT]
        return min(limits, default=None)

    def unwritten(self) -> int:
        """Give the bytes that holders may write or have yet to remove, which no row counts."""
        tables = (self._table, *self._others.values())
        return sum(table.header[_RESERVED] + table.header[_LEAVING] for table in tables)

    def reserve(self, size: int) -> None:
        """Show that this holder will write so many bytes more, or fewer if below 0."""
        self._table.header[_RESERVED] += size

    @property
    def reserved(self) -> int:
        """Bytes that this holder may write."""
        return self._table.header[_RESERVED]

    def leave(self, size: int) -> None:
        """Show that so many bytes more, or fewer if below 0, are no longer counted by rows but still on the disk."""
        self._table.header[_LEAVING] += size

    def retire(self) -> None:
        """Hold the others to this holder's limit no longer, and be gone if nothing is pinned."""
        self.wake = None
        self._table.header[_LIMIT] = NO_LIMIT
        self._table.header[_RESERVED] = 0
        self.untended = True
        self.settle()
        if not self.num_pinned():
            self.close()

    def close(self) -> None:
        """Unpin all."""
        self.closed = True
        self._presence.close()
        self._presence.forget(self.name)
        # Nothing of the folder stays mapped; what still counts, counts for nobody.
        self._others.clear()
        self._table = _Table(bytearray(TABLE_BYTES))

    def __del__(self) -> None:
        # With the last path that it pins, so that a file outlives the cache that gave it.
        if hasattr(self, "_table") and not self.closed:
            self.close()

    def _after_fork(self) -> None:
        """Become another holder with the same pins: parent and child let go of theirs one by one."""
        before, travelling = self._table, self._travelling
        self._lock, self._travelling, self._others = threading.Lock(), {}, {}
        limit = before.header[_LIMIT]
        self._announce(None if limit == NO_LIMIT else limit)
        self._table.counts[:] = before.counts
        # What is on its way is the parent's to keep in place.
        self.released.extend(spot for spot, _ in travelling.values())


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    missing = size - os.fstat(descriptor).st_size
    os.pwrite(descriptor, bytes(missing), size - missing)


def _after_fork_in_child() -> None:
    global _senders_lock
    _senders_lock = threading.RLock()
    for pins in list(_all_pins):
        pins._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
