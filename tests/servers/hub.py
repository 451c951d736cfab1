"""A Hub for tests: a real server with a dataset Hub's endpoints, upon the connections of `http.py`.

    cd tests && python -m servers.hub FOLDER [--port N] [--log FILE] [--cdn]

prints `http://127.0.0.1:PORT` when it is ready. FOLDER holds repositories: `NS/NAME/repo.json` with
`{"refs": {"main": SHA}, "tags": […], "downloads": 0, "private": false, "gated": false, "readers": [token, …]}`
and one folder per commit, `NS/NAME/SHA/…`, whose files never change; `moves.json` leads from old names to
new ones. `hub_process.py` makes all that; the `hub` fixture in `tests/conftest.py` hands out a running one.

Endpoints: `GET /api/datasets` (filter, search, author, sort, limit; pages by Link), `/api/datasets/R`,
`/api/datasets/R/revision/S`, `/api/datasets/R/tree/S[/PATH]` (recursive, expand, limit; pages by Link),
`POST /api/datasets/R/paths-info/S`, `GET|HEAD /datasets/R/resolve/S/PATH` with Range, ETag, X-Repo-Commit,
X-Linked-Size, X-Linked-Etag. With --cdn large files are redirected to a second port, which is another origin.

Faults, latency and the log are those of `http.py`; the origin of a line is "hub" or "cdn".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
from email.utils import formatdate
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode

from servers.http import Origin, Refused, Reply, Request, Server, listen, of_bytes, of_file, of_json, run

LFS_SUFFIXES = (".parquet", ".arrow", ".zst", ".gz", ".bin")
LFS_BYTES = 1 << 20
PAGE = 1000


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


class Asked:
    """One request to the Hub, and how it is answered."""

    def __init__(self, site: HubSite, request: Request) -> None:
        self.site, self.request = site, request
        self.where, self.query = request.path, request.query

    def reply(self) -> Reply:
        moved = re.fullmatch(r"(/(?:api/)?datasets/)([^/]+/[^/]+)(/.*)?", self.where)
        if moved and moved[2] in self.site.moves():
            to = quote(moved[1] + self.site.moves()[moved[2]] + (moved[3] or ""))
            return of_bytes(307, b"", {"Location": to + (f"?{urlencode(self.query)}" if self.query else "")})
        if match := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/((?:refs/[^/]+/)?[^/]+)/(.+)", self.where):
            return self.resolve(*match.groups())
        if match := re.fullmatch(r"/cdn/([^/]+/[^/]+)/([0-9a-f]{40})/(.+)", self.where):
            return self.file(self.site.root / match[1] / match[2] / match[3], {})
        if self.where == "/api/datasets":
            return self.search()
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", self.where):
            return self.tree(match[1], match[2], match[3] or "")
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/([^/]+)", self.where):
            return self.paths_info(match[1], match[2], self.request.body)
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", self.where):
            return self.info(match[1], match[2] or "main")
        raise Refused(404, message="Sorry, we can't find the page you are looking for.")

    def token(self) -> str:
        return self.request.headers.get("authorization", "").removeprefix("Bearer ")

    def check_token(self) -> None:
        if self.token() and self.token() not in self.site.tokens():
            raise Refused(401, message="Invalid credentials in Authorization header")

    def repo(self, name: str, *, contents: bool = False) -> dict:
        """Give a repository's settings, or refuse as the Hub does; `contents` are what a gate guards."""
        path = self.site.root / name / "repo.json"
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
        folder = self.site.root / name / settings["refs"].get(revision, revision)
        if not re.fullmatch(r"[0-9a-f]{40}", folder.name) or not folder.is_dir():
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return folder

    def search(self) -> Reply:
        self.check_token()
        wanted = dict(self.query)
        filters = [value for key, value in self.query if key == "filter"]
        found = []
        for path in sorted(self.site.root.glob("*/*/repo.json")):
            name = path.parent.relative_to(self.site.root).as_posix()
            settings = json.loads(path.read_text())
            hidden = settings["private"] and self.token() not in settings["readers"]
            if hidden or wanted.get("author", name.split("/")[0]) != name.split("/")[0]:
                continue
            if wanted.get("search", "").lower() in name.lower() and set(filters) <= set(settings["tags"]):
                found.append(self.described(name, settings, "main"))
        if "sort" in wanted:
            found.sort(key=lambda one: one[wanted["sort"]], reverse=True)
        return self.page(found)

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

    def page(self, items: list[dict]) -> Reply:
        """Give a slice of a list, and where the next one is."""
        wanted = dict(self.query)
        start, limit = int(wanted.get("cursor", 0)), int(wanted.get("limit", PAGE))
        limit = min(limit, self.site.page)
        headers = {}
        if start + limit < len(items):
            onward = [(key, value) for key, value in self.query if key != "cursor"] + [("cursor", str(start + limit))]
            where = f"{self.request.origin.url}{quote(self.where)}"
            headers["Link"] = f'<{where}?{urlencode(onward)}>; rel="next"'
        return of_json(items[start : start + limit], headers)

    def info(self, name: str, revision: str) -> Reply:
        settings = self.repo(name)
        folder = self.commit(name, settings, revision)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        siblings = [{"rfilename": path.relative_to(folder).as_posix()} for path in files]
        return of_json({**self.described(name, settings, revision), "siblings": siblings})

    def tree(self, name: str, revision: str, below: str) -> Reply:
        folder = self.commit(name, self.repo(name), revision)
        if not (folder / below).is_dir():
            raise Refused(404, "EntryNotFound", f"{below} does not exist on {revision}")
        wanted = {key: value.lower() in ("true", "1") for key, value in self.query}
        walk = (folder / below).rglob("*") if wanted.get("recursive") else (folder / below).iterdir()
        return self.page([entry(folder, path, wanted.get("expand", False)) for path in sorted(walk)])

    def paths_info(self, name: str, revision: str, body: bytes) -> Reply:
        folder = self.commit(name, self.repo(name), revision)
        if "json" in self.request.headers.get("content-type", ""):
            asked = json.loads(body)
            paths, expand = asked["paths"], bool(asked.get("expand"))
        else:
            asked = parse_qsl(body.decode())
            paths = [value for key, value in asked if key == "paths"]
            expand = ("expand", "true") in [(key, value.lower()) for key, value in asked]
        there = [folder / path for path in paths if (folder / path).exists()]
        return of_json([entry(folder, path, expand) for path in there])

    def resolve(self, name: str, revision: str, file: str) -> Reply:
        folder = self.commit(name, self.repo(name, contents=True), unquote(revision))
        path = folder / file
        if not path.is_file() or folder not in path.resolve().parents:
            raise Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": folder.name})
        headers = {"X-Repo-Commit": folder.name, "ETag": etag_of(path)}
        if is_lfs(path):
            headers |= {"X-Linked-Size": str(path.stat().st_size), "X-Linked-Etag": etag_of(path)}
            if self.site.cdn:
                place = quote(f"/cdn/{name}/{folder.name}/{file}")
                return of_bytes(302, b"", headers | {"Location": f"{self.site.cdn}{place}?signature=valid"})
        return self.file(path, headers)

    def file(self, path: Path, headers: dict) -> Reply:
        dated = {"Last-Modified": formatdate(0, usegmt=True), **headers}
        return of_file(self.request, path, path.stat().st_size, etag_of(path), dated)


