"""Claims: a shuffle costs nothing up front and no memory per sample, however many samples there are.

Ten global batches of 4,096 ids of a shuffled epoch, from nothing: each contender in a fresh process, in turn, timed
after its imports, its memory the growth of the process's peak. Peers are measured where they are installed:
`pip install grain==0.2.18 mosaicml-streaming==0.13`.

Run: python benchmarks/order.py [--samples 100000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

BATCH = 4096
BATCHES = 10

CHILD = """
import json, resource, sys, time
n, batch, batches = (int(argument) for argument in sys.argv[1:4])
{imports}

def rss_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmRSS"))

before = rss_kb()
started = time.perf_counter()
{work}
took = time.perf_counter() - started
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert len(ids) == batch * batches and 0 <= min(ids) and max(ids) < n
print(json.dumps({{"s": took, "mb": max(0, peak - before) / 1024}}))
"""

CONTENDERS = {
    "penstock": (
        "import numpy as np\nfrom penstock import Plan\nfrom penstock.plan.order import GlobalShuffle",
        (
            "plan = Plan(order=GlobalShuffle(n, seed=0), global_batch=batch)\n"
            "ids = np.concatenate([plan.batch(step) for step in range(batches)])"
        ),
    ),
    "torch RandomSampler": (
        "import itertools\nfrom torch.utils.data import BatchSampler, RandomSampler",
        (
            "sampler = BatchSampler(RandomSampler(range(n)), batch, drop_last=False)\n"
            "ids = [i for one in itertools.islice(sampler, batches) for i in one]"
        ),
    ),
    "Grain shuffle": (
        "import grain",
        "order = grain.MapDataset.range(n).seed(0).shuffle()\nids = [order[i] for i in range(batch * batches)]",
    ),
    # The function behind it, called bare.
    "Grain index_shuffle": (
        "from grain._src.python.experimental.index_shuffle.python import index_shuffle_module",
        "shuffle = index_shuffle_module.index_shuffle\nids = [shuffle(i, n - 1, 0, 4) for i in range(batch * batches)]",
    ),
    # What StreamingDataset computes at the start of an epoch, with its default algorithms, on one node and one rank.
    "MosaicML epoch plan": (
        (
            "import numpy as np\nfrom streaming.base.partition import get_partitions\n"
            "from streaming.base.shuffle import get_shuffle"
        ),
        (
            "shards = np.full(-(-n // 100_000), 100_000, np.int64)\nshards[-1] -= shards.sum() - n\n"
            "places = get_partitions('relaxed', n, 1, 1, 1, 1, batch, 0)\n"
            "shuffled = get_shuffle('py1e', shards, 1, 9176, 0, 1 << 18)\n"
            "plan = np.where(places == -1, -1, shuffled[places])\nids = plan.ravel()[: batch * batches]"
        ),
    ),
}
FIRST = {
    "penstock": (
        CONTENDERS["penstock"][0],
        "ids = Plan(order=GlobalShuffle(n, seed=0), global_batch=batch).batch(0)",
    )
}


def measured(program: tuple[str, str], samples: int, batches: int) -> dict[str, float]:
    """Run one contender in a process of its own."""
    source = CHILD.format(imports=program[0], work=program[1])
    command = [sys.executable, "-c", source, str(samples), str(BATCH), str(batches)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def is_installed(program: tuple[str, str]) -> bool:
    return subprocess.run([sys.executable, "-c", program[0]], capture_output=True).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()

    missing = [name for name, program in CONTENDERS.items() if not is_installed(program)]
    here = [name for name in CONTENDERS if name not in missing]
    rounds = [
        {name: measured(CONTENDERS[name], options.samples, BATCHES) for name in here} for _ in range(options.rounds)
    ]
    print(
        f"Ten batches of {BATCH:,} ids of {options.samples:,} shuffled, from nothing ({options.rounds} rounds, medians)"
    )
    report: dict[str, dict[str, float]] = {}
    for name in here:
        seconds = statistics.median(one[name]["s"] for one in rounds)
        ratio = statistics.median(one[name]["s"] / one["penstock"]["s"] for one in rounds)
        memory = statistics.median(one[name]["mb"] for one in rounds)
        report[name] = {"ms": round(seconds * 1e3, 2), "mb": round(memory, 1), "times_ours": round(ratio, 1)}
        print(f"  {name:<20} {seconds * 1e3:>12,.1f} ms  {ratio:>10,.1f} ×  {memory:>9,.1f} MB")
    for name in missing:
        print(f"  {name:<20} not installed")

    print(f"\nThe first batch of {BATCH:,} ids, by the number of samples")
    by_size = {}
    for samples in (10**4, 10**6, 10**8, 10**9, 10**12):
        runs = [measured(FIRST["penstock"], samples, 1) for _ in range(options.rounds)]
        by_size[samples] = {
            key: round(statistics.median(run[key] for run in runs) * scale, 2) for key, scale in (("s", 1e3), ("mb", 1))
        }
        print(f"  {samples:>17,}  {by_size[samples]['s']:6.2f} ms  {by_size[samples]['mb']:5.1f} MB")
    print(
        json.dumps(
            {
                "benchmark": "order",
                "samples": options.samples,
                "peers": report,
                "first_batch_by_size": by_size,
                "missing": missing,
            }
        )
    )


if __name__ == "__main__":
    main()
