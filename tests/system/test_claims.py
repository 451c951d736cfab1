"""Several real processes train one dataset by claims, are killed and stopped, and what each trained is on record."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pytest
import torch

# Writes down each batch once it is trained: one line, in one write.
TRAINER = """
import json, os, sys, time
from penstock import ChunkTracker, StreamingDataLoader
import subjects

if __name__ == "__main__":
    folder, name, lease_s, epochs = sys.argv[1], sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    tracker = ChunkTracker(f"{folder}/ledger.db", "brain", "numbers", lease_s=lease_s)
    loader = StreamingDataLoader(
        subjects.Blocks([250, 120, 30]), 8, shuffle=True, num_workers=0,
        assignment="claim", tracker=tracker, dataset_chunk_size=40,
    )
    log = os.open(f"{folder}/{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    print("ready", flush=True)
    while tracker.current_epoch < epochs and not (
        tracker.current_epoch == epochs - 1 and tracker.is_epoch_complete([7, 3, 1])
    ):
        for batch in loader:
            time.sleep(0.01)
            line = {"epoch": loader.batch_info.epoch, "ids": batch["id"].tolist()}
            os.write(log, (json.dumps(line) + "\\n").encode())
    print("done", flush=True)
"""
CHUNKS = [7, 3, 1]
STARTS = [0, 250, 370, 400]


def trained(folder, epoch):
    """What the processes wrote down of an epoch: a list of ids for each batch."""
    lines = [json.loads(line) for log in folder.glob("*.log") for line in log.read_text().splitlines()]
    return [line["ids"] for line in lines if line["epoch"] == epoch]


def has_a_chunk(folder):
    """Whether whoever trains alone has begun a chunk of 40 that it has not finished."""
    batches = trained(folder, 0)
    if not batches:
        return False
    last = batches[-1][-1]
    block = max(j for j, start in enumerate(STARTS) if start <= last)
    first = last - (last - STARTS[block]) % 40
    chunk = set(range(first, min(first + 40, STARTS[block + 1])))
    return not chunk <= {id_ for ids in batches for id_ in ids}


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "trainer.py"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)), "OMP_NUM_THREADS": "1"}
    processes = []

    def start_(name, *, lease_s, epochs):
        errors = (tmp_path / f"{name}.stderr").open("wb")
        command = [sys.executable, str(script), str(tmp_path), name, str(lease_s), str(epochs)]
        with errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment)
        processes.append(process)
        return process

    yield start_
    for process in processes:
        process.kill()
        process.communicate()


def ready(process, folder):
    assert process.stdout.readline().strip() == "ready", [path.read_text() for path in folder.glob("*.stderr")]


@pytest.mark.slow
def test_processes_that_are_killed_lose_no_sample_and_complete_no_chunk_twice(start, tmp_path):
    from penstock import ChunkTracker

    rng = np.random.default_rng(0)
    running = {f"first{j}": start(f"first{j}", lease_s=2, epochs=2) for j in range(3)}
    for process in running.values():
        ready(process, tmp_path)
    killed, deadline = 0, time.monotonic() + 120
    while any(process.poll() is None for process in running.values()):
        assert time.monotonic() < deadline
        time.sleep(0.3)
        alive = [name for name, process in running.items() if process.poll() is None]
        if killed < 4 and alive:
            name = alive[int(rng.integers(len(alive)))]
            running.pop(name).kill()
            killed += 1
            running[f"again{killed}"] = start(f"again{killed}", lease_s=2, epochs=2)
    assert [process.returncode for process in running.values()] == [0] * len(running)
    assert killed == 4
    for epoch in range(2):
        counts = Counter(id_ for ids in trained(tmp_path, epoch) for id_ in ids)
        assert set(counts) == set(range(400))
        # Only a chunk that was held when its process was killed is trained again.
        assert sum(count - 1 for count in counts.values()) <= killed * 40
    with ChunkTracker(tmp_path / "ledger.db", "brain", "numbers") as tracker:
        stats = tracker.get_progress_stats()
        assert tracker.is_epoch_complete(CHUNKS)
    assert stats["current_epoch"] == 1
    assert stats["total_chunks_trained"] == 2 * sum(CHUNKS)


def test_a_process_that_stood_still_for_too_long_leaves_its_chunk_to_others(start, tmp_path):
    from penstock import ChunkTracker

    slow = start("slow", lease_s=1, epochs=1)
    ready(slow, tmp_path)
    while True:
        time.sleep(0.02)
        slow.send_signal(signal.SIGSTOP)
        if has_a_chunk(tmp_path):
            break
        slow.send_signal(signal.SIGCONT)
    before = len(trained(tmp_path, 0))
    other = start("other", lease_s=1, epochs=1)
    ready(other, tmp_path)
    assert other.communicate(timeout=60)[0].strip() == "done"
    slow.send_signal(signal.SIGCONT)
    assert slow.communicate(timeout=60)[0].strip() == "done"
    assert slow.returncode == 0
    assert "the lease of chunk" in (tmp_path / "slow.stderr").read_text()
    counts = Counter(id_ for ids in trained(tmp_path, 0) for id_ in ids)
    assert set(counts) == set(range(400))
    # At most the chunk that was in hand is seen twice, and the batch with which it was found out.
    assert sum(count - 1 for count in counts.values()) <= 40 + 8
    assert before < len(trained(tmp_path, 0))
    with ChunkTracker(tmp_path / "ledger.db", "brain", "numbers") as tracker:
        assert tracker.get_progress_stats()["total_chunks_trained"] == sum(CHUNKS)


LEAVES = """
import sys
from penstock import ChunkTracker, StreamingDataLoader
import subjects

tracker = ChunkTracker(f"{sys.argv[1]}/ledger.db", "brain", "numbers")
loader = StreamingDataLoader(
    subjects.Blocks([100]), 4, num_workers=0, assignment="claim", tracker=tracker, dataset_chunk_size=20
)
batches = iter(loader)
for _ in range(3):
    next(batches)
"""


def test_a_script_that_ends_amid_an_iteration_gives_its_chunk_back_and_says_nothing(tmp_path):
    from penstock import ChunkTracker

    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__))}
    command = [sys.executable, "-c", LEAVES, str(tmp_path)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")
    with ChunkTracker(tmp_path / "ledger.db", "brain", "numbers") as tracker:
        claim = tracker.claim([5])
    assert (claim.chunk_id, claim.sample_offset) == (0, 8)


# A model that remembers which samples it has seen, saved with the loader's state after some of its steps.
REMEMBERS = """
import json, os, sys, time
from pathlib import Path
from claim_worker import open_tracker
from penstock import StreamingDataLoader
import subjects

if __name__ == "__main__":
    folder, ledger = Path(sys.argv[1]), sys.argv[2]
    loader = StreamingDataLoader(
        subjects.Blocks([250, 120, 30]), 8, shuffle=True, num_workers=0,
        assignment="claim", tracker=open_tracker(ledger, 1.0), dataset_chunk_size=40,
    )
    model = {"seen": [], "data": loader.state_dict()}
    if (saved := folder / "checkpoint.json").exists():
        model = json.loads(saved.read_text())
        loader.load_state_dict(model["data"])
    print("ready", flush=True)
    for step, batch in enumerate(loader):
        model["seen"] += batch["id"].tolist()
        time.sleep(0.005)
        if step % 3 == 1:
            (folder / "new.json").write_text(json.dumps({**model, "data": loader.state_dict()}))
            os.replace(folder / "new.json", saved)
    (folder / "done.json").write_text(json.dumps(model["seen"]))
"""


@pytest.mark.parametrize("kind", ["file", "store"])
def test_a_trainer_killed_again_and_again_sees_each_sample_once_from_its_checkpoints(kind, tmp_path):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True) if kind == "store" else None
    ledger = f"store:{store.port}" if store else str(tmp_path / "ledger.db")
    here = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", REMEMBERS, str(tmp_path), ledger]
    rng, killed = np.random.default_rng(1), 0
    deadline = time.monotonic() + 120
    while not (tmp_path / "done.json").exists():
        assert time.monotonic() < deadline
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout.readline() == "ready\n"
            if killed < 4:
                time.sleep(rng.uniform(0.03, 0.12))
                killed += process.poll() is None
            else:
                process.wait(60)
        finally:
            process.kill()
            process.communicate()
    assert killed >= 2
    assert sorted(json.loads((tmp_path / "done.json").read_text())) == list(range(400))


# Ranks that stop to save in one of their steps, and are killed in a later one.
SAVES = """
import json, os, sys
from pathlib import Path
import torch.distributed as dist
from penstock import ChunkTracker, StreamingDataLoader
import subjects

if __name__ == "__main__":
    folder, save_at, die_at = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    tracker = ChunkTracker(folder / "ledger.db", "brain", "numbers")
    loader = StreamingDataLoader(
        subjects.Blocks([100, 123]), 4, num_workers=0, dataset_chunk_size=20,
        assignment="claim", tracker=tracker, uneven=True,
    )
    model = {"seen": []}
    if (saved := folder / "checkpoint.json").exists():
        found = json.loads(saved.read_text())
        loader.load_state_dict(found["data"])
        dist.barrier()
        model["seen"] = found["seen"][rank]
    for step, batch in enumerate(loader):
        model["seen"] += batch["id"].tolist()
        if step == 0:
            dist.barrier()  # one that came when all was done would begin the next epoch
        if step == save_at:
            loader.state_dict()
            everyone = [None] * dist.get_world_size()
            dist.all_gather_object(everyone, model["seen"])
            if rank == 0:
                saved.write_text(json.dumps({"seen": everyone, "data": loader.state_dict()}))
            dist.barrier()
        if step == die_at:
            os.kill(os.getpid(), 9)
    (folder / f"{rank}.json").write_text(json.dumps(model["seen"]))
    dist.destroy_process_group()
"""


@pytest.mark.parametrize(("save_at", "die_at"), [(0, 2), (3, 9), (7, 7)])
def test_ranks_killed_after_a_checkpoint_see_each_sample_once_from_it(save_at, die_at, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(SAVES)
    here = os.path.dirname(os.path.dirname(__file__))
    environment = {**os.environ, "PYTHONPATH": here, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    for steps in ((save_at, die_at), (-1, -1)):
        arguments = [str(tmp_path), *map(str, steps)]
        ran = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    seen = [id_ for rank in range(2) for id_ in json.loads((tmp_path / f"{rank}.json").read_text())]
    assert sorted(seen) == list(range(223))


RANK = """
import os, sys
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from penstock import ChunkTracker, StreamingDataLoader
import subjects

if __name__ == "__main__":
    folder, how = sys.argv[1], sys.argv[2]
    dist.init_process_group("gloo")
    tracker = ChunkTracker(f"{folder}/ledger.db", "brain", "numbers")
    options = {"join": {"uneven": True}, "steps": {"stop_after": 60}}[how]
    loader = StreamingDataLoader(
        subjects.Blocks([100, 23]), 4, num_workers=0, dataset_chunk_size=20,
        assignment="claim", tracker=tracker, **options,
    )
    model = DistributedDataParallel(torch.nn.Linear(3, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-6)
    seen, epochs = [], []

    def train():
        for batch in loader:
            optimizer.zero_grad()
            model(batch["x"]).mean().backward()
            optimizer.step()
            seen.extend(batch["id"].tolist())
            epochs.append(loader.batch_info.epoch)

    if how == "join":
        with Join([model]):
            train()
    else:
        train()
    found = {"seen": seen, "epochs": epochs, "weight": model.module.weight.detach()}
    torch.save(found, f"{folder}/{dist.get_rank()}.pt")
    dist.destroy_process_group()
"""


@pytest.mark.parametrize("how", ["join", "steps"])
def test_ranks_of_a_group_train_together_by_claims(how, tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(__file__)), "OMP_NUM_THREADS": "1"}
    ran = subprocess.run([*command, str(tmp_path), how], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(ranks[0]["weight"], ranks[1]["weight"])
    if how == "join":
        assert sorted(ranks[0]["seen"] + ranks[1]["seen"]) == list(range(123))
    else:
        # Sixty batches each, through the ends of epochs, where nobody may wait for a chunk of the other.
        assert [len(rank["epochs"]) for rank in ranks] == [60, 60]
        assert max(ranks[0]["epochs"] + ranks[1]["epochs"]) == 3
        counts = Counter(ranks[0]["seen"] + ranks[1]["seen"])
        assert set(counts) == set(range(123))
        assert max(counts.values()) - min(counts.values()) <= 1
