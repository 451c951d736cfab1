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

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from servers.http_process import ServerProcess


class Hub(ServerProcess):
    """A Hub in its own process.

    Args:
        folder: where its repositories and its log lie; made if missing.
        cdn: large files are redirected to another origin.
        page: most items in one page of a listing.
    """

    def __init__(self, folder: Path, *, cdn: bool = False, page: int = 1000) -> None:
        options = ["--page", str(page), *(["--cdn"] if cdn else [])]
        super().__init__("servers.hub", folder / "repos", folder / "access.jsonl", *options)

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
