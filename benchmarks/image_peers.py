"""The contenders of image_decoding.py: how each stores the JPEGs, and gives batches uint8 [128, 224, 224, 3] of them.

Each decodes as it is shipped, which is with Pillow but for SPDL (FFmpeg); torch's DataLoader and Grain also with the
OpenCV function of the bare loop. SPDL finds FFmpeg's shared libraries by LD_LIBRARY_PATH.
"""

from __future__ import annotations

import importlib.machinery
import io
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
HEIGHT, WIDTH, SIDE, BATCH = 375, 500, 224, 128
FILES, IMAGES = 256, 128 * 16


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


def by_opencv(data: bytes) -> np.ndarray:
    import cv2

    cv2.setNumThreads(0)
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    return cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)


def by_pillow(data: bytes) -> np.ndarray:
    from PIL import Image

    return resized(Image.open(io.BytesIO(data)))


def resized(image: Any) -> np.ndarray:
    from PIL import Image

    return np.asarray(image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR))


class Files:
    """A map-style dataset over bytes in RAM."""

    def __init__(self, folder: Path, decode: Callable[[bytes], np.ndarray] | None = None) -> None:
        self.files, self.decode = read_files(folder), decode

    def __len__(self) -> int:
        return IMAGES

    def __getitem__(self, index: int) -> Any:
        data = self.files[index % FILES]
        return {"image": data} if self.decode is None else self.decode(data)


def write_files(folder: Path) -> None:
    for number, data in enumerate(make_files()):
        (folder / f"{number:03}.jpg").write_bytes(data)


def read_files(folder: Path) -> list[bytes]:
    return [(folder / f"{number:03}.jpg").read_bytes() for number in range(FILES)]


def torch_batches(dataset: Any, workers: int, **options: Any) -> Iterator[Any]:
    from torch.utils.data import DataLoader

    yield from DataLoader(dataset, BATCH, num_workers=workers, **options)


# penstock


def penstock(folder: Path, workers: int, *, kind: str = "thread") -> Iterator[Any]:
    from penstock import DecodeImage, StreamingDataLoader

    decode = DecodeImage(size=SIDE, fit="stretch", method="linear")
    with StreamingDataLoader(
        Files(folder), BATCH, shuffle=True, transform=decode, num_workers=workers, worker_type=kind
    ) as loader:
        for batch in loader:
            yield batch["image"]


# torch's DataLoader


def torch_loader(folder: Path, workers: int, *, decode: Callable[[bytes], np.ndarray]) -> Iterator[Any]:
    yield from torch_batches(Files(folder, decode), workers, shuffle=True)


# Grain: threads; its worker processes need a queue that this many bytes do not fit


def grain_threads(folder: Path, workers: int, *, decode: Callable[[bytes], np.ndarray]) -> Iterator[Any]:
    import grain

    dataset = grain.MapDataset.source(Files(folder)).shuffle(seed=0).map(lambda sample: decode(sample["image"]))
    options = grain.ReadOptions(num_threads=max(1, workers), prefetch_buffer_size=2 * BATCH)
    yield from dataset.to_iter_dataset(options).batch(BATCH)


# WebDataset


def write_tars(folder: Path) -> None:
    files = read_files(folder)
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as tar:
            for number in range(shard, IMAGES, 4):
                member = tarfile.TarInfo(f"{number:05}.jpg")
                member.size = len(files[number % FILES])
                tar.addfile(member, io.BytesIO(files[number % FILES]))


def webdataset(folder: Path, workers: int) -> Iterator[Any]:
    import webdataset

    tars = [str(folder / f"{shard}.tar") for shard in range(4)]
    dataset = webdataset.WebDataset(tars, shardshuffle=4, empty_check=False).shuffle(512)
    yield from torch_batches(dataset.map(lambda sample: by_pillow(sample["jpg"])), workers)


# LitData


def write_litdata(folder: Path) -> None:
    import litdata

    spans = [(folder, start) for start in range(0, IMAGES, FILES)]
    litdata.optimize(fn=stored, inputs=spans, output_dir=str(folder / "litdata"), chunk_bytes="64MB", num_workers=1)


def stored(span: tuple[Path, int]) -> Iterator[bytes]:
    yield from read_files(span[0])


