"""What processes of cache tests run: `python cache_worker.py JOB FOLDER LIMIT URL COUNT SEED`.

read     reads objects URL/N.bin of COUNT in an order of its own, twice, comparing each with what it should be
forever  the same, until it is killed
hold     acquires the first object and keeps its path, prints it, waits
"""

from __future__ import annotations

import random
import sys
import time
from pathlib import Path

from penstock.store.cache import Cache, open_cache
from penstock.store.wanted import Wanted


def content(number: int, size: int) -> bytes:
    return (b"%06d " % number) * (size // 7) + b"." * (size % 7)


def size_of(number: int) -> int:
    return 2000 + number * 137 % 9000


def read_all(cache: Cache, url: str, count: int, order: random.Random) -> None:
    numbers = list(range(count))
    order.shuffle(numbers)
    parts = [numbers[start : start + 8] for start in range(0, count, 8)]
    wanted = [[Wanted(f"{url}/{number}.bin") for number in part] for part in parts]
    for place, part in enumerate(parts):
        if place + 1 < len(parts):
            cache.begin(wanted[place + 1])
        for number, file in zip(part, cache.acquire(wanted[place], 60), strict=True):
            if isinstance(file, Exception):
                raise file
            assert Path(file).read_bytes() == content(number, size_of(number)), f"{file} has the wrong bytes"


def main() -> None:
    job, folder, limit, url, count, seed = sys.argv[1:]
    cache = open_cache(folder, None if limit == "none" else int(limit))
    order = random.Random(int(seed))
    print("open", flush=True)
    if job == "hold":
        (file,) = cache.acquire([Wanted(f"{url}/0.bin")])
        print(file, flush=True)
        time.sleep(600)
    for _ in range(2) if job == "read" else iter(int, 1):
        read_all(cache, url, int(count), order)
    cache.close()
    print("done", flush=True)


if __name__ == "__main__":
    main()
