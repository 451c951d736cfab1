"""Streams mixed on a real process group: gloo over localhost, one process a rank."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys

import pytest

from penstock import MultiStreamDataLoader, StreamOptions, World, mix
from penstock.testing import CountingDataset

RANK = """
import itertools, json, sys
import torch.distributed as dist
from penstock import MultiStreamDataLoader, StreamOptions, World, mix
from penstock.testing import CountingDataset

if __name__ == "__main__":
    folder, mixing = sys.argv[1], sys.argv[2]
    streams = [
        StreamOptions(name="mixed", ratio=2, batch_gpu=4, num_accum_rounds=2),
        StreamOptions(name="alone", ratio=1, batch_size=12, num_accum_rounds=2),
    ]
    both = mix({"a": CountingDataset(30), "b": CountingDataset(20)}, {"a": 3, "b": 1}, stop="never")
    world = World.current(tp_size=int(sys.argv[3])) if len(sys.argv) > 3 else None
    datasets = [both, CountingDataset(25)]
    loader = MultiStreamDataLoader(datasets, streams, mixing=mixing, schedule="random_order", world=world)
    dist.init_process_group("gloo")
    batches = [(batch.stream_name, batch["id"].tolist()) for batch in itertools.islice(loader, 31)]
    dist.barrier()
    result = {"batches": batches, "world": [loader.world.dp_rank, loader.world.dp_size], "state": loader.state_dict()}
    json.dump(result, open(f"{folder}/{dist.get_rank()}.json", "w"))
    dist.destroy_process_group()
"""


def loader_of(rank, ranks, mixing):
    streams = [
        StreamOptions(name="mixed", ratio=2, batch_gpu=4, num_accum_rounds=2),
        StreamOptions(name="alone", ratio=1, batch_size=12, num_accum_rounds=2),
    ]
    both = mix({"a": CountingDataset(30), "b": CountingDataset(20)}, {"a": 3, "b": 1}, stop="never")
    world = World(dp_rank=rank, dp_size=ranks)
    datasets = [both, CountingDataset(25)]
    return MultiStreamDataLoader(datasets, streams, mixing=mixing, schedule="random_order", world=world)


def read(loader, steps):
    return [[batch.stream_name, batch["id"].tolist()] for batch in itertools.islice(loader, steps)]


def run_ranks(folder, size, *arguments):
    """Run the script on some ranks, as torchrun starts them, and give what each of them wrote."""
    script = folder / "rank.py"
    script.write_text(RANK)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = []
    for rank in range(size):
        torchrun = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        torchrun |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        environment = {**os.environ, **{name: str(value) for name, value in torchrun.items()}}
        command = [sys.executable, str(script), str(folder), *arguments]
        ranks.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=120)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            if process.poll() is None:
                process.kill()
                process.communicate()
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


@pytest.mark.parametrize("mixing", ["no_mixing", "mix_all"])
def test_a_process_group_reads_what_worlds_of_that_size_read_and_three_ranks_go_on(tmp_path, mixing):
    ranks = run_ranks(tmp_path, 2, mixing)
    assert [rank["world"] for rank in ranks] == [[0, 2], [1, 2]]
    assert ranks[0]["state"] == ranks[1]["state"]
    twins = [loader_of(rank, 2, mixing) for rank in range(2)]
    for rank, twin in zip(ranks, twins, strict=True):
        assert rank["batches"] == read(twin, 31)

    three = [loader_of(rank, 3, mixing) for rank in range(3)]
    for loader in three:
        loader.load_state_dict(ranks[1]["state"])
    steps = list(zip(*(read(loader, 13) for loader in three), strict=True))
    states = [loader.state_dict() for loader in three]
    assert states[0] == states[1] == states[2]
    taken = [0, 0]
    for name, ids in itertools.chain.from_iterable(steps):
        taken[name == "alone"] += len(ids)
    before = ranks[0]["state"]["samples"]
    assert states[0]["samples"] == [before[0] + taken[0], before[1] + taken[1]]


def test_tensor_parallel_peers_read_the_same_also_where_ranks_mix(tmp_path):
    peers = run_ranks(tmp_path, 2, "mix_all", "2")
    assert [peer["world"] for peer in peers] == [[0, 1], [0, 1]]
    assert peers[0]["batches"] == peers[1]["batches"] == read(loader_of(0, 1, "mix_all"), 31)
    assert peers[0]["state"] == peers[1]["state"]