def litdata_batches(folder: Path, workers: int) -> Iterator[Any]:
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, seed=1, transform=by_pillow)
    yield from litdata.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)


# MosaicML Streaming


def mosaic_streaming() -> Any:
    """Import the part of the library that reads and writes: all of it needs torchvision, for datasets not read here."""
    elsewhere = [path for path in sys.path if Path(path).resolve() != HERE]
    found = importlib.machinery.PathFinder.find_spec("streaming", elsewhere)
    assert found is not None, "mosaicml-streaming is not installed"
    package = sys.modules["streaming"] = ModuleType("streaming")
    package.__path__ = list(found.submodule_search_locations or ())
    return importlib.import_module("streaming.base")


def write_mosaic(folder: Path) -> None:
    from PIL import Image

    with mosaic_streaming().MDSWriter(out=str(folder / "mds"), columns={"image": "jpeg"}) as writer:
        for number in range(IMAGES):
            with Image.open(folder / f"{number % FILES:03}.jpg") as image:
                writer.write({"image": image})


def mosaic(folder: Path, workers: int) -> Iterator[Any]:
    streaming = mosaic_streaming()

    class Images(streaming.StreamingDataset):
        def __getitem__(self, at: Any) -> Any:
            return resized(super().__getitem__(at)["image"])

    importlib.import_module("streaming.base.util").clean_stale_shared_memory()
    dataset = Images(local=str(folder / "mds"), shuffle=True, shuffle_seed=1, batch_size=BATCH)
    yield from streaming.StreamingDataLoader(dataset, batch_size=BATCH, num_workers=workers)


# HF datasets


def write_hf(folder: Path) -> None:
    import datasets

    rows = [{"image": {"bytes": data, "path": None}} for data in read_files(folder)] * (IMAGES // FILES)
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_list(rows, features=features).save_to_disk(str(folder / "hf"))


def hf(folder: Path, workers: int) -> Iterator[Any]:
    import datasets

    dataset = datasets.load_from_disk(str(folder / "hf"))
    dataset = dataset.with_transform(lambda rows: {"image": [resized(image) for image in rows["image"]]})
    for batch in torch_batches(dataset, workers, shuffle=True):
        yield batch["image"]


# SPDL


def spdl(folder: Path, workers: int) -> Iterator[Any]:
    from spdl.io import load_image_batch, to_torch
    from spdl.pipeline import PipelineBuilder

    files = read_files(folder)
    order = np.random.default_rng(0).permutation(IMAGES) % FILES
    names = [[files[j] for j in order[at : at + BATCH]] for at in range(0, IMAGES, BATCH)]
    threads = max(1, workers)
    pipeline = (
        PipelineBuilder()
        .add_source(names)
        .pipe(lambda batch: to_torch(load_image_batch(batch, width=SIDE, height=SIDE)), concurrency=threads)
        .add_sink(2)
        .build(num_threads=threads)
    )
    with pipeline.auto_stop():
        yield from pipeline.get_iterator()


@dataclass(frozen=True, kw_only=True)
class Contender:
    batches: Callable[[Path, int], Iterator[Any]]
    write: Callable[[Path], None] | None = None
    workers: int = 2
    """One a core; `--sweep` tries others. By processor time it matters little."""


SAME = "same function"
CONTENDERS = {
    "penstock": Contender(batches=penstock),
    f"torch DataLoader, {SAME}": Contender(batches=partial(torch_loader, decode=by_opencv)),
    f"Grain, {SAME}": Contender(batches=partial(grain_threads, decode=by_opencv)),
    "torch DataLoader": Contender(batches=partial(torch_loader, decode=by_pillow)),
    "Grain": Contender(batches=partial(grain_threads, decode=by_pillow)),
    "WebDataset": Contender(batches=webdataset, write=write_tars),
    "LitData": Contender(batches=litdata_batches, write=write_litdata),
    "MosaicML Streaming": Contender(batches=mosaic, write=write_mosaic),
    "HF datasets": Contender(batches=hf, write=write_hf),
    "SPDL": Contender(batches=spdl),
}


def quiet() -> None:
    """Keep what peers ask the network, or write beside the figures, out of a run."""
    os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1", TOKENIZERS_PARALLELISM="false")
