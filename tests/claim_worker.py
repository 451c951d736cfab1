"""A trainer as a process of its own: claims chunks, trains their samples, and writes down what it did.

Its log is opened for appending and each line is one write, so what it holds was done, however the process ended:

    claimed EPOCH BLOCK CHUNK OFFSET     trained EPOCH BLOCK CHUNK SAMPLE
    done EPOCH BLOCK CHUNK               stale EPOCH BLOCK CHUNK
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from penstock.errors import StaleClaim
from penstock.ledger.chunk_tracker import ChunkTracker

SAMPLES = 6


def open_tracker(place: str, lease_s: float) -> ChunkTracker:
    """Open a ledger by its path, or, as "store:PORT", over a TCPStore that somebody serves."""
    if not place.startswith("store:"):
        return ChunkTracker(place, "brain", "data", lease_s=lease_s)
    from torch.distributed import TCPStore

    from penstock.ledger.torch_store import StoreLedger

    store = TCPStore("127.0.0.1", int(place.removeprefix("store:")), is_master=False)
    return ChunkTracker(StoreLedger(store, "soak"), "brain", "data", lease_s=lease_s)


def work(settings: dict) -> None:
    log = os.open(settings["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(what: str, *numbers: int) -> None:
        os.write(log, f"{what} {' '.join(map(str, numbers))}\n".encode())

    tracker = open_tracker(settings["ledger"], settings["lease_s"])
    chunks_per_block = settings["chunks_per_block"]
    note("open")
    while True:
        claim = tracker.claim(chunks_per_block, settings["gpu_id"])
        if claim is None:
            epoch = tracker.current_epoch
            if tracker.is_epoch_complete(chunks_per_block):
                if epoch + 1 >= settings["epochs"]:
                    return
                tracker.start_new_epoch(after=epoch)
            time.sleep(0.02)
            continue
        unit = (claim.epoch, claim.block_id, claim.chunk_id)
        note("claimed", *unit, claim.sample_offset)
        try:
            for sample in range(claim.sample_offset, SAMPLES):
                time.sleep(settings["sample_s"])
                note("trained", *unit, sample)
                tracker.renew(claim, sample_offset=sample + 1)
            tracker.complete(claim, optimizer_step=1, steps=SAMPLES)
        except StaleClaim:
            note("stale", *unit)
        else:
            note("done", *unit)


if __name__ == "__main__":
    work(json.loads(Path(sys.argv[1]).read_text()))