class HubSite:
    """The repositories below a folder.

    Args:
        root: the folder.
        page: most items in one page of a listing.
    """

    def __init__(self, root: Path, page: int) -> None:
        self.root, self.page = root.resolve(), page
        self.cdn = ""

    def __call__(self, request: Request) -> Reply:
        return Asked(self, request).reply()

    def tokens(self) -> set[str]:
        path = self.root / "tokens.json"
        return set(json.loads(path.read_text())) if path.is_file() else set()

    def moves(self) -> dict[str, str]:
        path = self.root / "moves.json"
        return json.loads(path.read_text()) if path.is_file() else {}


async def serve(options: argparse.Namespace) -> None:
    server, site = Server(options.log), HubSite(options.folder, options.page)
    hub = Origin(server, "hub", site)
    listening = await listen(hub, options.port)
    if options.cdn:
        cdn = Origin(server, "cdn", site)
        await listen(cdn, 0)
        site.cdn = cdn.url.replace("127.0.0.1", "localhost")
    print(hub.url, flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A dataset Hub for tests.")
    parser.add_argument("--page", type=int, default=PAGE, help="most items of a page")
    parser.add_argument("--cdn", action="store_true", help="redirect large files to a second port")
    run(parser, serve, Path("hub-access.jsonl"))


if __name__ == "__main__":
    main()
