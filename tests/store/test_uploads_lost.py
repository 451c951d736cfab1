"""An upload whose last answer is lost on its way has been carried out, or has not: what is there tells."""

from __future__ import annotations

import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from penstock import AccessDenied, StoreError, open_store

PIECE = os.urandom(1 << 20)


class LosingAnswers(BaseHTTPRequestHandler):
    """Hands requests on, and ends the connection in place of the first answer to the end of an upload."""

    protocol_version = "HTTP/1.1"
    upstream = ""
    carried_out = True
    looks_refused = False
    num_lost = 0

    def do_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = type(self)
        ends = self.command == "POST" and "uploadId=" in self.path
        if ends and not kind.num_lost:
            kind.num_lost += 1
            if kind.carried_out:
                self._ask("POST", body)
            else:
                self._ask("DELETE", b"")
            self.close_connection = True
            return
        status, headers, data = self._ask(self.command, body)
        if "uploadId=" in self.path and kind.num_lost:
            # What S3 says of an upload that has ended.
            status, headers, data = 404, {}, b"<Error><Code>NoSuchUpload</Code></Error>"
        if self.command in ("GET", "HEAD") and kind.looks_refused:
            status, headers, data = 403, {}, b""
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "date", "server"):
                self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _ask(self, method: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        sent = {name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")}
        # Else urllib would call it a form.
        sent.setdefault("Content-Type", "application/xml")
        asked = urllib.request.Request(self.upstream + self.path, body or None, sent, method=method)
        try:
            with urllib.request.urlopen(asked, timeout=30) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any  # noqa: N815  the names are http.server's

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def losing(s3, **how) -> Iterator[dict]:
    kind = type("Losing", (LosingAnswers,), {"upstream": s3.url, **how})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield {**s3.options, "endpoint": f"http://127.0.0.1:{server.server_port}"}
        assert kind.num_lost == 1
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def send(store, num_pieces: int) -> None:
    with store.upload("x") as file:
        for _ in range(num_pieces):
            file.write(PIECE)


@pytest.mark.parametrize("before", [None, b"before"], ids=["new", "over another"])
def test_a_lost_answer_to_an_upload_that_was_carried_out_is_no_error(s3, before):
    bucket = f"lost-{'new' if before is None else 'other'}"
    s3.create_bucket(bucket)
    store = open_store(f"s3://{bucket}", **s3.options)
    if before is not None:
        store.put("x", before)
    with losing(s3) as options:
        send(open_store(f"s3://{bucket}", **options), 20)
    assert store.get("x") == PIECE * 20


def test_where_it_was_not_carried_out_an_object_of_that_size_from_before_does_not_pass_for_it(s3):
    s3.create_bucket("not-done")
    store = open_store("s3://not-done", **s3.options)
    store.put("x", bytes(20 << 20))
    # Times of objects are whole seconds.
    time.sleep(1.1)
    with (
        losing(s3, carried_out=False) as options,
        pytest.raises(StoreError, match=r"PUT s3://not-done/x failed: the store no longer knows the parts .*again"),
    ):
        send(open_store("s3://not-done", **options), 20)
    assert store.get("x") == bytes(20 << 20)


def test_who_may_not_look_is_told_that_it_may_be_there(s3):
    s3.create_bucket("not-seen")
    with (
        losing(s3, looks_refused=True) as options,
        pytest.raises(StoreError, match=r"s3://not-seen/x .*may be there or not.*may not be read") as caught,
    ):
        send(open_store("s3://not-seen", **options), 20)
    assert not isinstance(caught.value, AccessDenied)
