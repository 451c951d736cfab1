"""What every ledger can do, whatever it is kept in: grant chunks, and record each as done once.

A unit of work is a chunk of a block in an epoch. It is free, held or done:

    free ──claim──▶ held ──complete──▶ done
      ▲               │                  │
      └─release, or the lease ends       │
      └────────────── reopen_after ──────┘

Law: a unit becomes done at most once per epoch, and only through the claim that holds it. A claim is a
lease with a token; who lets it end can neither complete nor extend it, so a slow worker that comes
back finds its work refused instead of counted twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from penstock.errors import LedgerError, StaleClaim


@dataclass(frozen=True, kw_only=True, slots=True)
class Claim:
    """The right to work on one chunk until the lease ends."""

    epoch: int
    block_id: int
    chunk_id: int
    sample_offset: int
    """Samples of the chunk that are already trained: begin here."""
    token: str
    """Names the tracker and the claim; what the ledger compares, and nobody else can know."""
    gpu_id: int | str
    lease_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class ClaimRequest:
    """What a tracker asks for: the first free chunk of these blocks, begun ones first."""

    chunks_per_block: Sequence[int] | None
    """Chunks of every block of the dataset; None where `block_id` and `num_chunks` say it for one block."""
    block_id: int | None = None
    num_chunks: int | None = None
    start: tuple[int, int]
    """(block, chunk) before which nothing is granted."""
    token: str
    gpu_id: int | str
    lease_s: float

    @property
    def blocks(self) -> range:
        """The blocks that are asked for, the start block first."""
        if self.chunks_per_block is not None:
            return range(self.start[0], len(self.chunks_per_block))
        assert self.block_id is not None
        return range(self.block_id, self.block_id + 1)

    def granted(self, *, epoch: int, block_id: int, chunk_id: int, sample_offset: int) -> Claim:
        """Give the claim that answers the request."""
        return Claim(
            epoch=epoch,
            block_id=block_id,
            chunk_id=chunk_id,
            sample_offset=sample_offset,
            token=self.token,
            gpu_id=self.gpu_id,
            lease_s=self.lease_s,
        )

    def chunks_of(self, block: int) -> int:
        """How many chunks a block should have."""
        found = self.num_chunks if self.chunks_per_block is None else self.chunks_per_block[block]
        assert found is not None
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """One chunk that is done."""

    sequence: int
    epoch: int
    block_id: int
    chunk_id: int
    gpu_id: int | str
    optimizer_step: int
    steps: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Holder:
    """Somebody who holds a chunk."""

    block_id: int
    chunk_id: int
    gpu_id: int | str
    left_s: float
    """Until the lease could end; 0 if it has."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Counts over the whole ledger, all epochs; each epoch counts a block anew."""

    epoch: int
    sequence: int
    """Grows with each completion, each recorded sample offset and each new epoch; never falls."""
    chunks_done: int
    optimizer_step: int
    """The largest that a completion named."""
    steps: int
    blocks_started: int
    blocks_completed: int
    blocks_completed_this_epoch: int
    num_blocks: int | None
    """Blocks of the dataset; None until a claim or a check has said."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """All that a ledger knows, claims apart: a held chunk is free here, at the offset it had reached."""

    ledger_id: str
    epoch: int
    sequence: int
    num_blocks: int | None
    chunk_size: int | None
    """Samples of a chunk, if somebody has said so."""
    epochs: list[tuple[int, int]]
    """(epoch, the sequence number of its start)."""
    blocks: list[tuple[int, int, int]]
    """(epoch, block, its number of chunks)."""
    partial: list[tuple[int, int, int, int, int]]
    """(epoch, block, chunk, sample offset, the sequence number at which it was recorded)."""
    completions: list[Completion]


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """Where a ledger stands, for a checkpoint of the model to go back to."""

    epoch: int
    sequence: int
    offsets: list[tuple[int, int, int]]
    """(block, chunk, samples of it that the trainers had) of the epoch's chunks that were begun and are not done."""


def stale_claim(claim: Claim, what: str) -> StaleClaim:
    """Make the error of a claim that no longer holds."""
    return StaleClaim(
        f"the claim of gpu {claim.gpu_id} on chunk {claim.chunk_id} of block {claim.block_id} in epoch {claim.epoch} "
        f"does not hold: {what}. Its work does not count; claim another chunk, and let heartbeats come more often than "
        "a lease is long"
    )


