"""The state of one block as one short text, which a store can compare and exchange as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import orjson

from penstock.ledger.ledger import Completion


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """Who holds a chunk; `beat` counts the heartbeats, for those who watch whether there are any."""

    token: str
    gpu_id: int | str
    beat: int
    lease_s: float
    sample_offset: int
    recorded: int
    """The sequence number at which the offset was recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Done:
    """How a chunk was completed."""

    sequence: int
    gpu_id: int | str
    optimizer_step: int
    steps: int


@dataclass(kw_only=True, slots=True)
class BlockDocument:
    """The chunks of one block in one epoch; those in none of the three dicts are free and not begun."""

    chunks: int
    done: dict[int, Done] = field(default_factory=dict)
    held: dict[int, Lease] = field(default_factory=dict)
    begun: dict[int, tuple[int, int]] = field(default_factory=dict)
    """chunk → (sample offset, the number at which it was recorded), of chunks that nobody holds."""
    handed_out: dict[int, int] = field(default_factory=dict)
    """chunk → samples that a trainer had when it made a checkpoint, be they trained or not."""

    @staticmethod
    def parse(text: bytes | str) -> BlockDocument:
        """Read what `text` wrote."""
        found = orjson.loads(text)
        return BlockDocument(
            chunks=found["chunks"],
            done={int(chunk): Done(**one) for chunk, one in found["done"].items()},
            held={int(chunk): Lease(**one) for chunk, one in found["held"].items()},
            begun={int(chunk): (one[0], one[1]) for chunk, one in found["begun"].items()},
            handed_out={int(chunk): offset for chunk, offset in found["handed_out"].items()},
        )

    def text(self) -> str:
        """Write it down."""
        return orjson.dumps(self, option=orjson.OPT_NON_STR_KEYS).decode()

    def is_complete(self, first: int = 0) -> bool:
        """Whether all chunks from `first` on are done."""
        return all(chunk in self.done for chunk in range(first, self.chunks))

    def free(self, first: int) -> int | None:
        """Find the first chunk from `first` on that nobody holds or has done."""
        return next((c for c in range(first, self.chunks) if c not in self.done and c not in self.held), None)

    def give_back(self, chunk: int, offset: tuple[int, int] | None = None) -> None:
        """Take a chunk from its holder; without an offset it keeps the one it had reached."""
        lease = self.held.pop(chunk)
        reached = offset or (lease.sample_offset, lease.recorded)
        if reached[0]:
            self.begun[chunk] = reached

    def partial(self) -> Iterator[tuple[int, int, int]]:
        """Give (chunk, sample offset, its number) of the chunks that were begun, held or not."""
        for chunk, offset in self.begun.items():
            yield chunk, *offset
        for chunk, lease in self.held.items():
            if lease.sample_offset:
                yield chunk, lease.sample_offset, lease.recorded

    def offsets(self) -> list[tuple[int, int]]:
        """Give (chunk, sample offset) of the chunks that a checkpoint finds begun."""
        found = dict(self.handed_out)
        for chunk, offset, _ in self.partial():
            found[chunk] = max(offset, found.get(chunk, 0))
        return sorted(found.items())

    def hand_out(self, chunk: int, offset: int) -> None:
        """Note what a trainer had of a chunk."""
        if chunk not in self.done:
            self.handed_out[chunk] = max(offset, self.handed_out.get(chunk, 0))

    def complete(self, chunk: int, how: Done) -> None:
        """Let a chunk that is held be done."""
        del self.held[chunk]
        self.handed_out.pop(chunk, None)
        self.done[chunk] = how

    def go_on_at(self, chunk: int, offset: int, number: int) -> None:
        """Let a chunk, held or free, go on at an offset; one that is done stays done."""
        if (lease := self.held.get(chunk)) is not None:
            self.held[chunk] = replace(lease, sample_offset=offset, recorded=number)
        elif chunk not in self.done:
            self.begun[chunk] = (offset, number)

    def completions(self, epoch: int, block: int) -> Iterator[Completion]:
        """Give what is done, as of this block in this epoch."""
        for chunk, one in self.done.items():
            yield Completion(
                sequence=one.sequence,
                epoch=epoch,
                block_id=block,
                chunk_id=chunk,
                gpu_id=one.gpu_id,
                optimizer_step=one.optimizer_step,
                steps=one.steps,
            )

    def reopen_after(self, sequence: int) -> int:
        """Undo completions and offsets recorded after a number; give how many chunks are no longer done."""
        undone = [chunk for chunk, one in self.done.items() if one.sequence > sequence]
        for chunk in undone:
            del self.done[chunk]
        for chunk in [chunk for chunk, one in self.begun.items() if one[1] > sequence]:
            del self.begun[chunk]
        for chunk, lease in self.held.items():
            if lease.recorded > sequence:
                self.held[chunk] = replace(lease, sample_offset=0, recorded=0)
        self.handed_out.clear()
        return len(undone)
