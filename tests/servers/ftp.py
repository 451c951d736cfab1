"""Start an FTP server (pyftpdlib) on a folder in a process of its own; the fixture `ftp` of `tests/conftest.py`.

    def test_something(ftp):
        ftp.add_files({"a/x.bin": b"..."})
        open_store(ftp.url).get("a/x.bin")

The user is `me`, the password `s3cr3t`; both are in its URL. `guest`, of the same password, may only read.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from servers.nginx import START_S, Files, wait_for_port

TESTS = Path(__file__).resolve().parents[1]


class Ftp(Files):
    """An FTP server on a free port of this machine.

    Args:
        folder: what it serves.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"ftp://me:s3cr3t@127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        """Start the server, on the port it has."""
        command = [sys.executable, "-m", "servers.ftp", str(self.folder), str(self.port)]
        self._process = subprocess.Popen(command, cwd=TESTS, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(START_S)


def main() -> None:
    from pyftpdlib.authorizers import DummyAuthorizer
    from pyftpdlib.handlers import FTPHandler
    from pyftpdlib.servers import FTPServer

    folder, port = sys.argv[1:]
    FTPHandler.authorizer = DummyAuthorizer()
    FTPHandler.authorizer.add_user("me", "s3cr3t", folder, perm="elradfmw")
    FTPHandler.authorizer.add_user("guest", "s3cr3t", folder, perm="elr")
    FTPHandler.auth_failed_timeout = 0.1
    FTPServer(("127.0.0.1", int(port)), FTPHandler).serve_forever()


if __name__ == "__main__":
    main()
