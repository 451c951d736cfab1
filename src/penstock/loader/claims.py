"""Loading by claims: chunks for whichever process is free, each completed exactly once an epoch.

    tracker ──claim──▶ chunk ──plan──▶ batches ──▶ trainer ──asks for the next──▶ progress ──last──▶ complete

Any number of independent processes train one dataset: each takes the next chunk that nobody has, and
a ledger remembers. A batch counts as trained when the trainer asks for the one after it; so after a
crash what was in its hands comes again, here or in another process, and nothing is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import ConfigError, LedgerError, LoaderTimeout, StateMismatch
from penstock.loader.assignment import Handed
from penstock.loader.engine import Delivery
from penstock.loader.hints import Walk
from penstock.loader.leases import HeldChunk, Leases
from penstock.loader.state import read_state, write_state
from penstock.loader.worker import ShareAt
from penstock.loader.world import WorldOnce
from penstock.plan.chunks import ChunkPlan
from penstock.plan.plan import Cursor, Share

if TYPE_CHECKING:
    from penstock.ledger.chunk_tracker import ChunkTracker

StopAfter = Literal["epoch", "block"] | int | None
LOOK_EVERY_S = 0.25
"""A process that has nothing to do looks this often whether a chunk came free."""


class Claimed:
    """Batches of the chunks that this process claims; the other `Assignment` of a loader.

    Args:
        dataset: for its name and fingerprint.
        tracker: the ledger's face; the other processes have one of the same file or store.
        plan: how chunks are cut into batches.
        seed: key of the order inside chunks, for the state.
        stop_after: "epoch": when all of its chunks are complete, by whomever, or in a group, when none is left to
            claim; "block": when the block begun with has no more chunk to claim; a number: after so many batches,
            through epochs, and one that was left early has the rest of them; None: never.
        uneven: ranks of a data-parallel group may take different numbers of batches.
        world: this process's place.
        timeout: seconds to wait for chunks of others while nobody makes progress.
    """

    def __init__(
        self,
        dataset: Any,
        tracker: ChunkTracker,
        plan: ChunkPlan,
        *,
        seed: int,
        stop_after: StopAfter,
        uneven: bool,
        world: WorldOnce,
        timeout: float,
    ) -> None:
        self.at: Handed | None = None
        self.last: Handed | None = None
        self._handed_out = 0
        """Batches, up to `_counted`."""
        self._counted: Handed | None = None
        self._dataset = dataset
        self._tracker = tracker
        self._plan = plan
        self._seed = seed
        self.stop_after = stop_after
        self._uneven = uneven
        self._world = world
        self._timeout = timeout
        self._leases: Leases | None = None
        self._epoch = 0
        self._block_id: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy claims chunks of its own; those that this one holds are not its to give back.
        return {**self.__dict__, "_leases": None}

    @property
    def description(self) -> str:
        """Say what is read and from whom it is claimed."""
        plan, name = self._plan, type(self._dataset).__name__
        return f"{plan.num_samples:,} samples of {name}, batch_size={plan.batch_size}, order {plan.name}, by claims"

    @property
    def epoch(self) -> int:
        """The epoch the next batch belongs to: the ledger's, or the one after it if all of it is complete."""
        return self._tracker.current_epoch + self._tracker.is_epoch_complete(self._plan.chunks_per_block)

    @property
    def number(self) -> int:
        """Times that `stop_after` batches, a number, have been handed out."""
        assert isinstance(self.stop_after, int)
        return (self._handed_out + (self.at is not self._counted)) // self.stop_after

    def num_batches(self) -> int:
        """Count the batches of an iteration, where it has a number of them.

        Raises:
            TypeError: it has not, as a torch DataLoader of an IterableDataset.
        """
        if isinstance(self.stop_after, int):
            return self.stop_after
        raise TypeError(
            "a loader by claims has no len(): how many batches this process gets depends on the others. Count them as "
            "they come, or use stop_after= a number"
        )

    def walk(self) -> Walk:
        """Claim chunk after chunk and give their batches, until none is free."""
        return self._claim

    def share_at(self) -> ShareAt:
        """Tell a worker process the ids of one batch."""
        return self._plan.share

    def run(self, make: Callable[[Cursor], Iterator[Delivery]]) -> Iterator[Delivery]:
        """Yield batches until it is time to stop, claiming, completing and waiting as need be."""
        self._check_world()
        self._tracker.agree_on_chunk_size(self._plan.chunk_size)
        # An iterator that somebody still has, and that this one overtakes, would hold its chunks for good.
        self.let_go()
        self._epoch, self._block_id = self._begun_epoch(), None
        self._count()
        left = self.stop_after - self._handed_out % self.stop_after if isinstance(self.stop_after, int) else None
        share: Share | None = None
        with Leases(self._tracker) as leases:
            self._leases = leases
            while True:
                # No batch stands there: what was in flight when an iteration was left is of chunks given back since.
                for delivery in make(Cursor(epoch=self._epoch, samples=self._plan.num_samples)):
                    if share is not delivery[1]:
                        share = delivery[1]
                        chunk = self._plan.chunk_at(share.start)
                    position = share.start + delivery[2] * share.taken
                    stop = position + share.taken
                    if not leases.hand_out(chunk, share.epoch, position, stop):
                        continue
                    yield delivery
                    del delivery
                    leases.trained(chunk, stop)
                    self._count()
                    if left is not None and (left := left - 1) == 0:
                        return
                if self.stop_after == "block" and self._block_id is not None:
                    return
                is_over = self._is_over()
                if not is_over and not self._in_group:
                    self._wait()
                elif self.stop_after in ("epoch", "block"):
                    return
                else:
                    # Ranks of a group never wait for chunks of each other: who holds one may be waiting in a
                    # collective for us. What is held of the old epoch is completed in it all the same.
                    self._epoch = self._begun_epoch() if is_over else self._tracker.start_new_epoch(after=self._epoch)

    def let_go(self) -> None:
        """Give the chunks back that an iteration still holds."""
        if self._leases is not None:
            self._leases.give_back()

    def set_epoch(self, epoch: int) -> bool:
        """Accept the epoch that the ledger is in, or is about to begin.

        Raises:
            ConfigError: it is another one.
        """
        now = self._tracker.current_epoch
        over = self._tracker.is_epoch_complete(self._plan.chunks_per_block)
        if epoch != now + over:
            state = f"in epoch {now}, which is {'complete' if over else 'not complete'}"
            raise ConfigError(f"set_epoch({epoch}): the ledger is {state}; by claims, epochs follow from what is done")
        return False

    def state_dict(self) -> dict[str, Any]:
        """Write the ledger's sequence number, and how far the chunks are that have been begun.

        The batch in the trainer's hands counts, as it does by plan; in the ledger it does not before it is trained.
        """
        if self._leases is not None:
            self._leases.renew()
        found = self._tracker.checkpoint(() if self._leases is None else self._leases.handed_out())
        # The number must not outlive what it counts.
        self._tracker.save()
        cursor = Cursor(epoch=found.epoch)
        state = write_state(cursor, self._plan, self._seed, getattr(self._dataset, "fingerprint", None))
        offsets = [list(one) for one in found.offsets]
        return {**state, "ledger": self._tracker.ledger_id, "sequence": found.sequence, "offsets": offsets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Re-open what was completed after a state was saved: the model that goes with it has not seen it.

        Chunks that had been begun go on where they were. Of the ranks of a group the first one does so.

        Raises:
            StateMismatch: the state is of other data or settings, or of another ledger.
        """
        read_state(state, self._plan, self._seed, getattr(self._dataset, "fingerprint", None))
        if state.get("ledger") != self._tracker.ledger_id or "sequence" not in state:
            raise StateMismatch(
                f"the state was saved with ledger {state.get('ledger')}, this one is {self._tracker.ledger_id}: open "
                "the tracker on the same file, or import the export of that ledger into it"
            )
        self.let_go()
        self._leases = None
        self._count()
        if isinstance(self.stop_after, int):
            # A round begins: how far which process was in its own, no state says.
            self._handed_out -= self._handed_out % self.stop_after
        if self._world.get().dp_rank == 0:
            try:
                self._tracker.reopen_after(state["sequence"], state.get("offsets", ()))
            except (ConfigError, TypeError) as error:
                raise StateMismatch(f"the state was edited: {error}") from None

    def explain(self) -> list[str]:
        """Describe the claims."""
        plan, name = self._plan, type(self._dataset).__name__
        chunks, ends = sum(plan.chunks_per_block), self.stop_after
        ends_in_words = f"{ends:,} batches" if isinstance(ends, int) else f"its {ends}"
        return [
            f"{plan.num_samples:,} samples of {name} in {chunks:,} chunks, batches of {plan.batch_size:,} cross none",
            f"remainder {plan.remainder}, order {plan.name}, seed {self._seed}",
            f"claimed from ledger {self._tracker.ledger_id}, which is in epoch {self._tracker.current_epoch}",
            "an iteration never ends" if ends is None else f"an iteration ends after {ends_in_words}",
        ]

    def _count(self) -> None:
        """Count the last batch handed out, if it is not counted yet."""
        if self.at is not self._counted:
            self._handed_out, self._counted = self._handed_out + 1, self.at

    def _claim(self, cursor: Cursor) -> Iterator[Share]:
        assert self._leases is not None
        while (claim := self._tracker.claim(self._plan.chunks_per_block, self._world.get().dp_rank)) is not None:
            if self.stop_after == "block" and self._block_id not in (None, claim.block_id):
                self._tracker.release(claim)
                return
            self._block_id = claim.block_id
            start, stop = self._plan.span(claim.block_id, claim.chunk_id)
            first = start + claim.sample_offset
            if first > stop:
                raise LedgerError(
                    f"the ledger says that {claim.sample_offset} samples of chunk {claim.chunk_id} of block "
                    f"{claim.block_id} are trained, but it has {stop - start}: the ledger belongs to another dataset, "
                    "or to another dataset_chunk_size; keep what it was begun with, or give another state_file"
                )
            end = first + self._plan.num_usable(stop - first)
            self._leases.add(
                HeldChunk(claim=claim, start=start, end=end, trained=first, handed_out=first, recorded=first)
            )
            if first < stop:
                yield from self._plan.walk(Cursor(epoch=claim.epoch, samples=first))

    def _begun_epoch(self) -> int:
        """Give the epoch to work on: the next one if all of the current one is complete."""
        epoch = self._tracker.current_epoch
        if self._tracker.is_epoch_complete(self._plan.chunks_per_block):
            return self._tracker.start_new_epoch(after=epoch)
        return epoch

    def _is_over(self) -> bool:
        # Another process may have completed our epoch and begun the next one.
        tracker = self._tracker
        return tracker.current_epoch != self._epoch or tracker.is_epoch_complete(self._plan.chunks_per_block)

    def _wait(self) -> None:
        """Wait until the epoch is over, or a chunk that another process held is free.

        Raises:
            LoaderTimeout: nobody has made progress for the length of a lease and `timeout` seconds more.
        """
        tracker, chunks = self._tracker, self._plan.chunks_per_block
        patience_s = tracker.lease_s + self._timeout
        seen, since = tracker.sequence, time.monotonic()
        while not tracker.has_free_chunk(chunks) and not self._is_over():
            if (sequence := tracker.sequence) != seen:
                seen, since = sequence, time.monotonic()
            elif time.monotonic() - since > patience_s:
                raise LoaderTimeout(
                    f"all that is left of epoch {self._epoch} is held by others, and none of them has got any further "
                    f"for {patience_s:.0f} s: {tracker.describe_holders()}. End those that hang, and their chunks come "
                    "back when the leases end; or raise timeout="
                )
            time.sleep(LOOK_EVERY_S)

    @property
    def _in_group(self) -> bool:
        return self._world.get().dp_size > 1

    def _check_world(self) -> None:
        world = self._world.get()
        if self._in_group and not self._uneven and not isinstance(self.stop_after, int):
            raise ConfigError(
                f"by claims, the {world.dp_size} ranks of this group would get different numbers of batches, and the "
                "first to end would leave the others waiting in their collectives: give stop_after= a number of "
                "batches, or use torch's Join and uneven=True"
            )
