"""A ledger of each kind, so that both are held to the same laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from penstock import ChunkTracker, StoreLedger

Opener = Callable[..., ChunkTracker]


@pytest.fixture(params=["sqlite", "store"])
def open_tracker(request, tmp_path) -> Iterator[Opener]:
    """Open trackers on one ledger, which is another one for each name."""
    opened: list[ChunkTracker] = []
    if request.param == "store":
        from torch.distributed import TCPStore

        store = TCPStore("127.0.0.1", 0, is_master=True)

    def start(name: str = "ledger", **options) -> ChunkTracker:
        ledger = StoreLedger(store, name) if request.param == "store" else tmp_path / f"{name}.db"
        opened.append(ChunkTracker(ledger, **{"brain_id": "brain", "dataset_name": "data", **options}))
        return opened[-1]

    yield start
    for tracker in opened:
        tracker.close()
