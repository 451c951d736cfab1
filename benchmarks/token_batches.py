"""Claim: shuffled, resumable batches of tokens at more than half the speed at which memory can widen them.

The limit is a sequential copy of the same tokens from the mapped uint16 file into one preallocated
int64 array: nothing that yields int64 batches can be faster. Beside it, in turns: penstock's loader
(shuffle, state, stats), the cleverest a user can write with torch's DataLoader (`__getitems__` that
gathers all rows of a batch at once), nanoGPT's way, and LitData's TokensLoader where it is installed
(`pip install litdata`). All files are in the page cache and all mappings touched before.

Run: python benchmarks/token_batches.py [--tokens 400000000] [--shapes 1024x32 8192x8]
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler

from penstock import StreamingDataLoader, TokenDataset
from side_by_side import compare

SECONDS = 1.0


def rate(batches: Iterable[Any], tokens_per_batch: int) -> float:
    """Consume batches for a second; millions of tokens per second."""
    started = time.perf_counter()
    for count, _ in enumerate(batches, 1):
        if count % 64 == 0 and time.perf_counter() - started > SECONDS:
            break
    return count * tokens_per_batch / (time.perf_counter() - started) / 1e6


def sequential_copy(tokens: np.ndarray, seq_len: int, batch: int) -> Iterator[np.ndarray]:
    out = np.empty((batch, seq_len), np.int64)
    for start in itertools.cycle(range(0, len(tokens) - seq_len * batch, seq_len * batch)):
        np.copyto(out, tokens[start : start + seq_len * batch].reshape(batch, seq_len))
        yield out


def nanogpt(path: Path, seq_len: int, batch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    while True:
        tokens = np.memmap(path, np.uint16, "r")  # anew every batch, as its authors do against a memory leak
        starts = torch.randint(len(tokens) - seq_len, (batch,))
        x = torch.stack([torch.from_numpy(tokens[i : i + seq_len].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + seq_len].astype(np.int64)) for i in starts])
        yield x, y


class GatheringDataset(torch.utils.data.Dataset):
    """All rows of a batch in one fancy index, without a per-sample step."""

    def __init__(self, tokens: np.ndarray, seq_len: int) -> None:
        self.windows = np.lib.stride_tricks.sliding_window_view(tokens, seq_len + 1)
        self.seq_len = seq_len

    def __len__(self) -> int:
        return (len(self.windows) - 1) // self.seq_len

    def __getitems__(self, indices: list[int]) -> torch.Tensor:
        return torch.from_numpy(self.windows[np.asarray(indices) * self.seq_len].astype(np.int64))


def split_labels(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": rows[:, :-1], "labels": rows[:, 1:]}


def endless(make: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    while True:
        yield from make()


def litdata_loader(tokens: np.ndarray, seq_len: int, batch: int, folder: Path) -> Callable[[], Iterable[Any]] | None:
    try:
        import litdata
    except ImportError:
        print("litdata is not installed: left out")
        return None
    target = folder / f"litdata-{seq_len}"
    pieces = np.array_split(np.arange(len(tokens) // (seq_len + 1)), 16)
    spans = [(int(piece[0]) * (seq_len + 1), (int(piece[-1]) + 1) * (seq_len + 1)) for piece in pieces]
    source = folder / "tokens.bin"
    litdata.optimize(
        fn=Cut(source),
        inputs=spans,
        output_dir=str(target),
        chunk_size=(seq_len + 1) * 8192,
        item_loader=litdata.TokensLoader(),
        num_workers=1,
    )
    dataset = litdata.StreamingDataset(
        str(target), item_loader=litdata.TokensLoader(block_size=seq_len + 1), shuffle=True, drop_last=True
    )
    return lambda: litdata.StreamingDataLoader(dataset, batch_size=batch)


class Cut:
    """Gives a span of the token file as a tensor; picklable, as LitData's workers need it."""

    def __init__(self, source: Path) -> None:
        self.source = source

    def __call__(self, span: tuple[int, int]) -> Iterator[torch.Tensor]:
        tokens = np.memmap(self.source, np.uint16, "r")
        yield torch.from_numpy(tokens[span[0] : span[1]].astype(np.uint16))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=400_000_000)
    parser.add_argument("--shapes", nargs="+", default=["1024x32", "8192x8"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to make the token file; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="penstock-bench-", dir=options.folder) as name:
        path = Path(name, "tokens.bin")
        np.random.default_rng(0).integers(0, 50257, options.tokens, dtype=np.uint16).tofile(path)
        for shape in options.shapes:
            seq_len, batch = (int(side) for side in shape.split("x"))
            measure(path, seq_len, batch, options.rounds)


def measure(path: Path, seq_len: int, batch: int, rounds: int) -> None:
    plain = np.memmap(path, np.uint16, "r").view(np.ndarray)
    ours = TokenDataset(path, seq_len)
    for mapping in (plain, ours.bin.tokens.view(np.ndarray)):
        mapping.max()  # touch every page once
    gathering = GatheringDataset(plain, seq_len)
    loader = StreamingDataLoader(ours, batch, shuffle=True)
    sources: dict[str, Iterator[Any]] = {
        "sequential widening copy (limit)": sequential_copy(plain, seq_len, batch),
        "penstock": endless(lambda: loader),
        "torch DataLoader over __getitems__": endless(
            lambda: DataLoader(
                gathering,
                batch_sampler=BatchSampler(RandomSampler(gathering), batch, drop_last=True),
                collate_fn=split_labels,
            )
        ),
        "nanoGPT get_batch": nanogpt(path, seq_len, batch),
    }
    if (litdata := litdata_loader(plain, seq_len, batch, path.parent)) is not None:
        sources["LitData TokensLoader"] = endless(litdata)
    compare(
        f"token batches {seq_len} x {batch}",
        {name: lambda source=source: rate(source, seq_len * batch) for name, source in sources.items()},
        reference="sequential widening copy (limit)",
        unit="Mtok/s",
        rounds=rounds,
    )


if __name__ == "__main__":
    main()
