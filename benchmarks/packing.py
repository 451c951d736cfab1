"""Claim: packed documents waste next to nothing, and packing them costs less than a microsecond each.

Lengths are drawn log-normally, as those of web text are, and taken from a real bin where one is given. Beside our
packing: concatenation with cuts every seq_len tokens (full, but it cuts documents that would fit), one document a
sequence, greedy next-fit and first-fit in the order of the text, and best-fit decreasing one document at a time. The
times are of the CPU. Reading packed batches is compared with reading windows of the same file.

Run: python benchmarks/packing.py [--documents 1000000] [--bin data/train.bin]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from bisect import bisect_left, insort
from collections.abc import Callable
from pathlib import Path

import numpy as np

from penstock import PackedDataset, TokenDataset
from penstock.plan.packing import pack
from side_by_side import compare

SEQ_LENS = (512, 2048, 8192)
SLOW = 20_000
"""Documents for the packers that look at every open sequence."""


def pieces(lengths: np.ndarray, seq_len: int) -> list[int]:
    """Cut what is longer than a sequence, as penstock does."""
    counts = lengths // seq_len
    rests = lengths - counts * seq_len
    cut = np.concatenate([np.full(int(counts.sum()), seq_len), rests[rests > 0]])
    return np.random.default_rng(0).permutation(cut).tolist()


def next_fit(lengths: np.ndarray, seq_len: int) -> int:
    count, space = 0, 0
    for length in pieces(lengths, seq_len):
        if length > space:
            count, space = count + 1, seq_len
        space -= length
    return count


def first_fit(lengths: np.ndarray, seq_len: int) -> int:
    parts = pieces(lengths, seq_len)
    spaces = np.full(len(parts), seq_len)
    for length in parts:
        spaces[np.argmax(spaces >= length)] -= length
    return int((spaces < seq_len).sum())


def best_fit_decreasing(lengths: np.ndarray, seq_len: int) -> int:
    spaces: list[int] = []
    count = 0
    for length in sorted(pieces(lengths, seq_len), reverse=True):
        place = bisect_left(spaces, length)
        if place == len(spaces):
            count, space = count + 1, seq_len
        else:
            space = spaces.pop(place)
        if space > length:
            insort(spaces, space - length)
    return count


def padded(lengths: np.ndarray, seq_len: int) -> int:
    return int((-(-lengths // seq_len)).sum())


def penstock(lengths: np.ndarray, seq_len: int) -> int:
    return len(pack(np.cumsum(lengths), seq_len))


PACKERS: dict[str, Callable[[np.ndarray, int], int]] = {
    "penstock": penstock,
    "best-fit decreasing, one by one": best_fit_decreasing,
    "first-fit": first_fit,
    "next-fit": next_fit,
    "one document a sequence": padded,
}


def fill_rates(name: str, lengths: np.ndarray) -> None:
    for seq_len in SEQ_LENS:
        ends = np.cumsum(lengths)
        starts = ends - lengths
        cut = int(((starts // seq_len != (ends - 1) // seq_len) & (lengths > 0) & (lengths <= seq_len)).sum())
        print(f"\n{name}, sequences of {seq_len:,}")
        print(f"  {'concatenation':<34} 100.000 % full, {cut / len(lengths):.1%} of the documents cut that would fit")
        for title, packer in PACKERS.items():
            some = lengths[:SLOW] if packer is first_fit else lengths
            started = time.process_time()
            count = packer(some, seq_len)
            each = (time.process_time() - started) / len(some)
            fill = int(some.sum()) / (count * seq_len)
            print(f"  {title:<34} {fill:8.3%} full, {each * 1e9:8,.0f} ns a document", flush=True)
            print(
                json.dumps({"benchmark": "packing", "lengths": name, "seq_len": seq_len, "packer": title, "fill": fill})
            )


def reading(folder: Path, mean: int, rounds: int) -> None:
    """Compare fetches of 32 × 1,024 tokens."""
    path = folder / f"{mean}.bin"
    rng = np.random.default_rng(0)
    lengths = np.maximum(1, rng.lognormal(np.log(mean) - 0.5, 1.0, 40_000_000 // mean)).astype(np.int64)
    rng.integers(0, 50_000, int(lengths.sum()), dtype=np.uint16).tofile(path)
    np.cumsum(lengths).astype("<u8").tofile(path.with_suffix(".docs"))

    def rate(dataset: PackedDataset | TokenDataset) -> float:
        batches = rng.integers(0, len(dataset), (1000, 32))
        started = time.perf_counter()
        for ids in batches:
            dataset.fetch(ids)
        return batches.size * 1024 / (time.perf_counter() - started) / 1e6

    packed, windows = PackedDataset(path, 1024), TokenDataset(path, 1024)
    title = f"reading 32 x 1024 tokens of documents of about {mean}"
    contenders = {"PackedDataset": lambda: rate(packed), "TokenDataset": lambda: rate(windows)}
    compare(title, contenders, reference="TokenDataset", unit="Mtok/s", rounds=rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--bin", type=Path, help="a bin with .docs, whose lengths are packed too")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    drawn = np.random.default_rng(0).lognormal(np.log(600) - 0.5, 1.0, options.documents)
    fill_rates("log-normal, mean 600", np.maximum(1, drawn).astype(np.int64))
    if options.bin is not None:
        ends = np.fromfile(options.bin.with_suffix(".docs"), "<u8").astype(np.int64)
        fill_rates(options.bin.name, np.diff(ends, prepend=0))
    with tempfile.TemporaryDirectory(prefix="penstock-bench-") as name:
        for mean in (60, 600):
            reading(Path(name), mean, options.rounds)


if __name__ == "__main__":
    main()
