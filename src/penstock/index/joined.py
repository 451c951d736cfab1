"""Several sources as one: their rows one after another, several of them read at the same time.

a ─┐
b ─┼─ read ahead, a few batches each ──▶ rows of a, then of b, then of c, with the columns of all
c ─┘
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import Any

import pyarrow as pa

from penstock.errors import StoreError
from penstock.index.scan import Source, conform, unified

AT_A_TIME = 4
"""Sources that are read at the same time."""
BATCHES_AHEAD = 4
"""Batches of each that wait for their turn."""
_LOOK_S = 0.05
_STOP_S = 0.5
_LONGEST_S = 600.0


class JoinedSource:
    """The rows of several sources, in order; see `penstock.index.scan.Source`.

    Args:
        place: where they are, for people.
        base: what relative locations in all of them are below.
        sources: at least one.
    """

    def __init__(self, place: str, base: str, sources: Sequence[Source]) -> None:
        self.place, self.base = place, base
        self.sources = list(sources)

    def signature(self) -> list[Any]:
        """The signatures of all."""
        return ["joined", *(source.signature() for source in self.sources)]

    @property
    def schema(self) -> pa.Schema:
        """The columns of all, of types that hold the values of all."""
        with ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="penstock-index") as pool:
            return unified(list(pool.map(lambda source: source.schema, self.sources)), self.place)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Read all rows in order; columns that a source does not have are null in its rows.

        Raises:
            As the sources do.
        """
        schema = self.schema
        waiting, running = deque(self.sources), deque[_Reading]()
        try:
            while waiting or running:
                while waiting and len(running) < AT_A_TIME:
                    running.append(_Reading(waiting.popleft()))
                for batch in running[0].batches():
                    yield conform(batch, schema)
                running.popleft()
        finally:
            for reading in running:
                reading.stop()


class _Reading:
    """A source being read on a thread of its own, a few batches ahead."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._ready: Queue[pa.RecordBatch | BaseException | None] = Queue(BATCHES_AHEAD)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="penstock-index", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            for batch in self._source.batches():
                if not self._give(batch):
                    return
            self._give(None)
        except BaseException as error:  # noqa: BLE001 - it is raised again, by who waits for the batch
            self._give(error)

    def _give(self, what: pa.RecordBatch | BaseException | None) -> bool:
        """Hand something over; False if nobody wants it any more."""
        while not self._stopped.is_set():
            try:
                self._ready.put(what, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False

    def batches(self) -> Iterator[pa.RecordBatch]:
        while (batch := self._next()) is not None:
            if isinstance(batch, BaseException):
                raise batch
            yield batch

    def _next(self) -> pa.RecordBatch | BaseException | None:
        try:
            return self._ready.get(timeout=_LONGEST_S)
        except Empty:
            raise StoreError(
                f"{self._source.place} gave no rows for {_LONGEST_S:g} s: see whether it can still be read"
            ) from None

    def stop(self) -> None:
        self._stopped.set()
        # A read that hangs is left to its own deadline.
        self._thread.join(_STOP_S)
