"""What is in use, for all processes to see, at the price of one write for all that is wanted together.

Each holder (a cache that a process has open) counts its pins in its own memory, and says in a file of its own
in `holders/`, locked while it lives, of which spots a count is above 0. A file's key says its spot.

    reader:   bit[spot] = 1      then   look whether the file is there
    evictor:  say that it goes   then   look at everyone's bit[spot]; set: it stays

Whichever comes first, one of the two sees the other. Files that share a spot are kept a little longer.
A holder that ends, however it ends, loses its lock, and with it its pins. Nothing is mapped: whoever damages or
truncates these files ends no process. What of a table can't be read counts as in use, until its holder has
written it anew.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from penstock.errors import StoreError
from penstock.node.disk import refused, store_errors
from penstock.node.presence import Presence
from penstock.store.cache_tables import NO_LIMIT, SPOTS, TICKETS, OwnTable, Table, was_given
from penstock.store.cached_file import CachedFile, unpinned_file

STALLED_S = 30.0
"""A holder that has not shown for so long that it gets on, since it is stopped, say, is not waited for."""
TRAVEL_S = 600.0
"""How long a file stays pinned for a process that it was sent to and that has not taken it out yet."""
_all_pins: weakref.WeakSet[Pins] = weakref.WeakSet()
_senders: weakref.WeakValueDictionary[str, Pins] = weakref.WeakValueDictionary()
_senders_lock = threading.RLock()


def spot_of(key: bytes) -> int:
    """Give the place of a key in the tables of counters."""
    return (key[0] << 8 | key[1]) % SPOTS


def _arrived(path: str, folder: str, spot: int, ticket: tuple[str, int, int]) -> CachedFile:
    """Take a path out of what another process sent."""
    with _senders_lock:
        pins = _senders.get(folder)
        if pins is None or pins.closed:
            pins = Pins(Path(folder), None)
            pins.untended = True
    file = unpinned_file(path, spot)
    pins.pin([file])
    pins.received(*ticket)
    return file


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
        self._others: dict[str, Table] = {}
        self._travelling: dict[int, tuple[int, float, int]] = {}
        self._beats: dict[str, tuple[int, float]] = {}
        """Of holders that are waited for: how often they had shown that they get on, and since when not again."""
        self._next_ticket = 0
        self._announce(limit)
        _all_pins.add(self)
        with _senders_lock:
            _senders[os.fspath(folder)] = self

    def _announce(self, limit: int | None) -> None:
        self._presence = Presence(self._holders)
        self.name = f"{os.getpid()}-{secrets.token_hex(6)}"
        self._own = OwnTable(NO_LIMIT if limit is None else limit)
        self._path = self._holders / self.name
        with store_errors(self._path):
            self._presence.announce(self.name, self._own.whole())
            try:
                self._table = Table(self._path)
            except BaseException:
                self._presence.forget(self.name)
                raise

    def take(self, spots: Sequence[int]) -> None:
        """Pin files, before one looks whether they are there.

        Raises:
            StoreError: the disk is full, and this holder's table was truncated.
        """
        with self._lock:
            self._take(spots)

    def pin(self, files: Sequence[CachedFile]) -> None:
        """Pin the files of paths that hold nothing: each path lets go of its own, wherever Ctrl-C comes."""
        with self._lock:
            self._take([file._spot for file in files], files)

    def _take(self, spots: Sequence[int], files: Sequence[CachedFile] = ()) -> None:
        if self.released or self._travelling:
            self._settle()
        self._own.added = 0
        try:
            self._own.add(spots)
            self._show()
            for file in files:
                file._pins = self
        except BaseException:
            for file in files:
                file._pins = None
            self._own.remove(spots[: self._own.added])
            raise

    def _show(self) -> None:
        if not self.closed:
            try:
                self._own.show(self._table.file)
            except OSError as error:
                raise refused(self._path, error) from error

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
                # Where this can't be said, files stay a little longer.
                with suppress(StoreError):
                    self._show()
            finally:
                self._lock.release()

    def settle(self) -> None:
        """Count what was let go since, and see to it that others can see what was not."""
        with self._lock:
            self._settle()
            self._show()
            if not self.closed:
                with store_errors(self._path):
                    self._own.mend(self._table.file)

    def _settle(self) -> None:
        own, released = self._own, self.released
        if self.closed:
            # At the end of the interpreter paths may be collected after the table.
            released.clear()
        if released:
            own.settle(released)
        if self._travelling and not self.closed:
            now, tickets = time.monotonic(), self._table.tickets()
            ended = [
                ticket
                for ticket, (_, until, word) in self._travelling.items()
                if now > until or (ticket >= 0 and tickets[ticket] == was_given(word))
            ]
            for ticket in ended:
                own.remove([self._travelling.pop(ticket)[0]])

    def sent(self, path: str, spot: int) -> tuple[Any, ...]:
        """Give what a path is pickled as: whoever takes it out has the file pinned."""
        return _arrived, (path, os.fspath(self.folder), spot, self._send(spot))

    def _send(self, spot: int) -> tuple[str, int, int]:
        """Pin a file for another process until that has it: holder, number and secret of a ticket to give back."""
        with self._lock:
            self._settle()
            ticket = self._next_ticket % TICKETS
            self._next_ticket += 1
            word = secrets.randbits(31) | 1
            if ticket in self._travelling:
                # More under way than there are tickets: without one it stays pinned for as long as it may travel.
                ticket = -self._next_ticket
            elif not self.closed:
                self._table.put_ticket(ticket, word)
            self._own.add([spot])
            self._show()
            self._travelling[ticket] = spot, time.monotonic() + TRAVEL_S, word
        return self.name, ticket, word

    def received(self, holder: str, ticket: int, word: int) -> None:
        """Tell the holder that sent a file that it is pinned here now."""
        with self._lock:
            table = self._found(holder) if holder != self.name else None if self.closed else self._table
            # Of a table that was truncated the word is lost, and what was sent with it is meant all the same.
            if ticket >= 0 and table is not None and table.ticket(ticket) in (word, 0):
                table.put_ticket(ticket, was_given(word))

    def is_live(self, holder: str) -> bool:
        """Whether a holder still lives: it is found with its lock or not at all."""
        if holder == self.name:
            return True
        return (self._holders / holder).exists() and not self._presence.is_gone(holder)

    def look_around(self) -> list[str]:
        """Open the tables of all other living holders; give the names of those that died."""
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
                self._beats.pop(name, None)
            for name in names - set(gone):
                self._found(name)
        return gone

    def _found(self, name: str) -> Table | None:
        if name not in self._others:
            try:
                self._others[name] = Table(self._holders / name)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise StoreError(f"cannot see who uses {self.folder}: {error.strerror}") from error
        return self._others[name]

    def forget(self, holder: str) -> None:
        """Remove the file of a holder that died, once nothing of it is left."""
        self._presence.forget(holder)

    def is_pinned(self, spot: int) -> bool:
        """Whether any holder that was there at the last look around has a file at this spot in use."""
        return self._own.counts[spot] > 0 or any(table.is_pinned(spot) for table in self._tables())

    def _tables(self) -> list[Table]:
        with self._lock:
            return list(self._others.values())

    def num_pinned(self) -> int:
        """Count the pins of this holder."""
        return sum(self._own.counts)

    @property
    def limit(self) -> int | None:
        """The smallest limit of all living holders: what each was promised holds for all."""
        limits = [self._own.limit, *[table.header()[0] for table in self._tables()]]
        return min((limit for limit in limits if limit != NO_LIMIT), default=None)

    def beat(self) -> None:
        """Show that this holder gets on."""
        with self._lock:
            self._own.beat += 1
            self._show_header()

    def is_stalled(self, holder: str) -> bool:
        """Whether a living holder has been seen not to get on for so long that others need not wait for it.

        By this process's own clock, which no change of the time of day moves; so it takes two looks.
        """
        with self._lock:
            table = None if holder == self.name else self._found(holder)
            if table is None:
                return False
            beat, now = table.beat(), time.monotonic()
            seen, since = self._beats.get(holder, (-1, now))
            if seen != beat:
                since = now
            self._beats[holder] = beat, since
            return now - since > STALLED_S

    def promise(self, limit: int | None) -> None:
        """Have another limit from now on."""
        with self._lock:
            told = NO_LIMIT if limit is None else limit
            if told != self._own.limit and not self.untended:
                self._own.limit = told
                self._show_header()

    def unwritten(self) -> int:
        """Give the bytes that holders may write or have yet to remove, which no row counts."""
        others = sum(sum(table.header()[1:]) for table in self._tables())
        return self._own.reserved + self._own.leaving + others

    def reserve(self, size: int) -> None:
        """Show that this holder will write so many bytes more, or fewer if below 0."""
        if size:
            with self._lock:
                self._own.reserved += size
                self._show_header()

    @property
    def reserved(self) -> int:
        """Bytes that this holder may write."""
        return self._own.reserved

    def leave(self, size: int) -> None:
        """Show that so many bytes more, or fewer if below 0, are no longer counted by rows but still on the disk."""
        if size:
            with self._lock:
                self._own.leaving += size
                self._show_header()

    def _show_header(self) -> None:
        if not self.closed:
            with store_errors(self._path):
                self._own.show_header(self._table.file)

    def retire(self) -> None:
        """Hold the others to this holder's limit no longer, and be gone if nothing is pinned."""
        self.wake = None
        # Where this can't be said, it ends with this process all the same.
        with self._lock, suppress(StoreError):
            self._own.limit, self._own.reserved = NO_LIMIT, 0
            self._show_header()
        self.untended = True
        with suppress(StoreError):
            self.settle()
        if not self.num_pinned():
            self.close()

    def close(self) -> None:
        """Unpin all."""
        # Nobody is about to write to a file whose number another one may have by then.
        with self._lock:
            self.closed = True
            self._presence.close()
            self._presence.forget(self.name)
            self._others.clear()
            self._table.close()

    def __del__(self) -> None:
        # With the last path that it pins, so that a file outlives the cache that gave it.
        if hasattr(self, "_table") and not self.closed:
            self.close()

    def _after_fork(self) -> None:
        """Become another holder with the same pins: parent and child let go of theirs one by one."""
        before, travelling = self._own, self._travelling
        self._lock, self._travelling, self._others = threading.Lock(), {}, {}
        if self.closed:
            return
        self._announce(None if before.limit == NO_LIMIT else before.limit)
        self._own.add(spot for spot, count in enumerate(before.counts) for _ in range(count))
        self._show()
        # What is on its way is the parent's to keep in place.
        self.released.extend(spot for spot, _, _ in travelling.values())


def _after_fork_in_child() -> None:
    global _senders_lock
    _senders_lock = threading.RLock()
    for pins in list(_all_pins):
        pins._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
