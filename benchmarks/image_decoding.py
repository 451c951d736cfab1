"""Claim: a loader gives decoded images as fast as a bare loop over their bytes decodes them.

500 × 375 JPEG → uint8 [128, 224, 224, 3] on two cores. The limit is a loop of two threads that decode bytes in RAM and
resize with OpenCV and do nothing else: no order, no batch. Then torch's DataLoader and Grain, given the very same
function, and what they and other libraries do as shipped, from bytes in RAM or from the page cache. Each run is a fresh
process; the clock runs from the fourth batch to the fourth from the end, so that neither a start nor what was made
ahead counts. `--clock cpu` counts processor time instead, of all processes together, for machines where other work
runs; `--compare in-process` has the loader and the bare loop take turns in one process, in parts of a second.

Run: python benchmarks/image_decoding.py [--rounds 5] [--only penstock …] [--sweep], with the peers installed.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

import image_peers as peers
from image_peers import BATCH, CONTENDERS, FILES, HEIGHT, IMAGES, SIDE, WIDTH
from side_by_side import compare

CORES = 2
EDGE = 4
"""Batches at either end that are not timed."""
TURN = 8
"""Batches of a turn in one process."""
SWEPT = (0, 1, 2, 4)


def bare(files: list[bytes], count: int, clock: Callable[[], float]) -> float:
    """Decode in threads, each of which has its part of the images from the start."""

    def work(part: int) -> None:
        for index in range(part, count, CORES):
            peers.by_opencv(files[index % FILES])

    threads = [threading.Thread(target=work, args=[part]) for part in range(CORES)]
    peers.by_opencv(files[0])
    started = clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return count / (clock() - started)


def rate(batches: Iterator[Any], clock: Callable[[], float]) -> float:
    """Images per second of a clock, without those at either end."""
    started = ended = 0.0
    for number, batch in enumerate(batches, 1):
        assert tuple(batch.shape) == (BATCH, SIDE, SIDE, 3), batch.shape
        assert str(batch.dtype).endswith("uint8"), batch.dtype
        if number == EDGE:
            started = clock()
        if number == IMAGES // BATCH - EDGE:
            ended = clock()
        del batch
    assert number == IMAGES // BATCH, "an epoch of another length"
    return (number - 2 * EDGE) * BATCH / (ended - started)


def processor_time() -> float:
    """Seconds that this process and its children so far have worked, on all cores."""
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(time.user + time.system for time in times) + ended.ru_utime + ended.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}


def child(name: str, workers: int, clock: str, folder: Path) -> float:
    command = [sys.executable, __file__, "--child", name, str(workers), str(folder), "--clock", clock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (name, workers, done.stderr[-4000:])
    return float(done.stdout.splitlines()[-1])


def run_child(name: str, workers: str, folder: str, clock: Callable[[], float]) -> None:
    peers.quiet()
    if name == "bare":
        print(bare(peers.read_files(Path(folder)), IMAGES, clock), flush=True)
    else:
        print(rate(CONTENDERS[name].batches(Path(folder), int(workers)), clock), flush=True)


def sweep(names: list[str], clock: str, folder: Path) -> None:
    """Print what each makes of 0, 1, 2 and 4 workers."""
    for name in names:
        figures = {workers: child(name, workers, clock, folder) for workers in SWEPT}
        print(f"  {name:<32}", *(f"{workers}: {figure:7.1f}" for workers, figure in figures.items()), flush=True)


def compare_processes(names: list[str], rounds: int, clock: str, folder: Path) -> None:
    contenders = {name: partial(child, name, CONTENDERS[name].workers, clock, folder) for name in names}
    compare(
        f"{WIDTH} × {HEIGHT} JPEG to {SIDE} × {SIDE}, batches of {BATCH}, {clock} time",
        {"bare": partial(child, "bare", CORES, clock, folder), **contenders},
        reference="bare",
        unit="images/s",
        rounds=rounds,
    )


def compare_in_process(rounds: int, folder: Path) -> None:
    """Have a bare loop and penstock take short turns, by either clock; neither works while the other does."""
    files = peers.read_files(folder)
    batches = itertools.chain.from_iterable(peers.penstock(folder, CORES) for _ in itertools.repeat(None))

    def loaded(clock: Callable[[], float]) -> float:
        # What was made ahead in the last turn is not counted in this one.
        for _ in range(EDGE):
            next(batches)
        started = clock()
        for _ in range(TURN):
            next(batches)
        took = clock() - started
        time.sleep(0.7)
        return TURN * BATCH / took

    for clock in (time.perf_counter, time.process_time):
        compare(
            f"the same, in one process by turns, {clock.__name__}",
            {"bare": partial(bare, files, TURN * BATCH, clock), "penstock": partial(loaded, clock)},
            reference="bare",
            unit="images/s",
            rounds=rounds,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where other work runs beside this")
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so, beside the bare loop")
    parser.add_argument("--sweep", action="store_true", help="try numbers of workers instead of comparing")
    parser.add_argument("--compare", choices=["processes", "in-process"], default="processes")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "WORKERS", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run_child(*options.child, CLOCKS[options.clock])
        return
    names = [name for name in CONTENDERS if name.startswith(tuple(options.only or [""]))]
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        folder = Path(temporary, "images")
        folder.mkdir()
        peers.quiet()
        peers.write_files(folder)
        if options.compare == "in-process":
            compare_in_process(options.rounds, folder)
            return
        for name in names:
            if (write := CONTENDERS[name].write) is not None:
                write(folder)
        if options.sweep:
            sweep(names, options.clock, folder)
        else:
            compare_processes(names, options.rounds, options.clock, folder)


if __name__ == "__main__":
    main()
