"""From pieces that arrive to files that are whole: who waits for what, and the threads that write.

    flights that a holder has claimed ──get_many──▶ pieces ──▶ files ──▶ landed(flights)

One call's objects are one batch. One thread writes what arrives of all of them, a list at a time: threads
that make files side by side would only wait for each other, in the system and for the interpreter.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from penstock.errors import ObjectChanged, StoreError, StoreUnavailable
from penstock.node.disk import store_errors
from penstock.store.cache_flights import Dropped, Flight
from penstock.store.cache_rows import Claimed
from penstock.store.cache_shelf import Shelf, checksum_of_file, create, mark, write_all
from penstock.store.many import LONGEST_S, Fetcher, Pieces
from penstock.store.urls import redact
from penstock.store.wanted import Piece, Wanted

IDLE_S = 10.0

Landed = Callable[[], Callable[[list[Flight]], None] | None]
"""Gives who is to be told which flights have landed, if there is anybody left."""


class _Parts:
    """A long object that arrives in pieces, in any order."""

    def __init__(self, shelf: Shelf, entry: Claimed, size: int) -> None:
        self._shelf, self._entry, self._size, self._missing = shelf, entry, size, size
        self.path = shelf.book.path_of(entry)
        shelf.room.make(size)
        try:
            with store_errors(self.path):
                self._file = create(self.path)
        except BaseException:
            shelf.room.give_back(size)
            raise

    def add(self, piece: Piece) -> None:
        with store_errors(self.path):
            write_all(self._file, piece.data, piece.offset)
        self._missing -= len(piece.data)

    def finish(self, etag: str | None) -> None:
        os.close(self._file)
        self._file = -1
        found = checksum_of_file(self.path)
        if self._missing or found is None or found[0] != self._size:
            raise StoreError(f"of {self._size:,} bytes {self._missing:,} are missing")
        with store_errors(self.path):
            mark(self.path, found[1])
        self._shelf.book.written(self._entry, *found, etag)

    def drop(self) -> None:
        if self._file >= 0:
            os.close(self._file)
        self._shelf.room.give_back(self._size)


class Batch:
    """Flights that are fetched together."""

    def __init__(self, flights: Sequence[Flight], pieces: Pieces) -> None:
        self.flights, self.pieces = flights, pieces
        self._parts: dict[int, _Parts] = {}
        self.last_s = time.monotonic()
        """When something came of it."""

    def store(self, shelf: Shelf, piece: Piece) -> Flight | None:
        """Write a piece to its file; give the flight if it has landed with it."""
        flight = self.flights[piece.number]
        if flight.landed:
            return None
        try:
            if piece.error is not None:
                raise piece.error
            self._write(shelf, flight, piece)
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the object; the others go on
            flight.error = error
            self._let_go(shelf, piece.number)
        return flight if flight.landed else None

    def _write(self, shelf: Shelf, flight: Flight, piece: Piece) -> None:
        entry, wanted = flight.claimed, flight.wanted
        assert entry is not None
        _check_size(wanted, piece)
        etag = wanted.etag or piece.etag
        if piece.last and len(piece.data) == piece.size:
            flight.path = shelf.write(entry, piece.data, etag)
            return
        parts = self._parts.get(piece.number)
        if parts is None:
            parts = self._parts[piece.number] = _Parts(shelf, entry, piece.size)
        parts.add(piece)
        if piece.last:
            parts.finish(etag)
            del self._parts[piece.number]
            flight.path = parts.path

    def _let_go(self, shelf: Shelf, number: int) -> None:
        """Remove what there is of one that failed."""
        parts = self._parts.pop(number, None)
        if parts is not None:
            parts.drop()
        claimed = self.flights[number].claimed
        assert claimed is not None
        shelf.give_up([claimed])

    def drop_parts(self) -> None:
        """Let go of the files of long objects that will not be whole."""
        for parts in self._parts.values():
            parts.drop()
        self._parts.clear()


class Downloads:
    """What this process fetches, and the one thread that writes it.

    Args:
        shelf: where to.
        fetcher: where from.
        landed: gives who is told which flights have landed, a list at a time, from that thread or the caller's.
    """

    def __init__(self, shelf: Shelf, fetcher: Fetcher, landed: Landed) -> None:
        self._shelf, self._fetcher, self._landed = shelf, fetcher, landed
        self.reset()

    def reset(self) -> None:
        """Begin without a thread, as in a process that was just forked."""
        self._lock = threading.Lock()
        self._inbox: SimpleQueue[Pieces | None] = SimpleQueue()
        """Those of which something has arrived; None: end."""
        self._batches: dict[Pieces, Batch] = {}
        self._writer: threading.Thread | None = None
        self._closed = False

    def begin(self, flights: list[Flight]) -> None:
        """Begin to fetch flights that have an entry to fill."""
        try:
            with self._lock:
                if self._closed:
                    raise StoreError("the cache was closed")
                # Before they are under way: of what is, all is known, whatever interrupts this.
                if self._writer is None or not self._writer.is_alive():
                    self._writer = threading.Thread(target=self._write, name="penstock-cache", daemon=True)
                    self._writer.start()
                pieces = self._fetcher.get_many([flight.wanted for flight in flights], inbox=self._inbox)
                self._batches[pieces] = Batch(flights, pieces)
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the objects
            self._tell(fail(flights, self._shelf, error))

    def not_begun(self, flights: Sequence[Flight]) -> list[Flight]:
        """Give those of some flights that are not being fetched."""
        with self._lock:
            begun = {flight for batch in self._batches.values() for flight in batch.flights}
        return [flight for flight in flights if flight not in begun]

    def claims(self) -> set[int]:
        """Give the entries that are being filled."""
        with self._lock:
            flights = [flight for batch in self._batches.values() for flight in batch.flights]
        return {one.claimed.id for one in flights if (one.claimed is not None and not one.landed)}

    def _write(self) -> None:
        """The thread: write what arrives until nothing more is to come for a while."""
        with self._lock:
            if self._writer is not threading.current_thread():
                # An interrupt kept its beginning from being noted, and another was begun.
                return
        while True:
            try:
                pieces = self._inbox.get(timeout=IDLE_S)
            except Empty:
                if self._rest():
                    return
                continue
            if pieces is None:
                return
            with self._lock:
                batch = self._batches.get(pieces)
            if batch is not None:
                self._advance(batch)

    def _rest(self) -> bool:
        """End the thread if nothing is under way; end what has been for too long."""
        now = time.monotonic()
        with self._lock:
            late = [batch for batch in self._batches.values() if now > batch.last_s + LONGEST_S]
            if not self._batches and self._inbox.empty():
                self._writer = None
                return True
        for batch in late:
            self._finish(batch, StoreUnavailable(f"nothing came for {LONGEST_S:,.0f} s"))
        return False

    def _advance(self, batch: Batch) -> None:
        """Write what has arrived of a batch."""
        reason = None
        try:
            arrived = batch.pieces.take(0)
            landed = [flight for piece in arrived if (flight := batch.store(self._shelf, piece)) is not None]
            batch.last_s = time.monotonic()
            if landed:
                self._tell(landed)
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the objects
            reason = error
        if reason is not None or not batch.pieces.left:
            self._finish(batch, reason)

    def _finish(self, batch: Batch, reason: Exception | None) -> None:
        with self._lock:
            self._batches.pop(batch.pieces, None)
        batch.pieces.close()
        batch.drop_parts()
        self._tell(fail(batch.flights, self._shelf, reason))

    def _tell(self, flights: list[Flight]) -> None:
        if flights and (landed := self._landed()) is not None:
            landed(flights)

    def drop_unneeded(self) -> None:
        """End batches of which nobody needs anything."""
        with self._lock:
            for batch in self._batches.values():
                if not any(flight.needed for flight in batch.flights if not flight.landed):
                    batch.pieces.close()

    @property
    def in_flight(self) -> int:
        """How many objects are being fetched."""
        with self._lock:
            return sum(not flight.landed for batch in self._batches.values() for flight in batch.flights)

    @property
    def busy(self) -> bool:
        """Whether anything is being fetched."""
        return bool(self._batches)

    def close(self, timeout_s: float) -> None:
        """Cancel what is under way and end the thread."""
        with self._lock:
            self._closed = True
            writer, batches = self._writer, list(self._batches.values())
        for batch in batches:
            batch.pieces.close()
        self._inbox.put(None)
        if writer is not None and writer is not threading.current_thread():
            writer.join(timeout_s)
        for batch in batches:
            if batch.pieces in self._batches:
                self._finish(batch, None)


def fail(flights: Sequence[Flight], shelf: Shelf, reason: Exception | None) -> list[Flight]:
    """Let all flights that have not landed fail; give them."""
    failed = [flight for flight in flights if not flight.landed]
    for flight in failed:
        shown = redact(flight.wanted.url)
        flight.error = reason or Dropped(f"{shown} was not fetched: nobody needed it any more, or the cache was closed")
    shelf.give_up([flight.claimed for flight in failed if flight.claimed is not None])
    return failed


def _check_size(wanted: Wanted, piece: Piece) -> None:
    if wanted.size is not None and wanted.start is None and piece.size != wanted.size:
        raise ObjectChanged(
            f"{redact(wanted.url)} has {piece.size:,} bytes, the index says {wanted.size:,}: it was written anew "
            "since. Build the index again"
        )
