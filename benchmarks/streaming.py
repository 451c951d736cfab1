"""Claim: samples that lie one by one behind latency are read, shuffled, as fast as a bare loop gets their bytes.

4,000 objects of 20 KB on a web server (`tests/servers/http.py`, own process) that answers 30 ms after it is asked;
also in four tars. Every run is a fresh process with no connection and an empty cache; the clock starts after the
imports and stops when the bytes of the last sample are in the trainer's hands. Then: how many bytes were fetched for
those used, how many round trips a first batch takes, and an epoch from the cache beside bare loops over its files.

The folder matters: ext4 looks long for a place for new files where many were deleted in the minutes before (ten times
slower here), so the figures are of /dev/shm.

Run: python benchmarks/streaming.py [--rounds 5] [--only penstock …] [--folder /dev/shm], with the peers installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import streaming_peers as peers
from side_by_side import compare
from streaming_fetch import BYTES, LATENCY_S, OBJECTS, TESTS

THREADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so, beside the bare loop")
    parser.add_argument("--folder", type=Path, help="where to make files; a temporary folder by default")
    parser.add_argument("--child", nargs=4, metavar=("MODE", "NAME", "URL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, name, url, folder = options.child
        peers.imports(name)
        print(json.dumps(MODES[mode](name, url, Path(folder))))
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=options.folder) as temporary:
        served = Path(temporary, "served")
        served.mkdir()
        peers.make(served)
        for log in (None, Path(temporary, "log.jsonl")):
            with server(served, log) as url:
                if log is None:
                    compare_all(url, Path(temporary), options)
                else:
                    say_bytes(url, Path(temporary), log)


def compare_all(url: str, folder: Path, options: argparse.Namespace) -> None:
    chosen = tuple(options.only or [""])
    names = [name for name in [*peers.BARE, *peers.EPOCHS] if name == "obstore, get" or name.startswith(chosen)]
    if "penstock, tars" in names:
        peers.index_tars(url, folder)
    compare(
        f"{OBJECTS:,} samples of {BYTES:,} bytes behind {LATENCY_S * 1000:.0f} ms, cold",
        {name: child("cold", name, url, folder) for name in names},
        reference="obstore, get",
        unit="samples/s",
        rounds=options.rounds,
    )
    trips = [child("first", "penstock", url, folder)() for _ in range(options.rounds)]
    middle, least, most = statistics.median(trips), min(trips), max(trips)
    print(f"\nfrom a loader to its first batch of {peers.BATCH}: {middle:.1f} round trips ({least:.1f} … {most:.1f})")
    warm = folder / "warm"
    warm.mkdir()
    child("cold", "penstock", url, warm, keep=True)()
    compare(
        "the same from the cache",
        {name: child(name, "penstock", url, warm, keep=True) for name in ("second epoch", "loop", "pool")},
        reference="loop",
        unit="samples/s",
        rounds=options.rounds,
    )


def say_bytes(url: str, folder: Path, log: Path) -> None:
    child("cold", "penstock", url, folder)()
    time.sleep(1)
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    sent = sum(line["sent"] for line in lines if line["path"].startswith("/objects/"))
    print(f"\nbytes fetched / bytes used: {sent / (OBJECTS * BYTES):.4f}, in {len(lines):,} requests")


class server:  # noqa: N801  reads as a function where it is used
    """A web server over a folder, while the block lasts."""

    def __init__(self, folder: Path, log: Path | None) -> None:
        logged = ["--log", str(log)] if log else []
        self.command = [sys.executable, "-m", "servers.http", str(folder), "--latency-s", str(LATENCY_S), *logged]

    def __enter__(self) -> str:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([*self.command, "--child"], cwd=TESTS, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


def child(mode: str, name: str, url: str, folder: Path, *, keep: bool = False) -> Callable[[], float]:
    """Give a function that runs something in a fresh process, in a folder of its own unless one is kept."""
    numbers = itertools.count()

    def run() -> float:
        place = folder if keep else folder / f"{name}-{mode}-{next(numbers)}"
        place.mkdir(exist_ok=True)
        command = [sys.executable, __file__, "--child", mode, name, url, str(place)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, (name, done.returncode, done.stderr)
        return float(json.loads(done.stdout.splitlines()[-1]))

    return run


def cold(name: str, url: str, folder: Path) -> float:
    """Read all samples; how many a second."""
    if name in peers.BARE:
        return peers.BARE[name](url)
    started = time.perf_counter()
    return rate(peers.EPOCHS[name](url, folder), started)


def first(name: str, url: str, folder: Path) -> float:
    """Make a loader of an open dataset, with no connection and an empty cache, and take a batch; its round trips."""
    with peers.dataset(peers.table(url), folder / "cold") as samples:
        started = time.perf_counter()
        lengths = peers.epoch(samples)
        assert next(lengths) == BYTES
        # Before the loader is closed, which waits for threads that are waiting for later batches.
        return (time.perf_counter() - started) / LATENCY_S


def second(name: str, url: str, folder: Path) -> float:
    """Read all samples a second time, in the process that has read them before."""
    with peers.dataset(peers.table(url), folder / "cold") as samples:
        assert sum(1 for _ in peers.epoch(samples)) == OBJECTS
        started = time.perf_counter()
        return rate(peers.epoch(samples), started)


def files_of(folder: Path) -> list[Path]:
    files = [path for path in (folder / "cold").rglob("*.bin") if path.stat().st_size == BYTES]
    assert len(files) == OBJECTS
    return files


def length(path: Path) -> int:
    with open(path, "rb", buffering=0) as file:
        return len(file.read())


def loop(name: str, url: str, folder: Path) -> float:
    """Read the cache's files in threads, each of which has its part of them from the start."""
    files, got = files_of(folder), []
    started = time.perf_counter()
    threads = [
        threading.Thread(target=lambda part: got.extend([length(path) for path in part]), args=[files[k::THREADS]])
        for k in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return rate(iter(got), started)


def pool(name: str, url: str, folder: Path) -> float:
    """Read the cache's files in a thread pool, in order."""
    files = files_of(folder)
    with ThreadPoolExecutor(THREADS) as threads:
        started = time.perf_counter()
        return rate(threads.map(length, files), started)


def rate(lengths: Iterator[int], started: float) -> float:
    assert list(lengths) == [BYTES] * OBJECTS, "not everything came"
    return OBJECTS / (time.perf_counter() - started)


MODES = {"cold": cold, "first": first, "second epoch": second, "loop": loop, "pool": pool}


if __name__ == "__main__":
    main()
