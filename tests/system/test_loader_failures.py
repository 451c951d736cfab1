"""Workers that die, samples that hang, threads that never come back: each is an error with a name, and soon."""

from __future__ import annotations

import os
import signal
import threading
import time

import numpy as np
import psutil
import pytest

import subjects
from penstock import ConfigError, LoaderTimeout, StreamingDataLoader, WorkerDied
from penstock.testing import CountingDataset

PROCESS = {"num_workers": 2, "worker_type": "process"}


_elders: set[psutil.Process] = set()


@pytest.fixture(autouse=True)
def elders() -> None:
    """Remember who is here already: the servers that other tests share, and what torch's loader leaves behind."""
    _elders.clear()
    _elders.update(psutil.Process().children())


def children() -> list[psutil.Process]:
    """The children that came since the test began, dead ones that nobody has waited for included."""
    others = ("multiprocessing", "servers")
    return [
        child
        for child in psutil.Process().children()
        if child not in _elders and not any(other in word for word in _words(child) for other in others)
    ]


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def ids(batches) -> list[int]:
    return [id_ for batch in batches for id_ in batch["id"].tolist()]


class TestDeadWorkers:
    def test_a_killed_worker_is_reported_with_what_it_owed(self):
        dataset = subjects.Stuck(40, at=9, seconds=3600)
        with StreamingDataLoader(dataset, 4, prefetch=4, num_workers=1, worker_type="process") as loader:
            stream = iter(loader)
            assert ids([next(stream), next(stream)]) == list(range(8))
            (victim,) = children()
            victim.kill()
            begun = time.monotonic()
            with pytest.raises(WorkerDied) as raised:
                list(stream)
            assert time.monotonic() - begun < 10
        error = raised.value
        assert error.exit_code == -signal.SIGKILL
        assert error.ids == list(range(8, 24))
        assert "was killed (signal 9, often the system's out-of-memory killer)" in str(error)
        assert f"worker {error.worker} (pid " in str(error)
        assert str(error.ids) in str(error)

    def test_of_several_that_died_the_one_that_owed_samples_is_named(self):
        dataset = subjects.Stuck(40, at=9, seconds=3600)
        with StreamingDataLoader(dataset, 4, prefetch=1, **PROCESS) as loader:
            stream = iter(loader)
            assert ids([next(stream), next(stream)]) == list(range(8))
            for worker in loader._engine._lane._workers:
                worker.process.kill()
            time.sleep(1)
            with pytest.raises(WorkerDied, match=r"owed 4 samples of Stuck: \[8, 9, 10, 11\]"):
                list(stream)

    def test_the_next_iteration_starts_new_workers_and_loses_nothing(self):
        with StreamingDataLoader(subjects.Plain(60), 4, **PROCESS) as loader:
            stream = iter(loader)
            read = ids([next(stream), next(stream)])
            before = {child.pid for child in children()}
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            try:
                for batch in stream:
                    read += batch["id"].tolist()
            except WorkerDied:
                read += ids(loader)
            assert read == list(range(60))
            assert not before & {child.pid for child in children()}
        assert children() == []

    @pytest.mark.parametrize(("exit_code", "said"), [(None, "was killed"), (3, "exited with status 3")])
    def test_a_sample_that_ends_its_process_is_among_those_named(self, exit_code, said):
        dataset = subjects.Deadly(40, at=13, exit_code=exit_code)
        with StreamingDataLoader(dataset, 4, prefetch=2, **PROCESS) as loader:
            with pytest.raises(WorkerDied, match=said) as raised:
                list(loader)
            assert 13 in raised.value.ids
            assert raised.value.exit_code == (-9 if exit_code is None else exit_code)

    def test_workers_that_cannot_start_say_why(self):
        loader = StreamingDataLoader(subjects.Unloadable(), 4, **PROCESS)
        with pytest.raises(ConfigError, match=r"(?s)could not take on Unloadable:.*this machine lacks the decoder"):
            next(iter(loader))
        assert children() == []


