"""A stand-in for BigQuery's REST API, upon the connections of `http.py`. It runs no SQL: FROM names what is given.

    cd tests && python -m servers.bigquery FOLDER [--port N] [--log FILE]

prints `http://127.0.0.1:PORT` when it is ready. FOLDER holds tables, `NAME.json`, each read when it is asked for:
    schema      fields as the API describes them
    rows        lists of cells as the API sends them; or
    num_rows    so many rows of an INTEGER and `text_bytes` (100) of STRING, made up when they are asked for
    polls       how often a query of it is not done yet, when asked (0)
    error       {"reason", "message"}: what such a query ends with
    num_less    rows that are announced and never sent (0)
    statement   what a query of it is ("SELECT"); any other gives neither columns nor rows

Endpoints below /bigquery/v2/projects/P: `POST jobs` (insert; 400 for what is no SELECT, with line and column; 404 for a
table that is not there; 409 for an id that is taken), `GET jobs/J`, `POST jobs/J/cancel`, `GET queries/J` (maxResults,
pageToken: good for this server's life only; formatOptions.useInt64Timestamp must be true, as cells are kept that way).

Faults, latency and the log are those of `http.py`. `bigquery_process.py` starts it for tests.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from pathlib import Path
from typing import Any

from servers.http import Origin, Refused, Reply, Request, Server, listen, of_json, run

LOCATION = "US"
REASONS = {400: "invalid", 403: "accessDenied", 404: "notFound", 409: "duplicate"}
MADE_UP = [
    {"name": "id", "type": "INTEGER", "mode": "REQUIRED"},
    {"name": "text", "type": "STRING", "mode": "NULLABLE"},
]


def error_body(status: int, reason: str, message: str) -> bytes:
    told = {"message": message, "domain": "global", "reason": reason}
    return json.dumps({"error": {"code": status, "message": message, "errors": [told]}}).encode()


def refused(status: int, message: str, reason: str = "") -> Refused:
    error = Refused(status, headers={"Content-Type": "application/json"})
    error.body = error_body(status, reason or REASONS[status], message)
    return error


class Job:
    """A query that was begun."""

    def __init__(self, project: str, name: str, sql: str, table: dict[str, Any]) -> None:
        self.project, self.name, self.sql, self.table = project, name, sql, table
        self.polls, self.statement = table.get("polls", 0), table.get("statement", "SELECT")
        self.num_rows = table.get("num_rows", len(table.get("rows", [])))

    def is_done(self) -> bool:
        self.polls -= 1
        return self.polls < 0

    def described(self, *, done: bool) -> dict[str, Any]:
        status: dict[str, Any] = {"state": "DONE" if done else "RUNNING"}
        if done and "error" in self.table:
            status |= {"errorResult": self.table["error"], "errors": [self.table["error"]]}
        return {
            "kind": "bigquery#job",
            "id": f"{self.project}:{LOCATION}.{self.name}",
            "jobReference": self.reference(),
            "configuration": {"jobType": "QUERY", "query": {"query": self.sql, "useLegacySql": False}},
            "statistics": {"creationTime": "1", "startTime": "1", "query": {"statementType": self.statement}},
            "status": status,
        }

    def reference(self) -> dict[str, str]:
        return {"projectId": self.project, "jobId": self.name, "location": LOCATION}

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        if "num_rows" in self.table:
            size = self.table.get("text_bytes", 100) // 2
            cells: Any = ([str(place), random.Random(place).randbytes(size).hex()] for place in range(start, stop))
        else:
            cells = self.table["rows"][start:stop]
        return [{"f": [{"v": cell} for cell in row]} for row in cells]


class Project:
    """The tables of a folder, and the queries that were begun."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.jobs: dict[str, Job] = {}
        self.life = os.urandom(4).hex()

    def __call__(self, request: Request) -> Reply:
        query = dict(request.query)
        match = re.fullmatch(r"/bigquery/v2/projects/([^/]+)/(jobs|queries)(?:/([^/]+))?(/cancel)?", request.path)
        if match is None:
            raise refused(404, f"no such endpoint: {request.path}")
        project, kind, name, cancels = match.groups()
        if request.method == "POST" and name is None:
            return of_json(self.insert(project, json.loads(request.body)))
        job = self.jobs.get(name or "")
        if job is None or job.project != project:
            raise refused(404, f"Not found: Job {project}:{LOCATION}.{name}")
        if cancels:
            return of_json({"kind": "bigquery#jobCancelResponse", "job": job.described(done=True)})
        return of_json(job.described(done=job.is_done()) if kind == "jobs" else self.results(job, query))

    def insert(self, project: str, asked: dict[str, Any]) -> dict[str, Any]:
        sql, name = asked["configuration"]["query"]["query"], asked["jobReference"]["jobId"]
        if name in self.jobs:
            raise refused(409, f"Already Exists: Job {project}:{LOCATION}.{name}")
        for number, line in enumerate(sql.splitlines(), 1):
            if found := re.search(r"\b(SELEKT|FORM|WHER)\b", line):
                where = f"[{number}:{found.start() + 1}]"
                raise refused(400, f'Syntax error: Unexpected identifier "{found[0]}" at {where}', "invalidQuery")
        table = re.search(r"FROM\s+`?([\w.-]+)`?", sql)
        path = self.folder / f"{table[1] if table else ''}.json"
        if not path.is_file():
            said = f"Not found: Table {path.stem} was not found in location {LOCATION}"
            raise refused(404, said)
        job = self.jobs[name] = Job(project, name, sql, json.loads(path.read_text()))
        return job.described(done=job.is_done())

    def results(self, job: Job, query: dict[str, str]) -> dict[str, Any]:
        if query.get("formatOptions.useInt64Timestamp", "").lower() != "true":
            raise refused(400, "cells are kept as they are sent with formatOptions.useInt64Timestamp=true")
        if job.polls > 0 and not job.is_done():
            return {"kind": "bigquery#getQueryResultsResponse", "jobReference": job.reference(), "jobComplete": False}
        if job.statement != "SELECT":
            return {"kind": "bigquery#getQueryResultsResponse", "jobReference": job.reference(), "jobComplete": True}
        start = int(query.get("startIndex", 0))
        if "pageToken" in query:
            life, _, place = query["pageToken"].partition("-")
            if life != self.life:
                raise refused(400, "Invalid value: the page token has expired")
            start = int(place)
        stop = min(start + int(query.get("maxResults", 100_000)), job.num_rows)
        found = {
            "kind": "bigquery#getQueryResultsResponse",
            "jobReference": job.reference(),
            "jobComplete": True,
            "schema": {"fields": job.table.get("schema", MADE_UP)},
            "totalRows": str(job.num_rows + job.table.get("num_less", 0)),
        }
        if start < stop:
            found["rows"] = job.rows(start, stop)
        return found | ({"pageToken": f"{self.life}-{stop}"} if stop < job.num_rows else {})


async def serve(options: argparse.Namespace) -> None:
    origin = Origin(Server(options.log), "bigquery", Project(options.folder))
    listening = await listen(origin, options.port)
    print(origin.url, flush=True)
    await listening.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for BigQuery's REST API, for tests.")
    run(parser, serve, Path("bigquery-access.jsonl"))


if __name__ == "__main__":
    main()
