"""Claim: samples that lie one by one behind latency are read, shuffled, as fast as a bare loop gets their bytes.

4,000 objects of 20 KB on a web server (`tests/servers/http.py`, own process) that answers 30 ms after it is asked;
also in four tars. Every run is a fresh process with no connection and an empty cache; the clock starts after the
imports and stops when the bytes of the last sample are in the trainer's hands. Then: how many bytes were fetched for
those used, how many round trips a first batch takes, and epochs from the cache beside bare loops over its files: in
turns within one process, by the time that passes and by processor time, which other work disturbs least.

The folder matters: ext4 looks long for a place for new files where many were deleted in the minutes before (ten times
slower here), so the figures are of /dev/shm. What a contender wrote there goes before the next one begins, and each
finds memory that was used a moment before: what a virtual machine has not used for seconds costs it more to write to
than all else.

Run: python benchmarks/streaming.py [--rounds 5] [--only penstock …] [--folder /dev/shm], with the peers installed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import streaming_peers as peers
from side_by_side import compare
from streaming_fetch import BYTES, LATENCY_S, OBJECTS, TESTS

THREADS = 4
TURNS = 7
USED_BYTES = 256 << 20
HELD = 11
"""Batches that are ready or in use: ten ahead, and the one in the trainer's hands."""


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
        print(json.dumps(MODES[mode](name, url, Path(folder))), flush=True)
        os._exit(0)  # obstore aborts now and then where Python ends beside its threads
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
    spent: dict[str, list[float]] = {name: [] for name in names}
    compare(
        f"{OBJECTS:,} samples of {BYTES:,} bytes behind {LATENCY_S * 1000:.0f} ms, cold",
        {name: child("cold", name, url, folder, spent=spent[name]) for name in names},
        reference="obstore, get",
        unit="samples/s",
        rounds=options.rounds,
    )
    print("  processor time a sample, of the whole process, imports not counted")
    for name, series in spent.items():
        ratios = [bare / own for bare, own in zip(spent["obstore, get"], series, strict=True)]
        middle, least, most = statistics.median(series), min(series), max(series)
        print(f"  {name:<24} {statistics.median(ratios):.3f} ×  {middle:6.0f} µs   ({least:.0f} … {most:.0f})")
    trips = [child("first", "penstock", url, folder)() for _ in range(options.rounds)]
    middle, least, most = statistics.median(trips), min(trips), max(trips)
    print(f"\nfrom a loader to its first batch of {peers.BATCH}: {middle:.1f} round trips ({least:.1f} … {most:.1f})")
    warm = folder / "warm"
    warm.mkdir()
    child("cold", "penstock", url, warm, keep=True)()
    from_cache([ask("warm", "penstock", url, warm) for _ in range(options.rounds)])


def from_cache(found: list[dict[str, list[list[float]]]]) -> None:
    """Print what epochs from the cache and bare loops over its files took, and the ratios of those of one turn."""
    series = {name: [turn for process in found for turn in process[name]] for name in found[0]}
    print(f"\nthe same from the cache ({len(found)} processes, {TURNS} turns each, medians; µs a sample)")
    print(f"  {'':38}  time      ratio   processor time     ratio")
    summary = {}
    for name, turns in series.items():
        line = []
        for what in (0, 1):
            ratios = [base[what] / own[what] for own, base in zip(turns, series["loop in four threads"], strict=True)]
            middle, least = statistics.median(own[what] for own in turns), min(own[what] for own in turns)
            line += [middle, least, statistics.median(ratios)]
        summary[name] = line
        print("  {:<34}{:>6.1f} ({:.1f})  {:.2f} ×  {:>6.1f} ({:.1f})  {:.2f} ×".format(name, *line))
    print(json.dumps({"benchmark": "from the cache", "time, least, ratio, cpu, least, ratio": summary}))


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


