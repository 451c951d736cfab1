"""From pieces that arrive to files that are whole: who waits for what, and the threads that write.

    flights that a holder has claimed ──get_many──▶ pieces ──▶ files ──▶ landed(flights)

One call's objects are one batch, written by one thread as they arrive: none is handed from thread to
thread by itself.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue

from penstock.errors import ObjectChanged, StoreError
from penstock.node.disk import store_errors
from penstock.store.cache_flights import Flight
from penstock.store.cache_rows import Claimed
from penstock.store.cache_shelf import Shelf, checksum_of_file, create, write_all
from penstock.store.many import Fetcher, Pieces
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
            self.let_go(shelf, piece.number)
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

    def let_go(self, shelf: Shelf, number: int) -> None:
        """Remove what there is of one that failed."""
        parts = self._parts.pop(number, None)
        if parts is not None:
            parts.drop()
        entry = self.flights[number].claimed
        if entry is not None:
            shelf.give_up([entry])

    def fail(self, shelf: Shelf, reason: Exception | None) -> list[Flight]:
        """Let all that have not landed fail; give them."""
        failed = []
        for number, flight in enumerate(self.flights):
            if not flight.landed:
                shown = redact(flight.wanted.url)
                flight.error = reason or StoreError(f"{shown} was not fetched: nobody waited for it any more")
                self.let_go(shelf, number)
                failed.append(flight)
        return failed


class Downloads:
    """The threads that fetch and write.

    Args:
        shelf: where to.
        fetcher: where from.
        landed: gives who is told which flights have landed, a list at a time, from any of the threads.
    """

    def __init__(self, shelf: Shelf, fetcher: Fetcher, landed: Landed) -> None:
        self._shelf, self._fetcher, self._landed = shelf, fetcher, landed
        self.reset()

    def reset(self) -> None:
        """Begin without threads, as in a process that was just forked."""
        self._lock = threading.Lock()
        self._work: SimpleQueue[list[Flight] | None] = SimpleQueue()
        """Batches for threads that are idle; None: end."""
        self._threads: set[threading.Thread] = set()
        self._batches: set[Batch] = set()
        self._idle = 0
        self._closed = False

    def begin(self, flights: list[Flight]) -> None:
        """Begin to fetch flights that have an entry to fill."""
        with self._lock:
            if self._idle:
                self._idle -= 1
                self._work.put(flights)
            else:
                thread = threading.Thread(target=self._run, args=[flights], name="penstock-cache", daemon=True)
                self._threads.add(thread)
                thread.start()

    def _run(self, flights: list[Flight] | None) -> None:
        while flights is not None:
            self._carry_out(flights)
            with self._lock:
                self._idle += 1
            try:
                flights = self._work.get(timeout=IDLE_S)
            except Empty:
                flights = self._last_look()
        with self._lock:
            self._threads.discard(threading.current_thread())

    def _last_look(self) -> list[Flight] | None:
        """Take what came while this thread thought that nothing would, or count as idle no longer."""
        with self._lock:
            try:
                return self._work.get_nowait()
            except Empty:
                self._idle -= 1
                return None

    def _carry_out(self, flights: list[Flight]) -> None:
        batch, reason = None, None
        try:
            batch = self._open(flights)
            while batch.pieces.left and (arrived := batch.pieces.take()):
                landed = [flight for piece in arrived if (flight := batch.store(self._shelf, piece)) is not None]
                if landed:
                    self._tell(landed)
        except Exception as error:  # noqa: BLE001 - it belongs to who waits for the objects
            reason = error
        finally:
            if batch is None:
                batch = Batch(flights, None)  # type: ignore[arg-type]
            self._close(batch)
            self._tell(batch.fail(self._shelf, reason))

    def _tell(self, flights: list[Flight]) -> None:
        if (landed := self._landed()) is not None:
            landed(flights)

    def _open(self, flights: list[Flight]) -> Batch:
        with self._lock:
            if self._closed:
                raise StoreError("the cache was closed")
            batch = Batch(flights, self._fetcher.get_many([flight.wanted for flight in flights]))
            self._batches.add(batch)
        return batch

    def _close(self, batch: Batch) -> None:
        with self._lock:
            self._batches.discard(batch)
        if batch.pieces is not None:
            batch.pieces.close()

    def drop_unneeded(self) -> None:
        """End batches of which nobody needs anything."""
        with self._lock:
            for batch in self._batches:
                if not any(flight.needed for flight in batch.flights if not flight.landed):
                    batch.pieces.close()

    @property
    def in_flight(self) -> int:
        """How many objects are being fetched."""
        with self._lock:
            return sum(not flight.landed for batch in self._batches for flight in batch.flights)

    def close(self, timeout_s: float) -> None:
        """Cancel what is under way and end the threads."""
        with self._lock:
            self._closed = True
            threads = list(self._threads)
            for batch in self._batches:
                batch.pieces.close()
        for _ in threads:
            self._work.put(None)
        for thread in threads:
            thread.join(timeout_s)


def _check_size(wanted: Wanted, piece: Piece) -> None:
    if wanted.size is not None and wanted.start is None and piece.size != wanted.size:
        raise ObjectChanged(
            f"{redact(wanted.url)} has {piece.size:,} bytes, the index says {wanted.size:,}: it was written anew "
            "since. Build the index again"
        )
