"""All trips under way in this process: begun as places and memory allow, repeated, doubled, handed over.

    Delivery ──waiting──▶ start ──▶ an attempt ──▶ unpack ──▶ Delivery.arrived ──▶ the caller's thread
                            ▲           │ fails                │ more trips
                            └───────────┴─ a task with patience┘

Everything here runs on the background thread, as callbacks without a task per request: at thousands of
requests a second a task costs as much as the request. Two bounds hold. Requests in flight share the
process's places. Bytes in flight and bytes that nobody has taken are at most `max_bytes`, but each
delivery may always have one request under way, so none waits for another's reader.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

from penstock.errors import StoreError
from penstock.store import requests
from penstock.store.failures import OutsideObject, RangesIgnored
from penstock.store.objects import meaning
from penstock.store.pace import FLOOR_S
from penstock.store.trips import Part, Trip, Whole
from penstock.store.wanted import Piece

WATCH_S = FLOOR_S / 4
LEARNING = 1 / 32


class Delivery:
    """What one caller has asked for: the trips that wait, and the way to the caller's thread.

    Args:
        trips: what to fetch, most urgent first.
        max_bytes: bound on bytes in flight and not taken, in this process.
        max_requests: bound on this delivery's requests in flight.
        raw: whether pieces may hold what the client gave, which has the buffer protocol, in place of a copy in bytes.
    """

    def __init__(self, trips: list[Trip], max_bytes: int, max_requests: int, *, raw: bool = False) -> None:
        self.waiting = deque(trips)
        self.max_bytes, self.max_requests = max_bytes, max_requests
        self.raw = raw
        self.under_way: dict[Trip, None] = {}
        """In the order they were begun."""
        self.arrived: list[Piece] = []
        self.queue: SimpleQueue[list[Piece] | BaseException | None] = SimpleQueue()
        """Lists of pieces; None: there will be no more; an error of ours, to be raised."""
        self.given_bytes = 0
        """Written by the background thread only."""
        self.taken_bytes = 0
        """Written by the caller's thread only."""
        self.seen_bytes = 0
        """How much of what was taken is accounted for."""
        self.closed = False


