"""Start nginx on a folder; `tests/conftest.py` has it as the fixture `nginx`.

    def test_something(nginx):
        nginx.add_files({"a/x.bin": b"..."})
        open_store(nginx.url).get("a/x.bin")

Below `/` folders show themselves as pages, below `/json/` as JSON, below `/rounded/` as pages with sizes such
as 12K, below `/closed/` not at all; `/private/` takes the user `me` with the password `s3cr3t`.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

START_S = 30.0
CONFIG = """
daemon off;
worker_processes 1;
pid {state}/pid;
error_log {state}/error.log;
{user}
events {{}}
http {{
    types {{ text/html html; application/json json; text/csv csv; }}
    default_type application/octet-stream;
    access_log {state}/access.log;
    client_body_temp_path {state}/body;
    proxy_temp_path {state}/proxy;
    fastcgi_temp_path {state}/fastcgi;
    uwsgi_temp_path {state}/uwsgi;
    scgi_temp_path {state}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {files};
        autoindex on;
        location /json/ {{ alias {files}/; autoindex_format json; }}
        location /rounded/ {{ alias {files}/; autoindex_exact_size off; }}
        location /closed/ {{ alias {files}/; autoindex off; }}
        location /private/ {{ alias {files}/; auth_basic "files"; auth_basic_user_file {state}/users; }}
    }}
}}
"""


def program() -> str | None:
    """Find nginx; Debian keeps it where only root's path leads."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


class Files:
    """A folder whose files a server serves.

    Args:
        folder: made if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)

    def add_files(self, files: Mapping[str, bytes]) -> None:
        """Write files below its folder."""
        for name, data in files.items():
            target = self.folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


class Nginx(Files):
    """An nginx of its own configuration on a free port.

    Args:
        folder: its files lie in `files` there, what it writes beside them.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "files")
        state = folder / "state"
        state.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        (state / "users").write_text("me:{PLAIN}s3cr3t\n")
        # Its worker would give up root's rights, and with them the sight of folders that are this user's.
        user = "user root;" if folder.owner() == "root" else ""
        config = CONFIG.format(state=state, files=self.folder, port=self.port, user=user)
        (state / "nginx.conf").write_text(config)
        self._process = subprocess.Popen(
            [program() or "nginx", "-c", str(state / "nginx.conf"), "-e", str(state / "error.log")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(START_S)


def wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until a server that was started takes connections."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, f"{process.args} did not start"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    raise AssertionError(f"{process.args} does not answer")
