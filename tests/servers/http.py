"""A web server for tests: fast, its files in memory, and it can be broken in every way that servers break.

    python tests/servers/http.py FOLDER [--port N] [--log FILE] [--latency-s S] [--certificate PEM]

prints `http://127.0.0.1:PORT` when it is ready. One thread answers thousands of requests a second with
hundreds in flight, so it can stand behind a benchmark; without --log it keeps none. `http_process.py`
starts it for tests (the fixture `web`), and `hub.py` is a Hub that stands on the same connections.

Control, by requests of its own:
    POST /__faults__   a list of {"path": regex, "times": n (1), "every": k (1), "method": …} and one or more of
        status (an answer with that status and `body`, else an error, as its body), headers (added; null: taken away),
        serve (the path of another file to answer with),
        delay_s (silence before the answer), rate (bytes a second), ignore_range,
        truncate (that many bytes of the body, then the connection ends), reset (the same, by a reset),
        stall (the same, then silence), die (the same, and the whole process ends),
        wrong (that many bytes at the start of what is sent are not what they should be).
      The first that matches is used up; `every` lets k - 1 matching requests pass for each that it breaks.
      An empty list forgets all.
    POST /__latency__  {"latency_s": s, "jitter_s": j}: every answer begins after s to s + j seconds.
    GET /__settled__   answers when no other answer is under way, or after a second.

Each answer is a line of the log: method, path, target (as it was sent), query, range, status, sent (bytes of body
that went out), auth, key (X-Api-Key was there), accept_encoding, origin, connection (a number), start, end. A
client that leaves early has its line too; status 0 is one that left before the answer began.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from email.utils import formatdate
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

STEP = 1 << 20
SMALL = 1 << 20
SETTLE_S = 1.0
TICK_S = 0.05
REASONS = {200: "OK", 206: "Partial Content", 302: "Found", 304: "Not Modified", 307: "Temporary Redirect"}
BREAKS = ("truncate", "reset", "stall", "die")


class Refused(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = json.dumps({"error": message or code or "refused"}).encode()
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


@dataclass(slots=True)
class Request:
    """What was asked."""

    method: str
    target: str
    headers: dict[str, str]
    """Names in lower case."""
    origin: Origin
    body: bytes = b""
    fault: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)


@dataclass(slots=True)
class Reply:
    """What is answered: bytes, or bytes [start, stop) of a file."""

    status: int
    headers: dict[str, str | None]
    body: bytes | Path
    start: int
    stop: int


def of_bytes(status: int, body: bytes, headers: dict | None = None) -> Reply:
    return Reply(status, dict(headers or {}), body, 0, len(body))


def of_json(value: object, headers: dict | None = None) -> Reply:
    return of_bytes(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def of_file(request: Request, body: bytes | Path, size: int, etag: str, headers: dict | None = None) -> Reply:
    """Answer with a file or, if that was asked for, a range of it; keeps If-Match and If-None-Match."""
    headers = {"ETag": etag, "Accept-Ranges": "bytes", **(headers or {})}
    asked = request.headers
    if "if-match" in asked and etag not in asked["if-match"] and asked["if-match"] != "*":
        raise Refused(412, message="Precondition Failed")
    if etag in asked.get("if-none-match", ""):
        return Reply(304, headers, b"", 0, 0)
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", asked.get("range", ""))
    if match is None or request.fault.get("ignore_range"):
        return Reply(200, headers, body, 0, size)
    start, stop = (int(match[1]), int(match[2] or size - 1) + 1) if match[1] else (size - int(match[2]), size)
    if start >= size:
        raise Refused(416, message="Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
    start, stop = max(start, 0), min(stop, size)
    headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    return Reply(206, headers, body, start, stop)


class Folder:
    """Answers with the files below a folder; small ones from memory as long as they have not changed."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.known: dict[str, tuple[tuple[int, int, int], bytes | Path, int, str, str]] = {}

    def __call__(self, request: Request) -> Reply:
        name = request.fault.get("serve", request.path)
        if request.method not in ("GET", "HEAD"):
            raise Refused(405, message="Method Not Allowed")
        if "\0" in name or "/../" in f"{name}/":
            raise Refused(400, message="Bad Request")
        path = self.root + name
        try:
            status = os.stat(path)
        except OSError:
            raise Refused(404, message="Not Found") from None
        mark = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self.known.get(path)
        if known is None or known[0] != mark:
            if os.path.isdir(path):
                raise Refused(403, message="Forbidden")
            body = Path(path).read_bytes() if status.st_size <= SMALL else Path(path)
            etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'
            known = self.known[path] = (mark, body, status.st_size, etag, formatdate(status.st_mtime, usegmt=True))
        return of_file(request, known[1], known[2], known[3], {"Last-Modified": known[4]})


