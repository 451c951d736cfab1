"""What happens to a ledger's file: forks, threads, stopped processes, damage, full disks, clocks that jump."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from penstock import ChunkTracker, LedgerError, StaleClaim
from penstock.ledger.sqlite import SqliteLedger

HOLDS_THE_LEDGER = """
import sqlite3, sys, time
db = sqlite3.connect(sys.argv[1], isolation_level=None)
db.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ledger.db"


def tracker_of(path, **options) -> ChunkTracker:
    return ChunkTracker(path, "brain", "data", **options)


def seen_by_a_fresh_process(path: Path) -> dict:
    program = (
        "import json, sys; from penstock import ChunkTracker; "
        "print(json.dumps(ChunkTracker(sys.argv[1], 'brain', 'data').get_progress_stats()))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


class TestProcesses:
    def test_what_was_completed_is_there_after_kill_minus_nine(self, path):
        program = (
            "import os, sys; from penstock import ChunkTracker; t = ChunkTracker(sys.argv[1], 'brain', 'data')\n"
            "for _ in range(7): t.complete(t.claim([10]), steps=2)\n"
            "t.claim([10]); os.kill(os.getpid(), 9)"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], check=False)
        assert done.returncode == -signal.SIGKILL
        stats = seen_by_a_fresh_process(path)
        assert (stats["total_chunks_trained"], stats["total_steps"]) == (7, 14)
        with tracker_of(path) as tracker:
            assert tracker.claim([10]).chunk_id == 8

    def test_a_fork_holds_none_of_its_parents_claims(self, path):
        tracker = tracker_of(path)
        claim = tracker.claim([4], 0)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                with pytest.raises(StaleClaim, match="parent before a fork"):
                    tracker.complete(claim)
                tracker.complete(tracker.claim([4], 1))
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        tracker.complete(claim)
        assert [tracker.is_chunk_trained(0, chunk) for chunk in range(3)] == [True, True, False]
        tracker.close()

    def test_forks_while_threads_write_lose_nothing(self, path):
        tracker = tracker_of(path)
        chunks = [2000]
        children = []

        def train() -> None:
            for _ in range(100):
                tracker.complete(tracker.claim(chunks))

        threads = [threading.Thread(target=train) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(8):
            child = os.fork()
            if child == 0:
                status = 1
                try:
                    for _ in range(20):
                        tracker.complete(tracker.claim(chunks))
                    status = 0
                finally:
                    os._exit(status)
            children.append(child)
        for thread in threads:
            thread.join()
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 8
        assert seen_by_a_fresh_process(path)["total_chunks_trained"] == 3 * 100 + 8 * 20
        tracker.close()

    def test_a_wait_for_a_stopped_process_ends_with_a_reason(self, path):
        ledger = SqliteLedger(path, timeout_s=0.5)
        tracker = tracker_of(ledger)
        holder = subprocess.Popen([sys.executable, "-c", HOLDS_THE_LEDGER, path], stdout=subprocess.PIPE)
        try:
            assert holder.stdout.readline() == b"held\n"
            with pytest.raises(LedgerError, match=r"waited 0\.5 s for a turn to write to the ledger .*another process"):
                tracker.claim([1])
            assert tracker.get_progress_stats()["total_chunks_trained"] == 0
        finally:
            holder.kill()
            holder.communicate()
        assert tracker.claim([1]).chunk_id == 0
        tracker.close()

    def test_one_that_writes_all_the_time_does_not_shut_out_others(self, path):
        program = (
            "import sys, time; from penstock import ChunkTracker; t = ChunkTracker(sys.argv[1], 'brain', 'data')\n"
            "print('ready', flush=True); sys.stdin.readline(); ended = time.monotonic() + 2; n = 0\n"
            "while time.monotonic() < ended: t.complete(t.claim([100_000])); n += 1\n"
            "print(n)"
        )
        command = [sys.executable, "-c", program, str(path)]
        greedy = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(4)]
        for process in greedy:
            assert process.stdout.readline() == "ready\n"
        for process in greedy:
            process.stdin.write("go\n")
            process.stdin.flush()
        counts = [int(process.communicate()[0]) for process in greedy]
        # A process that starves gets a handful; the fair share is a quarter.
        assert min(counts) > sum(counts) / 4 / 5, counts
        assert seen_by_a_fresh_process(path)["total_chunks_trained"] == sum(counts)

    def test_closing_leaves_no_descriptor(self, path):
        tracker_of(path).close()
        before = set(os.listdir("/proc/self/fd"))
        tracker = tracker_of(path)
        tracker.claim([1])
        tracker.close()
        assert set(os.listdir("/proc/self/fd")) == before
        with pytest.raises(LedgerError, match="was closed; open it again"):
            tracker.claim([1])


