"""A process that has ended need not be waited for; one that is only slow keeps what its lease says."""

import gc
import os
import signal
import subprocess
import sys

import pytest

from penstock import ChunkTracker
from penstock.testing import Footprint

HOLDER = """
import sys, time
from penstock import ChunkTracker
tracker = ChunkTracker(sys.argv[1], "brain", "data", lease_s=600)
claim = tracker.claim([1])
tracker.renew(claim, sample_offset=7)
print("holds", claim.chunk_id, flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "chunks.db"


@pytest.fixture
def holder(path):
    """A process that holds the one chunk there is, for ten minutes."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "holds 0\n"
    yield process
    process.kill()
    process.communicate()


def test_the_chunk_of_a_killed_process_is_granted_at_once_from_its_offset_on(holder, path):
    with ChunkTracker(path, "brain", "data") as tracker:
        assert tracker.claim([1]) is None
        assert not tracker.has_free_chunk([1])
        holder.kill()
        holder.wait()
        assert tracker.has_free_chunk([1])
        claim = tracker.claim([1])
        assert (claim.chunk_id, claim.sample_offset) == (0, 7)
        tracker.complete(claim)
        assert tracker.is_epoch_complete([1])
    assert len(list(path.parent.glob("chunks.db-holders/*"))) == 1


def test_a_process_that_is_stopped_keeps_its_chunk_until_its_lease_ends(holder, path):
    holder.send_signal(signal.SIGSTOP)
    with ChunkTracker(path, "brain", "data") as tracker:
        assert tracker.claim([1]) is None
        assert tracker.describe_holders().startswith("gpu 0 chunk 0 of block 0 (for")


def test_a_tracker_that_was_closed_is_gone(path):
    first = ChunkTracker(path, "brain", "data")
    held = first.claim([1])
    first.close()
    with ChunkTracker(path, "brain", "data") as second:
        assert second.claim([1]).chunk_id == held.chunk_id


def test_a_tracker_that_nobody_has_any_more_is_gone_with_its_files(path):
    before = Footprint.now()

    def claim_and_forget():
        ChunkTracker(path, "brain", "data").claim([1])

    claim_and_forget()
    gc.collect()
    assert not before.leftovers()
    with ChunkTracker(path, "brain", "data") as tracker:
        assert tracker.claim([1]).chunk_id == 0


def test_trackers_of_one_process_do_not_take_each_other_for_gone(path):
    with ChunkTracker(path, "brain", "data") as first, ChunkTracker(path, "brain", "data") as second:
        claim = first.claim([1])
        assert second.claim([1]) is None
        first.complete(claim)


def test_without_the_file_of_a_holder_its_lease_decides(holder, path):
    for file in path.parent.glob("chunks.db-holders/*"):
        file.unlink()
    holder.kill()
    holder.wait()
    with ChunkTracker(path, "brain", "data") as tracker:
        assert tracker.claim([1]) is None


def test_a_forked_child_that_lives_on_does_not_keep_its_parents_chunks(path):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            tracker = ChunkTracker(path, "brain", "data")
            tracker.claim([1])
            if os.fork() == 0:
                # Lives until the test lets go of the pipe.
                os.close(writing)
                os.read(reading, 1)
        finally:
            os._exit(0)
    os.close(reading)
    try:
        os.waitpid(parent, 0)
        with ChunkTracker(path, "brain", "data") as tracker:
            assert tracker.claim([1]).chunk_id == 0
    finally:
        os.close(writing)
