"""The contenders of block_reading.py: how each writes the records, reads them shuffled, and resumes.

Each in the configuration that was fastest here on two cores; what was tried is said where it is chosen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson


@dataclass(frozen=True, kw_only=True)
class Contender:
    name: str
    imports: Callable[[], None]
    write: Callable[[Path], None]
    batches: Callable[[Path, int, Any], Iterator[Any]]
    save: Callable[[Path, int], Any] | None = None
    """Gives the state at 90 % of an epoch; None where the library knows no such thing."""


def records(folder: Path) -> Iterator[dict[str, Any]]:
    with (folder / "samples.jsonl").open("rb") as file:
        for line in file:
            yield orjson.loads(line)


def count(folder: Path) -> int:
    with (folder / "samples.jsonl").open("rb") as file:
        return sum(1 for _ in file)


def at_ninety_percent(loader: Any, samples: int, batch: int) -> Any:
    """Read 90 % of an epoch and give the loader's own state."""
    stream = iter(loader)
    for _ in range(samples * 9 // 10 // batch):
        next(stream)
    return loader.state_dict()


# penstock


def import_penstock() -> None:
    import torch  # noqa: F401

    from penstock import BlockDataset, StreamingDataLoader  # noqa: F401


def write_penstock(folder: Path) -> None:
    from penstock.formats.block_writer import StreamingBlockWriter

    if not (folder / "penstock").exists():
        with StreamingBlockWriter(folder / "penstock", "samples") as writer:
            for record in records(folder):
                writer.add_sample(record)


def penstock(**how: Any) -> dict[str, Any]:
    def loader(folder: Path, batch: int) -> Any:
        from penstock import BlockDataset, StreamingDataLoader

        return StreamingDataLoader(BlockDataset(folder / "penstock", **how), batch, shuffle=True, seed=1)

    def batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
        made = loader(folder, batch)
        if state is not None:
            made.load_state_dict(state)
        return iter(made)

    def save(folder: Path, batch: int) -> Any:
        made = loader(folder, batch)
        return at_ninety_percent(made, len(made.dataset), batch)

    return {"imports": import_penstock, "write": write_penstock, "batches": batches, "save": save}


# LitData: no workers (two were slower), and a collate quicker than its own


def import_litdata() -> None:
    import litdata  # noqa: F401


def write_litdata(folder: Path) -> None:
    import litdata

    if not (folder / "litdata").exists():
        samples = count(folder)
        spans = [(folder, start, min(start + 100_000, samples)) for start in range(0, samples, 100_000)]
        litdata.optimize(
            fn=litdata_records, inputs=spans, output_dir=str(folder / "litdata"), chunk_bytes="64MB", num_workers=1
        )


def litdata_records(span: tuple[Path, int, int]) -> Iterator[dict[str, Any]]:
    folder, start, stop = span
    for number, record in enumerate(records(folder)):
        if start <= number < stop:
            yield record


def litdata_loader(folder: Path, batch: int) -> Any:
    import litdata

    dataset = litdata.StreamingDataset(str(folder / "litdata"), shuffle=True, seed=1)
    return litdata.StreamingDataLoader(dataset, batch_size=batch, num_workers=0, collate_fn=columns)


def litdata_batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
    loader = litdata_loader(folder, batch)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader)


def litdata_state(folder: Path, batch: int) -> Any:
    return at_ninety_percent(litdata_loader(folder, batch), count(folder), batch)


# HF datasets, Arrow files and their rows by number: whole batches by one index, no workers (two were slower)


def import_datasets() -> None:
    import torch  # noqa: F401
    import torchdata.stateful_dataloader  # noqa: F401

    import datasets

    datasets.disable_progress_bars()


def write_arrow(folder: Path) -> None:
    import datasets

    if not (folder / "arrow").exists():
        made = datasets.load_dataset(
            "json", data_files=str(folder / "samples.jsonl"), split="train", cache_dir=str(folder / "hf")
        )
        made.save_to_disk(str(folder / "arrow"))


def arrow_loader(folder: Path, batch: int) -> Any:
    import torch
    from torchdata.stateful_dataloader import StatefulDataLoader
    from torchdata.stateful_dataloader.sampler import RandomSampler

    import datasets

    rows = datasets.load_from_disk(str(folder / "arrow"))
    sampler = RandomSampler(rows, generator=torch.Generator().manual_seed(1))
    return StatefulDataLoader(rows, batch_size=batch, sampler=sampler, collate_fn=columns)


def arrow_batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
    if state is not None:
        loader = arrow_loader(folder, batch)
        loader.load_state_dict(state)
        return iter(loader)
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    import datasets

    rows = datasets.load_from_disk(str(folder / "arrow"))
    sampler = BatchSampler(RandomSampler(rows), batch, drop_last=False)
    return iter(DataLoader(rows, batch_size=None, sampler=sampler, collate_fn=lambda found: tensors(found, torch)))


def tensors(found: dict[str, Any], torch: Any) -> dict[str, Any]:
    return {"id": torch.tensor(found["id"]), "text": found["text"]}


def arrow_state(folder: Path, batch: int) -> Any:
    return at_ninety_percent(arrow_loader(folder, batch), count(folder), batch)


def columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": [row["id"] for row in rows], "text": [row["text"] for row in rows]}


# HF datasets, streaming lines of JSON through a shuffle buffer, in one process (one file has one shard)


