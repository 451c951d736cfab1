"""The ledger of many nodes: a torch.distributed store, such as the TCPStore of a process group.

One key holds the head (whose ledger, which epochs), one counts, and one per block and epoch holds the
block's whole state as a short text. Each change is one compare-and-exchange of one text, so nobody ever
sees half of it and nobody waits for a lock whose owner has died.

There is no clock that all nodes share, and none is needed: a lease counts as ended for an onlooker who has
seen no heartbeat for its whole length on a clock of his own, and for its holder as soon as that much time has
passed since he sent one. The holder always gives up first.

What it does not have: durability. A TCPStore is the memory of the process that serves it, and ends with it. Keep
exports (`ChunkTracker.export_json`), and begin the next store from the latest.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

from penstock.errors import LedgerError
from penstock.ledger.block_document import BlockDocument, Done, Lease
from penstock.ledger.ledger import (
    Checkpoint,
    Claim,
    ClaimRequest,
    Holder,
    Progress,
    Snapshot,
    foreign,
    no_such_chunk,
    not_empty,
    other_chunks,
    stale_claim,
    too_old,
)
from penstock.ledger.store_head import Head
from penstock.ledger.store_keys import Store, StoreKeys
from penstock.ledger.store_watch import LeaseWatch


class StoreLedger:
    """A `Ledger` in a torch.distributed store.

    Args:
        store: a TCPStore, or any store with `compare_set` and `add`. A process that was forked needs one of its own.
        name: under which keys; ledgers of other names in the same store do not meet.
        timeout_s: how long an operation may try against others before it is a LedgerError.
    """

    def __init__(self, store: Store, name: str, *, timeout_s: float = 60.0) -> None:
        self._keys = StoreKeys(store, f"penstock/{name}/", timeout_s=timeout_s)
        self._watch = LeaseWatch()
        # Blocks that are complete, as of one state of the head: they need not be read again.
        self._complete: tuple[tuple[int, int], set[int]] = ((-1, -1), set())

    def introduce(self, brain_id: str, dataset_name: str) -> str:
        """See `Ledger`."""
        new = Head(ledger_id=secrets.token_hex(8), brain_id=brain_id, dataset_name=dataset_name)
        head = Head.parse(self._keys.exchange("head", "", new.text()))
        if (head.brain_id, head.dataset_name) != (brain_id, dataset_name):
            raise foreign(self._keys.prefix, (head.brain_id, head.dataset_name), (brain_id, dataset_name))
        return head.ledger_id

    def agree(self, chunk_size: int) -> int:
        """See `Ledger`."""
        known = self._change_head(partial(Head.with_chunk_size, chunk_size=chunk_size)).chunk_size
        assert known is not None
        return known

    def claim(self, request: ClaimRequest) -> Claim | None:
        """See `Ledger`. Cost: the blocks that are not complete are read, each once in a while."""
        patience = self._keys.patience()
        while True:
            head = self._head()
            num_blocks = head.num_blocks if request.chunks_per_block is None else len(request.chunks_per_block)
            if num_blocks is not None and num_blocks != head.num_blocks:
                head = self._change_head(partial(Head.with_blocks, num_blocks=num_blocks))
            found = self._first_free(head, request)
            if found is None:
                return None
            block, chunk, before, document = found
            offset, recorded = document.begun.pop(chunk, (0, 0))
            document.held[chunk] = Lease(
                token=request.token,
                gpu_id=request.gpu_id,
                beat=0,
                lease_s=request.lease_s,
                sample_offset=offset,
                recorded=recorded,
            )
            if head.top <= block:
                self._change_head(partial(Head.with_top, top=block + 1))
            self._watch.renewed(request.token, time.monotonic())
            after = document.text()
            if self._keys.exchange(_block_key(head.started, block), before, after) == after:
                return request.granted(epoch=head.epoch, block_id=block, chunk_id=chunk, sample_offset=offset)
            patience.pause()

    def heartbeat(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """See `Ledger`."""
        now = time.monotonic()
        number = None if sample_offset is None else self._next_number()

        def renewed(document: BlockDocument) -> None:
            lease = self._watch.lease_of(document, claim)
            lease = replace(lease, beat=lease.beat + 1)
            if sample_offset is not None and number is not None:
                lease = replace(lease, sample_offset=sample_offset, recorded=number)
            document.held[claim.chunk_id] = lease

        self._change_held(claim, renewed)
        self._watch.renewed(claim.token, now)

    def complete(self, claim: Claim, *, optimizer_step: int, steps: int) -> int:
        """See `Ledger`."""
        number = self._next_number()

        def completed(document: BlockDocument) -> None:
            self._watch.lease_of(document, claim)
            how = Done(sequence=number, gpu_id=claim.gpu_id, optimizer_step=optimizer_step, steps=steps)
            document.complete(claim.chunk_id, how)

        self._change_held(claim, completed)
        self._watch.forget(claim.token)
        return number

    def release(self, claim: Claim, *, sample_offset: int | None = None) -> None:
        """See `Ledger`."""
        offset = None if sample_offset is None else (sample_offset, self._next_number())

        def released(document: BlockDocument) -> None:
            self._watch.lease_of(document, claim)
            document.give_back(claim.chunk_id, offset)

        self._change_held(claim, released)
        self._watch.forget(claim.token)

    def position(self) -> tuple[int, int]:
        """See `Ledger`."""
        return self._head().epoch, self._number()

    def progress(self) -> Progress:
        """See `Ledger`. Cost: all blocks are read."""
        head = self._head()
        documents = list(self._documents(head))
        done = [one for _, _, document in documents for one in document.done.values()]
        complete = [epoch for epoch, _, document in documents if document.is_complete()]
        return Progress(
            epoch=head.epoch,
            sequence=self._number(),
            chunks_done=len(done),
            optimizer_step=max((one.optimizer_step for one in done), default=0),
            steps=sum(one.steps for one in done),
            blocks_started=len(documents),
            blocks_completed=len(complete),
            blocks_completed_this_epoch=complete.count(head.epoch),
            num_blocks=head.num_blocks,
        )

    def is_done(self, epoch: int | None, block_id: int, chunk_id: int | None) -> bool:
        """See `Ledger`."""
        head = self._head()
        started = head.started if epoch is None else head.start_of(epoch)
        document = None if started is None else self._document(started, block_id)[1]
        if document is None:
            return False
        return document.is_complete() if chunk_id is None else chunk_id in document.done

    def is_epoch_complete(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """See `Ledger`."""
        head = self._head()
        complete = self._complete_blocks(head)
        for block in range(start[0], len(chunks_per_block)):
            if block in complete:
                continue
            first = start[1] if block == start[0] else 0
            document = self._document(head.started, block)[1]
            if first < chunks_per_block[block] and (document is None or not document.is_complete(first)):
                return False
        return True

    def has_free(self, chunks_per_block: Sequence[int], start: tuple[int, int]) -> bool:
        """See `Ledger`."""
        request = ClaimRequest(chunks_per_block=chunks_per_block, start=start, token="", gpu_id=0, lease_s=0)
        return self._first_free(self._head(), request) is not None

    def holders(self) -> list[Holder]:
        """See `Ledger`. Cost: the blocks that are not complete are read."""
        found = []
        for block, document in self._open_documents(self._head()):
            for chunk, lease in document.held.items():
                left = max(0.0, self._watch.left_s(lease))
                found.append(Holder(block_id=block, chunk_id=chunk, gpu_id=lease.gpu_id, left_s=left))
        return sorted(found, key=lambda holder: holder.left_s)

    def start_epoch(self, *, after: int, forget_claims: bool = False) -> int:
        """See `Ledger`."""
        number = self._next_number()
        return self._change_head(lambda head: head.next_epoch(after, number, forget_claims)).epoch

    def checkpoint(self, handed_out: Sequence[tuple[int, int, int, int]]) -> Checkpoint:
        """See `Ledger`. Cost: the blocks that are not complete are read."""
        # The number is taken first: a chunk completed since is open again for who goes back, not left out.
        head, number = self._head(), self._number()
        for epoch, block, chunk, offset in handed_out:
            if epoch == head.epoch:
                self._change_block(head.started, block, partial(BlockDocument.hand_out, chunk=chunk, offset=offset))
        offsets = [(block, *one) for block, document in self._open_documents(head) for one in document.offsets()]
        return Checkpoint(epoch=head.epoch, sequence=number, offsets=offsets)

    def reopen_after(self, sequence: int, offsets: Sequence[tuple[int, int, int]] = ()) -> int:
        """See `Ledger`. If it is interrupted, do it again: it goes on where it ended."""
        if sequence > (known := self._number()):
            raise too_old(sequence, known)
        before = self._head()
        count = sum(
            len(document.done)
            for epoch, _, document in self._documents(before)
            if dict(before.epochs)[epoch] > sequence
        )
        number = self._next_number()
        head = self._change_head(lambda head: head.back_to(sequence))
        for epoch, block, _ in list(self._documents(head)):
            started = head.start_of(epoch)
            assert started is not None
            count += self._change_block(started, block, lambda document: document.reopen_after(sequence)) or 0
        for block, chunk, offset in offsets:
            document = self._document(head.started, block)[1]
            if document is None or not 0 <= chunk < document.chunks:
                raise no_such_chunk(block, chunk, document.chunks if document else 0)
            go_on = partial(BlockDocument.go_on_at, chunk=chunk, offset=offset, number=number)
            self._change_block(head.started, block, go_on)
        return count

    def snapshot(self) -> Snapshot:
        """See `Ledger`; what others record meanwhile may be in it or not."""
        head = self._head()
        documents = list(self._documents(head))
        return Snapshot(
            ledger_id=head.ledger_id,
            epoch=head.epoch,
            sequence=self._number(),
            num_blocks=head.num_blocks,
            chunk_size=head.chunk_size,
            epochs=list(head.epochs),
            blocks=[(epoch, block, document.chunks) for epoch, block, document in documents],
            partial=sorted((epoch, block, *one) for epoch, block, document in documents for one in document.partial()),
            completions=sorted(
                (one for epoch, block, document in documents for one in document.completions(epoch, block)),
                key=lambda one: one.sequence,
            ),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """See `Ledger`."""
        head = self._head()
        if self._number() or head.top:
            raise not_empty()
        blocks = {(epoch, block): BlockDocument(chunks=chunks) for epoch, block, chunks in snapshot.blocks}
        for one in snapshot.completions:
            blocks[one.epoch, one.block_id].done[one.chunk_id] = Done(
                sequence=one.sequence, gpu_id=one.gpu_id, optimizer_step=one.optimizer_step, steps=one.steps
            )
        for epoch, block, chunk, offset, recorded in snapshot.partial:
            blocks[epoch, block].begun[chunk] = (offset, recorded)
        started = dict(snapshot.epochs)
        for (epoch, block), document in blocks.items():
            self._keys.exchange(_block_key(started[epoch], block), "", document.text())
        self._keys.add("sequence", snapshot.sequence)
        top = max((block + 1 for _, block in blocks), default=0)
        self._change_head(
            lambda head: replace(
                head,
                ledger_id=snapshot.ledger_id,
                epochs=tuple(snapshot.epochs),
                num_blocks=snapshot.num_blocks,
                chunk_size=snapshot.chunk_size,
                top=top,
            )
        )

    def save(self) -> None:
        """See `Ledger`: there is no disk under a store."""

    def close(self) -> None:
        """See `Ledger`: the store stays as it is, it belongs to whoever made it."""

    def _first_free(self, head: Head, request: ClaimRequest) -> tuple[int, int, str, BlockDocument] | None:
        """Find (block, chunk, the block's text, what it says): chunks that were begun come first, then the lowest."""
        complete = self._complete_blocks(head)
        found = None
        for block in request.blocks:
            if block in complete:
                continue
            text, document = self._document(head.started, block)
            chunks = request.chunks_of(block)
            if document is None:
                document = BlockDocument(chunks=chunks)
            elif document.chunks != chunks:
                raise other_chunks(block, document.chunks, chunks, self._keys.prefix)
            self._watch.free_ended(document)
            lowest = request.start[1] if block == request.start[0] else 0
            begun = min((chunk for chunk in document.begun if chunk >= lowest), default=None)
            free = document.free(lowest) if begun is None else begun
            if free is not None and (found is None or begun is not None):
                found = (block, free, text or "", document)
            if begun is not None or (text is None and found is not None):
                return found
            if document.is_complete():
                complete.add(block)
        return found

    def _change_held(self, claim: Claim, change: Callable[[BlockDocument], None]) -> None:
        head = self._head()
        started = head.start_of(claim.epoch)
        if started is None or started in head.forgotten:
            raise stale_claim(claim, "its epoch was ended and its claims with it")

        def changed(document: BlockDocument) -> int:
            change(document)
            return 0

        if self._change_block(started, claim.block_id, changed) is None:
            raise stale_claim(claim, "its epoch was undone")

    def _change_block(self, started: int, block: int, change: Callable[[BlockDocument], int | None]) -> int | None:
        """Change a block's document; give what the change gave, or None if there is no such block."""
        given: list[int | None] = []

        def changed(text: str | None) -> str | None:
            if text is None:
                return None
            document = BlockDocument.parse(text)
            given.append(change(document))
            return document.text()

        self._keys.change(_block_key(started, block), changed)
        return given[-1] if given else None

    def _change_head(self, change: Callable[[Head], Head]) -> Head:
        heads: list[Head] = []

        def changed(text: str | None) -> str:
            heads.append(change(_parsed_head(text, self._keys.prefix)))
            return heads[-1].text()

        self._keys.change("head", changed)
        return heads[-1]

    def _head(self) -> Head:
        return _parsed_head(self._keys.read("head"), self._keys.prefix)

    def _document(self, started: int, block: int) -> tuple[str | None, BlockDocument | None]:
        text = self._keys.read(_block_key(started, block))
        return text, None if text is None else BlockDocument.parse(text)

    def _documents(self, head: Head) -> Iterator[tuple[int, int, BlockDocument]]:
        """Give (epoch, block, document) of all blocks that were asked for."""
        for epoch, started in head.epochs:
            for block in range(head.top):
                document = self._document(started, block)[1]
                if document is not None:
                    yield epoch, block, document

    def _open_documents(self, head: Head) -> Iterator[tuple[int, BlockDocument]]:
        """Give (block, document) of the current epoch's blocks that are not known to be complete."""
        complete = self._complete_blocks(head)
        for block in range(head.top):
            document = None if block in complete else self._document(head.started, block)[1]
            if document is not None:
                yield block, document

    def _complete_blocks(self, head: Head) -> set[int]:
        """Give the blocks known to be complete in the current epoch; what is put in is remembered."""
        if self._complete[0] != (head.started, head.reopened):
            self._complete = ((head.started, head.reopened), set())
        return self._complete[1]

    def _number(self) -> int:
        return self._keys.add("sequence", 0)

    def _next_number(self) -> int:
        return self._keys.add("sequence", 1)


def _block_key(started: int, block: int) -> str:
    return f"{started}/{block}"


def _parsed_head(text: str | None, prefix: str) -> Head:
    if text is None:
        raise LedgerError(f"the ledger {prefix} is not in the store: open a ChunkTracker on it first")
    return Head.parse(text)
