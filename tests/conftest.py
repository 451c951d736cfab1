"""What all tests share: their subjects are importable, in worker processes as well."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from servers.azure import Azure
    from servers.bigquery_process import BigQuery
    from servers.ftp import Ftp
    from servers.gcs import Gcs
    from servers.http_process import Web
    from servers.hub_process import Hub
    from servers.nginx import Nginx
    from servers.s3 import S3
    from servers.sftp import Sftp

# Workers are given this process's path, so what lies here unpickles in them.
sys.path.insert(0, str(Path(__file__).resolve().parent))

# A timing never decides a test.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked gpu where there is no CUDA."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A running Hub of this test's own, empty, which HF_ENDPOINT points to: see `servers/hub_process.py`."""
    from servers.hub_process import Hub, hub_environment

    started = Hub(tmp_path / "hub")
    for name, value in hub_environment(started.url, tmp_path / "hf-home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield started
    started.kill()


@pytest.fixture
def bigquery(tmp_path: Path) -> Iterator[BigQuery]:
    """A running stand-in for BigQuery of this test's own, without tables: see `servers/bigquery_process.py`."""
    pytest.importorskip("google.cloud.bigquery")
    from servers.bigquery_process import BigQuery

    started = BigQuery(tmp_path / "bigquery")
    yield started
    started.kill()


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    """A running web server of this test's own, empty: see `servers/http_process.py`."""
    from servers.http_process import Web

    started = Web(tmp_path / "web")
    yield started
    started.kill()


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[Nginx]:
    """A running nginx of this test's own, empty: see `servers/nginx.py`."""
    from servers.nginx import Nginx, program

    if program() is None:
        pytest.skip("needs nginx: apt-get install nginx-light")
    started = Nginx(tmp_path / "nginx")
    yield started
    started.stop()


@pytest.fixture
def ftp(tmp_path: Path) -> Iterator[Ftp]:
    """A running FTP server of this test's own, empty: see `servers/ftp.py`."""
    pytest.importorskip("pyftpdlib")
    from servers.ftp import Ftp

    started = Ftp(tmp_path / "ftp")
    yield started
    started.stop()


@pytest.fixture
def sftp(tmp_path: Path) -> Iterator[Sftp]:
    """A running SSH server of this test's own, its folder empty: see `servers/sftp.py`."""
    pytest.importorskip("paramiko")
    from servers.sftp import Sftp, program

    if program() is None:
        pytest.skip("needs sshd: apt-get install openssh-server")
    started = Sftp(tmp_path / "sftp")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """A running S3 server that all tests of a session share: each makes buckets of its own. See `servers/s3.py`."""
    pytest.importorskip("moto")
    from servers.s3 import S3

    started = S3()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def azure() -> Iterator[Azure]:
    """A running Azure emulator that all tests of a session share. See `servers/azure.py`."""
    from servers.azure import Azure, program

    if program() is None:
        pytest.skip("needs Azurite: npm install azurite")
    started = Azure()
    yield started
    started.stop()


@pytest.fixture(scope="session")
def gcs() -> Iterator[Gcs]:
    """A server that speaks as Google Cloud Storage, shared by a session: wiring only. See `servers/gcs.py`."""
    pytest.importorskip("moto")
    from servers.gcs import Gcs

    started = Gcs()
    yield started
    started.stop()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can't be mounted here: that takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)
