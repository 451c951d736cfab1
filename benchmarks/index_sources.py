"""Claim: samples are found in seconds, whatever describes them: a hundred million rows, a folder, archives.

Each in fresh processes, seconds from the end of the imports, in the page cache:

- lazy: a Parquet file of a hundred million rows in a thousand row groups. penstock: the index is opened and the
  first 256 rows of a window shuffle are read; the second start finds what the first decoded. HF datasets,
  streaming: the first 256 rows of a shuffle with its usual buffer of 1,000.
- folder: 200,000 files in 1,000 folders. penstock: a built index; HF datasets: `imagefolder`-like listing is not
  comparable, so the bare loop is `os.walk` with a `stat` of each file.
- archives: 16 tars of 10,000 members of 2 KB. penstock: a built index; `tarfile`: the members of all, one after
  the other.

Run: python benchmarks/index_sources.py [--rows 100000000] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np

BATCH = 256
GROUP = 100_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--keep", type=Path, help="where to make the files, which stay; a temporary folder by default")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, file, folder = options.child
        seconds, found = CONTENDERS[name](file, folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(json.dumps({"seconds": seconds, "found": found, "mb": peak}))
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        home = options.keep or Path(temporary)
        home.mkdir(exist_ok=True)
        race("lazy", write_rows(home / f"rows-{options.rows}.parquet", options.rows), options.rounds, temporary)
        race("folder", write_files(home / "files"), options.rounds, temporary)
        race("archives", write_tars(home / "tars"), options.rounds, temporary)


def race(kind: str, file: Path, rounds: int, scratch: str) -> None:
    """Run the contenders of a kind in turns, and print the medians."""
    names = [name for name in CONTENDERS if name.startswith(f"{kind}:")]
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds):
        folder = Path(scratch) / f"{kind}-{turn}"
        for name in names:
            command = [sys.executable, __file__, "--child", name, str(file), str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{name}: left out: {done.stderr.strip().splitlines()[-1]}")
                continue
            figures[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"\n{kind}: {file.name} ({rounds} rounds, medians)")
    medians = {}
    for name, found in figures.items():
        if found:
            seconds, peak = (statistics.median(one[what] for one in found) for what in ("seconds", "mb"))
            medians[name] = [seconds, peak]
            print(f"  {name:<28} {seconds:8.3f} s  {peak:6.0f} MB  ({found[0]['found']:,} samples)")
    print(json.dumps({"benchmark": f"index sources, {kind}", "seconds and MB": medians}))


def lazy(file: str, folder: str) -> tuple[float, int]:
    from penstock.index.build import build_index
    from penstock.plan.order import WindowShuffle

    began = time.perf_counter()
    index = build_index(file, folder=folder, lazy_index_chunk_size=GROUP)
    rows = index.rows(WindowShuffle(index.block_ends, 0).ids(0, np.arange(BATCH)))
    assert len(rows) == BATCH
    return time.perf_counter() - began, len(index)


def lazy_hf(file: str, folder: str) -> tuple[float, int]:
    os.environ["HF_HOME"] = folder
    import datasets

    began = time.perf_counter()
    rows = datasets.load_dataset("parquet", data_files=file, split="train", streaming=True).shuffle(0).take(BATCH)
    assert len(list(rows)) == BATCH
    return time.perf_counter() - began, BATCH


def built(file: str, folder: str) -> tuple[float, int]:
    from penstock.index.build import build_index

    began = time.perf_counter()
    count = len(build_index(file, folder=folder))
    return time.perf_counter() - began, count


def walk(file: str, folder: str) -> tuple[float, int]:
    began = time.perf_counter()
    found = [os.stat(os.path.join(root, name)).st_size for root, _, names in os.walk(file) for name in names]
    return time.perf_counter() - began, len(found)


def untar(file: str, folder: str) -> tuple[float, int]:
    began = time.perf_counter()
    count = 0
    for path in sorted(Path(file).iterdir()):
        with tarfile.open(path) as archive:
            count += sum(member.isfile() for member in archive)
    return time.perf_counter() - began, count


CONTENDERS = {
    "lazy: penstock": lazy,
    "lazy: penstock, second start": lazy,
    "lazy: HF datasets, streaming": lazy_hf,
    "folder: penstock": built,
    "folder: penstock, second start": built,
    "folder: os.walk and stat": walk,
    "archives: penstock": built,
    "archives: penstock, again": built,
    "archives: tarfile": untar,
}


def write_rows(path: Path, count: int) -> Path:
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    if path.exists():
        return path
    numbers = np.random.default_rng(0).random((3, GROUP)).astype(np.float32)
    names = ["index", "url", "caption", "a", "b", "c"]
    schema = pa.schema([*((name, pa.string()) for name in names[:3]), *((name, pa.float32()) for name in names[3:])])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for start in range(0, count, GROUP):
            keys = pa.array(np.arange(start, start + GROUP)).cast(pa.string())
            urls = pc.binary_join_element_wise("https://images.example.com/data/", keys, ".jpg", "")
            captions = pc.binary_join_element_wise("a picture of number ", keys, " in a long line", "")
            writer.write_table(pa.table([keys, urls, captions, *numbers], schema=schema), row_group_size=GROUP)
    return path


def write_files(folder: Path) -> Path:
    for number in range(100_000 if not folder.exists() else 0):
        place = folder / f"{number // 100:04}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number % 100:03}.jpg").touch()
        (place / f"{number % 100:03}.txt").touch()
    return folder


def write_tars(folder: Path) -> Path:
    if folder.exists():
        return folder
    folder.mkdir()
    for shard in range(16):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as archive:
            for number in range(10_000):
                member = tarfile.TarInfo(f"{shard:03}/{number // 2:06}.{'jpg' if number % 2 else 'txt'}")
                member.size = 2000
                archive.addfile(member, io.BytesIO(bytes(2000)))
    return folder


if __name__ == "__main__":
    main()
