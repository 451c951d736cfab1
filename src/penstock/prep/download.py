"""Download: any source of records, streamed into blocks, with little lost by a crash.

    source ──ranges──▶ spool ──▶ records ──▶ blocks, then the manifest with the source's position

Law: whatever ends a run, the same call goes on with it, and leaves the same blocks as one that was never
stopped. Complete blocks say where in the source they end; what was fetched after that lies in the spool, so
the network is asked again for what was in flight only.
"""

from __future__ import annotations

import glob
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from penstock.formats.block_manifest import ASSETS_FOLDER, MANIFEST_NAME, DatasetBlockInfo, read_block_manifest
from penstock.formats.block_writer import NULLED, StreamingBlockWriter
from penstock.formats.hub_dataset import parse_hub_reference
from penstock.formats.records import LineBatch, OnNan, Records, open_records
from penstock.formats.remote_sources import find_remote, is_hub_dataset
from penstock.formats.text import OnError
from penstock.prep.fetching import Fetcher
from penstock.prep.read_ahead import PIECE_BYTES
from penstock.prep.size_guard import FREE_SPACE_MARGIN, SizeGuard, estimate
from penstock.prep.spool import Spool
from penstock.progress import Meter
from penstock.store.urls import is_url, redact
from penstock.types import check_choice, check_int


def download_dataset(
    uri: str | os.PathLike[str],
    output_dir: str | os.PathLike[str],
    *,
    dataset_name: str | None = None,
    max_samples: int = 0,
    block_size: int = 100_000,
    compression: str | None = None,
    columns: Sequence[str] | None = None,
    on_error: OnError = "raise",
    on_nan: OnNan = "raise",
    storage_cap: int | None = None,
    free_space_margin: int = FREE_SPACE_MARGIN,
    log_callback: Callable[[str], None] | None = None,
    cancel: threading.Event | None = None,
    show_progress: bool = True,
    storage_options: Mapping[str, Any] | None = None,
) -> DatasetBlockInfo:
    """Stream a dataset into a folder of blocks.

    Running it again after a crash, a lost network, Ctrl-C or a full disk goes on where it was; running it
    again when all is there does nothing.

    Args:
        uri: `hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]` (split `train` if not said), the URL of a file, a folder
            or a glob, or a local source; of what `open_records` reads.
        output_dir: the dataset's folder; made if missing.
        dataset_name: goes into the manifest. None: the last part of the URI.
        max_samples: take only so many, the first. 0: all.
        block_size: samples of every block but the last.
        compression: None, or "zstd" for compressed blocks.
        columns: those wanted of tables; of remote Parquet the others are not even fetched. None: all.
        on_error: what a row that can't be a record does: "raise" ends the download with its file and line,
            "skip" counts it by reason in the manifest.
        on_nan: "null" writes null for NaN and infinities, and counts them; "raise" makes such a row one that
            can't be a record.
        storage_cap: most bytes that the blocks may take. None: any number.
        free_space_margin: bytes of the disk that stay free.
        log_callback: called with a line of text for every complete block.
        cancel: set it, from anywhere, and the download ends after the batch at hand.
        show_progress: draw a bar, or print a line now and then, on standard error.
        storage_options: see `open_store`.

    Returns:
        The manifest; not `finished` if the download was cancelled.

    Raises:
        ConfigError: an argument can't work, differs from what the folder was begun with, or the source can't be read.
        ObjectMissing, AccessDenied, StoreUnavailable: of the source; see `open_store`.
        ObjectChanged: the source, or an option, is no longer what the folder was begun with.
        BadRecord: on_error is "raise", and a row can't be a record.
        BadBlock: a file of the source, or a block that is there, is damaged.
        StoreError: there is no room, or another process writes to the folder.

    Cost: what a crash makes the network send again is at most one row group, or 1 MB of text.
    """
    check_int("max_samples", max_samples, minimum=0)
    check_int("free_space_margin", free_space_margin, minimum=0)
    if storage_cap is not None:
        check_int("storage_cap", storage_cap, minimum=1)
    check_choice("compression", compression, (None, "zstd"))
    options = dict(storage_options or {})
    folder, place = Path(output_dir), os.fspath(uri)
    asked = open_records(
        find_remote(place, **options) if is_url(place) else place,
        on_error=on_error,
        on_nan=on_nan,
        columns=columns,
        assets=folder / ASSETS_FOLDER,
    )
    guard = SizeGuard(folder, free_space_margin, storage_cap)
    there = read_block_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if there is None or not there.finished:
        expected = estimate(asked.files, columns=columns, max_samples=max_samples, compression=compression)
        guard.check_start(expected, sum(block.size_bytes for block in there.blocks) if there else 0)
    source = _identity(place, asked, max_samples)
    name = dataset_name or name_of(place)
    with StreamingBlockWriter(folder, name, block_size, log_callback, compression=compression, source=source) as writer:
        if there is not None and there.finished:
            return writer.finalize()
        spool = Spool(folder, source)
        with _meter(asked, max_samples, show=show_progress) as meter:
            run = _Run(
                records=asked,
                writer=writer,
                fetcher=Fetcher(asked.files, spool, options),
                guard=guard,
                meter=meter,
                max_samples=max_samples,
                cancel=cancel or threading.Event(),
            )
            if not run.carry_over():
                writer.close()
                return read_block_manifest(folder)
        info = writer.finalize()
        spool.remove()
    return info


