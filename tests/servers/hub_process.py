"""Start a Hub for tests (`hub.py`) in a process of its own, fill it, break it, and read what it was asked.

    def test_something(hub):                       # the fixture of tests/conftest.py
        sha = hub.add_dataset("org/name", {"data/train.jsonl": b'{"text": "a"}\n'})
        hub.fault(path="train.jsonl", status=503, times=2)
        ...                                        # HF_ENDPOINT is hub.url here and in child processes
        assert [line["status"] for line in hub.requests("train.jsonl")] == [503, 503, 200]

A second `add_dataset` of the same name is a new commit; the old one stays. `hub.kill()` ends the process as
`kill -9` does, `hub.start()` brings it back on the same port.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVER = Path(__file__).with_name("hub.py")
START_S = 30.0


class Hub:
    """A Hub in its own process.

    Args:
        folder: where its repositories and its log lie; made if missing.
        cdn: large files are redirected to another origin.
        page: most items in one page of a listing.
    """

    def __init__(self, folder: Path, *, cdn: bool = False, page: int = 1000) -> None:
        self.folder = folder / "repos"
        self.log = folder / "access.jsonl"
        self.folder.mkdir(parents=True, exist_ok=True)
        self._options = ["--child", "--page", str(page), *(["--cdn"] if cdn else [])]
        self._process: subprocess.Popen[str] | None = None
        self.port = 0
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server; on the port it had, if it had one."""
        command = [
            sys.executable,
            "-S",
            str(SERVER),
            str(self.folder),
            "--port",
            str(self.port),
            "--log",
            str(self.log),
        ]
        self._process = subprocess.Popen(
            [*command, *self._options], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line.startswith("http://"), "the Hub for tests did not start"
        self.port = int(line.rpartition(":")[2])

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

    def add_dataset(
        self,
        name: str,
        files: Mapping[str, bytes],
        *,
        tags: tuple[str, ...] = (),
        downloads: int = 0,
        likes: int = 0,
        private: bool = False,
        gated: bool | str = False,
        readers: tuple[str, ...] = (),
        description: str = "",
    ) -> str:
        """Add a commit to a dataset, made if it is new, and give its id; `main` is that commit from now on."""
        repo = self.folder / name
        sha = hashlib.sha1(os.urandom(16)).hexdigest()
        for path, data in {".gitattributes": b"", **files}.items():
            target = repo / sha / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
        settings = {
            "refs": {"main": sha},
            "tags": list(tags),
            "downloads": downloads,
            "likes": likes,
            "private": private,
            "gated": gated,
            "readers": list(readers),
            "description": description,
            "last_modified": "2026-01-01T00:00:00.000Z",
        }
        _replace(repo / "repo.json", settings)
        if readers:
            tokens = self.folder / "tokens.json"
            known = json.loads(tokens.read_text()) if tokens.exists() else []
            _replace(tokens, sorted({*known, *readers}))
        return sha

    def add_token(self, token: str) -> None:
        """Let a token be one of a known user, who may read what is public."""
        tokens = self.folder / "tokens.json"
        known = json.loads(tokens.read_text()) if tokens.exists() else []
        _replace(tokens, sorted({*known, token}))

    def move(self, old: str, new: str) -> None:
        """Let a dataset's old name lead to its new one."""
        path = self.folder / "moves.json"
        _replace(path, (json.loads(path.read_text()) if path.exists() else {}) | {old: new})

    def fault(self, **fault: Any) -> None:
        """Let the next requests that fit go wrong; `hub.py` lists the ways."""
        self._control([fault])

    def heal(self) -> None:
        """Forget all faults."""
        self._control([])

    def _control(self, faults: list[dict[str, Any]]) -> None:
        request = urllib.request.Request(f"{self.url}/__faults__", json.dumps(faults).encode(), method="POST")
        with urllib.request.urlopen(request, timeout=START_S) as response:
            response.read()

    def requests(self, pattern: str = "", *, origin: str | None = None) -> list[dict[str, Any]]:
        """Give the log's lines whose path fits a regular expression, in order of their ends."""
        self._settle()
        lines = [json.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []
        return [line for line in lines if re.search(pattern, line["path"]) and origin in (None, line["origin"])]

    def bytes_sent(self, pattern: str = "") -> int:
        """Count the bytes of bodies that were sent for paths that fit."""
        return sum(line["sent"] for line in self.requests(pattern))

    def _settle(self) -> None:
        """Wait for the log: an answer's line is written after its last byte, when its reader may be here already."""
        with contextlib.suppress(OSError):  # a server that is gone writes no more
            urllib.request.urlopen(f"{self.url}/__settled__", timeout=START_S).close()

    def forget(self) -> None:
        """Empty the log."""
        self._settle()
        self.log.write_bytes(b"")


def hub_environment(url: str, home: Path) -> dict[str, str]:
    """Give the variables that point every library of the Hub to a server, and away from this machine's logins."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def _replace(path: Path, value: object) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)
