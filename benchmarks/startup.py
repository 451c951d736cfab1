"""Claims: a first batch within 0.1 s of importing torch, no later on a resume, and no memory left behind.

Each measurement is a fresh process. The first batch is timed from after `import torch`; the memory is the growth of
the process's own pages (not of the page cache mapped into it) from batch 10 to batch 1,000.

Run: python benchmarks/startup.py [--tokens 1000000000]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from penstock import StreamingDataLoader, TokenDataset

CHILD = """
import json, sys, time
import torch
started = time.perf_counter()
from penstock import StreamingDataLoader, TokenDataset
path, state_file, batches = sys.argv[1], sys.argv[2], int(sys.argv[3])

def own_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))

loader = StreamingDataLoader(TokenDataset(path, 1024), 32, shuffle=True)
if state_file:
    loader.load_state_dict(json.load(open(state_file)))
stream = iter(loader)
next(stream)
first = time.perf_counter() - started
for count, _ in enumerate(stream, 2):
    if count == 10:
        before = own_kb()
    if count == batches:
        break
print(json.dumps({"first_s": first, "grown_kb": own_kb() - before}))
"""


def child(path: Path, state: Path | str, batches: int) -> dict[str, float]:
    """Run one fresh process, from a saved state on if one is given."""
    command = [sys.executable, "-c", CHILD, str(path), str(state), str(batches)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, help="where to make the token file; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=options.folder) as name:
        path = Path(name, "tokens.bin")
        with path.open("wb") as file:
            piece = np.random.default_rng(0).integers(0, 50257, 10_000_000, dtype=np.uint16).tobytes()
            for _ in range(options.tokens // 10_000_000):
                file.write(piece)
        late = Path(name, "state.json")
        state = StreamingDataLoader(TokenDataset(path, 1024), 32, shuffle=True).state_dict()
        late.write_text(json.dumps({**state, "samples": state["num_samples"] * 9 // 10}))
        child(path, "", 20)
        turns = [(child(path, "", 20), child(path, late, 20)) for _ in range(options.rounds)]
        fresh = statistics.median(start["first_s"] for start, _ in turns)
        ratio = statistics.median(resumed["first_s"] / start["first_s"] for start, resumed in turns)
        grown = child(path, "", 1000)["grown_kb"] / 1024
    print(f"\nfresh process to first batch, beyond importing torch: {fresh * 1e3:.0f} ms")
    print(f"the same, resumed at 90 % of the epoch: {ratio:.2f} × of that")
    print(f"memory grown from batch 10 to batch 1,000: {grown:.1f} MB")
    print(json.dumps({"benchmark": "startup", "first_ms": fresh * 1e3, "resume_ratio": ratio, "grown_mb": grown}))


if __name__ == "__main__":
    main()