class TestStuckSamples:
    def test_in_a_process_they_are_named(self):
        dataset = subjects.Stuck(40, at=5)
        with StreamingDataLoader(dataset, 4, timeout=1.5, **PROCESS) as loader:
            stream = iter(loader)
            assert ids([next(stream)]) == [0, 1, 2, 3]
            with pytest.raises(LoaderTimeout, match=r"samples \[4, 5, 6, 7\] of Stuck are not ready; worker \d \(pid"):
                next(stream)
        assert children() == []

    def test_in_a_thread_they_are_named_and_the_thread_is_left_behind_with_a_warning(self):
        release = threading.Event()
        dataset = subjects.Waiting(40, at=20, event=release)
        loader = StreamingDataLoader(dataset, 36, timeout=0.5, num_workers=3, worker_type="thread")
        left_behind = pytest.warns(RuntimeWarning, match=r"penstock-\d are stuck in Waiting and were left behind")
        late = pytest.raises(LoaderTimeout, match=r"no batch after 0.5 s: samples \[16, .*20, .*31\] of Waiting")
        with left_behind, late:
            next(iter(loader))
        release.set()
        assert ids(loader) == list(range(40))
        loader.close()

    @pytest.mark.parametrize(("waiting", "helper"), [((0, 5), 7), ((3, 8), 10), ((100, 105), 107)])
    def test_several_that_wait_for_a_later_one_do_not_stop_a_lane_whose_work_is_cheap(self, waiting, helper):
        dataset = subjects.Helped(200, waiting=waiting, helper=helper)
        with StreamingDataLoader(dataset, 1, num_workers=4, worker_type="thread", prefetch=16, timeout=20) as loader:
            assert ids(loader) == list(range(200))

    def test_samples_that_no_thread_was_free_for_are_told_apart(self):
        release = threading.Event()
        loader = StreamingDataLoader(
            subjects.Waiting(40, at=3, event=release), 36, timeout=0.5, num_workers=1, worker_type="thread"
        )
        said = r"samples \[0, .*, 15\] of Waiting are still in fetch .*; no thread was free for samples \[16,"
        with pytest.raises(LoaderTimeout, match=said), pytest.warns(RuntimeWarning, match="stuck"):
            next(iter(loader))
        release.set()
        loader.close()

    def test_close_does_not_wait_for_a_stuck_thread(self):
        release = threading.Event()
        dataset = subjects.Waiting(40, at=4, event=release)
        loader = StreamingDataLoader(dataset, 4, num_workers=1, worker_type="thread")
        next(iter(loader))
        begun = time.monotonic()
        with pytest.warns(RuntimeWarning, match="stuck"):
            loader.close()
        assert time.monotonic() - begun < 10
        release.set()

    def test_close_does_not_wait_for_a_stuck_process(self):
        loader = StreamingDataLoader(subjects.Stuck(40, at=5), 4, **PROCESS)
        next(iter(loader))
        begun = time.monotonic()
        loader.close()
        assert time.monotonic() - begun < 10
        assert children() == []


class TestEnds:
    def test_a_forgotten_loader_ends_its_workers(self):
        loader = StreamingDataLoader(subjects.Plain(40), 4, **PROCESS)
        next(iter(loader))
        assert len(children()) == 2
        del loader
        assert children() == []

    def test_an_error_in_the_middle_leaves_no_workers_behind(self):
        loader = StreamingDataLoader(subjects.Broken(40, bad=(9,)), 4, **PROCESS)
        with pytest.raises(Exception, match="sample 9"):
            list(loader)
        assert children() == []

    def test_a_forked_child_neither_uses_nor_ends_its_parents_workers(self):
        """User code may fork, as torch's DataLoader does by default on Linux."""
        with StreamingDataLoader(subjects.Plain(40), 4, **PROCESS) as loader:
            stream = iter(loader)
            assert ids([next(stream)]) == [0, 1, 2, 3]
            read, write = os.pipe()
            pid = os.fork()
            if pid == 0:
                loader.close()
                os.write(write, b"closed")
                os._exit(0)
            os.waitpid(pid, 0)
            assert os.read(read, 10) == b"closed"
            os.close(read)
            os.close(write)
            assert ids(stream) == list(range(4, 40))


@pytest.mark.parametrize("lane", [{"num_workers": 0}, {"num_workers": 2}, PROCESS], ids=["inline", "thread", "process"])
def test_resuming_at_nine_tenths_of_a_billion_reads_only_what_comes_next(run, tmp_path, lane):
    """In a new process, on a dataset that notes every id it is asked for, whoever asks."""
    log, batch, prefetch = tmp_path / "reads", 16, 4
    order = StreamingDataLoader(CountingDataset(10**9), batch, shuffle=True, seed=7, num_workers=0)
    order.load_state_dict({**order.state_dict(), "samples": 900_000_000})
    state = order.state_dict()
    expected = ids([next(stream) for stream in [iter(order)] for _ in range(3)])

    script = run(
        f"""
        from penstock import StreamingDataLoader
        from penstock.testing import CountingDataset

        if __name__ == "__main__":
            dataset = CountingDataset(10**9, {str(log)!r})
            loader = StreamingDataLoader(dataset, {batch}, shuffle=True, seed=7, prefetch={prefetch}, **{lane!r})
            loader.load_state_dict({state!r})
            stream = iter(loader)
            print([id_ for _ in range(3) for id_ in next(stream)["id"].tolist()])
            loader.close()
        """
    )
    assert script.line() == str(expected)
    assert script.end() == 0
    reads = np.fromfile(log, dtype=np.int64)
    # Inline, up to four steps are gathered in one call by then; lanes are `prefetch` ahead of the third step.
    ahead = order._assignment._plan.order.ids(0, np.arange(900_000_000, 900_000_000 + batch * (3 + prefetch + 1)))
    assert set(expected) <= set(reads.tolist()) <= set(ahead.tolist())
    assert len(reads) == len(set(reads.tolist()))
