"""Which chunks are trained: any number of processes share one dataset, and none of its chunks is counted twice.

A tracker asks the ledger for a chunk, keeps it by heartbeats and reports it complete. Trackers on one
ledger need not know of each other. The work itself may run twice, after a crash; its completion is
recorded once per epoch, by whoever holds the chunk then.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from penstock.errors import ConfigError, LedgerError
from penstock.ledger import exports
from penstock.ledger.arguments import check_gpu_id, check_lease, check_name, check_offset, check_offsets, opened
from penstock.ledger.holdings import Holdings
from penstock.ledger.ledger import Checkpoint, Claim, ClaimRequest, Ledger, Progress, other_size
from penstock.types import check_int


class ChunkTracker:
    """Claims and completions of one brain (a model in training) on one dataset, cut into chunks of one size.

    Threads may share a tracker. A forked child's copy is a tracker of its own: it holds none of its parent's claims.

    Args:
        state_file: path of the ledger, a file on a local disk that all processes of the node name alike; or a
            `Ledger`, such as a `StoreLedger` for many nodes.
        brain_id: whose training this is.
        dataset_name: what is trained on. A ledger serves one brain and one dataset.
        start_block_id: nothing before this place is granted, or waited for, by this tracker, in any epoch.
        start_chunk_id: the same, inside the start block.
        lease_s: how long a claim lasts without a heartbeat.

    Raises:
        ConfigError: a value out of range.
        LedgerError: the file is another's ledger, no ledger, or cannot be opened.

    >>> import tempfile
    >>> tracker = ChunkTracker(tempfile.mkdtemp() + "/chunks.db", "brain", "stories")
    >>> claim = tracker.claim([2, 1], gpu_id=0)
    >>> claim.block_id, claim.chunk_id, claim.sample_offset
    (0, 0, 0)
    >>> tracker.complete(claim, optimizer_step=10, steps=40)
    1
    >>> tracker.is_chunk_trained(0, 0), tracker.is_epoch_complete([2, 1])
    (True, False)
    """

    def __init__(
        self,
        state_file: str | os.PathLike[str] | Ledger,
        brain_id: str,
        dataset_name: str,
        start_block_id: int = 0,
        start_chunk_id: int = 0,
        lease_s: float = 600,
    ) -> None:
        self.brain_id = check_name("brain_id", brain_id)
        self.dataset_name = check_name("dataset_name", dataset_name)
        self.lease_s = check_lease(lease_s)
        self._start = (
            check_int("start_block_id", start_block_id, minimum=0),
            check_int("start_chunk_id", start_chunk_id, minimum=0),
        )
        self._ledger, self._path = opened(state_file)
        self.ledger_id = self._ledger.introduce(brain_id, dataset_name)
        """Names the ledger, also after an export and an import: a checkpoint's sequence number belongs to it."""
        self._holdings = Holdings()
        found = self._ledger.progress()
        self._epoch = found.epoch
        # Chunks, steps and the furthest optimizer step that this tracker completed.
        self._session = (0, 0, 0)
        self._lock = threading.Lock()
        self._step_before = found.optimizer_step
        self._export_to_import = self._export_beside(found)

    def claim(self, chunks_per_block: Sequence[int], gpu_id: int | str = 0) -> Claim | None:
        """Take the next free chunk of the current epoch, in any block; chunks that were begun come first.

        Args:
            chunks_per_block: how many chunks each block of the dataset has.
            gpu_id: who works on it; kept with the claim, for people.

        Returns:
            The claim, whose `sample_offset` says where in the chunk to begin. None if all chunks are done or
            held: then either the epoch is complete (`is_epoch_complete`), or a lease may end (`next_expiry_s`).

        Raises:
            LedgerError: the ledger knows another number of chunks of a block: it belongs to another chunk size.
        """
        return self._claim(chunks_per_block, None, None, gpu_id)

    def agree_on_chunk_size(self, chunk_size: int) -> None:
        """Say how many samples a chunk has, before the first claim; the loader does so by itself.

        Raises:
            LedgerError: the ledger was begun with another size, so its chunks would be other samples here.
        """
        if (known := self._ledger.agree(check_int("chunk_size", chunk_size, minimum=1))) != chunk_size:
            raise other_size(known, chunk_size)

    def get_next_untrained_chunk(self, block_id: int, total_chunks: int, gpu_id: int | str) -> int | None:
        """Claim the next free chunk of one block.

        Gives its id, and `sample_offset` says where to begin in it; None if nothing of the block is free now.
        """
        check_int("block_id", block_id, minimum=0)
        check_int("total_chunks", total_chunks, minimum=0)
        claim = self._claim(None, block_id, total_chunks, gpu_id)
        return None if claim is None else claim.chunk_id

    def sample_offset(self, block_id: int, chunk_id: int) -> int:
        """Give where to begin in a chunk that this tracker holds: samples before it are trained."""
        return self._held(block_id, chunk_id).sample_offset

    def heartbeat(self, block_id: int, chunk_id: int, gpu_id: int | str, sample_offset: int | None = None) -> None:
        """Keep a chunk for another `lease_s` seconds, and record how far it is.

        Args:
            block_id: the block.
            chunk_id: the chunk.
            gpu_id: who works on it.
            sample_offset: samples of the chunk that are trained; whoever has to continue it begins there.

        Raises:
            StaleClaim: the lease has ended, or the chunk was never claimed here: stop working on it.
        """
        self.renew(self._held(block_id, chunk_id, gpu_id), sample_offset)

    def renew(self, claim: Claim, sample_offset: int | None = None) -> None:
        """Do what `heartbeat` does, for a claim."""
        self._holdings.check(claim)
        self._ledger.heartbeat(claim, sample_offset=check_offset(sample_offset))

    def mark_chunk_complete(
        self, block_id: int, chunk_id: int, gpu_id: int | str, optimizer_step: int, steps: int
    ) -> None:
        """Record a chunk that this tracker holds as trained, once and for all of this epoch.

        Args:
            block_id: the block.
            chunk_id: the chunk.
            gpu_id: who worked on it.
            optimizer_step: the optimizer's step count when the chunk ended. The total is the largest named.
            steps: training steps that were spent on the chunk. The total is their sum.

        Raises:
            StaleClaim: the lease has ended, the chunk is complete already, or was never claimed here.
        """
        self.complete(self._held(block_id, chunk_id, gpu_id), optimizer_step=optimizer_step, steps=steps)

    def complete(self, claim: Claim, *, optimizer_step: int = 0, steps: int = 0) -> int:
        """Do what `mark_chunk_complete` does, for a claim; give the ledger's sequence number after it."""
        check_int("optimizer_step", optimizer_step, minimum=0)
        check_int("steps", steps, minimum=0)
        self._holdings.check(claim)
        sequence = self._ledger.complete(claim, optimizer_step=optimizer_step, steps=steps)
        self._holdings.drop(claim)
        with self._lock:
            chunks, all_steps, furthest = self._session
            self._session = (chunks + 1, all_steps + steps, max(furthest, optimizer_step))
        return sequence

    def release(self, claim: Claim, sample_offset: int | None = None) -> None:
        """Give a chunk back at once, to be continued by whoever comes next at the offset.

        Raises:
            StaleClaim: the lease has ended; the chunk is free already, or somebody else's.
        """
        self._holdings.check(claim)
        self._ledger.release(claim, sample_offset=check_offset(sample_offset))
        self._holdings.drop(claim)

    def is_chunk_trained(self, block_id: int, chunk_id: int) -> bool:
        """Whether the chunk is complete in the current epoch."""
        return self._ledger.is_done(None, block_id, chunk_id)

    def mark_block_complete(self, block_id: int) -> bool:
        """Whether every chunk of the block is complete in the current epoch.

        It follows from the chunks, so there is nothing to record: a block whose last chunk somebody still
        works on is not complete because somebody else found nothing left to claim.
        """
        return self._ledger.is_done(None, block_id, None)

    def is_epoch_complete(self, chunks_per_block: Sequence[int]) -> bool:
        """Whether every chunk of every block, from the start position on, is complete in the current epoch."""
        return self._ledger.is_epoch_complete(chunks_per_block, self._start)

    check_epoch_complete = is_epoch_complete

    def has_free_chunk(self, chunks_per_block: Sequence[int]) -> bool:
        """Whether a claim would find a chunk now, if nobody else is faster."""
        return self._ledger.has_free(chunks_per_block, self._start)

    def start_new_epoch(self, after: int | None = None) -> int:
        """Begin the next epoch, and give the number of the one that the ledger is in then.

        Of several trackers that call this at the end of the same epoch one begins the next, and all join it. Chunks
        of the old epoch that are still held may be completed.

        Args:
            after: the epoch that is over; None: the one that this tracker claimed in last, or was opened in.
        """
        self._epoch = self._ledger.start_epoch(after=self._epoch if after is None else after)
        return self._epoch

    def reset_for_iterate(self) -> int:
        """Begin a new epoch at once, for endless iteration: claims of the old one no longer hold.

        The totals go on. Called by several trackers in the same epoch, it happens once.
        """
        self._epoch = self._ledger.start_epoch(after=self._epoch, forget_claims=True)
        return self._epoch

    def checkpoint(self, handed_out: Iterable[tuple[int, int, int, int]] = ()) -> Checkpoint:
        """Say where the ledger stands, to be kept with a checkpoint of the model and given to `reopen_after`.

        Args:
            handed_out: (epoch, block, chunk, samples of it) that the model has seen beyond what heartbeats recorded.
        """
        return self._ledger.checkpoint(list(handed_out))

    def reopen_after(self, sequence: int, offsets: Iterable[Sequence[int]] = ()) -> int:
        """Go back to what the ledger knew at a sequence number, as a checkpoint of the model must.

        Completions made after it, whoever made them, are open again; sample offsets recorded after it are forgotten; an
        epoch that began after it has not begun. Let one process do it, before any claims.

        Args:
            sequence: the number.
            offsets: (block, chunk, sample offset) of chunks that go on there, as `checkpoint` gave them; others that
                have got further since begin anew.

        Gives the number of chunks that are no longer complete.

        Raises:
            LedgerError: the ledger has not come that far: it is another, or was begun anew.
        """
        check_int("sequence", sequence, minimum=0)
        count = self._ledger.reopen_after(sequence, check_offsets(offsets))
        self.refresh()
        return count

    @property
    def sequence(self) -> int:
        """The ledger's number: grows with each completion, each recorded sample offset and each new epoch."""
        return self._ledger.position()[1]

    @property
    def current_epoch(self) -> int:
        """The epoch that the ledger is in, and the next claim belongs to; the first is 0."""
        return self._ledger.position()[0]

    def next_expiry_s(self) -> float | None:
        """Seconds until the first lease could end, which a waiting process may sleep; None if no chunk is held."""
        return min((holder.left_s for holder in self._ledger.holders()), default=None)

    def describe_holders(self) -> str:
        """Say who holds what, and for how long."""
        held = [
            f"gpu {holder.gpu_id} chunk {holder.chunk_id} of block {holder.block_id} (for {holder.left_s:.0f} s more)"
            for holder in self._ledger.holders()
        ]
        return ", ".join(held) or "nobody holds anything"

    def get_progress_stats(self) -> dict[str, Any]:
        """Count: `total_*` over the ledger, `session_*` by this tracker, blocks anew in each epoch.

        `total_optimizer_steps` is the largest optimizer step that a completion named, `session_optimizer_steps` how
        far this tracker's completions brought it since the tracker was opened.
        """
        found = self._ledger.progress()
        chunks, steps, optimizer_step = self._session
        return {
            "total_optimizer_steps": found.optimizer_step,
            "session_optimizer_steps": max(0, optimizer_step - self._step_before),
            "total_steps": found.steps,
            "session_steps": steps,
            "total_chunks_trained": found.chunks_done,
            "session_chunks_trained": chunks,
            "blocks_started": found.blocks_started,
            "blocks_completed": found.blocks_completed,
            "current_epoch": found.epoch,
            "blocks_this_epoch": found.blocks_completed_this_epoch,
            "total_blocks_in_dataset": found.num_blocks,
        }

    def refresh(self) -> None:
        """Join the epoch that the ledger is in. Everything else is read from it at each call."""
        self._epoch = self._ledger.position()[0]

    def save(self) -> None:
        """Force what is recorded to the disk: call it before a checkpoint with `sequence` counts as written.

        Without it all survives the death of processes, and this also a power cut.
        """
        self._ledger.save()

    def export_json(self, path: str | os.PathLike[str] | None = None) -> Path:
        """Write all that the ledger knows, claims apart, as JSON; give the path.

        Args:
            path: the file; None: `NAME_state.json` beside the ledger `NAME.*`.

        Raises:
            StoreError: the file can't be written.
        """
        target = self._export_at(path)
        exports.write(target, self._ledger.snapshot(), self._ledger.progress(), self.brain_id, self.dataset_name)
        return target

    def import_json(self, path: str | os.PathLike[str] | None = None) -> None:
        """Fill a new ledger from an export.

        Raises:
            LedgerError: this ledger is not empty, or the export is another brain's or dataset's.
            BadManifest: the file is no export, or is damaged.
        """
        self._ledger.restore(exports.read(self._export_at(path), self.brain_id, self.dataset_name))
        self.ledger_id = self._ledger.introduce(self.brain_id, self.dataset_name)
        found = self._ledger.progress()
        self._epoch, self._step_before = found.epoch, found.optimizer_step
        self._export_to_import = None

    def close(self) -> None:
        """Let go of the ledger. In a file, chunks that are held are free then; in a store, when their leases end."""
        self._ledger.close()

    def __repr__(self) -> str:
        return f"ChunkTracker({str(self._path or self._ledger)!r}, {self.brain_id!r}, {self.dataset_name!r})"

    def __enter__(self) -> ChunkTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _claim(
        self, chunks_per_block: Sequence[int] | None, block_id: int | None, num_chunks: int | None, gpu_id: int | str
    ) -> Claim | None:
        check_gpu_id(gpu_id)
        self._check_imported()
        if block_id is not None and block_id < self._start[0]:
            return None
        claim = self._ledger.claim(
            ClaimRequest(
                chunks_per_block=chunks_per_block,
                block_id=block_id,
                num_chunks=num_chunks,
                start=self._start,
                token=self._holdings.new_token(),
                gpu_id=gpu_id,
                lease_s=self.lease_s,
            )
        )
        if claim is not None:
            self._epoch = claim.epoch
            self._holdings.add(claim)
        return claim

    def _held(self, block_id: int, chunk_id: int, gpu_id: int | str = "?") -> Claim:
        check_int("block_id", block_id, minimum=0)
        check_int("chunk_id", chunk_id, minimum=0)
        return self._holdings.of_chunk(self._epoch, block_id, chunk_id, gpu_id)

    def _export_at(self, path: str | os.PathLike[str] | None) -> Path:
        if (found := self._default_export() if path is None else Path(path)) is None:
            raise ConfigError("this ledger is no file, so its export has no place of its own: give a path")
        return found

    def _default_export(self) -> Path | None:
        return None if self._path is None else self._path.with_name(f"{self._path.stem}_state.json")

    def _export_beside(self, found: Progress) -> Path | None:
        """Find the export of a ledger that is gone: ours is new, and the export is not."""
        beside = self._default_export()
        return beside if beside is not None and not found.sequence and beside.exists() else None

    def _check_imported(self) -> None:
        if self._export_to_import is not None and self._ledger.position()[1]:
            self._export_to_import = None
        if self._export_to_import is not None:
            raise LedgerError(
                f"the ledger {self._path} is new, but {self._export_to_import.name} beside it is the export of one "
                "that was there before: call import_json() to continue from it, or move it away to start over"
            )
