"""Blocks larger than memory may be: what a process reads and holds, as the system counts it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock.formats.block_writer import StreamingBlockWriter

LINE = '{"id":1%09d,"text":"a text of constant length"}\n'
ROOT = Path(__file__).resolve().parents[2]

READ_ONE = """
import sys
from penstock import BlockManager

def read_bytes():
    return next(int(line.split()[1]) for line in open("/proc/self/io") if line.startswith("rchar"))

manager = BlockManager(sys.argv[1], enable_prefetch=False)
manager.get_chunk(0, 0, 1)
before = read_bytes()
own = read_bytes() - before
chunk = manager.get_chunk(0, int(sys.argv[2]), 100)
print(read_bytes() - before - own, len(chunk), chunk[0]["id"])
"""


def bytes_read_for_a_chunk(folder: Path, chunk: int) -> int:
    done = subprocess.run(
        [sys.executable, "-c", READ_ONE, str(folder), str(chunk)], capture_output=True, text=True, check=True
    )
    count, samples, first = map(int, done.stdout.split())
    assert (samples, first) == (100, 10**9 + 100 * chunk)
    return count


@pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="needs /proc/self/io")
def test_a_chunk_costs_the_same_in_a_block_of_a_thousand_and_of_a_million_samples(tmp_path):
    for size in (1_000, 1_000_000):
        lines = "".join(LINE % number for number in range(size)).encode()
        with StreamingBlockWriter(tmp_path / str(size), "water", size) as writer:
            writer.add_lines(lines, np.arange(1, size + 1) * (len(lines) // size))
    small, near, far = (
        bytes_read_for_a_chunk(tmp_path / str(size), chunk)
        for size, chunk in ((1_000, 5), (1_000_000, 5), (1_000_000, 9_876))
    )
    needed = 100 * len(LINE % 0)
    assert needed <= small < needed + 4_096
    assert abs(near - small) < 1_024
    assert abs(far - small) < 1_024


@pytest.mark.slow
@pytest.mark.timeout(1_800)
def test_a_gigabyte_is_written_and_read_below_300_mb(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from block_memory import JOBS, SAMPLE_BYTES, measure

    samples = 10**9 // SAMPLE_BYTES
    peaks = {job: measure(job, tmp_path / "water", samples)["resident_mb"] for job in JOBS}
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.jsonl")) > 0.9e9
    # Torch alone takes about 200 MB of the last one.
    assert max(peaks.values()) < 300, peaks
