"""Claims: thousands of durable claims and completions a second, however many chunks are done, and turns for everyone.

Four processes claim and complete on one ledger as fast as they can, on a local disk. Durable means what it means for
the ledger: a completion survives kill -9 from the moment the call returns. Beside it the way of a JSON state file that
is read, changed and written anew (to a temporary file, renamed, under a file lock) at each claim and completion; it is
not synced either.

Run: python benchmarks/claims.py [--seconds 3] [--rounds 3] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from penstock.ledger.ledger import Completion, Snapshot
from penstock.ledger.sqlite import SqliteLedger
from side_by_side import compare

PROCESSES = 4
CHUNKS = 25
BLOCKS = 100_000

CHILD = """
import fcntl, json, os, sys, time
way, path, blocks, chunks, seconds, gpu = sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:7])

if way == "ledger":
    from penstock import ChunkTracker
    tracker = ChunkTracker(path, "brain", "data")
    chunks_per_block = [chunks] * blocks

    def cycle(step):
        claim = tracker.claim(chunks_per_block, gpu)
        tracker.complete(claim, optimizer_step=step, steps=1)
else:
    lock = open(path + ".lock", "w")

    def changed(change):
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            with open(path) as file:
                state = json.load(file)
            result = change(state)
            with open(path + ".new", "w") as file:
                json.dump(state, file)
            os.replace(path + ".new", path)
            return result
        finally:
            fcntl.flock(lock, fcntl.LOCK_UN)

    def claimed(state):
        taken = {(one["block_id"], one["chunk_id"]) for one in state["completed_chunks"] + state["in_progress"]}
        place = state["first_block"]
        while True:
            for chunk in range(chunks):
                if (place, chunk) not in taken:
                    state["in_progress"].append({"block_id": place, "chunk_id": chunk, "gpu_id": gpu})
                    return place, chunk
            place += 1

    def cycle(step):
        block, chunk = changed(claimed)
        def completed(state):
            state["in_progress"].remove({"block_id": block, "chunk_id": chunk, "gpu_id": gpu})
            state["completed_chunks"].append(
                {"epoch": 0, "block_id": block, "chunk_id": chunk, "gpu_id": gpu, "optimizer_step": step, "steps": 1}
            )
        changed(completed)

print("ready", flush=True)
sys.stdin.readline()
ended = time.perf_counter() + seconds
cycles, longest, now = 0, 0.0, time.perf_counter()
while now < ended or not cycles:
    cycle(cycles)
    before, now = now, time.perf_counter()
    longest = max(longest, now - before)
    cycles += 1
print(json.dumps({"cycles": cycles, "longest_s": longest, "over_s": now - ended}))
"""


class Way:
    """One way of keeping claims, on a file in which some chunks are done."""

    def __init__(self, way: str, folder: Path, done: int, seconds: int) -> None:
        self.way, self.seconds = way, seconds
        self.path = folder / f"{way}-{done}.state"
        self.longest_s: list[float] = []
        self.shares: list[float] = []
        blocks, rest = divmod(done, CHUNKS)
        units = [divmod(unit, CHUNKS) for unit in range(done)]
        if way == "ledger":
            ledger = SqliteLedger(self.path)
            ledger.introduce("brain", "data")
            completions = [
                Completion(
                    sequence=number, epoch=0, block_id=block, chunk_id=chunk, gpu_id=0, optimizer_step=number, steps=1
                )
                for number, (block, chunk) in enumerate(units, start=1)
            ]
            ledger.restore(
                Snapshot(
                    ledger_id="benchmark",
                    epoch=0,
                    sequence=done,
                    num_blocks=BLOCKS,
                    epochs=[(0, 0)],
                    blocks=[(0, block, CHUNKS) for block in range(blocks + bool(rest))],
                    partial=[],
                    completions=completions,
                )
            )
            ledger.close()
        else:
            records = [
                {"epoch": 0, "block_id": block, "chunk_id": chunk, "gpu_id": 0, "optimizer_step": number, "steps": 1}
                for number, (block, chunk) in enumerate(units)
            ]
            state = {"first_block": blocks, "completed_chunks": records, "in_progress": []}
            self.path.write_text(json.dumps(state))

    def run(self) -> float:
        """Let all processes run for a while; cycles a second of all together."""
        arguments = [self.way, self.path, BLOCKS, CHUNKS, self.seconds]
        children = [
            subprocess.Popen(
                [sys.executable, "-c", CHILD, *(str(word) for word in arguments), str(gpu)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for gpu in range(PROCESSES)
        ]
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
        for child in children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        found = [json.loads(child.communicate()[0]) for child in children]
        assert not any(child.returncode for child in children)
        cycles = [one["cycles"] for one in found]
        self.longest_s.append(max(one["longest_s"] for one in found))
        self.shares.append(min(cycles) / (sum(cycles) / PROCESSES))
        return sum(one["cycles"] / (self.seconds + one["over_s"]) for one in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", help="where the files go; the system's temporary folder by default")
    parser.add_argument("--done", type=int, nargs="*", default=[0, 10_000, 1_000_000])
    parser.add_argument("--json-up-to", type=int, default=1_000_000, help="a cycle of it takes 20 s at a million")
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        ways = {
            f"{name}, {done:,} done": Way(way, Path(folder), done, options.seconds)
            for done in options.done
            for way, name in (("ledger", "ledger"), ("json", "JSON rewritten"))
            if way == "ledger" or done <= options.json_up_to
        }
        compare(
            f"Cycles of claim and complete, {PROCESSES} processes together",
            {name: way.run for name, way in ways.items()},
            reference=next(iter(ways)),
            unit="cycles/s",
            rounds=options.rounds,
        )
        print("\n  size on disk; the longest cycle of any process; the least that one got (1: all got the same)")
        for name, way in ways.items():
            megabytes = sum(file.stat().st_size for file in way.path.parent.glob(f"{way.path.name}*")) / 1e6
            print(f"  {name:<32} {megabytes:8.1f} MB {max(way.longest_s) * 1e3:9.1f} ms {min(way.shares):6.2f}")


if __name__ == "__main__":
    main()
