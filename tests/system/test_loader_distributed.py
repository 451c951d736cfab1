"""Real process groups: gloo over localhost, one process a rank, started as torchrun starts them."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

# Every rank reads some batches, and writes what it saw and where it stands.
RANK = """
import json, os, sys
import torch.distributed as dist
from penstock import StreamingDataLoader, World
from penstock.testing import CountingDataset

def read(loader, steps):
    ids, repeats = [], []
    for _, batch in zip(range(steps), loader):
        ids.append(batch["id"].tolist())
        repeats.append(loader.batch_info.repeats)
    return ids, repeats

if __name__ == "__main__":
    folder, batch_size, steps, resume = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    # Built before the process group is there: the world is asked for at first use.
    loader = StreamingDataLoader(CountingDataset(103), batch_size, shuffle=True, seed=3)
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    if resume != "-":
        loader.load_state_dict(json.load(open(resume)))
    batches, repeats = read(loader, steps)
    dist.barrier()
    peers = StreamingDataLoader(
        CountingDataset(50), 4, shuffle=True, world=World.current(tp_size=2 if dist.get_world_size() > 1 else 1)
    )
    result = {
        "batches": batches,
        "repeats": repeats,
        "length": len(loader),
        "world": [loader.world.dp_rank, loader.world.dp_size],
        "state": loader.state_dict(),
        "peers": read(peers, 3)[0],
    }
    json.dump(result, open(f"{folder}/{rank}.json", "w"))
    dist.destroy_process_group()
"""

CONFLICT = """
import os, sys
import torch.distributed as dist
from penstock import StreamingDataLoader
from penstock.testing import CountingDataset

if __name__ == "__main__":
    dist.init_process_group("gloo", rank=0, world_size=1, init_method=sys.argv[1])
    os.environ.update(RANK="1", WORLD_SIZE="2")
    try:
        len(StreamingDataLoader(CountingDataset(10), 2))
    except ValueError as error:
        print(type(error).__name__, error)
    dist.destroy_process_group()
"""

LATE = """
import torch.distributed as dist
from penstock import StreamingDataLoader
from penstock.testing import CountingDataset

if __name__ == "__main__":
    loader = StreamingDataLoader(CountingDataset(10), 2)
    next(iter(loader))
    import torch.testing._internal.distributed.fake_pg  # a process group of which only one rank is real

    dist.init_process_group("fake", rank=1, world_size=2, store=dist.HashStore())
    try:
        next(iter(loader))
    except ValueError as error:
        print(type(error).__name__, error)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(folder: Path, size: int, *, batch_size: int, steps: int, resume: Path | None = None) -> list[dict]:
    """Run the script on `size` ranks and give what each of them wrote."""
    folder.mkdir()
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, str(script), str(folder), str(batch_size), str(steps), str(resume or "-")]
    port = str(free_port())
    ranks = []
    for rank in range(size):
        torchrun = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(size),
            "LOCAL_WORLD_SIZE": str(size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "OMP_NUM_THREADS": "1",
        }
        ranks.append(subprocess.Popen(command, env={**os.environ, **torchrun}, stderr=subprocess.PIPE, text=True))
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


def read_by(ranks: list[dict]) -> list[int]:
    """All ids in the order of the plan, flagged repeats left out."""
    read = []
    for step in range(len(ranks[0]["batches"])):
        rows = [(rank["batches"][step], rank["repeats"][step]) for rank in ranks]
        fresh = [ids[: len(ids) - repeats] for ids, repeats in rows]
        read += [id_ for row in itertools.zip_longest(*fresh) for id_ in row if id_ is not None]
    return read


def flat(batches: list[list[int]]) -> set[int]:
    return {id_ for batch in batches for id_ in batch}


def test_what_four_ranks_save_two_resume_with_another_batch_size(tmp_path):
    four = run_ranks(tmp_path / "four", 4, batch_size=4, steps=3)
    assert [rank["world"] for rank in four] == [[0, 4], [1, 4], [2, 4], [3, 4]]
    assert {rank["length"] for rank in four} == {7}
    assert {json.dumps(rank["state"]) for rank in four} == {json.dumps(four[0]["state"])}
    assert four[0]["state"]["samples"] == 48

    # Any rank's copy will do.
    state = tmp_path / "state.json"
    state.write_text(json.dumps(four[2]["state"]))
    two = run_ranks(tmp_path / "two", 2, batch_size=5, steps=100, resume=state)
    assert {len(rank["batches"]) for rank in two} == {6}

    seen, rest = read_by(four), read_by(two)
    assert len(seen) == 48
    assert not set(seen) & set(rest)
    assert sorted(seen + rest) == list(range(103))

    # Neighbouring ranks are tensor-parallel peers: they read the same, replicas do not.
    assert four[0]["peers"] == four[1]["peers"]
    assert four[2]["peers"] == four[3]["peers"]
    assert not flat(four[0]["peers"]) & flat(four[2]["peers"])
    assert two[0]["peers"] == two[1]["peers"]


def test_a_process_group_and_variables_that_disagree_are_refused(tmp_path):
    script = tmp_path / "conflict.py"
    script.write_text(CONFLICT)
    command = [sys.executable, str(script), f"file://{tmp_path}/rendezvous"]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip().startswith(
        "ConfigError torch.distributed says rank 0 of 1, but RANK and WORLD_SIZE say rank 1 of 2"
    )


def test_a_loader_used_before_the_process_group_is_refused_afterwards(tmp_path):
    script = tmp_path / "late.py"
    script.write_text(LATE)
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert (
        "ConfigError this loader was first used as data-parallel rank 0 of 1, but now this is rank 1 of 2"
        in done.stdout
    )