class Ledger(Protocol):
    """Claims and completions of one dataset, cut into chunks of one size."""

    def introduce(self, brain_id: str, dataset_name: str) -> str:
        """Say whose ledger this is, and get its id; LedgerError if it is somebody else's."""

    def agree(self, chunk_size: int) -> int:
        """Record how many samples a chunk has, if it is not known yet, and give what is known."""

    def claim(self, request: ClaimRequest) -> Claim | None:
        """Grant a free chunk of the current epoch; None if there is none now. A lease that ended frees its chunk."""

    def heartbeat(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """Start the lease anew, and record how far the chunk is; StaleClaim if it has ended."""

    def complete(self, claim: Claim, *, optimizer_step: int, steps: int) -> int:
        """Record the chunk as done and give the sequence number; StaleClaim if the lease has ended."""

    def release(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """Give the chunk back, to be continued at the offset; StaleClaim if the lease has ended."""

    def position(self) -> tuple[int, int]:
        """Give the current epoch and the sequence number."""

    def progress(self) -> Progress:
        """Count."""

    def is_done(self, epoch: int | None, block_id: int, chunk_id: int | None) -> bool:
        """Whether a chunk is done; of epoch None, in the current one; chunk None means every chunk of the block."""

    def is_epoch_complete(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """Whether every chunk from the start on is done in the current epoch."""

    def has_free(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """Whether a claim would find a chunk now."""

    def holders(self) -> list[Holder]:
        """List the leases of the current epoch."""

    def start_epoch(self, *, after: int, forget_claims: bool = False) -> int:
        """Go from epoch `after` to the next, unless somebody has; give the current epoch."""

    def checkpoint(self, handed_out: Sequence[tuple[int, int, int, int]]) -> Checkpoint:
        """Say where the ledger stands, after noting how far trainers are of which it had heard less.

        Args:
            handed_out: (epoch, block, chunk, samples that its trainer had). It counts in checkpoints only: who claims
                the chunk begins where its training is recorded, so what a trainer had when it died comes again.
        """

    def reopen_after(self, sequence: int, offsets: Sequence[tuple[int, int, int]] = ()) -> int:
        """Undo what was recorded after a sequence number; give the number of chunks that are no longer done.

        Chunks named in `offsets`, those of a checkpoint, go on there; LedgerError if there is no such chunk.
        """

    def snapshot(self) -> Snapshot:
        """Give all of it, as of one moment."""

    def restore(self, snapshot: Snapshot) -> None:
        """Fill an empty ledger; LedgerError if it is not empty."""

    def save(self) -> None:
        """Force what is recorded to the disk, where there is one."""

    def close(self) -> None:
        """Let go of files and connections. Claims stay, until their leases end."""


def foreign(ledger: object, found: tuple[str, str], asked: tuple[str, str]) -> LedgerError:
    """Make the error of a ledger that belongs to another (brain, dataset)."""
    return LedgerError(
        f"the ledger {ledger} is of brain {found[0]!r} and dataset {found[1]!r}, not of {asked[0]!r} and {asked[1]!r}: "
        "each pair keeps a ledger of its own, so give another state_file"
    )


def other_size(known: int, asked: int) -> LedgerError:
    """Refuse another chunk size than the ledger was begun with."""
    return LedgerError(
        f"this ledger counts chunks of {known:,} samples, and chunks of {asked:,} were asked for: what is done in it "
        f"would be other samples. Use {known:,}, or another ledger"
    )


def other_chunks(block: int, known: int, asked: int, ledger: object) -> LedgerError:
    """Make the error of a chunk size that is not the ledger's."""
    return LedgerError(
        f"block {block} has {known} chunks in the ledger {ledger}, but {asked} are asked for: a ledger belongs to one "
        "dataset and one chunk size; keep the size, or give another state_file"
    )


def not_empty() -> LedgerError:
    """Make the error of an import into a ledger that is in use."""
    return LedgerError(
        "this ledger has granted chunks already, and an import would contradict it: import into a new one (another "
        "state_file), before anything is claimed"
    )


def no_such_chunk(block: int, chunk: int, known: int) -> LedgerError:
    """Make the error of an offset in a chunk that the ledger does not have."""
    return LedgerError(
        f"asked to go on inside chunk {chunk} of block {block}, but this ledger knows {known} chunks of that block: "
        "the checkpoint was made with another ledger, or was edited"
    )


def too_old(sequence: int, known: int) -> LedgerError:
    """Make the error of a ledger that is behind what somebody remembers of it."""
    return LedgerError(
        f"asked to go back to number {sequence}, but this ledger has only come to {known}: it is not the one that the "
        "checkpoint was made with, or was deleted and begun anew. Import its latest export into a new ledger with "
        "import_json, or start without the checkpoint's loader state"
    )


def free_ranges(snapshot: Snapshot) -> Iterator[tuple[int, int, int, int, int, int]]:
    """Find the chunks that are not done: (epoch, block, chunk, stop, sample offset, its number), begun ones alone."""
    done: dict[tuple[int, int], set[int]] = {}
    for one in snapshot.completions:
        done.setdefault((one.epoch, one.block_id), set()).add(one.chunk_id)
    begun = {(epoch, block, chunk): (offset, number) for epoch, block, chunk, offset, number in snapshot.partial}
    for epoch, block, chunks in snapshot.blocks:
        first = 0
        for chunk in sorted(
            {*done.get((epoch, block), ()), *(key[2] for key in begun if key[:2] == (epoch, block)), chunks}
        ):
            if first < chunk:
                yield epoch, block, first, chunk, 0, 0
            if (epoch, block, chunk) in begun:
                yield epoch, block, chunk, chunk + 1, *begun[epoch, block, chunk]
            first = chunk + 1
