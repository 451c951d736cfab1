"""Claim: writing and reading blocks of any size stays below 300 MB of memory per process.

Synthetic records of about 300 bytes are written with StreamingBlockWriter, read chunk by chunk with BlockManager, and
read shuffled with BlockDataset through StreamingDataLoader (which brings torch along); each in a fresh process, whose
largest resident size, mapped pages of files included, is what the system says at its end.

Run: python benchmarks/block_memory.py [--gigabytes 10] [--folder FOLDER]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SAMPLE_BYTES = 300

WRITE = """
from penstock import StreamingBlockWriter
text = "drop of water " * 20
with StreamingBlockWriter(folder, "synthetic") as writer:
    for number in range(samples):
        writer.add_sample({"id": number, "text": text})
"""
CHUNKS = """
from penstock import BlockManager
found = 0
with BlockManager(folder) as manager:
    for block in range(manager.get_total_blocks()):
        for chunk in range(manager.get_block(block).chunk_count(4_000)):
            found += len(manager.get_chunk(block, chunk))
assert found == samples, found
"""
SHUFFLED = """
from penstock import BlockDataset, StreamingDataLoader
found = 0
with StreamingDataLoader(BlockDataset(folder), 256, shuffle=True) as loader:
    for batch in loader:
        found += len(batch["text"])
assert found == samples, found
"""
JOBS = {"write": WRITE, "read chunks": CHUNKS, "read shuffled": SHUFFLED}
_BEGIN = "import sys; folder, samples = sys.argv[1], int(sys.argv[2])\n"
# Not getrusage: what it says includes the process that started this one.
_END = """
print(next(int(line.split()[1]) / 1024 for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def measure(job: str, folder: Path, samples: int) -> dict[str, float]:
    """Do a job in a fresh process: its largest resident size in MB, and samples/s."""
    began = time.perf_counter()
    command = [sys.executable, "-c", _BEGIN + JOBS[job] + _END, str(folder), str(samples)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"resident_mb": float(done.stdout), "rate": samples / (time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10)
    parser.add_argument("--folder", type=Path, help="where to make the blocks; a temporary folder by default")
    options = parser.parse_args()
    samples = int(options.gigabytes * 1e9 / SAMPLE_BYTES)
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=options.folder) as name:
        found = {}
        for job in JOBS:
            figures = found[job] = measure(job, Path(name), samples)
            print(f"  {job:14} {figures['resident_mb']:6.0f} MB  {figures['rate']:10,.0f} samples/s", flush=True)
    print(json.dumps({"benchmark": "block memory", "gigabytes": options.gigabytes, **found}))


if __name__ == "__main__":
    main()
