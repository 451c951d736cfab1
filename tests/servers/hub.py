"""A Hub for tests: a real HTTP server with a dataset Hub's endpoints, standard library only.

    python hub.py FOLDER [--port N] [--log FILE] [--cdn]

prints `http://127.0.0.1:PORT` when it is ready. FOLDER holds repositories: `NS/NAME/repo.json` with
`{"refs": {"main": SHA}, "tags": […], "downloads": 0, "private": false, "gated": false, "readers": [token, …]}`
and one folder per commit, `NS/NAME/SHA/…`, whose files never change; `moves.json` leads from old names to
new ones. `hub_process.py` makes all that; the `hub` fixture in `tests/conftest.py` hands out a running one.

Endpoints: `GET /api/datasets` (filter, search, author, sort, limit; pages by Link), `/api/datasets/R`,
`/api/datasets/R/revision/S`, `/api/datasets/R/tree/S[/PATH]` (recursive, expand, limit; pages by Link),
`POST /api/datasets/R/paths-info/S`, `GET|HEAD /datasets/R/resolve/S/PATH` with Range, ETag, X-Repo-Commit,
X-Linked-Size, X-Linked-Etag. With --cdn large files are redirected to a second port, which is another origin.

Faults: `POST /__faults__` with a list of `{"path": regex, "times": n, …}` and one or more of `status`, `headers`,
`delay_s`, `rate` (bytes a second), `truncate` (bytes of the body, then the connection ends), `reset` (the
same, by a reset), `die` (the same, and the whole process ends), `ignore_range`. The first that matches is used up.

`GET /__settled__` answers when no other answer is under way.
Each response is a line of the log: method, path, query, range, status, sent (bytes of body), auth, origin, start, end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import struct
import sys
import threading
import time
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

LFS_SUFFIXES = (".parquet", ".arrow", ".zst", ".gz", ".bin")
LFS_BYTES = 1 << 20
PAGE = 1000
STEP = 1 << 16
SETTLE_S = 1.0


class Refused(Exception):
    """A response that is an error."""

    def __init__(self, status: int, code: str = "", message: str = "", headers: dict | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.body = json.dumps({"error": message or code or "refused"}).encode()
        if code:
            self.headers["X-Error-Code"] = code
        if message:
            self.headers["X-Error-Message"] = message


@cache
def digests(path: Path) -> tuple[str, str]:
    """Git object id and SHA-256 of a file; commits never change."""
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(), hashlib.sha256(data).hexdigest()


def is_lfs(path: Path) -> bool:
    return path.suffix in LFS_SUFFIXES or path.stat().st_size > LFS_BYTES


def etag_of(path: Path) -> str:
    return f'"{digests(path)[1 if is_lfs(path) else 0]}"'


def entry(folder: Path, path: Path, expand: bool) -> dict:
    """Describe a file or a folder as the tree endpoint does."""
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "oid": hashlib.sha1(name.encode()).hexdigest(), "size": 0, "path": name}
    size = path.stat().st_size
    found = {"type": "file", "oid": digests(path)[0], "size": size, "path": name}
    if is_lfs(path):
        found["lfs"] = {"oid": digests(path)[1], "size": size, "pointerSize": 134}
    if expand:
        found["lastCommit"] = {"id": folder.name, "title": "files", "date": "2026-01-01T00:00:00.000Z"}
    return found


class Faults:
    """Faults that wait for a request that they fit."""

    def __init__(self) -> None:
        self.lock, self.waiting = threading.Lock(), []

    def add(self, faults: list[dict]) -> None:
        with self.lock:
            self.waiting = [*self.waiting, *faults] if faults else []

    def take(self, method: str, target: str) -> dict:
        with self.lock:
            for fault in self.waiting:
                fits = re.search(fault.get("path", ""), target) and fault.get("method", method) == method
                if fits and fault.get("times", 1) > 0:
                    fault["times"] = fault.get("times", 1) - 1
                    return fault
        return {}


class Answers:
    """How many requests are being answered, so that a reader of the log can wait for their lines."""

    def __init__(self) -> None:
        self.changed, self.open = threading.Condition(), 0

    def add(self, count: int) -> None:
        with self.changed:
            self.open += count
            self.changed.notify_all()

    def settle(self) -> None:
        """Wait until every answer is logged, or a moment if some are being kept back."""
        with self.changed:
            self.changed.wait_for(lambda: self.open == 0, SETTLE_S)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: HubServer

    def do_GET(self) -> None:
        self.answer()

    def do_HEAD(self) -> None:
        self.answer()

    def do_POST(self) -> None:
        self.answer()

    def log_message(self, *_: object) -> None:
        """Keep standard error empty; the access log says more."""

    def answer(self) -> None:
        self.began, self.sent, self.status = time.time(), 0, 0
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        target = urlsplit(self.path)
        self.where, self.query = unquote(target.path), parse_qsl(target.query, keep_blank_values=True)
        if self.where == "/__faults__":
            self.server.faults.add(json.loads(body))
            self.reply(200, {}, b"{}")
            return
        if self.where == "/__settled__":
            self.server.answers.settle()
            self.reply(200, {}, b"{}")
            return
        self.server.answers.add(1)
        try:
            self.answer_logged(body)
        finally:
            self.server.answers.add(-1)

    def answer_logged(self, body: bytes) -> None:
        self.fault = self.server.faults.take(self.command, self.path)
        try:
            time.sleep(self.fault.get("delay_s", 0))
            if "status" in self.fault:
                raise Refused(self.fault["status"], message="a fault", headers=self.fault.get("headers"))
            self.route(body)
        except Refused as refused:
            self.reply(refused.status, refused.headers, refused.body)
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        finally:
            self.write_log()

    def route(self, body: bytes) -> None:
        moved = re.fullmatch(r"(/(?:api/)?datasets/)([^/]+/[^/]+)(/.*)?", self.where)
        if moved and moved[2] in self.server.moves():
            to = quote(moved[1] + self.server.moves()[moved[2]] + (moved[3] or ""))
            self.reply(307, {"Location": to + (f"?{urlencode(self.query)}" if self.query else "")}, b"")
        elif match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/((?:refs/[^/]+/)?[^/]+)/(.+)", self.where):
            self.resolve(*match.groups())
        elif match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", self.where):
            self.send_file(self.server.root / match[1] / match[2] / match[3], {})
        elif self.where == "/api/datasets":
            self.search()
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.where):
            self.tree(match[1], match[2], match[3] or "")
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self.where):
            self.paths_info(match[1], match[2], body)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self.where):
            self.info(match[1], match[2] or "main")
        else:
            raise Refused(404, message="Sorry, we can't find the page you are looking for.")

    def token(self) -> str:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ")

    def check_token(self) -> None:
        if self.token() and self.token() not in self.server.tokens():
            raise Refused(401, message="Invalid credentials in Authorization header")

    def repo(self, name: str, *, contents: bool = False) -> dict:
        """Give a repository's settings, or refuse as the Hub does; `contents` are what a gate guards."""
        path = self.server.root / name / "repo.json"
        self.check_token()
        settings = json.loads(path.read_text()) if path.is_file() else None
        reads = settings is not None and self.token() in settings["readers"]
        if settings is None or (settings["private"] and not reads):
            raise Refused(404 if self.token() else 401, "RepoNotFound", "Repository not found")
        if contents and settings["gated"] and not reads:
            raise Refused(
                403 if self.token() else 401, "GatedRepo", f"Access to dataset {name} is restricted: ask for access."
            )
        return settings

    def commit(self, name: str, settings: dict, revision: str) -> Path:
        folder = self.server.root / name / settings["refs"].get(revision, revision)
        if not re.fullmatch(r"[0-9a-f]{40}", folder.name) or not folder.is_dir():
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder

    def search(self) -> None:
        self.check_token()
        wanted = dict(self.query)
        filters = [value for key, value in self.query if key == "filter"]
        found = []
        for path in sorted(self.server.root.glob("*/*/repo.json")):
            name = path.parent.relative_to(self.server.root).as_posix()
            settings = json.loads(path.read_text())
            hidden = settings["private"] and self.token() not in settings["readers"]
            if hidden or wanted.get("author", name.split("/")[0]) != name.split("/")[0]:
                continue
            if wanted.get("search", "").lower() in name.lower() and set(filters) <= set(settings["tags"]):
                found.append(self.described(name, settings, "main"))
        if "sort" in wanted:
            found.sort(key=lambda one: one[wanted["sort"]], reverse=True)
        self.page(found)

    def described(self, name: str, settings: dict, revision: str) -> dict:
        return {
            "_id": hashlib.sha1(name.encode()).hexdigest()[:24],
            "id": name,
            "author": name.split("/")[0],
            "sha": self.commit(name, settings, revision).name,
            "lastModified": settings["last_modified"],
            "createdAt": settings["last_modified"],
            "private": settings["private"],
            "gated": settings["gated"],
            "disabled": False,
            "downloads": settings["downloads"],
            "likes": settings["likes"],
            "tags": settings["tags"],
            "description": settings["description"],
        }

    def page(self, items: list[dict]) -> None:
        """Send a slice of a list, and where the next one is."""
        wanted = dict(self.query)
        start, limit = int(wanted.get("cursor", 0)), int(wanted.get("limit", PAGE))
        limit = min(limit, self.server.page)
        headers = {}
        if start + limit < len(items):
            onward = [(key, value) for key, value in self.query if key != "cursor"] + [("cursor", str(start + limit))]
            headers["Link"] = f'<{self.server.url}{quote(self.where)}?{urlencode(onward)}>; rel="next"'
        self.send_json(items[start : start + limit], headers)

    def info(self, name: str, revision: str) -> None:
        settings = self.repo(name)
        folder = self.commit(name, settings, revision)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        self.send_json({**self.described(name, settings, revision), "siblings": siblings})

    def tree(self, name: str, revision: str, below: str) -> None:
        folder = self.commit(name, self.repo(name), revision)
        if not (folder / below).is_dir():
            raise Refused(404, "EntryNotFound", f"{below} does not exist on {revision}")
        wanted = {key: value.lower() in ("true", "1") for key, value in self.query}
        walk = (folder / below).rglob("*") if wanted.get("recursive") else (folder / below).iterdir()
        self.page([entry(folder, path, wanted.get("expand", False)) for path in sorted(walk)])

    def paths_info(self, name: str, revision: str, body: bytes) -> None:
        folder = self.commit(name, self.repo(name), revision)
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(body)
            paths, expand = asked["paths"], bool(asked.get("expand"))
        else:
            asked = parse_qsl(body.decode())
            paths = [value for key, value in asked if key == "paths"]
            expand = ("expand", "true") in [(key, value.lower()) for key, value in asked]
        there = [folder / path for path in paths if (folder / path).exists()]
        self.send_json([entry(folder, path, expand) for path in there])

    def resolve(self, name: str, revision: str, file: str) -> None:
        folder = self.commit(name, self.repo(name, contents=True), unquote(revision))
        path = folder / file
        if not path.is_file() or folder not in path.resolve().parents:
            raise Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": folder.name})
        headers = {"X-Repo-Commit": folder.name, "ETag": etag_of(path)}
        if is_lfs(path):
            headers |= {"X-Linked-Size": str(path.stat().st_size), "X-Linked-Etag": etag_of(path)}
            if self.server.cdn:
                place = quote(f"/cdn/{name}/{folder.name}/{file}")
                self.reply(302, headers | {"Location": f"{self.server.cdn}{place}?signature=valid"}, b"")
                return
        self.send_file(path, headers)

    def send_file(self, path: Path, headers: dict) -> None:
        size = path.stat().st_size
        headers = {
            "ETag": etag_of(path),
            "Accept-Ranges": "bytes",
            "Last-Modified": self.date_time_string(0),
            **headers,
        }
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if match is None or self.fault.get("ignore_range"):
            self.reply(200, headers, path, 0, size)
            return
        start, stop = (int(match[1]), int(match[2] or size - 1) + 1) if match[1] else (size - int(match[2]), size)
        if start >= size:
            raise Refused(416, message="Range Not Satisfiable", headers={"Content-Range": f"bytes */{size}"})
        start, stop = max(start, 0), min(stop, size)
        self.reply(206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}, path, start, stop)

    def send_json(self, value: object, headers: dict | None = None) -> None:
        self.reply(200, {"Content-Type": "application/json", **(headers or {})}, json.dumps(value).encode())

    def reply(self, status: int, headers: dict, body: bytes | Path, start: int = 0, stop: int = -1) -> None:
        stop = len(body) if isinstance(body, bytes) else stop
        self.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(stop - start))
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(body, bytes):
            self.wfile.write(body)
            self.sent = len(body)
            return
        self.send_body(body, start, stop)

    def send_body(self, path: Path, start: int, stop: int) -> None:
        broken = next((self.fault[kind] for kind in ("truncate", "reset", "die") if kind in self.fault), None)
        end = stop if broken is None else min(start + int(broken), stop)
        step = STEP if "rate" not in self.fault else max(1, int(self.fault["rate"] / 20))
        with open(path, "rb") as file:
            file.seek(start)
            for at in range(start, end, step):
                self.wfile.write(file.read(min(step, end - at)))
                self.sent += min(step, end - at)
                if "rate" in self.fault:
                    time.sleep(0.05)
        if broken is not None:
            self.break_off()

    def break_off(self) -> None:
        if "die" in self.fault:
            self.write_log()
            os._exit(9)
        if "reset" in self.fault:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()
        raise ConnectionResetError

    def write_log(self) -> None:
        line = {
            "method": self.command,
            "path": self.where,
            "query": urlsplit(self.path).query,
            "range": self.headers.get("Range"),
            "status": self.status,
            "sent": self.sent,
            "auth": bool(self.token()),
            "origin": "cdn" if self.server.is_cdn else "hub",
            "start": self.began,
            "end": time.time(),
        }
        self.server.log(line)


