"""Users' scripts as they are: datasets in the script itself, no guard, Ctrl-C, kill -9, no close()."""

from __future__ import annotations

import signal
import time

import pytest

# Prints a line once the first batch is there, then takes its time over the rest.
TRAINING = """
    import sys, time
    import numpy as np
    from penstock import StreamingDataLoader

    class Squares:
        def __len__(self):
            return 100_000
        def __getitem__(self, index):
            return {{"id": index, "x": np.full(20_000, index * index, dtype=np.float32)}}

    def main():
        loader = StreamingDataLoader(Squares(), 8, shuffle=True, num_workers={workers}, worker_type="{lane}")
        for step, batch in enumerate(loader):
            assert (batch["x"] == (batch["id"][:, None] ** 2)).all()
            if step == 3:
                print("training", flush=True)
            time.sleep(0.01)
            if step == {steps}:
                break
        {ending}

    if __name__ == "__main__":
        main()
"""
THREAD, PROCESS = {"lane": "thread", "workers": 2}, {"lane": "process", "workers": 2}
INLINE = {"lane": "thread", "workers": 0}


@pytest.mark.parametrize("lane", [INLINE, THREAD, PROCESS], ids=["inline", "thread", "process"])
def test_ctrl_c_in_mid_epoch_ends_quietly_and_leaves_nothing(run, lane, shared_memory):
    script = run(TRAINING.format(steps=10_000, ending="", **lane))
    assert script.line() == "training"
    assert len(script.family) == (2 if lane["lane"] == "process" else 0)
    script.signal(signal.SIGINT)
    assert script.end() in (-signal.SIGINT, 130, 1)
    assert script.stderr.count("Traceback") == 1, script.stderr
    assert script.stderr.strip().endswith("KeyboardInterrupt"), script.stderr
    assert script.leaves_nobody()
    assert list(script.temp.iterdir()) == []
    assert shared_memory() == set()


@pytest.mark.slow
def test_repeated_ctrl_c_does_not_leave_workers_behind(run):
    script = run(TRAINING.format(steps=10_000, ending="", **PROCESS))
    assert script.line() == "training"
    for _ in range(3):
        script.signal(signal.SIGINT)
        time.sleep(0.02)
    script.end()
    assert script.leaves_nobody()


def test_a_killed_trainer_takes_its_workers_along(run):
    script = run(TRAINING.format(steps=10_000, ending="", **PROCESS))
    assert script.line() == "training"
    script.process.kill()
    script.end()
    assert script.leaves_nobody(), "workers outlive their trainer"
    assert list(script.temp.iterdir()) == []


@pytest.mark.parametrize(
    ("lane", "ending"),
    [
        (PROCESS, ""),
        (PROCESS, "raise ValueError('enough')"),
        (THREAD, ""),
        pytest.param(PROCESS, "sys.exit(3)", marks=pytest.mark.slow),
        pytest.param(THREAD, "raise ValueError('enough')", marks=pytest.mark.slow),
        pytest.param(THREAD, "sys.exit(3)", marks=pytest.mark.slow),
        pytest.param(INLINE, "sys.exit(3)", marks=pytest.mark.slow),
    ],
)
def test_a_script_that_never_closes_its_loader_ends_as_it_should(run, lane, ending):
    script = run(TRAINING.format(steps=5, ending=ending, **lane))
    assert script.line() == "training"
    assert script.end(timeout=30) == {"": 0, "sys.exit(3)": 3}.get(ending, 1)
    assert script.leaves_nobody()
    if "raise" in ending:
        assert script.stderr.count("Traceback") == 1, script.stderr
        assert "ValueError: enough" in script.stderr
    else:
        assert script.stderr == ""


def test_workers_in_user_code_end_with_a_killed_trainer(run, tmp_path):
    """A worker that is busy or asleep in somebody's code does not read its connection: it must notice all the same."""
    script = run(
        f"""
        import os, time
        from pathlib import Path
        from penstock import StreamingDataLoader

        class Sleepy:
            def __len__(self):
                return 100
            def __getitem__(self, index):
                Path({str(tmp_path)!r}, f"busy-{{os.getpid()}}").touch()
                time.sleep(3600)

        if __name__ == "__main__":
            print("begun", flush=True)
            next(iter(StreamingDataLoader(Sleepy(), 2, num_workers=2, worker_type="process")))
        """
    )
    assert script.line() == "begun"
    deadline = time.monotonic() + 30
    while len(list(tmp_path.glob("busy-*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    import psutil

    script.family = psutil.Process(script.process.pid).children(recursive=True)
    assert len(script.family) == 2
    script.process.kill()
    script.end()
    assert script.leaves_nobody()


def test_a_script_without_a_guard_is_told_so(run):
    script = run(
        """
        from penstock import StreamingDataLoader

        class Numbers:
            def __len__(self):
                return 8
            def __getitem__(self, index):
                return index

        print(sum(len(batch) for batch in StreamingDataLoader(Numbers(), 4, num_workers=2, worker_type="process")))
        """
    )
    assert script.end() == 1
    last = script.stderr.strip().splitlines()[-1]
    assert "worker processes import your script" in last
    assert "if __name__ == '__main__':" in last
    assert script.stderr.count("Traceback") == 1, script.stderr
    assert "freeze_support" not in script.stderr
    assert script.leaves_nobody()


def test_a_script_without_a_guard_is_fine_if_workers_need_nothing_of_it(run):
    script = run(
        """
        from penstock import StreamingDataLoader

        loader = StreamingDataLoader(list(range(8)), 4, num_workers=2, worker_type="process")
        print([batch.tolist() for batch in loader])
        """
    )
    assert script.line() == "[[0, 1, 2, 3], [4, 5, 6, 7]]"
    assert script.end() == 0


@pytest.mark.slow
def test_what_workers_print_is_seen(run):
    script = run(
        """
        from penstock import StreamingDataLoader

        class Talking:
            def __len__(self):
                return 2
            def __getitem__(self, index):
                print(f"reading {index}", flush=True)
                return index

        if __name__ == "__main__":
            with StreamingDataLoader(Talking(), 2, num_workers=1, worker_type="process") as loader:
                list(loader)
            print("done")
        """
    )
    assert [script.line() for _ in range(2)] == ["reading 0", "reading 1"]
    assert script.end() == 0


def test_fresh_processes_give_the_same_batches(run):
    """Nothing of an order may hang on hash seeds, process ids or the time."""
    source = """
        from penstock import StreamingDataLoader
        from penstock.testing import CountingDataset

        if __name__ == "__main__":
            with StreamingDataLoader(CountingDataset(97), 8, shuffle=True, seed=5, {how}) as loader:
                print([batch["id"].tolist() for _ in range(2) for batch in loader])
    """
    lines = set()
    for seed, how in enumerate(["num_workers=0", "num_workers=3", "num_workers=2, worker_type='process'"]):
        script = run(source.format(how=how), PYTHONHASHSEED=str(seed))
        lines.add(script.line())
        assert script.end() == 0
    assert len(lines) == 1