def _identity(place: str, records: Records, max_samples: int) -> dict[str, Any]:
    """Say what the blocks are made of, as JSON: a folder begun from something else is refused."""
    return {
        "uri": redact(place),
        "files": {str(name): facts for name, *facts in records.signature},
        "max_samples": max_samples,
        "columns": None if records.columns is None else list(records.columns),
        "on_error": records.on_error,
        "on_nan": records.on_nan,
    }


def name_of(place: str) -> str:
    """Name a dataset by its URI.

    >>> name_of("hf://org/TinyStories:en:validation"), name_of("/data/web/*.jsonl.gz")
    ('TinyStories', 'web')
    """
    if is_hub_dataset(place):
        return parse_hub_reference(place).repo.rpartition("/")[2]
    parts = [part for part in redact(place).replace("\\", "/").split("/") if part and not glob.has_magic(part)]
    return re.sub(r"\.[A-Za-z][\w.]*$", "", parts[-1]) if parts else "dataset"


def _meter(records: Records, max_samples: int, *, show: bool) -> Meter:
    if max_samples:
        return Meter("downloading", total=max_samples, unit="samples", show=show)
    return Meter("downloading", total=records.size_bytes, unit="B", show=show)


@dataclass(kw_only=True, slots=True)
class _Run:
    """One run of a download, from where the writer is to the end."""

    records: Records
    writer: StreamingBlockWriter
    fetcher: Fetcher
    guard: SizeGuard
    meter: Meter
    max_samples: int
    cancel: threading.Event

    def carry_over(self) -> bool:
        """Write all records that are missing; False if the download was cancelled."""
        writer = self.writer
        started, first, num_bytes = time.monotonic(), writer.total_samples, 0
        left_out, counts, before = writer.skip, Counter(writer.counts), writer.position
        # Text in small pieces: what was asked for and is not yet in the spool is what a crash costs.
        is_remote = any(file.url is not None for file in self.records.files)
        block_bytes = PIECE_BYTES if is_remote else self.records.block_bytes
        records = replace(self.records, opener=self.fetcher.open, block_bytes=block_bytes)
        for batch in records.read(before) if self._room() else ():
            if self.cancel.is_set():
                return False
            data, ends, left_out = _cut(batch, left_out, self._room())
            complete = writer.add_lines(data, ends)
            counts.update(batch.skipped)
            counts.update({NULLED: batch.nulled} if batch.nulled else {})
            if complete:
                num_bytes += sum(block.size_bytes for block in complete)
                self.guard.check_now(num_bytes)
                self.fetcher.let_go(before or {"file": 0, "offset": 0})
            writer.commit_source(batch.after, counts)
            before = batch.after
            self._show(writer.total_samples - first, time.monotonic() - started)
            if not self._room():
                break
        return True

    def _room(self) -> int:
        """Samples that may still be taken."""
        return self.max_samples - self.writer.total_samples if self.max_samples else 1 << 62

    def _show(self, samples: int, seconds: float) -> None:
        done = self.writer.total_samples if self.max_samples else self.fetcher.bytes_read
        blocks = self.writer.total_samples // self.writer.block_size
        note = f"{samples / max(seconds, 1e-9):,.0f} samples/s, {blocks:,} blocks"
        self.meter.add(max(0, done - self.meter.done), note=note)


def _cut(batch: LineBatch, left_out: int, room: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Take from a batch what is not written yet and still wanted; and say how many are left out of the next."""
    ends = batch.ends
    first = min(left_out, len(ends))
    last = min(len(ends), first + room)
    start = int(ends[first - 1]) if first else 0
    stop = int(ends[last - 1]) if last else 0
    return batch.data[start:stop], ends[first:last] - start, left_out - first