def ask(mode: str, name: str, url: str, folder: Path) -> Any:
    """Run something in a fresh process."""
    command = [sys.executable, __file__, "--child", mode, name, url, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (name, done.returncode, done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(
    mode: str, name: str, url: str, folder: Path, *, keep: bool = False, spent: list[float] | None = None
) -> Callable[[], float]:
    """Give a function that runs something in a fresh process, in a folder of its own unless one is kept.

    What it took of processor time, µs a sample, is added to `spent`.
    """
    numbers = itertools.count()

    def run() -> float:
        place = folder if keep else folder / f"{name}-{mode}-{next(numbers)}"
        place.mkdir(exist_ok=True)
        use_memory(place / "used")
        found, cpu_us = ask(mode, name, url, place)
        if not keep:
            shutil.rmtree(place)
        if spent is not None:
            spent.append(cpu_us)
        return float(found)

    return run


def use_memory(file: Path) -> None:
    """Let there be as much memory that was used a moment before, whoever ran then."""
    file.write_bytes(bytes(USED_BYTES))
    file.unlink()


def cold(name: str, url: str, folder: Path) -> tuple[float, float]:
    """Read all samples; how many a second, and µs of processor time for each."""
    started, cpu_started = time.perf_counter(), time.process_time()
    found = peers.BARE[name](url, folder) if name in peers.BARE else rate(peers.EPOCHS[name](url, folder), started)
    return found, (time.process_time() - cpu_started) / OBJECTS * 1e6


def first(name: str, url: str, folder: Path) -> tuple[float, float]:
    """Make a loader of an open dataset, with no connection and an empty cache, and take a batch; its round trips.

    Also µs of processor time for each of its samples.
    """
    with peers.dataset(peers.table(url), folder / "cold") as samples:
        started, cpu_started = time.perf_counter(), time.process_time()
        lengths = peers.epoch(samples)
        assert next(lengths) == BYTES
        # Before the loader is closed, which waits for threads that are waiting for later batches.
        spent_s = time.process_time() - cpu_started
        return (time.perf_counter() - started) / LATENCY_S, spent_s / peers.BATCH * 1e6


def warm(name: str, url: str, folder: Path) -> dict[str, list[list[float]]]:
    """Let epochs of samples that were read before take turns with loops over their files; µs a sample, each turn.

    Each loader is made once and goes on from epoch to epoch, as in training.
    """
    from penstock import StreamingDataLoader

    with peers.dataset(peers.table(url), folder / "cold") as samples:
        assert sum(1 for _ in peers.epoch(samples)) == OBJECTS
        files = files_of(folder)
        with (
            StreamingDataLoader(samples, peers.BATCH, collate_fn=list) as threads,
            StreamingDataLoader(samples, peers.BATCH, collate_fn=list, num_workers=0) as inline,
        ):
            runs: dict[str, Callable[[], Iterable[int]]] = {
                "loop in four threads": lambda: in_threads(files),
                "loop in one thread": lambda: map(length, files),
                "loop that makes and holds batches": lambda: in_batches(files),
                "penstock": lambda: peers.lengths(threads),
                "penstock, in the trainer's thread": lambda: peers.lengths(inline),
            }
            found: dict[str, list[list[float]]] = {one: [] for one in runs}
            for _ in range(TURNS):
                for one, run in runs.items():
                    passed, spent = time.perf_counter(), time.process_time()
                    assert list(run()) == [BYTES] * OBJECTS, "not everything came"
                    passed, spent = time.perf_counter() - passed, time.process_time() - spent
                    found[one].append([passed / OBJECTS * 1e6, spent / OBJECTS * 1e6])
    return found


def files_of(folder: Path) -> list[Path]:
    files = [path for path in (folder / "cold").rglob("*.bin") if path.stat().st_size == BYTES]
    assert len(files) == OBJECTS
    return files


def length(path: Path) -> int:
    with open(path, "rb", buffering=0) as file:
        return len(file.read())


def in_threads(files: list[Path]) -> list[int]:
    """Read files in threads, each of which has its part of them from the start."""
    got: list[int] = []
    threads = [
        threading.Thread(target=lambda part: got.extend([length(path) for path in part]), args=[files[k::THREADS]])
        for k in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return got


def in_batches(files: list[Path]) -> Iterator[int]:
    """Read files in one thread into the dicts that samples are, and hold as many batches as a loader does."""
    held: deque[list[dict[str, Any]]] = deque()
    for at in range(0, OBJECTS, peers.BATCH):
        rows = [
            {"index": "", "bin": path, "__sample_key__": "", "__data_type__": None}
            for path in files[at:][: peers.BATCH]
        ]
        held.append(list(map(peers.read, rows)))
        if len(held) > HELD:
            yield from (len(sample["bin"]) for sample in held.popleft())
    for batch in held:
        yield from (len(sample["bin"]) for sample in batch)


def rate(lengths: Iterator[int], started: float) -> float:
    assert list(lengths) == [BYTES] * OBJECTS, "not everything came"
    return OBJECTS / (time.perf_counter() - started)


MODES: dict[str, Callable[[str, str, Path], Any]] = {"cold": cold, "first": first, "warm": warm}


if __name__ == "__main__":
    main()
