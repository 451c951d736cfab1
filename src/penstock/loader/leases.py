"""The chunks that a process holds, and the thread that keeps them its own.

A lease is renewed several times in its length, however long a training step takes; with it goes how
far the chunk is trained. A lease that ended all the same, because the process was stopped for longer,
is found out at the next renewal or completion, and the chunk is left to whoever has it now.
"""

from __future__ import annotations

import atexit
import threading
import warnings
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from penstock.errors import LedgerError, PenstockError, StaleClaim

if TYPE_CHECKING:
    from penstock.ledger.chunk_tracker import ChunkTracker
    from penstock.ledger.ledger import Claim

RENEWALS_PER_LEASE = 4


@dataclass(kw_only=True, slots=True)
class HeldChunk:
    """A chunk of ours; the numbers are positions of samples in the dataset."""

    claim: Claim
    start: int
    end: int
    """Where its last batch ends."""
    trained: int
    """Before here all has been trained."""
    handed_out: int
    """Before here the trainer has had all."""
    recorded: int
    """What the ledger knows of that."""
    steps: int = 0


class Leases:
    """What a process holds, from claim to completion; whatever is left at the end is given back.

    Args:
        tracker: whose claims they are.
    """

    def __init__(self, tracker: ChunkTracker) -> None:
        self._tracker = tracker
        self._held: dict[tuple[int, int], HeldChunk] = {}
        self._lost: set[tuple[int, int]] = set()
        # What the trainer had of chunks that were given back: the batch in its hands counts in a checkpoint only.
        self._left: list[tuple[int, int, int, int]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._failure: PenstockError | None = None
        self._thread = threading.Thread(target=self._keep, name="penstock-leases", daemon=True)

    def __enter__(self) -> Leases:
        self._thread.start()
        # At the end of a script an open iteration is torn down too late to give anything back.
        atexit.register(self.give_back)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        atexit.unregister(self.give_back)
        self.give_back()

    def add(self, held: HeldChunk) -> None:
        """Keep a chunk that was just claimed; one without any batch is complete at once."""
        with self._lock:
            self._held[held.claim.block_id, held.claim.chunk_id] = held
            self._settle(held)

    def hand_out(self, chunk: tuple[int, int], epoch: int, position: int, stop: int) -> bool:
        """Whether the batch from a position to `stop` is the next one of a chunk, (block_id, chunk_id), of ours.

        It is not if the chunk was lost since the batch was prepared, though we hold it again by now: then the batches
        before this one are still owed. Warns once of each chunk that was lost.

        Raises:
            LedgerError: the leases could not be renewed.
        """
        if self._failure is not None:
            raise self._failure
        if chunk in self._lost:
            self._lost.remove(chunk)
            warnings.warn(
                f"the lease of chunk {chunk[1]} of block {chunk[0]} ended while this process stood still for longer "
                f"than {self._tracker.lease_s:g} s; the rest of the chunk is left to whoever claims it",
                RuntimeWarning,
                stacklevel=2,
            )
        held = self._held.get(chunk)
        if held is None or held.trained != position or held.claim.epoch != epoch:
            return False
        held.handed_out = stop
        return True

    def trained(self, chunk: tuple[int, int], position: int) -> None:
        """Note that a chunk is trained up to a position; complete it if that was its last batch."""
        with self._lock:
            if (held := self._held.get(chunk)) is not None:
                held.trained = position
                held.steps += 1
                self._settle(held)

    def renew(self) -> None:
        """Start all leases anew and record how far the chunks are trained."""
        with self._lock:
            for held in list(self._held.values()):
                # An offset is only recorded where it has moved: so the ledger's number tells whether anybody gets on.
                moved = held.trained != held.recorded
                try:
                    self._tracker.renew(held.claim, sample_offset=held.trained - held.start if moved else None)
                except StaleClaim:
                    self._lose(held)
                held.recorded = held.trained

    def give_back(self) -> None:
        """Give back what is still held, from where its training ends; again and again does no harm."""
        self._over.set()
        with self._lock:
            for held in self._held.values():
                # What can't be given back any more, in a ledger closed by now, comes back when its lease ends.
                with suppress(LedgerError):
                    self._tracker.release(held.claim, sample_offset=held.trained - held.start)
            self._left += self._begun()
            self._held.clear()

    def handed_out(self) -> list[tuple[int, int, int, int]]:
        """Give (epoch, block_id, chunk_id, samples that the trainer had) of all that is held, or was given back."""
        with self._lock:
            return self._left + self._begun()

    def _begun(self) -> list[tuple[int, int, int, int]]:
        return [
            (held.claim.epoch, held.claim.block_id, held.claim.chunk_id, held.handed_out - held.start)
            for held in self._held.values()
            if held.handed_out > held.start
        ]

    def _settle(self, held: HeldChunk) -> None:
        if held.trained < held.end:
            return
        try:
            self._tracker.complete(held.claim, steps=held.steps)
        except StaleClaim:
            self._lose(held)
        else:
            del self._held[held.claim.block_id, held.claim.chunk_id]

    def _lose(self, held: HeldChunk) -> None:
        chunk = held.claim.block_id, held.claim.chunk_id
        del self._held[chunk]
        self._lost.add(chunk)

    def _keep(self) -> None:
        while not self._over.wait(self._tracker.lease_s / RENEWALS_PER_LEASE):
            try:
                self.renew()
            except PenstockError as error:
                # It is the trainer's to hear, with the next batch.
                self._failure = error
                return
