"""Claim: sounds and videos reach the trainer at 90 % of what two threads decode in a bare loop over the same library.

10 s of stereo FLAC at 44.1 kHz → 16 kHz mono, and the first 16 frames of a 256×256 H.264 video, from files in the page
cache, into batches of 16. The bare loop is what one writes by hand: soundfile, a mean, soxr; PyAV's `decode` and
`to_ndarray`. torch's DataLoader gets the same functions, in 1, 2 and 4 processes.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import soundfile
import soxr
import torch

from penstock import DecodeAudio, DecodeVideo, StreamingDataLoader
from side_by_side import compare

BATCH, WORKERS = 16, 2
RATE, SECONDS = 44_100, 10
FRAMES, SIDE = 16, 256


class Files:
    """Paths, one a sample."""

    def __init__(self, paths: list[str], read: Callable[[str], np.ndarray] | None = None) -> None:
        self.paths, self.read = paths, read

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        path = self.paths[index]
        return {"x": path if self.read is None else self.read(path)}


def bare_sound(path: str) -> np.ndarray:
    data, rate = soundfile.read(path, dtype="float32")
    return soxr.resample(data.mean(axis=1), rate, 16_000)[None]


def bare_video(path: str) -> np.ndarray:
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        frames = []
        for frame in container.decode(stream):
            frames.append(frame.to_ndarray(format="rgb24", threads=1))
            if len(frames) == FRAMES:
                break
        return np.stack(frames)


def write_sounds(folder: Path, count: int) -> list[str]:
    t = np.arange(RATE * SECONDS) / RATE
    paths = []
    for number in range(count):
        noise = np.random.default_rng(number).standard_normal((len(t), 2)) * 0.02
        tone = 0.3 * np.sin(2 * np.pi * (200 + 20 * number + 30 * t) * t)
        paths.append(str(folder / f"{number}.flac"))
        soundfile.write(paths[-1], tone[:, None] + noise, RATE)
    return paths


def write_videos(folder: Path, count: int) -> list[str]:
    y, x = np.mgrid[:SIDE, :SIDE]
    paths = []
    for number in range(count):
        texture = np.random.default_rng(number).integers(0, 40, (SIDE, SIDE, 3))
        paths.append(str(folder / f"{number}.mp4"))
        with av.open(paths[-1], "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"g": "25"})
            stream.width, stream.height, stream.pix_fmt = SIDE, SIDE, "yuv420p"
            for at in range(3 * FRAMES):
                ground = np.stack([(x + 3 * at) % 200, (y + at) % 200, (x + y) % 200], axis=-1)
                frame = av.VideoFrame.from_ndarray((ground + texture).astype(np.uint8), format="rgb24")
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return paths


def measured(epoch: Callable[[], int]) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter()
        return epoch() / (time.perf_counter() - start)

    return run


def bare_epoch(paths: list[str], read: Callable[[str], np.ndarray], pool: ThreadPoolExecutor) -> int:
    for at in range(0, len(paths), BATCH):
        np.stack(list(pool.map(read, paths[at : at + BATCH])))
    return len(paths)


def loader_epoch(loader: Any) -> int:
    return sum(len(batch["x"]) for batch in loader)


def run(what: str, paths: list[str], read: Callable[[str], np.ndarray], transform: Any, rounds: int) -> None:
    want = read(paths[0])
    got = transform({"x": paths[0]})["x"]
    assert got.shape == want.shape
    assert np.allclose(got, want, atol=1e-6)
    shuffled = {"batch_size": BATCH, "shuffle": True}
    with (
        ThreadPoolExecutor(WORKERS) as pool,
        StreamingDataLoader(
            Files(paths), transform=transform, num_workers=WORKERS, worker_type="thread", **shuffled
        ) as loader,
    ):
        peers = {
            f"torch DataLoader, {count} processes": torch.utils.data.DataLoader(
                Files(paths, read),
                num_workers=count,
                persistent_workers=True,
                multiprocessing_context="spawn",
                **shuffled,
            )
            for count in (1, 2, 4)
        }
        compare(
            what,
            {
                "bare loop, 2 threads": measured(lambda: bare_epoch(paths, read, pool)),
                "penstock": measured(lambda: loader_epoch(loader)),
                **{name: measured(partial(loader_epoch, peer)) for name, peer in peers.items()},
            },
            reference="bare loop, 2 threads",
            unit="samples/s",
            rounds=rounds,
        )


def main() -> None:
    """Make the files and compare; --rounds=N."""
    rounds = next((int(word.partition("=")[2]) for word in sys.argv if word.startswith("--rounds=")), 5)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        sounds = write_sounds(Path(folder), 32)
        decode = DecodeAudio("x", sample_rate=16_000, mono=True)
        run("10 s of FLAC → 16 kHz mono", sounds, bare_sound, decode, rounds)
        videos = write_videos(Path(folder), 32)
        clip = DecodeVideo("x", frames=FRAMES)
        run("16 frames of 256×256 H.264", videos, bare_video, clip, rounds)


if __name__ == "__main__":
    main()