class Transfers:
    """The one instance is `transfers`."""

    def __init__(self) -> None:
        self._open: dict[Delivery, None] = {}
        """Deliveries that are not closed: they may hold bytes."""
        self._queue: dict[Delivery, None] = {}
        """Those of them that have trips to begin, first come first."""
        self._held_bytes = 0
        self._watching = False
        self.starved = False
        """A delivery waits for bytes to be taken: whoever takes some calls `pump`."""
        self._slots = requests.slots()
        self._slots.on_free = self.pump
        requests.on_stop(self._stop)

    def add(self, delivery: Delivery) -> None:
        """Begin a delivery."""
        self._open[delivery] = None
        self._queue[delivery] = None
        self.pump()
        if not self._watching:
            self._watching = True
            asyncio.get_running_loop().call_later(WATCH_S, self._watch)

    def drop(self, delivery: Delivery) -> None:
        """End a delivery: cancel what is under way, forget what waits."""
        if delivery.closed:
            return
        delivery.closed = True
        self._open.pop(delivery, None)
        self._queue.pop(delivery, None)
        delivery.waiting.clear()
        for trip in list(delivery.under_way):
            self._finish(delivery, trip)
            for future in (trip.running, trip.hedge):
                if future is not None:
                    future.cancel()
        self._held_bytes -= delivery.given_bytes - delivery.seen_bytes
        delivery.queue.put(None)
        self.pump()

    def _stop(self) -> None:
        for delivery in list(self._open):
            self.drop(delivery)

    def pump(self) -> None:
        """Begin what places and memory allow, the deliveries that came first before the others."""
        if self._queue:
            for delivery in list(self._queue):
                if not self._begin(delivery):
                    return

    def _begin(self, delivery: Delivery) -> bool:
        """Begin what a delivery may; tell whether there are places left for others."""
        waiting = delivery.waiting
        while waiting and len(delivery.under_way) < delivery.max_requests:
            trip = waiting[0]
            if self._held_bytes + trip.expected > delivery.max_bytes and not self._may_hold(delivery, trip):
                return True
            quick = trip.source.direct and trip.quick
            if quick and not trip.source.take():
                return True
            if quick and not self._slots.take():
                trip.source.give()
                return False
            waiting.popleft()
            self._held_bytes += trip.expected
            delivery.under_way[trip] = None
            if quick:
                self._attempt(delivery, trip)
            else:
                self._persist(delivery, trip, None)
        if not waiting:
            self._queue.pop(delivery, None)
        return True

    def _may_hold(self, delivery: Delivery, trip: Trip) -> bool:
        """Tell whether a trip's bytes have room, now that what was taken meanwhile is counted."""
        # Set before the counts are read: who takes bytes after that sees it and calls `pump`.
        self.starved = True
        for each in self._open:
            taken = each.taken_bytes
            self._held_bytes -= taken - each.seen_bytes
            each.seen_bytes = taken
        nothing_held = not delivery.under_way and delivery.given_bytes == delivery.seen_bytes
        room = nothing_held or self._held_bytes + trip.expected <= delivery.max_bytes
        self.starved = not room
        return room

    def _attempt(self, delivery: Delivery, trip: Trip) -> None:
        """Make an attempt, the place for which is taken: the first, or one beside it."""
        assert trip.start is not None
        assert trip.stop is not None
        try:
            future = trip.source.attempt(trip.path, trip.start, trip.stop)
        except (ValueError, OSError) as error:
            # A name that no store can have is refused at once.
            self._give_place(trip)
            self._persist(delivery, trip, meaning(error))
            return
        self._note(trip, future)
        future.add_done_callback(partial(self._attempted, delivery, trip))

    def _give_place(self, trip: Trip) -> None:
        """Give the place of an attempt back."""
        trip.source.give()
        self._slots.give(quietly=True)

    def _persist(self, delivery: Delivery, trip: Trip, failed: Exception | None) -> None:
        """Carry a trip out with patience, in a task of its own, which takes places when it needs them."""
        read = trip.source.read(
            trip.path,
            trip.start,
            trip.stop,
            etag=trip.etag,
            described=trip.described,
            failed=failed,
            began=trip.began if failed else monotonic(),
        )
        task = asyncio.get_running_loop().create_task(read)
        if failed is not None:
            trip.running, trip.hedge, trip.retried = None, None, True
        self._note(trip, task)
        task.add_done_callback(partial(self._persisted, delivery, trip))

    def _note(self, trip: Trip, future: asyncio.Future[Any]) -> None:
        if trip.running is None:
            trip.running, trip.began = future, monotonic()
        else:
            trip.hedge = future

    def _attempted(self, delivery: Delivery, trip: Trip, future: asyncio.Future[Any]) -> None:
        """Take up how an attempt has ended."""
        self._give_place(trip)
        error = _failure(future)
        if error is None and trip in delivery.under_way:
            data = future.result()
            self._arrived(delivery, trip, future, data if delivery.raw else data.to_bytes(), None)
            return
        if trip in delivery.under_way and not _other(trip, future):
            failure = meaning(error) if isinstance(error, Exception) else StoreError(str(error))
            self._persist(delivery, trip, None if _needs_no_range(trip, failure) else failure)
        self.pump()

    def _persisted(self, delivery: Delivery, trip: Trip, task: asyncio.Task[Any]) -> None:
        """Take up how a task has ended."""
        error = _failure(task)
        if trip not in delivery.under_way:
            return
        if error is None:
            self._arrived(delivery, trip, task, *task.result())
        elif not _other(trip, task):
            if _needs_no_range(trip, error.__cause__):
                self._persist(delivery, trip, None)
            elif isinstance(trip, Part) and isinstance(error.__cause__, RangesIgnored) and trip.long.want.start is None:
                trip.source.ranges = False
                delivery.waiting.extendleft(trip.instead())
                self._queue[delivery] = None
                self._finish(delivery, trip)
                self.pump()
            elif isinstance(error, StoreError):
                self._give_up(delivery, trip, error)
            else:
                self._break(delivery, error)

    def _arrived(self, delivery: Delivery, trip: Trip, future: asyncio.Future[Any], data: bytes, meta: Any) -> None:
        """Hand over what a trip has brought, and end the attempt beside it."""
        other = _other(trip, future)
        if other is not None:
            other.cancel()
        if not trip.retried:
            trip.source.pace(trip.expected).finished(monotonic() - trip.began)
        if type(trip) is Whole:
            trip.source.mean_bytes += (len(data) - trip.source.mean_bytes) * LEARNING
        try:
            pieces, more = trip.unpack(data, meta)
        except StoreError as error:
            self._give_up(delivery, trip, error)
            return
        except Exception as error:  # noqa: BLE001  a mistake of ours is the caller's to see, not this thread's
            self._break(delivery, error)
            return
        if more:
            delivery.waiting.extendleft(reversed(more))
            self._queue[delivery] = None
        self._finish(delivery, trip)
        if pieces:
            size = sum([len(piece.data) for piece in pieces])
            delivery.given_bytes += size
            self._held_bytes += size
            self._hand_over(delivery, pieces)
        self.pump()

    def _break(self, delivery: Delivery, error: BaseException) -> None:
        """End a delivery with an error that is not about one object."""
        delivery.queue.put(error)
        self.drop(delivery)

    def _give_up(self, delivery: Delivery, trip: Trip, error: StoreError) -> None:
        self._finish(delivery, trip)
        pieces = [Piece(number, 0, b"", True, 0, None, error) for number in trip.numbers()]
        if pieces:
            self._hand_over(delivery, pieces)
        self.pump()

    def _finish(self, delivery: Delivery, trip: Trip) -> None:
        del delivery.under_way[trip]
        self._held_bytes -= trip.expected

    def _hand_over(self, delivery: Delivery, pieces: Any) -> None:
        """Give pieces to the caller's thread, all that one turn of the loop brings at once."""
        if not delivery.arrived:
            asyncio.get_running_loop().call_soon(self._flush, delivery)
        delivery.arrived.extend(pieces)

    def _flush(self, delivery: Delivery) -> None:
        pieces, delivery.arrived = delivery.arrived, []
        delivery.queue.put(pieces)

    def _watch(self) -> None:
        """Double the requests that take far longer than their peers."""
        if not self._open:
            self._watching = False
            return
        asyncio.get_running_loop().call_later(WATCH_S, self._watch)
        # What others asked of the same stores may have ended meanwhile.
        self.pump()
        now = monotonic()
        for delivery in self._open:
            for trip in list(delivery.under_way):
                age_s = now - trip.began
                if age_s < FLOOR_S:
                    break
                if trip.hedge is None and not trip.retried:
                    self._double(delivery, trip, age_s)

    def _double(self, delivery: Delivery, trip: Trip, age_s: float) -> None:
        pace = trip.source.pace(trip.expected)
        if age_s < pace.slow_s() or not (self._slots.free and trip.source.has_room) or not pace.may_double():
            return
        if isinstance(trip.running, asyncio.Task):
            self._persist(delivery, trip, None)
        else:
            trip.source.take()
            self._slots.take()
            self._attempt(delivery, trip)


def _needs_no_range(trip: Trip, failure: BaseException | None) -> bool:
    """Tell whether a trip failed only because it asked for a range, and have it ask for all if so."""
    if not isinstance(trip, Whole) or trip.start is None or not isinstance(failure, RangesIgnored | OutsideObject):
        return False
    if isinstance(failure, RangesIgnored):
        trip.source.ranges = False
    trip.ask_for_all()
    trip.running = trip.hedge = None
    return True


def _failure(future: asyncio.Future[Any]) -> BaseException | None:
    """Give what a future has ended with, if not with a result; looking at it keeps it out of the log."""
    return StoreError("the request was cancelled") if future.cancelled() else future.exception()


def _other(trip: Trip, future: asyncio.Future[Any]) -> asyncio.Future[Any] | None:
    """Give the attempt beside this one, if it still goes on."""
    other = trip.hedge if future is trip.running else trip.running
    return None if other is None or other.done() else other


transfers = Transfers()
