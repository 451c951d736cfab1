"""Claim: a loader gives decoded images as fast as a bare loop over their bytes decodes them.

500 × 375 JPEG in RAM → uint8 [128, 224, 224, 3] on two cores. The limit is a loop of two threads that decode and
resize with OpenCV and do nothing else: no order, no batch. Then the same work by torch's DataLoader and Grain, given
the very same function, and what they do as shipped, with Pillow. Each run is a fresh process; the clock starts at the
first batch, when its workers run, and counts the images after it. `--clock cpu` counts processor time instead, of all
processes together, for machines where other work runs.

Run: python benchmarks/image_decoding.py [--rounds 5] [--method linear] [--only penstock …], with the peers installed.
"""

from __future__ import annotations

import argparse
import io
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import psutil

from side_by_side import compare

HEIGHT, WIDTH, SIDE, BATCH, CORES = 375, 500, 224, 128, 2
FILES, IMAGES = 256, 128 * 40


def make_files() -> list[bytes]:
    """Make JPEGs of the size that photographs have, about 50 KB: smooth grounds, edges, and grain."""
    import cv2

    cv2.setNumThreads(0)
    files = []
    for number in range(FILES):
        draw = np.random.default_rng(number)
        ground = cv2.resize(draw.integers(0, 256, (12, 16, 3)).astype(np.float32), (WIDTH, HEIGHT))
        fine = cv2.resize(draw.normal(0, 25, (HEIGHT // 2, WIDTH // 2, 3)).astype(np.float32), (WIDTH, HEIGHT))
        pixels = (ground + fine).clip(0, 255).astype(np.uint8)
        files.append(cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes())
    return files


def by_opencv(data: bytes, method: str) -> np.ndarray:
    import cv2

    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(image, (SIDE, SIDE), interpolation=getattr(cv2, f"INTER_{method.upper()}"))


def by_pillow(data: bytes, method: str) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Files:
    """A map-style dataset over bytes in RAM."""

    def __init__(self, decode: Callable[[bytes, str], np.ndarray] | None, method: str) -> None:
        self.files, self.decode, self.method = make_files(), decode, method

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Any:
        data = self.files[index % FILES]
        return {"image": data} if self.decode is None else self.decode(data, self.method)


def bare(method: str, clock: Callable[[], float]) -> float:
    """Decode in threads, each of which has its part of the images from the start."""
    import cv2

    cv2.setNumThreads(0)
    files = make_files()

    def work(part: int) -> None:
        for index in range(part, IMAGES, CORES):
            by_opencv(files[index % FILES], method)

    threads = [threading.Thread(target=work, args=[part]) for part in range(CORES)]
    by_opencv(files[0], method)
    started = clock()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return IMAGES / (clock() - started)


def penstock(method: str, *, reused: bool = True) -> Iterator[Any]:
    from penstock import Collate, DecodeImage, StreamingDataLoader

    decode = DecodeImage(size=SIDE, fit="stretch", method=method)
    collate = Collate() if reused else None
    files = Files(None, method)
    with StreamingDataLoader(
        files, BATCH, shuffle=True, transform=decode, num_workers=CORES, worker_type="thread", collate_fn=collate
    ) as loader:
        for batch in loader:
            yield batch["image"]


def torch_loader(method: str, decode: Callable[[bytes, str], np.ndarray]) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    yield from DataLoader(Files(decode, method), BATCH, shuffle=True, num_workers=CORES)


def grain_threads(method: str) -> Iterator[Any]:
    import grain

    files = Files(None, method)
    dataset = grain.MapDataset.source(files).shuffle(seed=0).map(lambda sample: by_opencv(sample["image"], method))
    options = grain.ReadOptions(num_threads=CORES, prefetch_buffer_size=2 * BATCH)
    yield from dataset.to_iter_dataset(options).batch(BATCH)


BATCHES: dict[str, Callable[[str], Iterator[Any]]] = {
    "penstock": penstock,
    "penstock, fresh memory": partial(penstock, reused=False),
    "DataLoader, same function": partial(torch_loader, decode=by_opencv),
    "Grain, same function": grain_threads,
    "DataLoader, Pillow": partial(torch_loader, decode=by_pillow),
}


def rate(batches: Iterator[Any], clock: Callable[[], float]) -> float:
    """Images per second of a clock, from the first batch on."""
    first = next(batches)
    assert tuple(first.shape) == (BATCH, SIDE, SIDE, 3), first.shape
    del first
    started, count = clock(), 0
    for batch in batches:
        count += len(batch)
        del batch
    assert count == IMAGES - BATCH
    return count / (clock() - started)


def processor_time() -> float:
    """Seconds that this process and its children so far have worked, on all cores."""
    me = psutil.Process()
    times = [process.cpu_times() for process in [me, *me.children(recursive=True)]]
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(time.user + time.system for time in times) + ended.ru_utime + ended.ru_stime


CLOCKS = {"wall": time.perf_counter, "cpu": processor_time}


def child(name: str, method: str, clock: str) -> float:
    command = [sys.executable, __file__, "--child", name, "--method", method, "--clock", clock]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (name, done.stderr)
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--method", choices=["linear", "area"], default="linear")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: where other work runs beside this")
    parser.add_argument("--only", nargs="+", help="contenders whose names begin so, beside the bare loop")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        clock, name = CLOCKS[options.clock], options.child
        print(bare(options.method, clock) if name == "bare" else rate(BATCHES[name](options.method), clock))
        return
    names = [name for name in BATCHES if name.startswith(tuple(options.only or [""]))]
    compare(
        f"{WIDTH} × {HEIGHT} JPEG to {SIDE} × {SIDE}, {options.method}, batches of {BATCH}, {options.clock} time",
        {name: partial(child, name, options.method, options.clock) for name in ["bare", *names]},
        reference="bare",
        unit="images/s",
        rounds=options.rounds,
    )


if __name__ == "__main__":
    main()