class HubServer(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 512

    def __init__(self, port: int, root: Path, log: Path, faults: Faults, page: int, is_cdn: bool = False) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.answers = Answers()
        self.root, self.faults, self.page, self.is_cdn = root.resolve(), faults, page, is_cdn
        self.url, self.cdn = f"http://127.0.0.1:{self.server_port}", ""
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)

    def tokens(self) -> set[str]:
        path = self.root / "tokens.json"
        return set(json.loads(path.read_text())) if path.is_file() else set()

    def moves(self) -> dict[str, str]:
        path = self.root / "moves.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    def log(self, line: dict) -> None:
        os.write(self._log, json.dumps(line).encode() + b"\n")

    def handle_error(self, *_: object) -> None:
        """A client that went away is what faults are about; anything else is a fault of this file."""
        if not isinstance(sys.exception(), ConnectionError | ValueError):
            super().handle_error(*_)


def main() -> None:
    parser = argparse.ArgumentParser(description="A dataset Hub for tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("hub-access.jsonl"))
    parser.add_argument("--page", type=int, default=PAGE, help="most items of a page")
    parser.add_argument("--cdn", action="store_true", help="redirect large files to a second port")
    parser.add_argument("--child", action="store_true", help="end when standard input does, as when its owner died")
    options = parser.parse_args()
    if options.child:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    faults = Faults()
    server = HubServer(options.port, options.folder, options.log, faults, options.page)
    if options.cdn:
        cdn = HubServer(0, options.folder, options.log, faults, options.page, is_cdn=True)
        cdn.answers = server.answers
        server.cdn = cdn.url.replace("127.0.0.1", "localhost")
        threading.Thread(target=cdn.serve_forever, daemon=True).start()
    print(server.url, flush=True)
    server.serve_forever(poll_interval=0.05)


if __name__ == "__main__":
    main()
