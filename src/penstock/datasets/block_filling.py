"""Blocks made of raw data on demand: downloaded and cut by one process, read by all of this machine.

hf://… ──records──▶ writer ──block by block──▶ cache folder ──▶ readers of any process
             └── pauses two blocks ahead of the reader; whoever needs more goes on, from the stored position
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

from penstock.errors import LoaderClosed, ObjectChanged, StoreError
from penstock.formats.block_manifest import ASSETS_FOLDER, MANIFEST_NAME, DatasetBlockInfo, read_block_manifest
from penstock.formats.block_reader import BlockReader
from penstock.formats.block_records import write_records
from penstock.formats.block_resume import first_difference
from penstock.formats.block_writer import StreamingBlockWriter
from penstock.formats.files import digest
from penstock.formats.records import Records, open_records
from penstock.formats.remote_sources import find_remote
from penstock.store.urls import is_url, redact

POLL_S = 0.1
PAUSE_S = 5.0
"""A writer that is far enough ahead waits so long for someone to ask for more, then lets other processes write."""
CLOSE_WITHIN_S = 0.8


class FilledBlocks:
    """Blocks in a cache folder that grows as they are asked for.

    Args:
        source: what `open_records` reads: the URL of raw data, or a file.
        folder: where the blocks go; processes that name the same one share them.
        block_size: samples of every block but the last.
        timeout: seconds to wait for the next sign of life of whoever writes.
        storage_options: for the store of the source.

    Raises:
        ObjectChanged: the blocks are of a file that has changed since.
    """

    def __init__(
        self, source: str, folder: Path, *, block_size: int, timeout: float, storage_options: Mapping[str, Any]
    ) -> None:
        self.block_size = block_size
        self._place = source
        self._folder = folder
        self._timeout = timeout
        self._options = dict(storage_options)
        self._wake = threading.Condition(threading.RLock())
        self._wanted = 0
        self._begun = 0
        """Blocks that are known to have samples, the incomplete one included."""
        self._signs = 0
        """Grows with every sign of life."""
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._info: DatasetBlockInfo | None = None
        self._reader: BlockReader | None = None
        self._refresh()
        # A look at a local file costs nothing; what is remote is looked at when more of it is needed.
        if os.path.isfile(source):
            self._refuse_change()

    def text_column(self) -> str | None:
        """Name the key of the text; waits for the first block."""
        self.sample_count(0)
        return None if self._info is None else self._info.text_column

    def sample_count(self, block: int) -> int | None:
        """Count the samples of a block, waiting until it is there; None past the last one."""
        self._until(lambda: self._blocks > block or self._finished, block + 1)
        return self.known_count(block)

    def known_count(self, block: int) -> int | None:
        """Count the samples of a block that is there now."""
        info = self._info
        return info.blocks[block].sample_count if info is not None and block < len(info.blocks) else None

    def total_blocks(self) -> int | None:
        """Count the blocks, once the source has been read to its end."""
        return self._blocks if self._finished else None

    def is_last(self, block: int) -> bool:
        """Whether a block exists and none follows, waiting until that is known."""
        self._until(lambda: max(self._blocks, self._begun) > block + 1 or self._finished, block + 2)
        return self._finished and block == self._blocks - 1

    def read(self, block: int, start: int, stop: int) -> list[dict[str, Any]] | None:
        """Read rows of a block, waiting until it is there."""
        count = self.sample_count(block)
        if count is None or start >= count:
            return None
        with self._wake:
            if self._reader is None or block >= len(self._reader.counts):
                self._reader = BlockReader(self._folder, mapped_bytes=0)
            reader = self._reader
        return reader.read(block, start, stop)

    def release(self, block: int) -> None:
        """Close a block's file."""
        if self._reader is not None and block < len(self._reader.counts):
            self._reader.release(block)

    def request(self, blocks: int) -> None:
        """Begin to make the first `blocks` blocks, in the background."""
        with self._wake:
            if self._closed or self._finished or self._blocks >= blocks:
                return
            self._wanted = max(self._wanted, blocks)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="penstock-blocks", daemon=True)
                self._thread.start()
            self._wake.notify_all()

    def close(self) -> None:
        """End the download, within a second unless it is stuck; complete blocks stay."""
        with self._wake:
            self._closed = True
            thread = self._thread
            self._wake.notify_all()
        if thread is not None:
            thread.join(CLOSE_WITHIN_S)
        if self._reader is not None:
            self._reader.close()

    @property
    def _blocks(self) -> int:
        return 0 if self._info is None else len(self._info.blocks)

    @property
    def _finished(self) -> bool:
        return self._info is not None and self._info.finished

    def _until(self, is_known: Callable[[], bool], blocks: int) -> None:
        """Ask for blocks and wait until something is known."""
        with self._wake:
            signs, deadline = self._signs, time.monotonic() + self._timeout
            while not is_known():
                if self._closed:
                    raise LoaderClosed("this BlockManager was closed: open another")
                if self._error is not None:
                    # Whoever asks again tries again.
                    error, self._error = self._error, None
                    raise error
                self.request(blocks)
                self._wake.wait(POLL_S)
                self._refresh()
                if self._signs != signs:
                    signs, deadline = self._signs, time.monotonic() + self._timeout
                if time.monotonic() > deadline:
                    raise StoreError(
                        f"no samples of {redact(self._place)} for {self._timeout:g} s: look at the network, and "
                        f"whether another process that writes to {self._folder} is stuck; or wait longer with timeout="
                    )

    def _refresh(self) -> None:
        """See what is there by now, whoever wrote it."""
        if not (self._folder / MANIFEST_NAME).is_file():
            return
        info = read_block_manifest(self._folder)
        with self._wake:
            if info != self._info:
                self._signs += 1
                self._info = info
            self._wake.notify_all()

    def _work(self) -> None:
        """Write blocks until enough are there; an error is raised where they are waited for."""
        try:
            self._fill()
        except BaseException as error:  # noqa: BLE001 - see above
            with self._wake:
                self._error = error
        with self._wake:
            self._thread = None
            self._wake.notify_all()

    def _open_source(self) -> tuple[Records, dict[str, Any]]:
        """Open the raw data, and say what it is, as the manifest does."""
        source = find_remote(self._place, **self._options) if is_url(self._place) else self._place
        records = open_records(source, assets=self._folder / ASSETS_FOLDER)
        return records, {"uri": redact(self._place), "files": {str(name): facts for name, *facts in records.signature}}

    def _refuse_change(self) -> None:
        begun = None if self._info is None else (self._info.source or {}).get("from")
        if begun is not None and begun != (now := self._open_source()[1]):
            raise ObjectChanged(
                f"{self._place} has changed since blocks were made of it: {first_difference(begun, now)}; remove "
                f"{self._folder} to have them made again, or restore the file"
            )

    def _fill(self) -> None:
        records, made_of = self._open_source()
        writer = self._turn(made_of)
        if writer is None:
            return
        with closing(writer):
            for _ in () if self._finished else write_records(records, writer):
                complete = writer.total_samples // writer.block_size
                with self._wake:
                    self._signs += 1
                    self._begun = complete + (writer.samples_in_current_block > 0)
                if complete > self._blocks:
                    self._refresh()
                if not self._goes_on():
                    return
            writer.finalize()
        self._refresh()

    def _turn(self, made_of: dict[str, Any]) -> StreamingBlockWriter | None:
        """Open the writer, as soon as no other process has it; None when its blocks are not needed any more."""
        while True:
            try:
                name = self._folder.name
                return StreamingBlockWriter(self._folder, name, self.block_size, source=made_of)
            except StoreError as error:
                if not isinstance(error.__cause__, BlockingIOError):
                    raise
            with self._wake:
                self._wake.wait(POLL_S)
                self._refresh()
                if self._closed or self._finished or self._blocks >= self._wanted:
                    return None

    def _goes_on(self) -> bool:
        """Whether to write more: waits a while for someone to want it."""
        deadline = time.monotonic() + PAUSE_S
        with self._wake:
            while not self._closed and self._begun > self._wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._wake.wait(left)
            return not self._closed


def cache_folder(source: str, block_size: int, cache_dir: str | os.PathLike[str] | None) -> Path:
    """Name the folder in which the blocks of a source are kept: the same for all processes that read it so."""
    if cache_dir is None:
        cache_dir = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "penstock", "blocks")
    return Path(cache_dir) / digest(f"{source} {block_size}".encode())
