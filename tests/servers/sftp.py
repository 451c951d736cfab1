"""Start OpenSSH's server for its file transfer; the fixture `sftp` of `tests/conftest.py`.

    def test_something(sftp):
        sftp.add_files({"a/x.bin": b"..."})
        open_store(sftp.url, **sftp.options).get("a/x.bin")

It knows the user who runs the tests by a key of its own making; its URL is that of its folder.
"""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

from servers.nginx import START_S, Files, wait_for_port

CONFIG = """
ListenAddress 127.0.0.1
Port {port}
HostKey {state}/host
PidFile {state}/pid
AuthorizedKeysFile {state}/me.pub
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
Subsystem sftp internal-sftp{flags}
"""


def program() -> str | None:
    """Find sshd, which must be started by its whole path."""
    return shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/usr/local/sbin")


class Sftp(Files):
    """An SSH server on a free port of this machine.

    Args:
        folder: its files lie in `files` there, its keys beside them.
    """

    def __init__(self, folder: Path) -> None:
        state = folder / "state"
        state.mkdir(parents=True)
        super().__init__(folder / "files")
        for name in ("host", "me"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(state / name)]
            subprocess.run(command, check=True, timeout=START_S)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._state = state
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)  # where sshd gives up its rights
        self.url = f"sftp://{getpass.getuser()}@127.0.0.1:{self.port}{self.folder}"
        self.options: dict[str, Any] = {"key_filename": str(state / "me"), "look_for_keys": False, "allow_agent": False}
        self.start()

    def start(self, flags: str = "") -> None:
        """Start the server, on the port it has; `flags` for its file transfer, such as -R: nothing may be written."""
        config = self._state / "config"
        config.write_text(CONFIG.format(port=self.port, state=self._state, flags=f" {flags}"))
        self._process = subprocess.Popen(
            [program() or "sshd", "-D", "-f", str(config)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(START_S)
