"""What a store's ledger says about itself, as one short text: whose it is, which epochs there are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import orjson


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The head of a ledger in a store."""

    ledger_id: str
    brain_id: str
    dataset_name: str
    epochs: tuple[tuple[int, int], ...] = ((0, 0),)
    """(epoch, the number at which it began); an epoch that is undone and begun again has another number."""
    forgotten: tuple[int, ...] = ()
    """The beginnings of epochs whose claims no longer hold."""
    num_blocks: int | None = None
    chunk_size: int | None = None
    top: int = 0
    """No block from here on has been asked for."""
    reopened: int = 0
    """How often chunks were opened again."""

    @staticmethod
    def parse(text: bytes | str) -> Head:
        """Read what `text` wrote."""
        found = orjson.loads(text)
        epochs = tuple((epoch, start) for epoch, start in found.pop("epochs"))
        return Head(epochs=epochs, forgotten=tuple(found.pop("forgotten")), **found)

    def text(self) -> str:
        """Write it down."""
        return orjson.dumps(self).decode()

    @property
    def epoch(self) -> int:
        """The current epoch."""
        return self.epochs[-1][0]

    @property
    def started(self) -> int:
        """The number at which the current epoch began."""
        return self.epochs[-1][1]

    def start_of(self, epoch: int) -> int | None:
        """Give the number at which an epoch began; None if there is no such epoch."""
        return dict(self.epochs).get(epoch)

    def with_blocks(self, num_blocks: int) -> Head:
        """Say how many blocks the dataset has."""
        return replace(self, num_blocks=num_blocks)

    def with_chunk_size(self, chunk_size: int) -> Head:
        """Say how large the chunks are, if nobody has said so yet."""
        return self if self.chunk_size is not None else replace(self, chunk_size=chunk_size)

    def with_top(self, top: int) -> Head:
        """Say that blocks below `top` are asked for."""
        return replace(self, top=max(self.top, top))

    def next_epoch(self, after: int, number: int, forget_claims: bool) -> Head:
        """Begin an epoch, unless the one it should follow is over already."""
        if self.epoch != after:
            return self
        forgotten = (*self.forgotten, self.started) if forget_claims else self.forgotten
        return replace(self, epochs=(*self.epochs, (after + 1, number)), forgotten=forgotten)

    def back_to(self, sequence: int) -> Head:
        """Leave out the epochs that began after a number."""
        epochs = tuple(one for one in self.epochs if one[1] <= sequence)
        return replace(self, epochs=epochs, reopened=self.reopened + 1)
