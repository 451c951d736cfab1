"""Trainers as real processes that are killed, stopped and started again, watched from outside.

What is believed is what lies in files: the log that each process appended to, and an export of the ledger by
a process that had no part in it.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from claim_worker import SAMPLES, open_tracker

WORKER = Path(__file__).resolve().parent.parent / "claim_worker.py"


@dataclass(kw_only=True)
class Fleet:
    """Processes that train one dataset; one is slower than a lease is long and is left in peace."""

    folder: Path
    ledger: str
    size: int
    chunks_per_block: list[int]
    lease_s: float
    sample_s: float
    epochs: int = 2
    processes: dict[int, subprocess.Popen] = field(default_factory=dict)
    started: int = 0

    def start(self, *, sample_s: float | None = None) -> int:
        """Start one more process and give its number, which is also its gpu_id and names its log."""
        number = self.started
        self.started += 1
        settings = {
            "ledger": self.ledger,
            "log": str(self.folder / f"{number}.log"),
            "gpu_id": number,
            "chunks_per_block": self.chunks_per_block,
            "lease_s": self.lease_s,
            "epochs": self.epochs,
            "sample_s": self.sample_s if sample_s is None else sample_s,
        }
        (self.folder / f"{number}.json").write_text(json.dumps(settings))
        command = [sys.executable, str(WORKER), str(self.folder / f"{number}.json")]
        with (self.folder / f"{number}.stderr").open("wb") as errors:
            self.processes[number] = subprocess.Popen(command, stderr=errors)
        return number

    def run(self, *, seconds: float, every_s: float, seed: int) -> int:
        """Disturb the fleet for a while, then let it finish; give the number of the slow one."""
        dice = random.Random(seed)
        slow = self.start(sample_s=self.lease_s / 4)
        for _ in range(self.size - 1):
            self.start()
        stopped: dict[int, float] = {}
        ended = time.monotonic() + seconds
        while time.monotonic() < ended:
            time.sleep(dice.uniform(0.5, 1.5) * every_s)
            for number in [number for number, until in stopped.items() if time.monotonic() > until]:
                self.processes[number].send_signal(signal.SIGCONT)
                del stopped[number]
            running = [number for number, one in self.processes.items() if one.poll() is None]
            victims = sorted(set(running) - {slow} - set(stopped))
            if not victims:
                break
            victim = dice.choice(victims)
            if dice.random() < 0.3:
                self.processes[victim].send_signal(signal.SIGSTOP)
                stopped[victim] = time.monotonic() + 1.5 * self.lease_s
            else:
                dead = self.processes.pop(victim)
                dead.kill()
                dead.wait()
                self.start()
        for number in stopped:
            time.sleep(max(0.0, stopped[number] - time.monotonic()))
            self.processes[number].send_signal(signal.SIGCONT)
        for number, process in self.processes.items():
            assert process.wait(timeout=240) == 0, (self.folder / f"{number}.stderr").read_text()
        return slow

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def lines(self, *what: str) -> list[tuple[int, str, tuple[int, ...]]]:
        """(process, word, numbers) of all logs; a line that a kill cut short can't be, as each is one write."""
        return [
            (int(log.stem), word, tuple(map(int, numbers)))
            for log in sorted(self.folder.glob("*.log"))
            for word, *numbers in (line.split() for line in log.read_text().splitlines())
            if word in what
        ]


def check(fleet: Fleet, export: dict, slow: int) -> None:
    """Hold the logs and the ledger to the law of claims."""
    units = {
        (epoch, block, chunk)
        for epoch in range(fleet.epochs)
        for block, chunks in enumerate(fleet.chunks_per_block)
        for chunk in range(chunks)
    }
    completed = [(one["epoch"], one["block_id"], one["chunk_id"]) for one in export["completed_chunks"]]
    assert Counter(completed) == Counter(units), "each chunk once per epoch, and no chunk left out"

    done = [(numbers, process) for process, _, numbers in fleet.lines("done")]
    by_whom = {(one["epoch"], one["block_id"], one["chunk_id"]): one["gpu_id"] for one in export["completed_chunks"]}
    assert max(Counter(unit for unit, _ in done).values()) == 1, "no two processes were told that they completed it"
    assert all(by_whom[unit] == process for unit, process in done)
    # A kill between the call and the line of the log may hide one completion per kill, no more.
    kills = fleet.started - fleet.size
    assert len(units) - len(done) <= kills

    trained = {numbers for _, _, numbers in fleet.lines("trained")}
    assert trained == {(*unit, sample) for unit in units for sample in range(SAMPLES)}, "no sample is left out"
    for _, _, (*unit, offset) in fleet.lines("claimed"):
        assert all((*unit, sample) in trained for sample in range(offset)), "nothing untrained is passed over"
    assert not [line for line in fleet.lines("stale") if line[0] == slow], "heartbeats kept the slow one's chunks"
    assert [line for line in fleet.lines("done") if line[0] == slow]


def exported_by_a_fresh_process(ledger: Path) -> dict:
    program = (
        "import sys; from penstock import ChunkTracker; "
        "print(ChunkTracker(sys.argv[1], 'brain', 'data').export_json(sys.argv[2]))"
    )
    target = ledger.with_name("export.json")
    subprocess.run([sys.executable, "-c", program, str(ledger), str(target)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(target.read_text())


def soak(tmp_path: Path, *, seconds: float, every_s: float, **options) -> Fleet:
    ledger = tmp_path / "ledger.db"
    fleet = Fleet(folder=tmp_path, ledger=str(ledger), **options)
    try:
        slow = fleet.run(seconds=seconds, every_s=every_s, seed=7)
        check(fleet, exported_by_a_fresh_process(ledger), slow)
    finally:
        fleet.end()
    return fleet


def test_trainers_that_die_and_stand_still_complete_each_chunk_once(tmp_path):
    soak(tmp_path, size=3, chunks_per_block=[4, 3], lease_s=2.0, sample_s=0.05, seconds=3, every_s=0.7)


@pytest.mark.slow
def test_eight_trainers_killed_and_stopped_for_a_minute(tmp_path):
    fleet = soak(
        tmp_path, size=8, chunks_per_block=[25] * 4, lease_s=6.0, sample_s=0.25, epochs=3, seconds=60, every_s=0.8
    )
    assert fleet.started > 8 + 20
    assert fleet.lines("stale"), "who stood still for longer than a lease came too late"
    assert [numbers for _, _, numbers in fleet.lines("claimed") if numbers[-1] > 0], "chunks were continued"


@pytest.mark.slow
def test_trainers_over_a_store_that_die_and_stand_still(tmp_path):
    from torch.distributed import TCPStore

    store = TCPStore("127.0.0.1", 0, is_master=True)
    fleet = Fleet(
        folder=tmp_path, ledger=f"store:{store.port}", size=4, chunks_per_block=[10, 10], lease_s=3.0, sample_s=0.2
    )
    try:
        slow = fleet.run(seconds=25, every_s=3.0, seed=3)
        tracker = open_tracker(fleet.ledger, 3.0)
        check(fleet, json.loads(tracker.export_json(tmp_path / "export.json").read_text()), slow)
    finally:
        fleet.end()