class Server:
    """What the connections of a process share: how to answer, faults, latency, the log."""

    def __init__(self, log: Path | None = None) -> None:
        self.faults: list[dict[str, Any]] = []
        self.latency_s, self.jitter_s = 0.0, 0.0
        self.under_way = 0
        self.settled = asyncio.Event()
        self.numbers = count()
        self._log = None if log is None else os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def fault_for(self, request: Request) -> dict[str, Any]:
        for fault in self.faults:
            if fault.get("method", request.method) != request.method or fault.get("times", 1) <= 0:
                continue
            if not re.search(fault.get("path", ""), request.target):
                continue
            fault["met"] = fault.get("met", 0) + 1
            if fault["met"] % fault.get("every", 1) == 0:
                fault["times"] = fault.get("times", 1) - 1
                return fault
        return {}

    def control(self, request: Request) -> bool:
        """Do what a request to the server itself asks for; tell whether it is one."""
        if request.path == "/__faults__":
            asked = json.loads(request.body)
            self.faults = [*self.faults, *asked] if asked else []
        elif request.path == "/__latency__":
            asked = json.loads(request.body)
            self.latency_s, self.jitter_s = asked["latency_s"], asked["jitter_s"]
        else:
            return False
        return True

    def began(self) -> None:
        self.under_way += 1

    @property
    def keeps_log(self) -> bool:
        return self._log is not None

    def ended(self, line: dict[str, Any] | None) -> None:
        self.under_way -= 1
        if self._log is not None:
            os.write(self._log, json.dumps(line).encode() + b"\n")
        if not self.under_way:
            self.settled.set()

    async def settle(self) -> None:
        self.settled.clear()
        if self.under_way:
            try:
                async with asyncio.timeout(SETTLE_S):
                    await self.settled.wait()
            except TimeoutError:
                pass  # some are being kept back, and say so in the log when they end


@dataclass(slots=True)
class Origin:
    """One port: what it answers with, and its name in the log."""

    server: Server
    name: str
    answer: Callable[[Request], Reply]
    url: str = ""


