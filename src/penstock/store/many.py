"""Many objects at once: hundreds of requests in flight, each answer handed over when it arrives.

    fetcher = Fetcher(storage_options)
    for piece in fetcher.get_many([Wanted(url) for url in urls]):
        ...                                  # piece.number says which, piece.error why not

Law: each Wanted ends in exactly one piece that is its `last`; its bytes are those the store holds, or
the piece has an error instead, and the others go on. Memory is bounded by bytes, not by counts.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from penstock.errors import ConfigError, StoreError, StoreUnavailable
from penstock.store import requests
from penstock.store.sources import Sources
from penstock.store.transfers import Delivery, transfers
from penstock.store.trips import trips
from penstock.store.wanted import Piece, Wanted
from penstock.types import check_int

MAX_BYTES = 256 << 20
LONGEST_S = 900.0


class Fetcher:
    """Reads many objects, of any stores, at once. May be used from several threads.

    Args:
        storage_options: see `open_store`; they go to every store that is read from.
        max_requests: in flight for one call of `get_many`; a process has at most 256.
        max_bytes: in flight and arrived but not taken, in this process. What has no known size counts with
            the average of its store, and one request of each call is always allowed.
    """

    def __init__(
        self,
        storage_options: Mapping[str, Any] | None = None,
        *,
        max_requests: int = requests.MAX_REQUESTS,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        check_int("max_requests", max_requests, minimum=1)
        check_int("max_bytes", max_bytes, minimum=1)
        self._sources = Sources(storage_options or {})
        self._max_requests, self._max_bytes = max_requests, max_bytes

    def get_many(self, wanted: Sequence[Wanted], *, inbox: SimpleQueue[Pieces | None] | None = None) -> Pieces:
        """Begin to fetch, most urgent first, and give the pieces as they arrive.

        Ranges of one object that lie together travel as one request, as long as hardly a byte comes that
        nobody asked for. A request that fails in a way that may pass is tried again; one far slower than its
        peers is doubled.

        Args:
            wanted: what to fetch.
            inbox: where given, the iterator is put there whenever something of it has arrived or it has ended, so
                that one thread can serve many of them, by `take(0)`. Their data has the buffer protocol, and need not
                be bytes.

        Returns:
            An iterator; closing it, or letting go of it, cancels what has not arrived.

        Raises:
            ConfigError: a URL's scheme, a storage option or a range that cannot be.
        """
        for want in wanted:
            if want.start is not None or want.stop is not None:
                _check_range(want)
        early, places = [], {}
        for number, want in enumerate(wanted):
            if want.start is not None and want.start == want.stop:
                early.append(Piece(number, 0, b"", True, 0, None))
                continue
            try:
                places[number] = self._sources.find(want.url)
            except StoreError as error:
                early.append(Piece(number, 0, b"", True, 0, None, error))
        planned = trips(wanted, places)
        delivery = Delivery(planned, self._max_bytes, self._max_requests, raw=inbox is not None)
        pieces = Pieces(delivery, len(wanted), early)
        if inbox is not None:
            delivery.queue = _Announcing(inbox, pieces)
            if early:
                inbox.put(pieces)
        if planned:
            requests.call(transfers.add, delivery)
        return pieces

    def close(self) -> None:
        """Let go of threads; what was begun goes on until its iterator is closed."""
        self._sources.close()


class Pieces(Iterator[Piece]):
    """The pieces of one `get_many`, in the order of their arrival. For one thread; `close` is for any.

    Args:
        delivery: where they come from.
        count: how many Wanted there are.
        early: pieces there are already.
    """

    def __init__(self, delivery: Delivery, count: int, early: Sequence[Piece]) -> None:
        self._delivery, self._left = delivery, count
        self._ready = deque(early)

    def __next__(self) -> Piece:
        """Give the next piece, when it arrives.

        Raises:
            StoreUnavailable: none came for a quarter of an hour, longer than any request may take.
        """
        if not self._ready and not self._wait(LONGEST_S):
            if self._left:
                raise StoreUnavailable(f"{self._left:,} objects are still on their way after {LONGEST_S:,.0f} s")
            raise StopIteration
        piece = self._ready.popleft()
        self._left -= piece.last
        if piece.data:
            self._took(len(piece.data))
        return piece

    def take(self, timeout_s: float | None = None) -> list[Piece]:
        """Give all pieces that have arrived, waiting for the first; none if none comes in time or is left."""
        if not self._ready:
            self._wait(LONGEST_S if timeout_s is None else timeout_s)
        while self._ready and not self._delivery.queue.empty() and self._wait(0):
            pass
        pieces = list(self._ready)
        self._ready.clear()
        self._left -= sum(piece.last for piece in pieces)
        self._took(sum(len(piece.data) for piece in pieces))
        return pieces

    @property
    def left(self) -> int:
        """How many Wanted have not ended."""
        return self._left

    def close(self) -> None:
        """Cancel what has not arrived; takes no time, whatever the servers do."""
        self._left = 0
        self._ready.clear()
        if not self._delivery.closed:
            requests.call_if_begun(transfers.drop, self._delivery)

    def __enter__(self) -> Pieces:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not self._delivery.closed:
            self.close()

    def _wait(self, timeout_s: float) -> bool:
        if not self._left:
            return False
        try:
            arrived = self._delivery.queue.get(timeout=timeout_s)
        except Empty:
            return False
        if isinstance(arrived, BaseException):
            raise arrived
        if arrived is None:
            self._left = 0
            return False
        self._ready.extend(arrived)
        return True

    def _took(self, num_bytes: int) -> None:
        self._delivery.taken_bytes += num_bytes
        if transfers.starved:
            requests.call_if_begun(transfers.pump)


class _Announcing(SimpleQueue):
    """The way of pieces to an iterator that tells an inbox of each arrival."""

    def __init__(self, inbox: SimpleQueue[Pieces | None], pieces: Pieces) -> None:
        self._inbox, self._pieces = inbox, weakref.ref(pieces)

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        super().put(item, block, timeout)
        if (pieces := self._pieces()) is not None:
            self._inbox.put(pieces)


def _check_range(want: Wanted) -> None:
    if want.start is None or want.stop is None or not 0 <= want.start <= want.stop:
        raise ConfigError(f"bytes [{want.start}, {want.stop}) of an object are no range: 0 <= start <= stop")
