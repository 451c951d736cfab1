"""Claim: segments of quantized sound reach the trainer faster than through torch's DataLoader, whatever its workers.

Mono files of a minute at 16 kHz in the page cache, cut into segments that do not overlap, shuffled, 8-bit codes, in
batches of 32 (x, y). The peer is the dataset one writes by hand for torch: seek and read with soundfile, a mean over
the channels, scaling and quantizing with torch in float32, files opened for each read or kept open. It has 0, 1, 2
and 4 workers, which stay from one round to the next; the best of them all counts. penstock has its defaults.

An argument chooses one kind of files: wav or flac.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from penstock import QuantizedAudioDataset, StreamingDataLoader
from side_by_side import compare

BATCH = 32
RATE, SECONDS, FILES = 16_000, 60, 48
WORKERS = (0, 1, 2, 4)


class ByHand(torch.utils.data.Dataset):
    """What one writes for torch."""

    def __init__(self, paths: list[str], sample_len: int, quantization: str, *, keeps_open: bool) -> None:
        self.sample_len, self.quantization, self.keeps_open = sample_len, quantization, keeps_open
        self.segments = [
            (path, start)
            for path in paths
            for start in range(0, soundfile.info(path).frames - sample_len + 1, sample_len)
        ]
        self.open: dict[str, Any] = {}

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        path, start = self.segments[index]
        if self.keeps_open:
            file = self.open.get(path) or self.open.setdefault(path, soundfile.SoundFile(path))
            file.seek(start)
            data = file.read(self.sample_len, dtype="float32", always_2d=True)
        else:
            data, _ = soundfile.read(path, self.sample_len, start, dtype="float32", always_2d=True)
        sound = torch.from_numpy(data).mean(dim=1)
        sound = (sound - sound.min()) / (sound.max() - sound.min() + 1e-6)
        if self.quantization == "mu-law":
            sound = 2 * sound - 1
            sound = torch.sign(sound) * torch.log1p(255 * sound.abs()) / torch.log1p(torch.tensor(255.0))
            sound = (sound + 1) / 2
        y = (sound * 255.99 + 0.005).long()
        x = torch.roll(y, 1)
        x[0] = 128
        return x, y[:, None]


def write_files(folder: Path, kind: str) -> list[str]:
    paths = []
    for number in range(FILES):
        steps = np.random.default_rng(number).standard_normal(RATE * SECONDS) * 0.2
        paths.append(str(folder / f"{number}.{kind}"))
        soundfile.write(paths[-1], np.sin(np.cumsum(steps)) * 0.6, RATE)
    return paths


def rate_of(loader: Any, batches: int) -> Callable[[], float]:
    """Make a function that takes so many batches and says how many segments came a second."""

    def endless() -> Iterator[Any]:
        while True:
            yield from loader

    stream = endless()

    def run() -> float:
        begun = time.perf_counter()
        for x, y, *_ in itertools.islice(stream, batches):
            assert x.shape[0] == y.shape[0] == BATCH
        return batches * BATCH / (time.perf_counter() - begun)

    return run


def side_by_side(folder: Path, kind: str, sample_len: int, quantization: str, batches: int) -> dict[str, float]:
    paths = sorted(map(str, folder.glob(f"*.{kind}")))
    dataset = QuantizedAudioDataset(folder, sample_len=sample_len, quantization=quantization, drop_tail=True)
    ours = StreamingDataLoader(dataset, BATCH, shuffle=True, drop_last=True)
    contenders = {"penstock": rate_of(ours, batches)}
    by_hand = []
    for keeps_open, workers in itertools.product((False, True), WORKERS):
        data = ByHand(paths, sample_len, quantization, keeps_open=keeps_open)
        by_hand.append(data)
        peer = torch.utils.data.DataLoader(
            data, BATCH, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=workers > 0
        )
        name = f"torch, {workers} workers, files {'kept open' if keeps_open else 'opened anew'}"
        contenders[name] = rate_of(peer, batches)
    title = f"{sample_len} frames of {kind}, {quantization}"
    ratios = compare(title, contenders, reference="penstock", unit="segments/s", rounds=3)
    best = max((name for name in ratios if name != "penstock"), key=ratios.__getitem__)
    print(f"  penstock is {1 / ratios[best]:.2f} × the best of torch ({best})")
    ours.close()
    for file in itertools.chain.from_iterable(data.open.values() for data in by_hand):
        file.close()
    return ratios


def main() -> None:
    # A worker that inherits many threads of torch's own would have them fight for two cores.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="penstock-audio-") as name:
        for kind in sys.argv[1:] or ("wav", "flac"):
            folder = Path(name, kind)
            folder.mkdir()
            write_files(folder, kind)
            for sample_len, quantization, batches in (
                (16_384, "linear", 40),
                (16_384, "mu-law", 40),
                (1024, "linear", 200),
            ):
                side_by_side(folder, kind, sample_len, quantization, batches)


if __name__ == "__main__":
    main()
