"""Start a web server for tests (`http.py`) in a process of its own, fill it, break it, and read what it was asked.

    def test_something(web):                       # the fixture of tests/conftest.py
        web.add_files({"a/x.bin": b"..."})
        web.fault(path=r"x\\.bin", status=503, times=2)
        open_store(web.url).get("a/x.bin")
        assert [line["status"] for line in web.requests(r"x\\.bin")] == [503, 503, 200]

`web.kill()` ends the process as `kill -9` does, `web.start()` brings it back on the same port.
"""

from __future__ import annotations

import contextlib
import json
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
START_S = 30.0


class ServerProcess:
    """A server of these tests in its own process, and what can be done to it.

    Args:
        module: the server, such as "servers.http".
        folder: what it serves; made if missing.
        log: where it writes a line for each answer.
        options: its other arguments.
    """

    def __init__(self, module: str, folder: Path, log: Path, *options: str) -> None:
        self.folder, self.log = folder, log
        self.folder.mkdir(parents=True, exist_ok=True)
        self._module, self._options = module, options
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the server; on the port it had, if it had one."""
        arguments = [str(self.folder.resolve()), "--port", str(self.port), "--log", str(self.log.resolve()), "--child"]
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-m", self._module, *arguments, *self._options],
            cwd=TESTS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        assert self.url.startswith("http"), "the server for tests did not start"
        self.port = int(self.url.rpartition(":")[2])

    def kill(self) -> None:
        """End the server at once, in the middle of whatever it is sending."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def wait(self) -> None:
        """Wait until the server has ended by itself (the fault `die`)."""
        if self._process is not None:
            self._process.wait(START_S)
            for pipe in (self._process.stdin, self._process.stdout):
                assert pipe is not None
                pipe.close()
            self._process = None

    def fault(self, **fault: Any) -> None:
        """Let the next requests that fit go wrong; `http.py` lists the ways."""
        self._ask("/__faults__", [fault])

    def heal(self) -> None:
        """Forget all faults."""
        self._ask("/__faults__", [])

    def latency(self, latency_s: float, jitter_s: float = 0.0) -> None:
        """Let every answer begin so many seconds after its question, and up to `jitter_s` more."""
        self._ask("/__latency__", {"latency_s": latency_s, "jitter_s": jitter_s})

    def requests(self, pattern: str = "", *, origin: str | None = None, settle: bool = True) -> list[dict[str, Any]]:
        """Give the log's lines whose path fits a regular expression, in order of their ends; `settle` waits for all."""
        if settle:
            self._settle()
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line for line in lines if re.search(pattern, line["path"]) and origin in (None, line["origin"])]

    def bytes_sent(self, pattern: str = "", *, settle: bool = True) -> int:
        """Count the bytes of bodies that were sent for paths that fit."""
        return sum(line["sent"] for line in self.requests(pattern, settle=settle))

    def forget(self) -> None:
        """Empty the log."""
        self._settle()
        self.log.write_bytes(b"")

    def _settle(self) -> None:
        """Wait for the log: an answer's line is written after its last byte, when its reader may be here already."""
        with contextlib.suppress(OSError):  # a server that is gone writes no more
            self._ask("/__settled__", None)

    def _ask(self, what: str, asked: object) -> None:
        request = urllib.request.Request(f"{self.url}{what}", json.dumps(asked).encode(), method="POST")
        # Its certificate, if it has one, is of its own making.
        context = ssl._create_unverified_context() if self.url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=START_S, context=context) as response:
            response.read()


class Web(ServerProcess):
    """A plain web server with the files of a folder.

    Args:
        folder: its files lie in `files` there, its log beside them.
        certificate: a PEM file with certificate and key: it speaks https.
    """

    def __init__(self, folder: Path, *, certificate: Path | None = None) -> None:
        options = ["--certificate", str(certificate)] if certificate else []
        super().__init__("servers.http", folder / "files", folder / "access.jsonl", *options)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Write files below its folder; one that is there is replaced, and has another etag."""
        for name, data in files.items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
