"""The servers that tests talk to leave nothing behind."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ENDS_BADLY = """
import os
from servers.s3 import S3
server = S3()
print(server.port, flush=True)
os.kill(os.getpid(), 9)
"""


def test_an_s3_server_ends_with_the_process_that_started_it():
    pytest.importorskip("moto")
    done = subprocess.run(
        [sys.executable, "-c", ENDS_BADLY], cwd=TESTS, stdout=subprocess.PIPE, text=True, timeout=100, check=False
    )
    assert done.returncode == -9
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", int(done.stdout)), timeout=1).close()
        except ConnectionRefusedError:
            return
        time.sleep(0.05)
    raise AssertionError("the server still listens")


def test_a_bucket_needs_a_name_of_three_letters(s3):
    with pytest.raises(urllib.error.HTTPError, match="400"):
        s3.create_bucket("b")
    s3.create_bucket("abc")