class TestClocks:
    def test_a_jump_of_the_clock_neither_loses_nor_doubles_a_completion(self, path):
        now = [1000.0]
        trackers = [tracker_of(SqliteLedger(path, clock=lambda: now[0]), lease_s=60) for _ in range(2)]
        first = trackers[0].claim([3])
        now[0] += 1e9
        with pytest.raises(StaleClaim):
            trackers[0].complete(first)
        second = trackers[1].claim([3])
        assert second.chunk_id == 0
        now[0] -= 2e9
        # Back before everything: leases that lie too far ahead count as ended, so nothing is stuck for years.
        third = trackers[0].claim([3])
        assert third.chunk_id == 0
        with pytest.raises(StaleClaim):
            trackers[1].complete(second)
        trackers[0].complete(third)
        for _ in range(2):
            trackers[1].complete(trackers[1].claim([3]))
        assert trackers[1].is_epoch_complete([3])
        assert trackers[0].get_progress_stats()["total_chunks_trained"] == 3
        for tracker in trackers:
            tracker.close()

    def test_the_date_does_not_matter(self, path):
        # The clock counts from the machine's start, so it lies far below the seconds since 1970.
        with tracker_of(path, lease_s=60) as tracker:
            tracker.claim([1])
        with sqlite3.connect(path) as db:
            (expires,) = db.execute("SELECT expires FROM lease").fetchone()
        db.close()
        boot = time.clock_gettime(time.CLOCK_BOOTTIME)
        assert boot < expires <= boot + 60


class TestDamage:
    def test_something_else_is_not_taken_for_a_ledger(self, path):
        path.write_bytes(b"not a database, but long enough to be looked at" * 100)
        with pytest.raises(LedgerError, match=r"is damaged, or no ledger .*call import_json with the latest export"):
            tracker_of(path)

    def test_another_database_is_left_alone(self, path):
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE theirs (x)")
        db.close()
        with pytest.raises(LedgerError, match="is a database, but not a ledger of penstock"):
            tracker_of(path)

    def test_a_newer_format_is_refused(self, path):
        tracker_of(path).close()
        with sqlite3.connect(path) as db:
            db.execute("PRAGMA user_version = 99")
        db.close()
        with pytest.raises(LedgerError, match="has ledger format 99, this penstock knows up to 1"):
            tracker_of(path)

    def test_overwritten_pages_are_an_error_that_says_how_to_recover(self, path):
        with tracker_of(path) as tracker:
            for _ in range(300):
                tracker.complete(tracker.claim([400]))
            export = tracker.export_json()
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(path.stat().st_size - 4096))
        with pytest.raises(LedgerError, match=r"To recover: move ledger\.db"):
            tracker_of(path).claim([400])
        for suffix in ("", "-wal", "-shm"):
            path.with_name(f"ledger.db{suffix}").unlink(missing_ok=True)
        with tracker_of(path) as recovered:
            recovered.import_json(export)
            assert recovered.claim([400]).chunk_id == 300

    def test_a_ledger_deleted_in_use_is_noticed_before_anything_is_lost(self, path):
        with tracker_of(path) as tracker:
            claim = tracker.claim([2])
            path.unlink()
            for use in (lambda: tracker.complete(claim), lambda: tracker.claim([2]), lambda: tracker.sequence):
                with pytest.raises(LedgerError, match=r"was deleted or replaced while it was in use\. To recover"):
                    use()

    def test_a_deleted_ledger_is_not_begun_anew_beside_its_export(self, path):
        with tracker_of(path) as tracker:
            tracker.complete(tracker.claim([2]))
            assert tracker.export_json() == path.with_name("ledger_state.json")
        path.unlink()
        with tracker_of(path) as tracker:
            with pytest.raises(
                LedgerError, match=r"ledger_state\.json beside it is the export .* call import_json\(\)"
            ):
                tracker.claim([2])
            tracker.import_json()
            assert tracker.claim([2]).chunk_id == 1

    def test_a_disk_that_takes_no_more_is_an_error_and_loses_nothing(self, path):
        program = (
            "import resource, sys; from penstock import ChunkTracker, LedgerError\n"
            "t = ChunkTracker(sys.argv[1], 'brain', 'data'); done = 0\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
            "try:\n"
            "    while True: t.complete(t.claim([100_000])); done += 1\n"
            "except LedgerError as error: print(done, error)"
        )
        done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True, check=True)
        count, _, message = done.stdout.partition(" ")
        assert message.startswith(f"cannot use the ledger {path}")
        assert int(count) > 0
        assert seen_by_a_fresh_process(path)["total_chunks_trained"] == int(count)

    @pytest.mark.parametrize("room", [0, 16 << 10, 64 << 10])
    def test_a_full_disk_is_called_so_wherever_it_is_met(self, small_disk, room):
        ballast = small_disk / "ballast"
        with open(ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(small_disk).free - room)

        def fill(path):
            with tracker_of(path) as tracker:
                while (claim := tracker.claim([1000])) is not None:
                    tracker.complete(claim)

        with pytest.raises(LedgerError, match=r"no space left on the disk of .*; free some, then go on"):
            fill(small_disk / "ledger.db")
        ballast.unlink()
        with tracker_of(small_disk / "ledger.db") as tracker:
            done = tracker.get_progress_stats()["total_chunks_trained"]
            assert all(tracker.is_chunk_trained(0, chunk) for chunk in range(done))
            assert tracker.claim([1000]).chunk_id >= done

    def test_a_folder_that_is_a_file_is_an_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(LedgerError, match="cannot open the ledger"):
            tracker_of(tmp_path / "file" / "ledger.db")
