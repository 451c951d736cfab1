"""Claim: a table of millions of rows is ready to be iterated shuffled in little more than polars takes to read it.

A table of a key, a URL, a caption and six numbers, as CSV and as Parquet, in the page cache. Each contender runs
in fresh processes, in turns:

- penstock: the index is built and checked, then the first 256 rows of a shuffle are read;
- penstock, second start: the same with the index that is there;
- polars: the bare read, nothing after it;
- HF datasets: the table is loaded to its own cache, shuffled, and the first 256 rows are read.

Seconds are from the end of the imports; memory is the largest resident size, mapped pages included, and what
of it is anonymous at the end. CPU seconds, of all threads, are what other work on the machine disturbs least.

`--large` adds a Parquet of ten million rows, for penstock alone.

Run: python benchmarks/indexing.py [--rows 2000000] [--large] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

BATCH = 256
LARGE = 10_000_000
WORDS = np.array([f"word{number}" for number in range(20)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--keep", type=Path, help="where to make the files, which stay; a temporary folder by default")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FILE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, file, folder = options.child
        print(json.dumps(child(CONTENDERS[name], file, folder)))
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        home = options.keep or Path(temporary)
        home.mkdir(exist_ok=True)
        for suffix in ("csv", "parquet"):
            path = home / f"rows-{options.rows}.{suffix}"
            write(path, options.rows)
            race(path, list(CONTENDERS), options.rounds, Path(temporary))
        if options.large:
            path = home / f"rows-{LARGE}.parquet"
            write(path, LARGE)
            race(path, ["penstock", "penstock, second start"], 1, Path(temporary))


def write(path: Path, rows: int) -> None:
    """Write the table, unless it is there."""
    import pyarrow as pa
    import pyarrow.csv as pa_csv
    import pyarrow.parquet as pq

    if path.exists():
        return
    writer = None
    random = np.random.default_rng(0)
    for start in range(0, rows, 100_000):
        count = min(100_000, rows - start)
        ids = range(start, start + count)
        words = WORDS[random.integers(0, len(WORDS), (count, 8))]
        columns = {
            "index": [f"{number:09d}" for number in ids],
            "url": [f"s3://bucket/images/{number % 1000:03d}/{number:09d}.jpg" for number in ids],
            "caption": [" ".join(line) for line in words],
        }
        columns |= {f"score{number}": np.round(random.random(count), 6) for number in range(3)}
        columns |= {f"size{number}": random.integers(0, 2000, count) for number in range(3)}
        table = pa.table(columns)
        if writer is None:
            writer = (pa_csv.CSVWriter if path.suffix == ".csv" else pq.ParquetWriter)(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def race(path: Path, names: list[str], rounds: int, scratch: Path) -> None:
    """Let the contenders that are installed take turns, and print what came out."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        node = scratch / f"{path.suffix[1:]}-{turn}"
        for name, series in found.items():
            figures = spawn(name, path, node)
            if figures is not None and (turn or rounds == 1):
                series.append(figures)
    ran = {name: series for name, series in found.items() if series}
    reference = "polars" if "polars" in ran else "penstock"
    print(f"\n{path.name} ready to be iterated shuffled ({rounds} rounds, medians)")
    print(f"  {'':24}   ratio     seconds   CPU seconds   resident MB   anonymous MB")
    summary = {}
    for name, series in ran.items():
        ratio = statistics.median(
            own["seconds"] / base["seconds"] for own, base in zip(series, ran[reference], strict=True)
        )
        medians = {field: statistics.median(one[field] for one in series) for field in series[0]}
        summary[name] = {"ratio": ratio, **medians}
        figures = "   ".join(f"{medians[field]:11.3f}" for field in medians)
        print(f"  {name:24}  {ratio:6.2f}   {figures}")
    print(json.dumps({"benchmark": f"indexing {path.name}", "reference": reference, "found": summary}))


def spawn(name: str, path: Path, folder: Path) -> dict[str, float] | None:
    """Run a contender in a process of its own; None if it is not installed."""
    command = [sys.executable, __file__, "--child", name, str(path), str(folder / name.split(",")[0])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if "ModuleNotFoundError" in done.stderr:
        return None
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def child(contender: Callable[[str, str], Callable[[], None]], file: str, folder: str) -> dict[str, float]:
    run = contender(file, folder)
    start, before = time.perf_counter(), time.process_time()
    run()
    seconds, cpu = time.perf_counter() - start, time.process_time() - before
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "resident_mb": int(status["VmHWM"].split()[0]) / 1024,
        "anonymous_mb": int(status["RssAnon"].split()[0]) / 1024,
    }


def run_penstock(file: str, folder: str) -> Callable[[], None]:
    from penstock.index.build import build_index
    from penstock.plan.permutation import permute
    from penstock.seeds import key

    def run() -> None:
        index = build_index(file, folder=folder)
        assert len(index.rows(permute(np.arange(BATCH), len(index), key(0, "bench")))) == BATCH

    return run


def run_polars(file: str, folder: str) -> Callable[[], None]:
    import polars

    return lambda: (polars.read_csv if file.endswith(".csv") else polars.read_parquet)(file)


def run_datasets(file: str, folder: str) -> Callable[[], None]:
    import datasets

    def run() -> None:
        kind = "csv" if file.endswith(".csv") else "parquet"
        loaded = datasets.load_dataset(kind, data_files=file, split="train", cache_dir=folder)
        assert len(loaded.shuffle(seed=0)[:BATCH]["index"]) == BATCH

    return run


CONTENDERS = {
    "penstock": run_penstock,
    "penstock, second start": run_penstock,
    "polars": run_polars,
    "HF datasets": run_datasets,
}

if __name__ == "__main__":
    main()
