"""The contenders of streaming.py: each reads 4,000 objects once, shuffled unless said, and gives their lengths.

Each in the configuration that was fastest here on two cores; what was tried is said where it is chosen.
"""

from __future__ import annotations

import gc
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import streaming_fetch
from streaming_fetch import BYTES, OBJECTS

BATCH = 64
SHARDS = 4
TARS = "tars.arrow"


def read(sample: dict[str, Any]) -> dict[str, Any]:
    """Put the bytes of the file in the place of its path."""
    with open(sample["bin"], "rb", buffering=0) as file:
        sample["bin"] = file.read()
    return sample


def table(url: str) -> str:
    return f"{url}/objects.csv"


def shards(url: str) -> list[str]:
    return [f"{url}/tars/{number}.tar" for number in range(SHARDS)]


def dataset(source: Any, folder: Path) -> Any:
    from penstock import StreamingDataset

    return StreamingDataset(
        source, folder, columns_to_download=["bin"], shuffle_seed=1, transforms=read, cache_limit=None
    )


def epoch(samples: Any, **options: Any) -> Iterator[int]:
    from penstock import StreamingDataLoader

    with StreamingDataLoader(samples, BATCH, collate_fn=list, **options) as loader:
        yield from lengths(loader)


def lengths(loader: Any) -> Iterator[int]:
    """Read an epoch."""
    for batch in loader:
        yield from (len(sample["bin"]) for sample in batch)


def penstock(url: str, folder: Path) -> Iterator[int]:
    with dataset(table(url), folder / "cold") as samples:
        yield from epoch(samples)


def penstock_inline(url: str, folder: Path) -> Iterator[int]:
    """Without threads beside the trainer's own: what is left to do for a sample is to read a file."""
    with dataset(table(url), folder / "cold") as samples:
        yield from epoch(samples, num_workers=0)


def penstock_tars(url: str, folder: Path) -> Iterator[int]:
    """Every sample its own request for the member's bytes; the index of the tars was saved before."""
    from penstock import open_index

    with dataset(open_index(folder.parent / TARS), folder / "cold") as samples:
        yield from epoch(samples)


def index_tars(url: str, folder: Path) -> None:
    """What `penstock index` does once for all."""
    listed = folder / "split_file_paths.txt"
    listed.write_text("\n".join(shards(url)))
    with dataset(listed, folder / "indexing") as samples:
        samples.index.save(folder / TARS)


def webdataset_tars(url: str, folder: Path) -> Iterator[int]:
    """Whole tars one after the other, unshuffled, in this process; a worker process per tar was slower to the end."""
    import webdataset

    for sample in webdataset.WebDataset(shards(url), shardshuffle=False, empty_check=False):
        yield len(sample["bin"])


def litdata_raw(url: str, folder: Path) -> Iterator[int]:
    """Objects by its S3 client, in the trainer's process: with workers their start took longer than all else."""
    from litdata import StreamingRawDataset
    from litdata.raw.indexer import BaseIndexer, FileMetadata
    from litdata.streaming import downloader
    from torch.utils.data import DataLoader

    class Known(BaseIndexer):
        def discover_files(self, input_dir: str, storage_options: Any) -> list[FileMetadata]:
            return [FileMetadata(path=f"s3://objects/{number:05}.bin", size=BYTES) for number in range(OBJECTS)]

        def build_or_load_index(self, input_dir: str, *_: Any, **__: Any) -> list[FileMetadata]:
            return self.discover_files(input_dir, None)

    # Its client takes https only, and no option to say otherwise.
    downloader._OBSTORE_CLIENT_OPTIONS = {**downloader._OBSTORE_CLIENT_OPTIONS, "allow_http": True}
    options = {"endpoint_url": url, "aws_access_key_id": "a", "aws_secret_access_key": "b", "region_name": "us-east-1"}
    files = StreamingRawDataset(
        "s3://objects/",
        cache_dir=str(folder / "litdata"),
        indexer=Known(),
        storage_options=options,
        max_concurrent_downloads=streaming_fetch.IN_FLIGHT,
        max_prefetch=256,
    )
    for batch in DataLoader(files, BATCH, shuffle=True, collate_fn=list):
        yield from map(len, batch)


EPOCHS: dict[str, Callable[[str, Path], Iterator[int]]] = {
    "penstock": penstock,
    "penstock, num_workers=0": penstock_inline,
    "penstock, tars": penstock_tars,
    "WebDataset, tars": webdataset_tars,
    "LitData raw": litdata_raw,
}
BARE: dict[str, Callable[[str, Path], float]] = {
    "obstore, get": lambda url, folder: streaming_fetch.obstore_loop(ranges=False)(url),
    "obstore, get, to files": lambda url, folder: streaming_fetch.obstore_loop(ranges=False, folder=folder)(url),
    "fsspec": lambda url, folder: streaming_fetch.fsspec_cat(url),
}


IMPORTS = {
    "penstock": "obstore.store pyarrow.csv torch penstock.datasets.streaming penstock.index.text_tables "
    "penstock.loader.loader",
    "obstore": "obstore.store",
    "fsspec": "aiohttp fsspec.implementations.http",
    "WebDataset": "webdataset",
    "LitData": "litdata.raw.dataset obstore.store torch.utils.data",
}


def imports(name: str) -> None:
    """Import what a contender needs before the clock starts, and let the collector look at it, which takes 0.1 s."""
    modules = next(modules for start, modules in IMPORTS.items() if name.startswith(start))
    for module in ("asyncio", "sqlite3", *modules.split()):
        importlib.import_module(module)
    gc.collect()


def make(folder: Path) -> None:
    """Write what the server serves: objects, tars of the same, and the table that names the objects."""
    import io
    import random
    import tarfile

    draw = random.Random(1)
    (folder / "objects").mkdir()
    (folder / "tars").mkdir()
    for shard in range(SHARDS):
        with tarfile.open(folder / "tars" / f"{shard}.tar", "w") as tar:
            for number in range(shard * OBJECTS // SHARDS, (shard + 1) * OBJECTS // SHARDS):
                data = draw.randbytes(BYTES)
                (folder / "objects" / f"{number:05}.bin").write_bytes(data)
                os.link(folder / "objects" / f"{number:05}.bin", folder / f"{number:05}.bin")
                member = tarfile.TarInfo(f"{number:05}.bin")
                member.size = BYTES
                tar.addfile(member, io.BytesIO(data))
    rows = "".join(f"{number:05},objects/{number:05}.bin\n" for number in range(OBJECTS))
    (folder / "objects.csv").write_text("index,bin\n" + rows)