def hf_stream(folder: Path, batch: int) -> Any:
    import datasets

    found = datasets.load_dataset("json", data_files=str(folder / "samples.jsonl"), split="train", streaming=True)
    return found.shuffle(seed=1, buffer_size=10_000).batch(batch)


def stream_batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
    found = hf_stream(folder, batch)
    if state is not None:
        found.load_state_dict(state)
    return iter(found)


def stream_state(folder: Path, batch: int) -> Any:
    return at_ninety_percent(hf_stream(folder, batch), count(folder), batch)


# MosaicML Streaming: two workers; one was slower


def import_mosaic() -> None:
    import streaming  # noqa: F401


def write_mosaic(folder: Path) -> None:
    from streaming import MDSWriter

    if not (folder / "mds").exists():
        with MDSWriter(out=str(folder / "mds"), columns={"id": "int", "text": "str"}) as writer:
            for record in records(folder):
                writer.write(record)


def mosaic_loader(folder: Path, batch: int) -> Any:
    import streaming

    dataset = streaming.StreamingDataset(local=str(folder / "mds"), shuffle=True, shuffle_seed=1, batch_size=batch)
    return streaming.StreamingDataLoader(dataset, batch_size=batch, num_workers=2)


def mosaic_batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
    loader = mosaic_loader(folder, batch)
    if state is not None:
        loader.load_state_dict(state)
    return iter(loader)


def mosaic_state(folder: Path, batch: int) -> Any:
    return at_ninety_percent(mosaic_loader(folder, batch), count(folder), batch)


# WebDataset: ten shards of JSON members, a shuffle buffer, no workers (two were no quicker); it has no state


def import_webdataset() -> None:
    import torch  # noqa: F401
    import webdataset  # noqa: F401


def write_webdataset(folder: Path) -> None:
    import webdataset

    if not (folder / "wds").exists():
        (folder / "wds").mkdir()
        with webdataset.ShardWriter(str(folder / "wds" / "%05d.tar"), maxcount=100_000, verbose=0) as writer:
            for number, record in enumerate(records(folder)):
                writer.write({"__key__": f"{number:09d}", "json": orjson.dumps(record)})


def webdataset_batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
    import webdataset

    shards = sorted(str(path) for path in (folder / "wds").glob("*.tar"))
    rows = webdataset.WebDataset(shards, shardshuffle=len(shards), seed=1)
    made = rows.shuffle(5_000).map(lambda sample: orjson.loads(sample["json"]))
    return iter(made.batched(batch, collation_fn=columns))


# Grain: lines of JSON by offset, read by threads


def import_grain() -> None:
    import grain.python  # noqa: F401
    import torch  # noqa: F401


def grain_batches(source: Callable[[Path], Any]) -> Callable[[Path, int, Any], Iterator[Any]]:
    def batches(folder: Path, batch: int, state: Any) -> Iterator[Any]:
        made = grain_iterator(source(folder), batch)
        if state is not None:
            made.set_state(state)
        return made

    return batches


def grain_iterator(source: Any, batch: int) -> Any:
    import grain.python as grain

    made = grain.MapDataset.source(source).seed(1).shuffle().map(orjson.loads).batch(batch, batch_fn=columns)
    return iter(made.repeat().to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=16)))


def grain_state(source: Callable[[Path], Any]) -> Callable[[Path, int], Any]:
    def save(folder: Path, batch: int) -> Any:
        made = grain_iterator(source(folder), batch)
        for _ in range(count(folder) * 9 // 10 // batch):
            next(made)
        return made.get_state()

    return save


class Lines:
    """Lines of JSON by number, as one would write it for Grain."""

    def __init__(self, path: Path, offsets: list[int]) -> None:
        self.fd = os.open(path, os.O_RDONLY)
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> bytes:
        start = self.offsets[number]
        return os.pread(self.fd, self.offsets[number + 1] - start, start)


def lines(folder: Path) -> Lines:
    import numpy as np

    return Lines(folder / "samples.jsonl", np.load(folder / "offsets.npy").tolist())


def write_offsets(folder: Path) -> None:
    import numpy as np

    with (folder / "samples.jsonl").open("rb") as file:
        sizes = [len(line) for line in file]
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(sizes)]))


def nothing(_: Path) -> None:
    """Lines of JSON are what all begin with."""


LITDATA = {"imports": import_litdata, "write": write_litdata, "batches": litdata_batches, "save": litdata_state}
ARROW = {"imports": import_datasets, "write": write_arrow, "batches": arrow_batches, "save": arrow_state}
STREAM = {"imports": import_datasets, "write": nothing, "batches": stream_batches, "save": stream_state}
MOSAIC = {"imports": import_mosaic, "write": write_mosaic, "batches": mosaic_batches, "save": mosaic_state}
WEBDATASET = {"imports": import_webdataset, "write": write_webdataset, "batches": webdataset_batches}


def grain(source: Callable[[Path], Any], write: Callable[[Path], None]) -> dict[str, Any]:
    return {"imports": import_grain, "write": write, "batches": grain_batches(source), "save": grain_state(source)}


_ALL = {
    "penstock": penstock(),
    "penstock, mapped_bytes=0": penstock(mapped_bytes=0),
    "LitData": LITDATA,
    "HF datasets, Arrow": ARROW,
    "HF datasets, streaming JSONL": STREAM,
    "MosaicML Streaming, MDS": MOSAIC,
    "WebDataset": WEBDATASET,
    "Grain, JSONL": grain(lines, write_offsets),
}
CONTENDERS = {name: Contender(name=name, **how) for name, how in _ALL.items()}
