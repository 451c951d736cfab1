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
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from penstock.formats.block_manifest import ASSETS_FOLDER, MANIFEST_NAME, DatasetBlockInfo, read_block_manifest
from penstock.formats.block_records import write_records
from penstock.formats.block_writer import StreamingBlockWriter
from penstock.formats.hub_dataset import LibraryOnly, parse_hub_reference
from penstock.formats.library_records import LibraryRecords, pinned
from penstock.formats.records import OnNan, Records, open_records
from penstock.formats.remote_sources import find_remote, is_hub_dataset
from penstock.formats.streams import open_raw
from penstock.formats.text import OnError
from penstock.prep.blocks import refuse_other_source
from penstock.prep.fetching import Fetcher
from penstock.prep.read_ahead import PIECE_BYTES
from penstock.prep.size_guard import FREE_SPACE_MARGIN, SizeGuard, estimate
from penstock.prep.source_change import refuse_change
from penstock.prep.spool import Spool
from penstock.progress import Meter
from penstock.store.store import open_store
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
            or a glob, or a local source; of what `open_records` reads. A Hub dataset that only the `datasets`
            library can read (archives, folders of images) comes through that library, slower.
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
    asked = _open(place, options, on_error=on_error, on_nan=on_nan, columns=columns, assets=folder / ASSETS_FOLDER)
    guard = SizeGuard(folder, free_space_margin, storage_cap)
    _check_start(asked, folder, guard, options, columns=columns, max_samples=max_samples, compression=compression)
    refuse_other_source(asked, folder)
    source = _identity(place, asked, max_samples)
    name = dataset_name or name_of(place)
    with StreamingBlockWriter(folder, name, block_size, log_callback, compression=compression, source=source) as writer:
        if writer.is_finished:
            return writer.finalize()
        spool = Spool(folder, source)
        fetcher = Fetcher(asked.files, spool, options)
        with _meter(asked, max_samples, show=show_progress) as meter:
            run = _Run(
                writer=writer,
                fetcher=fetcher,
                guard=guard,
                meter=meter,
                max_samples=max_samples,
                started=time.monotonic(),
                first=writer.total_samples,
                committed=writer.position,
            )
            for _, written in write_records(_fetched(asked, fetcher), writer, max_samples=max_samples or None):
                run.after_batch(written)
                if cancel is not None and cancel.is_set():
                    writer.close()
                    return read_block_manifest(folder)
        refuse_change(asked.files)
        info = writer.finalize()
        spool.remove()
    return info


def _check_start(
    asked: Records | LibraryRecords, folder: Path, guard: SizeGuard, options: Mapping[str, Any], **wanted: Any
) -> None:
    """Refuse to begin what can't be read or has no room, unless all of it is there already."""
    there = read_block_manifest(folder) if (folder / MANIFEST_NAME).is_file() else None
    if there is None or not there.finished:
        _check_access(asked, options)
        expected = estimate(asked.files, opener=partial(open_raw, **options), **wanted)
        guard.check_start(expected, sum(block.size_bytes for block in there.blocks) if there else 0)


def _open(place: str, storage_options: Mapping[str, Any], **options: Any) -> Records | LibraryRecords:
    """Find the files of a source; of what only the `datasets` library can read, a way through that."""
    try:
        return open_records(find_remote(place, **storage_options) if is_url(place) else place, **options)
    except LibraryOnly:
        columns = options.pop("columns")
        reference = pinned(place, **storage_options)
        return LibraryRecords(reference=reference, columns=None if columns is None else tuple(columns), **options)


def _check_access(records: Records | LibraryRecords, storage_options: Mapping[str, Any]) -> None:
    """Ask for the first file: a list of files may be public where the files are not."""
    first = records.files[0] if records.files else None
    if first is not None and first.url is not None:
        with closing(open_store(first.url, **storage_options)) as store:
            store.head()


def _fetched(records: Records | LibraryRecords, fetcher: Fetcher) -> Records | LibraryRecords:
    """Read through a fetcher; remote text in small pieces, as what is not in the spool yet is what a crash costs."""
    if isinstance(records, LibraryRecords):
        return records
    is_remote = any(file.url is not None for file in records.files)
    block_bytes = PIECE_BYTES if is_remote else records.block_bytes
    return replace(records, opener=fetcher.open, block_bytes=block_bytes)


def _identity(place: str, records: Records | LibraryRecords, max_samples: int) -> dict[str, Any]:
    """Say what the blocks are made of, as JSON: a folder begun from something else is refused.

    What to do with bad rows is no part of it: a run that was stopped by one may go on passing over them.
    """
    return {
        "uri": redact(place),
        "files": records.signature,
        "max_samples": max_samples,
        "columns": None if records.columns is None else list(records.columns),
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


def _meter(records: Records | LibraryRecords, max_samples: int, *, show: bool) -> Meter:
    if max_samples:
        return Meter("downloading", total=max_samples, unit="samples", show=show)
    return Meter("downloading", total=records.size_bytes or None, unit="B", show=show)


@dataclass(kw_only=True, slots=True)
class _Run:
    """What is done after every batch of one run: look at the disk, let go of the spool, show how far it is."""

    writer: StreamingBlockWriter
    fetcher: Fetcher
    guard: SizeGuard
    meter: Meter
    max_samples: int
    started: float
    first: int
    """Samples that were there when the run began."""
    committed: dict[str, Any] | None
    """The source's position that the manifest gets with the next block."""

    def after_batch(self, written: int) -> None:
        writer = self.writer
        before = writer.total_samples - written
        if written and before // writer.block_size < writer.total_samples // writer.block_size:
            self.guard.check_now(writer.size_bytes)
            self.fetcher.let_go(self.committed or {"file": 0, "offset": 0})
        self.committed = writer.position
        self._show()

    def _show(self) -> None:
        total, read = self.writer.total_samples, self.fetcher.bytes_read
        blocks = f"{total // self.writer.block_size:,} blocks"
        rate = (total - self.first) / max(time.monotonic() - self.started, 1e-9)
        done = total if self.max_samples else read
        note = f"{read / 1e6:,.1f} MB, {blocks}" if self.max_samples else f"{rate:,.0f} samples/s, {blocks}"
        self.meter.add(max(0, done - self.meter.done), note=note)
