"""The demo's side of its training processes: start one, follow its log, kill it, or see it to its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from penstock.demo.settings import NUM_EVALUATIONS, DemoSettings, log_path
from penstock.errors import LoaderTimeout, PenstockError
from penstock.progress import Meter

SILENCE_S = 300.0
"""A training process that logs nothing for so long is given up."""
END_S = 60.0
"""A killed process that is still there after so long is given up."""
_POLL_S = 0.005
_TRIED_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """One training process: how it is to load, and where it is to be killed."""

    run: int
    num_workers: int
    worker_type: str
    kill_at: int | None = None
    """Step whose line in the log brings the SIGKILL. None: it may finish."""


def train_in_process(folder: Path, settings: DemoSettings, attempt: Attempt) -> None:
    """Run one training process, showing its progress; kill it if the attempt says so.

    Raises:
        PenstockError: it ended by itself with an error; the message has its last words.
        LoaderTimeout: it has gone silent, or does not end; the message names its files.
    """
    with open(errors_path(folder, attempt.run), "wb") as errors:
        process = subprocess.Popen(_command(folder, attempt), stdout=errors, stderr=errors, stdin=subprocess.DEVNULL)
    try:
        _follow(folder, settings, attempt, process)
    finally:
        process.kill()
        _status(process, errors_path(folder, attempt.run))


def errors_path(folder: Path, run: int) -> Path:
    """Give the file that gets what a training process prints."""
    return folder / f"run-{run}.err"


def _command(folder: Path, attempt: Attempt) -> list[str]:
    return [
        *(sys.executable, "-m", "penstock.demo.train", str(folder), f"--run={attempt.run}"),
        *(f"--num-workers={attempt.num_workers}", f"--worker-type={attempt.worker_type}"),
    ]


def _follow(folder: Path, settings: DemoSettings, attempt: Attempt, process: subprocess.Popen) -> None:
    records = _records(log_path(folder, attempt.run), process, errors_path(folder, attempt.run))
    start = next(records, None)
    reached = 0
    if start is not None:
        size, val_loss = settings.tokens_per_step, ""
        left = (settings.steps - start["step"]) * size
        with Meter("training" if attempt.run == 1 else "resumed", total=left, unit="tokens") as meter:
            for record in records:
                if record["event"] == "checkpoint":
                    val_loss = f", validation {record['val_loss']:.2f}"
                elif record["event"] == "step":
                    reached = record["step"]
                    meter.add(size, note=f"loss {record['loss']:.2f}{val_loss}")
                    if attempt.kill_at is not None and reached >= attempt.kill_at:
                        process.kill()
    code = _status(process, errors_path(folder, attempt.run))
    killed = attempt.kill_at is not None and reached >= attempt.kill_at
    if code and not killed:
        raise PenstockError(_last_words(folder, attempt.run, code))


def _status(process: subprocess.Popen, errors: Path) -> int:
    """Wait for the end of a process that has ended or was killed, and give its exit status."""
    try:
        return process.wait(timeout=END_S)
    except subprocess.TimeoutExpired:
        raise LoaderTimeout(
            f"the training process {process.pid} was killed and is still there after {END_S:.0f} s: it hangs in the "
            f"system, as on a disk that does not answer. All it printed is in {errors}"
        ) from None


def _records(path: Path, process: subprocess.Popen, errors: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a log as they are written, until the process has ended and all are read."""
    heard = time.monotonic()
    while not path.exists():
        if process.poll() is not None:
            return
        if time.monotonic() - heard > SILENCE_S:
            raise LoaderTimeout(
                f"the training process has not begun its log {path} in {SILENCE_S:.0f} s; all it printed is in {errors}"
            )
        time.sleep(_POLL_S)
    heard = time.monotonic()
    with open(path, "rb") as log:
        rest = b""
        while True:
            ended = process.poll() is not None
            *lines, rest = (rest + log.read()).split(b"\n")
            yield from map(orjson.loads, lines)
            if ended:
                return
            if lines:
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_S:
                raise LoaderTimeout(
                    f"the training process has logged nothing for {SILENCE_S:.0f} s; see {path} and {errors}"
                )
            time.sleep(_POLL_S)


def _last_words(folder: Path, run: int, code: int) -> str:
    path = errors_path(folder, run)
    lines = path.read_text(errors="replace").strip().splitlines()
    said = lines[-1] if lines else "it said nothing"
    return f"the training process ended with status {code}: {said}. All it printed is in {path}"


def choose_steps(settings: DemoSettings, seconds: float) -> DemoSettings:
    """Fit a run into a time: measure steps with one thread and with all cores, and take the faster.

    On busy machines, and where cores are halves of one, threads that wait for each other can make a small
    model many times slower.
    """
    timed = {threads: _step_seconds(settings, threads) for threads in {1, os.cpu_count() or 1}}
    threads = min(timed, key=lambda number: timed[number])
    # A multiple, so that the last evaluation is at the last step.
    steps = int(seconds / timed[threads]) // NUM_EVALUATIONS * NUM_EVALUATIONS
    return replace(settings, num_threads=threads, steps=max(settings.steps, steps))


def _step_seconds(settings: DemoSettings, threads: int) -> float:
    """Time a training step on made-up ids."""
    import torch

    from penstock.demo.train import build, take_step

    model, optimizer = build(replace(settings, num_threads=threads))
    shape = (settings.batch_size, settings.seq_len)
    ids = torch.randint(settings.vocab_size, shape, generator=torch.Generator().manual_seed(0))
    took = []
    for _ in range(_TRIED_STEPS):
        started = time.perf_counter()
        take_step(model, optimizer, {"input_ids": ids, "labels": ids}, settings.learning_rate)
        took.append(time.perf_counter() - started)
    return sorted(took)[len(took) // 2]
