"""A dataset read by itself: the loader's engine, seen through the dataset.

There is one cursor. `iter` and `iter_batches` move it, each from where it stands, and the state is the
loader's: positions of the order, so any number of ranks and workers can go on from it.

    order ──▶ loader, 32 samples a batch ──▶ what became of each ──▶ one by one
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from penstock.datasets.leased import Leased, lease_of
from penstock.errors import LoaderClosed
from penstock.transforms.chain import Chain

if TYPE_CHECKING:
    from penstock.loader.loader import StreamingDataLoader

AT_A_TIME = 32
"""Samples that are fetched and transformed together where they are handed out one by one."""


class _Numbered(NamedTuple):
    """A sample on its way through the transforms, or all that they made of it."""

    id: int
    epoch: int
    content: Any


class _Left(NamedTuple):
    """What came of one sample and was not handed out yet."""

    epoch: int
    samples: int
    """Where the cursor is once it is handed out."""
    outputs: list[Any]


class Views:
    """The loader behind a dataset's own iteration, made when it is first needed.

    Args:
        dataset: whose samples they are.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._loader: StreamingDataLoader | None = None
        self._made_with: tuple[Any, ...] = ()
        self._left: deque[_Left] = deque()
        self._at: dict[str, int] = {}
        self._turn: object = None

    def samples(self) -> Iterator[Any]:
        """Give the rest of the epoch one by one: this rank's samples, and none that only keeps ranks in step."""
        loader = self._open_single()
        turn = self._turn = object()
        yield from self._rest(turn)
        while True:
            for made in loader:
                self._left.extend(self._own(made))
                yield from self._rest(turn)
            if not self._dataset.infinite_iteration:
                loader.close()
                return

    def batches(self, batch_size: int, drop_last: bool, collate_fn: Callable[[list[Any]], Any] | None) -> Iterator[Any]:
        """Give the rest of the epoch in batches."""
        loader = self._open(self._dataset, batch_size=batch_size, drop_last=drop_last, collate_fn=collate_fn)
        while True:
            yield from loader
            if not self._dataset.infinite_iteration:
                loader.close()
                return

    @property
    def loader(self) -> StreamingDataLoader:
        """The loader that was used last."""
        return self._loader or self._open_single()

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch, if the cursor is not in it."""
        if epoch != self._state()["epoch"]:
            self._let_go()
            self.loader.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Say where the cursor stands."""
        state = self._state()
        return {"epoch": state.pop("epoch"), "sample_in_epoch": state.pop("samples"), **state}

    def load_state_dict(self, state: Any) -> None:
        """Go where a state was saved.

        Raises:
            StateMismatch: it belongs to other data, another order or another seed, or is no state of a dataset.
        """
        self.loader.load_state_dict(state)
        self._let_go()

    def close(self) -> None:
        """End what works ahead; what comes next is what would have come."""
        if self._loader is not None:
            state = self._state()
            self._loader.close()
            self._loader.load_state_dict(state)
            self._let_go()

    def _state(self) -> dict[str, Any]:
        """Give the loader's state; in the middle of one of its batches, where that is."""
        state = self.loader.state_dict()
        return {**state, **self._at} if self._left else state

    def _let_go(self) -> None:
        self._left.clear()
        self._turn = None

    def _open_single(self) -> StreamingDataLoader:
        source = _Whole(self._dataset)
        return self._open(source, batch_size=AT_A_TIME, drop_last=False, collate_fn=list, transform=source.transformed)

    def _open(self, dataset: Any, **options: Any) -> StreamingDataLoader:
        """Give the loader for these batches, standing where the last one stood."""
        from penstock.loader.loader import StreamingDataLoader

        made_with = type(dataset), options["batch_size"], options["drop_last"], options["collate_fn"]
        if self._loader is not None and self._made_with == made_with:
            return self._loader
        loader = StreamingDataLoader(dataset, shuffle=self._dataset.default_shuffle, **options)
        if self._loader is not None:
            loader.load_state_dict(self._state())
            self._loader.close()
            self._let_go()
        self._loader, self._made_with = loader, made_with
        return loader

    def _own(self, made: list[_Numbered]) -> Iterator[_Left]:
        """Give what a batch holds, without what is there only to keep ranks in step."""
        info = self.loader.batch_info
        if info.repeats or self._is_filler(info):
            return
        skipped = set(info.skipped)
        places = [place for place, id_ in enumerate(info.sample_ids.tolist()) if id_ not in skipped]
        size = self.loader.world.dp_size
        for place, one in zip(places, made, strict=True):
            yield _Left(info.epoch, info.start + (place + 1) * size, one.content)

    def _is_filler(self, info: Any) -> bool:
        """Whether nothing was left of a batch, and what it holds stands there for all of it."""
        if not info.substitutes or len(info.skipped) + 1 < len(info.sample_ids):
            return False
        if self._dataset.on_error != "substitute":
            return True
        first = int(info.sample_ids[0])
        return any(one.id == first and one.reason == "filtered" for one in self.loader.stats.quarantine)

    def _rest(self, turn: object) -> Iterator[Any]:
        """Hand out what is left of a batch."""
        while self._left:
            one = self._left.popleft()
            self._at = {"epoch": one.epoch, "samples": one.samples}
            for sample in one.outputs:
                yield sample
                if self._turn is not turn:
                    raise LoaderClosed(
                        "this iterator was overtaken: another one, set_epoch, load_state_dict or close came after it. "
                        "A dataset has one cursor; for several at a time make a loader for each"
                    )


class _Whole:
    """A dataset whose samples say which they are, and which leaves its transforms to `transformed`.

    Args:
        dataset: where all else comes from.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._chain = Chain(dataset.transforms, seed=dataset.shuffle_seed or 0)
        self.on_error, self.shuffle_seed = dataset.on_error, dataset.shuffle_seed
        self.num_downloading_workers, self.prefetch_tickets = dataset.num_downloading_workers, dataset.prefetch_tickets
        self.fingerprint, self.filters, self.block_ends = dataset.fingerprint, dataset.filters, dataset.block_ends
        self.prefetch, self.discard, self.list_failures = dataset.prefetch, dataset.discard, dataset.list_failures
        self.describe = dataset.describe

    def __len__(self) -> int:
        return len(self._dataset)

    def fetch(self, ids: np.ndarray, epochs: np.ndarray) -> list[Any]:
        """Give the samples of ids, int64 [n], numbered."""
        fetched = self._dataset.fetch(ids, epochs)
        rows = zip(ids.tolist(), epochs.tolist(), fetched, strict=True)
        numbered = [
            row if row is None or isinstance(row, Exception) else _Numbered(id_, epoch, row) for id_, epoch, row in rows
        ]
        return Leased.of(numbered, lease_of(fetched))

    def transformed(self, sample: _Numbered) -> _Numbered | None:
        """Run the transforms on one sample and keep together what comes out."""
        outputs = self._chain(sample.content, sample.epoch, sample.id)
        return sample._replace(content=outputs) if outputs else None


_Whole.__name__ = "StreamingDataset"  # errors name the dataset they are about
