"""Something that answers as Google Cloud Storage does, for tests; `tests/conftest.py` has it as `gcs`.

There is no emulator of the interface that obstore speaks with Google. Google's is Amazon's with other names
for some headers, so this is moto's S3 behind a translation of these. It proves that requests are made,
signed off and understood; it does not prove that Google behaves so.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from servers.nginx import START_S, wait_for_port

TESTS = Path(__file__).resolve().parents[1]
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


class Gcs:
    """The server on a free port of this machine; it keeps everything in memory."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "servers.gcs", str(self.port)],
            cwd=TESTS,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for_port(self.port, self._process)

    @property
    def options(self) -> dict[str, Any]:
        """What open_store needs to reach it."""
        account = {"gcs_base_url": self.url, "disable_oauth": True}
        account |= dict.fromkeys(("client_email", "private_key", "private_key_id"), "")
        return {"service_account_key": json.dumps(account)}

    def create_bucket(self, name: str) -> None:
        request = urllib.request.Request(f"{self.url}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=START_S) as response:
            response.read()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(START_S)


def translated(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """Let an app that speaks Amazon's dialect be spoken to in Google's."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        environ["HTTP_AUTHORIZATION"] = AUTHORIZATION
        # obstore writes the slashes of a name as %2F, which S3 would take for a part of it.
        name = quote(environ["PATH_INFO"].encode("latin-1"), safe="/")
        environ["RAW_URI"] = environ["REQUEST_URI"] = f"{name}?{environ['QUERY_STRING']}"
        for name in [name for name in environ if name.startswith("HTTP_X_GOOG_")]:
            environ[name.replace("X_GOOG", "X_AMZ")] = environ.pop(name)

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            named = [(name.lower().replace("x-amz-", "x-goog-"), value) for name, value in headers]
            return start_response(status, [*named, ("x-goog-generation", "1")], *rest)

        return app(environ, start)

    return answer


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import run_simple

    app = DomainDispatcherApplication(create_backend_app)
    run_simple("127.0.0.1", int(sys.argv[1]), translated(app), threaded=True)


if __name__ == "__main__":
    main()
