"""Claim: shuffled samples from disk at 1.5 to 2 times the speed of the best of its peers, with less memory.

One dataset of JSON records of about 300 bytes, in each library's own format: penstock's blocks (read, and mapped),
LitData, HF datasets (Arrow, map-style; JSON lines, streaming), MosaicML Streaming (MDS), WebDataset and Grain (over
lines of JSON by offset). All files are in the page cache. Each contender runs in fresh processes, in turns,
with the number of workers that serves it best; batches of 256 arrive in the trainer as lists of texts.

- rate: samples/s once the first batches are there;
- first: seconds from the end of the imports to the first batch;
- resume: the same, from a state saved at 90 % of the epoch by the library's own means;
- memory: largest sum over the process tree of resident pages, and of those that are private to it.

Run: python benchmarks/block_reading.py [--samples 1000000] [--only penstock LitData] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import block_peers

BATCH = 256
SECONDS = 4.0
WARM_BATCHES = 40
POLL_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so")
    parser.add_argument("--keep", type=Path, help="where to make the files, which stay; a temporary folder by default")
    parser.add_argument("--child", nargs=3, metavar=("NAME", "FOLDER", "MODE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, folder, mode = options.child
        print(json.dumps(child(block_peers.CONTENDERS[name], Path(folder), mode)))
        return
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as temporary:
        folder = options.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        write_lines(folder / "samples.jsonl", options.samples)
        names = [
            name
            for name in block_peers.CONTENDERS
            if options.only is None or any(name.startswith(part) for part in options.only)
        ]
        report({name: results for name in names if (results := contend_alone(name, folder))}, names, folder, options)


def report(ready: dict[str, bool], names: list[str], folder: Path, options: argparse.Namespace) -> None:
    """Let the contenders that are installed take turns, and print what came out."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names if name in ready}
    for _ in range(options.rounds):
        for name, series in found.items():
            series.append(spawn(name, folder, "run"))
            if (folder / f"{key(name)}.state").exists():
                series[-1]["resume_s"] = spawn(name, folder, "resume")["first_s"]
    reference = next(iter(found))
    print(f"\nshuffled epochs of {options.samples:,} samples, batches of {BATCH} ({options.rounds} rounds, medians)")
    print(f"  {'':32}  ratio   samples/s   first s   resume s   resident MB   private MB")
    medians = {}
    for name, series in found.items():
        fields = {field: statistics.median(one[field] for one in series) for field in series[0]}
        ratio = statistics.median(
            one["rate"] / base["rate"] for one, base in zip(series, found[reference], strict=True)
        )
        medians[name] = {**fields, "ratio": ratio}
        resume = f"{fields['resume_s']:10.2f}" if "resume_s" in fields else f"{'–':>10}"
        print(
            f"  {name:32} {ratio:6.2f} {fields['rate']:11,.0f} {fields['first_s']:9.2f} {resume}"
            f" {fields['resident_mb']:13.0f} {fields['private_mb']:12.0f}"
        )
    print(json.dumps({"benchmark": "block reading", "samples": options.samples, "reference": reference, **medians}))


def contend_alone(name: str, folder: Path) -> bool:
    """Write a contender's files and its state at 90 %; False if it is not installed."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, str(folder), "prepare"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        print(f"{name}: left out ({done.stderr.strip().splitlines()[-1][:200]})")
        return False
    return True


def spawn(name: str, folder: Path, mode: str) -> dict[str, float]:
    """Run a contender in a process of its own, watching the memory of it and its workers."""
    command = [sys.executable, __file__, "--child", name, str(folder), mode]
    with tempfile.TemporaryFile("w+") as answer:
        # A file, and a group of its own: workers that outlive their trainer would keep a pipe open.
        process = subprocess.Popen(command, stdout=answer, stderr=subprocess.STDOUT, start_new_session=True)
        peaks = {"resident_mb": 0.0, "private_mb": 0.0}
        while process.poll() is None:
            for field, value in memory_of_tree(process.pid).items():
                peaks[field] = max(peaks[field], value)
            time.sleep(POLL_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        answer.seek(0)
        lines = answer.read().splitlines()
    found = [line for line in lines if line.startswith("{")]
    if process.returncode or not found:
        raise SystemExit("\n".join([f"{name} failed:", *lines]))
    return {**json.loads(found[-1]), **peaks}


def memory_of_tree(root: int) -> dict[str, float]:
    """Add up the memory of a process and all below it: every resident page, and those of no file or other process."""
    parents = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                parents[int(entry)] = int(Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    tree, grown = {root}, True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in tree} - tree
        tree, grown = tree | more, bool(more)
    resident = private = 0.0
    for pid in tree:
        try:
            lines = dict(
                line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
            )
        except OSError:
            continue
        resident += int(lines.get("VmRSS", "0").split()[0]) / 1024
        private += (int(lines.get("RssAnon", "0").split()[0]) + int(lines.get("RssShmem", "0").split()[0])) / 1024
    return {"resident_mb": resident, "private_mb": private}


def child(contender: Any, folder: Path, mode: str) -> dict[str, float]:
    """Do one job of one contender in this process."""
    state_path = folder / f"{key(contender.name)}.state"
    contender.imports()
    if mode == "prepare":
        contender.write(folder)
        if contender.save is not None and not state_path.exists():
            with open(state_path, "wb") as file:
                pickle.dump(contender.save(folder, BATCH), file)
        return {}
    state = None
    if mode == "resume":
        with open(state_path, "rb") as file:
            state = pickle.load(file)
    began = time.perf_counter()
    stream: Iterator[Any] = contender.batches(folder, BATCH, state)
    next(stream)
    first = time.perf_counter() - began
    if mode == "resume":
        finish({"first_s": first})
    for _ in range(WARM_BATCHES):
        next(stream)
    began, count = time.perf_counter(), 0
    while True:
        try:
            batch = next(stream)
        except StopIteration:
            stream = contender.batches(folder, BATCH, None)
            continue
        count += len(batch["text"])
        if time.perf_counter() - began > SECONDS:
            break
    finish({"first_s": first, "rate": count / (time.perf_counter() - began)})
    raise AssertionError


def finish(result: dict[str, float]) -> None:
    """Print a result and end at once: some libraries take seconds to close."""
    print(json.dumps(result), flush=True)
    os._exit(0)


def key(name: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in name)


def write_lines(path: Path, samples: int) -> None:
    """Write the records that all contenders convert to their formats."""
    if path.exists():
        return
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnop", k=draw.randint(2, 9))) for _ in range(5_000)]
    with path.open("w") as file:
        for number in range(samples):
            file.write(json.dumps({"id": number, "text": " ".join(draw.choices(words, k=42))}) + "\n")


if __name__ == "__main__":
    main()
