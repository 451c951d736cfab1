"""Claim: with `backward=True` the peak memory at 131,072 tokens is within 10 % of that at 8,192.

The two models of examples/long_sequences.py, one forward and backward pass over one sequence; beside it the same pass
in one piece, where the machine has the memory for it. Each measurement is a fresh process. On the CPU
`peak_mb` is the process's highest resident memory, and `grown_mb` that less what it had before the pass; with CUDA
both are the allocator's. The C library is told to give freed tensors back to the system at once
(MALLOC_MMAP_THRESHOLD_): by default it keeps some of them for later, so that resident memory says less of what is in
use, and creeps up in any long computation. `--keep-freed` measures that, too.

Run: python benchmarks/rollout_memory.py [--models ssm transformer] [--lengths 8192 32768 131072] [--device cuda]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

CHILD = """
import json, resource, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from long_sequences import LAYERS, LongModel
from penstock import chunked_segment_rollout

kind, seq_len, chunk_size, dim, device = sys.argv[2], *map(int, sys.argv[3:6]), sys.argv[6]

def peak_mb():
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10

def rollout(length):
    ids = torch.randint(256, (1, length + 1))
    batch = {"inputs": ids[:, :-1], "targets": ids[:, 1:]}
    return chunked_segment_rollout(model, batch, 1, chunk_size or length, backward=True)

torch.manual_seed(0)
model = LongModel(256, dim, 2, LAYERS[kind]).to(device)
rollout(64)  # gradients, and what the libraries keep for themselves
before = peak_mb()
started = time.perf_counter()
loss, metrics = rollout(seq_len)
took = time.perf_counter() - started
print(json.dumps({"seq_len": seq_len, "num_chunks": metrics["num_chunks"], "peak_mb": peak_mb(),
                  "grown_mb": peak_mb() - before, "seconds": took, "loss": loss.item()}))
"""


def measure(kind: str, seq_len: int, chunk_size: int, options: argparse.Namespace) -> dict[str, Any] | None:
    """Run one fresh process; None if there is not enough memory."""
    examples = Path(__file__).resolve().parent.parent / "examples"
    sizes = [str(size) for size in (seq_len, chunk_size, options.dim)]
    command = [sys.executable, "-c", CHILD, str(examples), kind, *sizes, options.device]
    environment = dict(os.environ) if options.keep_freed else {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        if "memory" not in done.stderr and done.returncode > 0:
            raise SystemExit(done.stderr)
        return None
    return {"model": kind, "chunk_size": chunk_size or seq_len, **json.loads(done.stdout)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["ssm", "transformer"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[8192, 32768, 131072])
    parser.add_argument("--whole", nargs="*", type=int, default=[4096, 8192], help="lengths to pass in one piece, too")
    parser.add_argument("--chunk-size", type=int, default=2048)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--keep-freed", action="store_true", help="leave the C library's allocator as it is")
    parser.add_argument("--json", action="store_true", help="the chunked runs only, as one line of JSON")
    options = parser.parse_args()
    runs = []
    for kind in options.models:
        for chunk_size, lengths in ((options.chunk_size, options.lengths), (0, [] if options.json else options.whole)):
            for seq_len in lengths:
                how = f"in chunks of {chunk_size:,}" if chunk_size else "in one piece"
                found = measure(kind, seq_len, chunk_size, options)
                if found is None:
                    print(f"{kind:<12} {seq_len:>8,} tokens {how:<20} out of memory", flush=True)
                    continue
                runs.append(found)
                if not options.json:
                    figures = f"peak {found['peak_mb']:,.0f} MB, grown by {found['grown_mb']:,.0f}"
                    print(f"{kind:<12} {seq_len:>8,} tokens {how:<20} {figures}, {found['seconds']:.1f} s", flush=True)
    print(json.dumps({"benchmark": "rollout memory", "device": options.device, "runs": runs}))


if __name__ == "__main__":
    main()
