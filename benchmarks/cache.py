"""Claim: what is cached costs a microsecond or so, each object is fetched once for all processes, and the limit holds.

1,000 objects of 20 KB from a web server (`tests/servers/http.py`, own process), four processes on one folder, each of
which wants all of them, in an order of its own:

- hits: a second look at what is there, 64 at a time, one process and four at once; beside `os.stat` of each file, and
  fsspec's `simplecache` where it is installed, which looks for a file by the digest of its URL;
- single flight: all four want everything from an empty folder; how many requests the server had;
- eviction: the same with a limit of half the bytes, twice over; how large the folder was at most, looked at
  every 10 ms, and whether every path that was given held its bytes while it was in use.

Run: python benchmarks/cache.py [--rounds 5] [--folder /dev/shm]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

OBJECTS, BYTES, PROCESSES, AT_ONCE = 1000, 20_480, 4, 64
LIMIT = OBJECTS * BYTES // 2
TESTS = Path(__file__).resolve().parents[1] / "tests"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make files; a temporary folder by default")
    parser.add_argument("--child", nargs=4, metavar=("WHAT", "URL", "FOLDER", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        what, url, folder, seed = options.child
        print(json.dumps(WORK[what](url, Path(folder), int(seed))))
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=options.folder) as temporary:
        home = Path(temporary)
        (home / "served").mkdir()
        for number in range(OBJECTS):
            (home / "served" / f"{number:04}.bin").write_bytes(content(number))
        found: dict[str, list[dict[str, float]]] = {"flight": [], "hits": [], "evict": []}
        with server(home / "served", home / "log.jsonl") as url:
            for turn in range(options.rounds):
                found["flight"].append(single_flight(url, home / f"flight-{turn}", home / "log.jsonl"))
                found["hits"].append(hits(url, home / f"flight-{turn}"))
                found["evict"].append(eviction(url, home / f"evict-{turn}"))
    report(found, options.rounds)


def content(number: int) -> bytes:
    return random.Random(number).randbytes(BYTES)


@contextmanager
def server(folder: Path, log: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "servers.http", str(folder), "--log", str(log), "--child"]
    process = subprocess.Popen(command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.kill()
        process.wait()


def at_once(what: str, url: str, folder: Path, count: int = PROCESSES) -> list[dict[str, float]]:
    """Let processes do something at the same time; what each of them found."""
    commands = [[sys.executable, __file__, "--child", what, url, str(folder), str(seed)] for seed in range(count)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    answers = [process.communicate()[0] for process in started]
    assert not any(process.returncode for process in started)
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def single_flight(url: str, folder: Path, log: Path) -> dict[str, float]:
    before = len(log.read_text().splitlines()) if log.exists() else 0
    rates = [one["rate"] for one in at_once("fetch", url, folder)]
    time.sleep(0.3)
    return {"objects/s": sum(rates), "requests": len(log.read_text().splitlines()) - before}


def hits(url: str, folder: Path) -> dict[str, float]:
    alone = at_once("hits", url, folder, 1)[0]
    together = at_once("hits", url, folder)
    more = at_once("simplecache", url, folder, 1)[0] if importlib.util.find_spec("fsspec") else {}
    sums = {f"{name}, four processes": sum(one[name] for one in together) for name in alone}
    return {**alone, **more, **sums}


def eviction(url: str, folder: Path) -> dict[str, float]:
    most, over = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not over.wait(0.01):
            most = max(most, size_of(folder / "files"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    rates = [one["rate"] for one in at_once("evict", url, folder)]
    over.set()
    watcher.join()
    return {"objects/s": sum(rates), "largest / limit": most / LIMIT}


def size_of(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(root, name)).st_size
            except FileNotFoundError:
                # Evicted meanwhile.
                continue
    return total


def wanted(url: str, seed: int) -> list[list[object]]:
    """All objects, shuffled, as many as are asked for at once."""
    from penstock.store.wanted import Wanted

    names = [f"{url}/{number:04}.bin" for number in random.Random(seed).sample(range(OBJECTS), OBJECTS)]
    return [[Wanted(name) for name in names[at : at + AT_ONCE]] for at in range(0, OBJECTS, AT_ONCE)]


def fetch(url: str, folder: Path, seed: int) -> dict[str, float]:
    from penstock import open_cache

    with open_cache(folder, None) as cache:
        tickets = wanted(url, seed)
        return {"rate": rate(lambda: [cache.acquire(ticket) for ticket in tickets])}


def evict(url: str, folder: Path, seed: int) -> dict[str, float]:
    """Go through all objects twice, comparing what is in each file."""
    from penstock import open_cache

    digests = {f"{number:04}.bin": hashlib.md5(content(number)).digest() for number in range(OBJECTS)}
    with open_cache(folder, LIMIT) as cache:
        tickets = [ticket for turn in range(2) for ticket in wanted(url, seed + 10 * turn)]

        def work() -> None:
            for ticket in tickets:
                for want, path in zip(ticket, cache.acquire(ticket), strict=True):
                    with open(path, "rb") as file:
                        assert hashlib.md5(file.read()).digest() == digests[want.url[-8:]]

        return {"rate": 2 * rate(work)}


def look(url: str, folder: Path, seed: int) -> dict[str, float]:
    from penstock import open_cache

    tickets = wanted(url, seed)
    with open_cache(folder, None) as cache:
        found = {"acquire, not seen before": rate(lambda: [cache.acquire(ticket) for ticket in tickets])}
        paths = [[str(path) for path in cache.acquire(ticket)] for ticket in tickets]
        found["acquire, again"] = best(lambda: [cache.acquire(ticket) for ticket in tickets])
        found["again"] = best(lambda: [cache.again(ticket) for ticket in tickets])
        found["os.stat"] = best(lambda: [[os.stat(path) for path in ticket] for ticket in paths])
    return found


def simplecache(url: str, folder: Path, seed: int) -> dict[str, float]:
    import fsspec

    options = {"target_protocol": "http", "cache_storage": str(folder / "simplecache")}
    files = fsspec.filesystem("simplecache", **options)
    names = [one.url for ticket in wanted(url, seed) for one in ticket[:1]]
    for name in names:
        files._check_file(name) or files.open(name, "rb").close()
    return {"fsspec simplecache, look-up": best(lambda: [files._check_file(name) for name in names], len(names))}


def rate(work: Callable[[], object], count: int = OBJECTS) -> float:
    began = time.perf_counter()
    work()
    return count / (time.perf_counter() - began)


def best(work: Callable[[], object], count: int = OBJECTS) -> float:
    return statistics.median(rate(work, count) for _ in range(9))


WORK = {"fetch": fetch, "evict": evict, "hits": look, "simplecache": simplecache}


def report(found: dict[str, list[dict[str, float]]], rounds: int) -> None:
    summary = {}
    for what, series in found.items():
        print(f"\n{what} ({rounds} rounds, medians)")
        for name in series[0]:
            values = [one[name] for one in series]
            summary[f"{what}: {name}"] = middle = statistics.median(values)
            print(f"  {name:<40} {middle:>12,.2f}   ({min(values):,.2f} … {max(values):,.2f})")
    print(json.dumps({"benchmark": "cache", "found": summary}))


if __name__ == "__main__":
    main()
