"""Real scripts in real processes, with a temporary folder of their own, watched from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import psutil
import pytest

TESTS = Path(__file__).resolve().parent.parent


class Script:
    """A Python script running in a process group of its own."""

    def __init__(self, folder: Path, source: str, environment: dict[str, str]) -> None:
        self.temp = folder / "temp"
        self.temp.mkdir(exist_ok=True)
        path = folder / f"script{len(list(folder.glob('script*.py')))}.py"
        path.write_text(dedent(source))
        self.errors = path.with_suffix(".stderr")
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, str(path)],
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": str(TESTS), "TMPDIR": str(self.temp), **environment},
                process_group=0,
            )
        self.family: list[psutil.Process] = []

    def line(self) -> str:
        """Wait for the next line it prints, and note who its children are by then."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline().strip()
        assert line, f"the script said no more:\n{self.stderr}"
        self.family = psutil.Process(self.process.pid).children(recursive=True)
        return line

    @property
    def stderr(self) -> str:
        return self.errors.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, as a terminal does."""
        os.killpg(self.process.pid, number)

    def end(self, timeout: float = 60) -> int:
        """Wait until it has ended."""
        self.rest = self.process.communicate(timeout=timeout)[0]
        return self.process.returncode

    def leaves_nobody(self, within_s: float = 10) -> bool:
        """Whether all children it had end within some seconds."""
        _, alive = psutil.wait_procs(self.family, timeout=within_s)
        return not alive


@pytest.fixture
def run(tmp_path) -> Iterator[Callable[..., Script]]:
    """Start scripts; whatever is still there afterwards is ended."""
    started: list[Script] = []

    def start(source: str, **environment: str) -> Script:
        started.append(Script(tmp_path, source, environment))
        return started[-1]

    yield start
    for script in started:
        family = list(script.family)
        if script.process.poll() is None:
            family += psutil.Process(script.process.pid).children(recursive=True)
            script.process.kill()
        for process in family:
            if process.is_running() and process.ppid() in (1, script.process.pid):
                process.kill()
        script.process.communicate()


@pytest.fixture
def shared_memory() -> Callable[[], set[str]]:
    """What has come to /dev/shm since the test began and stays there."""
    folder = Path("/dev/shm")

    def names() -> set[str]:
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()

    def held_by_the_living() -> set[str]:
        # The script and its family are gone by now: what a living process has mapped is another test's.
        maps = []
        for process in Path("/proc").glob("[0-9]*/maps"):
            with contextlib.suppress(OSError):
                maps.append(process.read_text(errors="replace"))
        return {name for name in names() if any(f"/dev/shm/{name}" in text for text in maps)}

    def came() -> set[str]:
        deadline = time.monotonic() + 3
        while (new := names() - before - held_by_the_living()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return new

    before = names()
    return came
