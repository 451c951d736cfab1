"""Many datasets in one process: what one of them takes, threads and descriptors, ends with it or is shared."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import streaming_subjects as subjects

COUNT_ONE_AFTER_ANOTHER = """
import os, sys, threading, time
from penstock import StreamingDataset
def once(whole):
    ds = StreamingDataset(sys.argv[1], sys.argv[2], columns_to_download=["file"])
    stream = iter(ds) if how != "batches" else ds.iter_batches(4)
    for place, _ in enumerate(stream):
        if not whole and place == 3:
            break
for how in ("samples", "batches"):
    for whole in (True, False):
        counts = []
        for _ in range(4):
            once(whole)
            until = time.monotonic() + 20
            while threading.active_count() > 2 and time.monotonic() < until:
                time.sleep(0.05)  # a cache that was dropped is closed by its own thread
            counts.append((threading.active_count(), len(os.listdir("/proc/self/fd"))))
        print(counts[-1][0] <= 2 and counts[-1][1] - counts[0][1] <= 4, how, whole, counts)
"""

COUNT_TOGETHER = """
import os, sys
from penstock import StreamingDataset
sets, counts = [], []
for number in range(20):
    sets.append(StreamingDataset(sys.argv[1], sys.argv[2], columns_to_download=["file"]))
    assert os.path.getsize(sets[-1][number]["file"]) == 4000
    counts.append(len(os.listdir("/proc/self/fd")))
print(counts[-1] - counts[0] <= 20, counts)
for one in sets[1:]:
    one.close()
assert os.path.getsize(sets[0][50]["file"]) == 4000, "the others closed what this one reads from"
"""

LEFT_OPEN = """
import sys
from penstock import StreamingDataset
sets = [StreamingDataset(sys.argv[1], sys.argv[2], columns_to_download=["file"], cache_limit="60kb") for _ in range(3)]
streams = [iter(one) for one in sets]
held = [[next(stream) for _ in range(20)] for stream in streams]
sets[0].itself = sets
sys.modules["kept"] = sets
"""


@pytest.fixture
def run(web, tmp_path):
    web.add_files(subjects.folder_of_files(size=4000))

    def run_(script):
        command = [sys.executable, "-X", "dev", "-c", script, f"{web.url}/i.csv", str(tmp_path / "dst")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env={**os.environ}, check=False)
        assert done.returncode == 0, done.stderr
        return done

    return run_


def test_a_dataset_that_is_read_and_dropped_leaves_no_thread_and_no_descriptor(run):
    lines = run(COUNT_ONE_AFTER_ANOTHER).stdout.splitlines()
    assert len(lines) == 4
    assert all(line.startswith("True") for line in lines), lines


def test_datasets_on_one_folder_share_its_cache(run):
    assert run(COUNT_TOGETHER).stdout.startswith("True"), run(COUNT_TOGETHER).stdout


def test_what_is_left_open_makes_no_noise_at_the_end(run):
    assert "Exception ignored" not in run(LEFT_OPEN).stderr
