"""Start Azurite, Microsoft's emulator of Azure's blobs; `tests/conftest.py` has it as the fixture `azure`.

def test_something(azure):
    azure.create_container("c")
    open_store("az://c", **azure.options).put("x", b"…")
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from email.utils import formatdate
from pathlib import Path
from typing import Any

from servers.nginx import START_S, wait_for_port

ACCOUNT = "streams"
KEY = base64.b64encode(b"a key of this test server's own").decode()
VERSION = "2021-08-06"


def program() -> str | None:
    """Find Azurite: `make` installs it beside the environment's Python, if there is npm."""
    beside = Path(sys.prefix) / "npm" / "node_modules" / ".bin"
    return shutil.which("azurite-blob") or shutil.which("azurite-blob", path=str(beside))


class Azure:
    """An Azure blob service on a free port of this machine; it keeps everything in memory."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/{ACCOUNT}"
        arguments = ["--blobPort", str(self.port), "--inMemoryPersistence", "--skipApiVersionCheck"]
        self._process = subprocess.Popen(
            [program() or "azurite-blob", *arguments, "--disableTelemetry", "--silent"],
            env={**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    @property
    def options(self) -> dict[str, Any]:
        """What open_store needs to reach it."""
        return {"endpoint": self.url, "account_name": ACCOUNT, "account_key": KEY}

    def create_container(self, name: str) -> None:
        dated = formatdate(usegmt=True)
        named = f"x-ms-date:{dated}\nx-ms-version:{VERSION}\n/{ACCOUNT}/{ACCOUNT}/{name}\nrestype:container"
        text = "PUT" + "\n" * 12 + named
        signature = hmac.new(base64.b64decode(KEY), text.encode(), hashlib.sha256).digest()
        headers = {
            "Authorization": f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}",
            "x-ms-date": dated,
            "x-ms-version": VERSION,
            "Content-Length": "0",
        }
        url = f"{self.url}/{name}?restype=container"
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers, method="PUT"), timeout=START_S
        ) as done:
            done.read()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(START_S)
