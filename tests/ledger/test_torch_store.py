"""Claims over a torch.distributed store, by processes that share nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from penstock import ChunkTracker, ConfigError, LedgerError, StoreLedger

RANK = """
import json, sys
import torch, torch.distributed as dist
from penstock import ChunkTracker, StoreLedger

rank, world, port = (int(word) for word in sys.argv[1:])
store = dist.TCPStore("127.0.0.1", port, world, is_master=rank == 0)
dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
tracker = ChunkTracker(StoreLedger(store, "run"), "brain", "data")
chunks, mine = [5, 4, 3], []
for epoch in range(2):
    while (claim := tracker.claim(chunks, gpu_id=rank)) is not None:
        mine.append((claim.epoch, claim.block_id, claim.chunk_id))
        tracker.complete(claim, optimizer_step=len(mine), steps=1)
    dist.barrier()
    assert tracker.is_epoch_complete(chunks)
    dist.barrier()
    assert tracker.start_new_epoch(after=epoch) == epoch + 1
    dist.barrier()
total = torch.tensor(len(mine))
dist.all_reduce(total)
print(json.dumps({"mine": mine, "total": total.item(), "stats": tracker.get_progress_stats()}))
dist.barrier()
dist.destroy_process_group()
"""

SERVER = """
import sys, time
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, is_master=True)
print(store.port, flush=True)
time.sleep(600)
"""


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_ranks_of_a_group_share_the_chunks_of_every_epoch(tmp_path):
    port, world = free_port(), 2
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), str(world), str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    found = []
    for process in ranks:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        found.append(json.loads(out.splitlines()[-1]))
    units = [tuple(unit) for one in found for unit in one["mine"]]
    wanted = [(e, b, c) for e in range(2) for b, chunks in enumerate([5, 4, 3]) for c in range(chunks)]
    assert sorted(units) == wanted
    assert all(one["total"] == one["stats"]["total_chunks_trained"] == len(wanted) for one in found)


def test_a_store_whose_server_died_is_an_error_that_says_what_is_lost():
    from torch.distributed import TCPStore

    server = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True)
    try:
        store = TCPStore("127.0.0.1", int(server.stdout.readline()), is_master=False)
        tracker = ChunkTracker(StoreLedger(store, "run"), "brain", "data")
        claim = tracker.claim([2])
        server.kill()
        server.wait()
        with pytest.raises(LedgerError, match=r"does not answer .* import_json and the latest export"):
            tracker.complete(claim)
    finally:
        server.kill()
        server.communicate()


def test_a_fork_is_told_to_connect_anew():
    from torch.distributed import HashStore

    tracker = ChunkTracker(StoreLedger(HashStore(), "run"), "brain", "data")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(LedgerError, match="connect a store of its own"):
                tracker.claim([2])
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_any_store_will_do(tmp_path):
    from torch.distributed import FileStore, HashStore, PrefixStore

    for store in (HashStore(), FileStore(str(tmp_path / "store")), PrefixStore("inside", HashStore())):
        tracker = ChunkTracker(StoreLedger(store, "run"), "brain", "data")
        for _ in range(2):
            tracker.complete(tracker.claim([2]))
        assert tracker.is_epoch_complete([2])


def test_what_is_no_store_is_refused():
    with pytest.raises(ConfigError, match=r"store must be a torch\.distributed store"):
        StoreLedger({}, "run")


def test_a_ledger_that_nobody_opened_is_named():
    from torch.distributed import HashStore

    with pytest.raises(LedgerError, match="penstock/run/ is not in the store"):
        StoreLedger(HashStore(), "run").progress()