class Connection(asyncio.Protocol):
    """One client: its requests in order, each answered before the next is read."""

    def __init__(self, origin: Origin) -> None:
        self.origin, self.server = origin, origin.server
        self.number = next(self.server.numbers)
        self.inbox = b""
        self.request: Request | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.reply: Reply | None = None
        self.file = -1

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        # What the transport does not keep back has left for the client: the log counts that.
        transport.set_write_buffer_limits(0)
        plain = transport.get_extra_info("socket")
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.paused = False

    def data_received(self, data: bytes) -> None:
        self.inbox += data
        if self.request is None:
            self.read_request()

    def read_request(self) -> None:
        end = self.inbox.find(b"\r\n\r\n")
        if end < 0:
            return
        first, *lines = self.inbox[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        stop = end + 4 + int(headers.get("content-length", 0))
        if len(self.inbox) < stop:
            return
        method, target, _ = first.split(" ")
        self.request = Request(method, target, headers, self.origin, self.inbox[end + 4 : stop])
        self.inbox = self.inbox[stop:]
        self.began, self.sent, self.status, self.reply = time.time(), 0, 0, None
        self.begin(self.request)

    def begin(self, request: Request) -> None:
        if request.target.startswith("/__"):
            self.logged = False
            if request.path == "/__settled__":
                task = asyncio.get_running_loop().create_task(self.server.settle())
                task.add_done_callback(lambda _: self.send(of_json({})))
            else:
                self.send(of_json({}) if self.server.control(request) else of_bytes(404, b""))
            return
        self.logged = True
        self.server.began()
        request.fault = self.server.fault_for(request)
        wait_s = request.fault.get("delay_s", 0.0) + self.server.latency_s
        if self.server.jitter_s:
            wait_s += random.uniform(0, self.server.jitter_s)
        if wait_s:
            self.timer = asyncio.get_running_loop().call_later(wait_s, self.answer)
        else:
            self.answer()

    def answer(self) -> None:
        assert self.request is not None
        fault = self.request.fault
        try:
            if "status" in fault:
                refused = Refused(fault["status"], message="a fault")
                refused.body = fault.get("body", "").encode() or refused.body
                raise refused
            reply = self.origin.answer(self.request)
        except Refused as refused:
            reply = of_bytes(refused.status, refused.body, refused.headers)
        reply.headers.update(fault.get("headers", {}))
        self.send(reply)

    def send(self, reply: Reply) -> None:
        if self.request is None:
            return  # the client left
        self.reply, self.status = reply, reply.status
        headers = {"Content-Length": str(reply.stop - reply.start), **reply.headers}
        lines = [f"{name}: {value}\r\n" for name, value in headers.items() if value is not None]
        head = f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Refused')}\r\n{''.join(lines)}\r\n".encode()
        fault = self.request.fault
        broken = next((int(fault[kind]) for kind in BREAKS if kind in fault), None)
        self.at = reply.start
        self.end = reply.stop if broken is None else min(reply.start + broken, reply.stop)
        if self.request.method == "HEAD" or self.at == self.end:
            self.end = self.at
            self.transport.write(head)
            self.after_write()
        elif isinstance(reply.body, bytes):
            self.write_next(head)
        else:
            self.file = os.open(reply.body, os.O_RDONLY)
            self.write_next(head)

    def write_next(self, head: bytes = b"") -> None:
        """Send the next piece of the body."""
        assert self.reply is not None
        assert self.request is not None
        fault = self.request.fault
        step = STEP if "rate" not in fault else max(1, int(fault["rate"] * TICK_S))
        stop = min(self.at + step, self.end)
        body = self.reply.body
        data = body[self.at : stop] if isinstance(body, bytes) else os.pread(self.file, stop - self.at, self.at)
        if not data:
            self.transport.abort()  # the file became shorter while it was sent
            return
        wrong = int(fault.get("wrong", 0)) - (self.at - self.reply.start)
        if wrong > 0:
            data = bytes(byte ^ 0xFF for byte in data[:wrong]) + data[wrong:]
        self.at += len(data)
        self.sent += len(data)
        self.transport.write(head + data if head else data)
        self.after_write()

    def after_write(self) -> None:
        """Go on when what was written is out."""
        if self.paused or self.request is None:
            return
        if self.at >= self.end:
            self.finish()
        elif "rate" in self.request.fault:
            self.timer = asyncio.get_running_loop().call_later(TICK_S, self.write_next)
        else:
            # Others first: a long body does not keep them waiting.
            asyncio.get_running_loop().call_soon(self.write_next_if_there)

    def write_next_if_there(self) -> None:
        if self.request is not None:
            self.write_next()

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        self.after_write()

    def finish(self) -> None:
        assert self.request is not None
        fault, headers = self.request.fault, self.request.headers
        if "stall" in fault:
            return
        close = headers.get("connection", "").lower() == "close" or "truncate" in fault
        close = close or "Content-Length" in fault.get("headers", {})
        self.write_log()
        if "die" in fault:
            os._exit(9)
        if "reset" in fault:
            plain = self.transport.get_extra_info("socket")
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif close:
            self.transport.close()
        elif self.inbox:
            self.read_request()

    def connection_lost(self, error: Exception | None) -> None:
        if self.request is not None:
            self.sent = max(0, self.sent - self.transport.get_write_buffer_size())
            self.write_log()

    def write_log(self) -> None:
        """Write the answer's line, and be ready for the next request."""
        request, self.request = self.request, None
        assert request is not None
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        if self.file >= 0:
            os.close(self.file)
            self.file = -1
        if not self.logged:
            return
        self.server.ended(self.line(request) if self.server.keeps_log else None)

    def line(self, request: Request) -> dict[str, Any]:
        return {
            "method": request.method,
            "path": request.path,
            "target": request.target,
            "query": request.target.partition("?")[2],
            "range": request.headers.get("range"),
            "status": self.status,
            "sent": self.sent,
            "auth": bool(request.headers.get("authorization")),
            "key": bool(request.headers.get("x-api-key")),
            "accept_encoding": request.headers.get("accept-encoding"),
            "origin": self.origin.name,
            "connection": self.number,
            "start": self.began,
            "end": time.time(),
        }


async def listen(origin: Origin, port: int, certificate: Path | None = None) -> asyncio.Server:
    """Open an origin's port on this machine; 0 is any free one."""
    context = None
    if certificate is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(origin), "127.0.0.1", port, backlog=2048, ssl=context)
    origin.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    return server


def end_with_owner() -> None:
    """End when standard input does, as when the process that started this one died."""
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()


def run(
    parser: argparse.ArgumentParser,
    serve: Callable[[argparse.Namespace], Coroutine[Any, Any, None]],
    log: Path | None = None,
) -> None:
    """Serve what a command line says, with the options that all servers have, until the process ends."""
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, default=log, help="a line for each answer")
    parser.add_argument("--child", action="store_true", help="end when standard input does, as when its owner died")
    options = parser.parse_args()
    if options.child:
        end_with_owner()
    asyncio.run(serve(options))


async def serve(options: argparse.Namespace) -> None:
    server = Server(options.log)
    server.latency_s = options.latency_s
    origin = Origin(server, "web", Folder(options.folder))
    listening = await listen(origin, options.port, options.certificate)
    print(origin.url, flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A web server for tests.")
    parser.add_argument("--latency-s", type=float, default=0.0, help="silence before each answer")
    parser.add_argument("--certificate", type=Path, help="PEM file with certificate and key: speak https")
    run(parser, serve)


if __name__ == "__main__":
    main()
