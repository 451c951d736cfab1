"""Start an S3 server (moto) in a process of its own; `tests/conftest.py` has it as the fixture `s3`.

def test_something(s3):
    s3.create_bucket("bucket")                     # three letters at least
    open_store("s3://bucket", **s3.options).put("x", b"…")

It ends with the process that started it, however that ends.
"""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable
from typing import Any

START_S = 60.0
SERVER = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from moto.server import main
main(sys.argv[1:])
"""


class S3:
    """An S3 server on a free port of this machine; it keeps everything in memory."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-c", SERVER, "-H", "127.0.0.1", "-p", str(self.port)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            assert self._process.poll() is None, "the S3 server for tests did not start"
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.05)
        self.stop()
        raise AssertionError("the S3 server for tests does not answer")

    @property
    def options(self) -> dict[str, Any]:
        """What open_store needs to reach it."""
        return {
            "endpoint": self.url,
            "access_key_id": "test",
            "secret_access_key": "test",
            "region": "us-east-1",
            "virtual_hosted_style_request": False,
        }

    def create_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=START_S) as response:
            response.read()

    def put_many(self, bucket: str, names: Iterable[str]) -> None:
        """Write an object of one byte under each name."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_S)
        for name in names:
            connection.request("PUT", f"/{bucket}/{name}", b"1")
            response = connection.getresponse()
            response.read()
            assert response.status == 200
        connection.close()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait(START_S)
