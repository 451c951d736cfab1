"""Rounds over several processes: disjoint, together the round, equally many; and any other number goes on with them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

WORKER = Path(__file__).resolve().parent.parent / "lightning_worker.py"
SIZE, VAL_SIZE, BATCH = 48, 12, 2
DATA = {"batch_size": BATCH, "train_chunk_size": 4, "val_chunk_size": 2}


def work(*fits: dict[str, Any]) -> None:
    """Run fits in a process that launches as many others as they ask for."""
    command = [sys.executable, str(WORKER), json.dumps(fits)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-4000:]


def told(log: Path, devices: int, trainer: dict[str, Any], **more: Any) -> dict[str, Any]:
    if devices > 1:
        trainer = {"devices": devices, "strategy": "ddp", **trainer}
    return {"log": str(log), "size": SIZE, "val_size": VAL_SIZE, "data": DATA, "trainer": trainer, **more}


def by_place(log: Path, what: str, num_numbers: int) -> dict[tuple[int, ...], dict[int, list[int]]]:
    """Read a log: where in the run, and there, by rank, the ids."""
    found: dict[tuple[int, ...], dict[int, list[int]]] = defaultdict(dict)
    for line in log.read_text().splitlines():
        kind, rank, *numbers = line.split()
        if kind == what:
            place = tuple(map(int, numbers[:num_numbers]))
            assert int(rank) not in found[place], "a batch was trained on twice"
            found[place][int(rank)] = list(map(int, numbers[num_numbers:]))
    return dict(sorted(found.items()))


def stream(log: Path, devices: int) -> list[int]:
    """Give the ids trained on in the order of the stream: ranks deal the samples of a step among them in turn."""
    ids = []
    for ranks in by_place(log, "train", 2).values():
        assert sorted(ranks) == list(range(devices))
        assert {len(batch) for batch in ranks.values()} == {BATCH}
        ids += [ranks[rank][row] for row in range(BATCH) for rank in range(devices)]
    return ids


@pytest.mark.slow
def test_two_processes_share_each_round_and_one_or_three_go_on_with_it(tmp_path):
    """With Lightning's own sampler or without: it has none of our loaders to put one into."""
    injected, plain, checkpoint = tmp_path / "injected", tmp_path / "plain", tmp_path / "cut.ckpt"
    work(
        told(injected, 2, {"max_epochs": 3, "use_distributed_sampler": True}),
        told(plain, 2, {"max_steps": 6, "use_distributed_sampler": False}, keep=str(checkpoint)),
    )
    ids = stream(injected, 2)
    rounds = [ids[start : start + 16] for start in range(0, SIZE, 16)]
    assert [len(set(each)) for each in rounds] == [16] * 3
    assert sorted(ids) == list(range(SIZE))
    # A round of validation is two batches of each rank: eight samples, and four in the last.
    validations = [Counter(ranks[0] + ranks[1]) for ranks in by_place(injected, "val", 1).values()]
    assert validations == [Counter(range(8, 12)), Counter(range(8)), Counter(range(8, 12))]

    cut = stream(plain, 2)
    assert cut == ids[:24], "the second round was left after its second batch"
    for devices in (1, 3):
        log = tmp_path / f"{devices}"
        work(told(log, devices, {"max_epochs": 4}, resume=str(checkpoint)))
        places = list(by_place(log, "train", 2))
        assert places[:3] == [(1, 2), (1, 3), (2, 0)], "two batches of the round were left, for any number of processes"
        rest = stream(log, devices)
        assert len(rest) == (2 + 2 * 4) * BATCH * devices
        assert rest[:24] == ids[24:][: len(rest)], "the cycle goes on where it was"
        assert len(by_place(log, "val", 1)) == 3
