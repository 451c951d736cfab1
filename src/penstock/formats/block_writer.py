"""Writing a folder of blocks so that it can be stopped at any moment and gone on with.

    sample ──encode──▶ line ─┐
                             ├─▶ block file ──every block_size lines──▶ its name, then the manifest
    ready lines ─────────────┘

Law: what is in the manifest is on the disk, and nothing else counts. A new writer on the same folder
throws away what lies beyond and says from which sample to go on; given the same samples it leaves the
same bytes as one that was never stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import orjson

from penstock.errors import ConfigError, StoreError
from penstock.formats.assets import sync_assets
from penstock.formats.block_file import BlockFile
from penstock.formats.block_manifest import (
    ASSETS_FOLDER,
    BLOCKS_FOLDER,
    BlockMetadata,
    DatasetBlockInfo,
    write_block_manifest,
)
from penstock.formats.block_resume import begin_or_resume
from penstock.formats.files import lock_folder, store_errors
from penstock.formats.json_values import LineEncoder
from penstock.types import check_choice, check_int

TEXT_COLUMNS = ("text", "content", "sentence", "document", "article", "body", "input", "output")
"""Names of the text, the likeliest first."""
NULLED = "nan-to-null"
"""Under which NaN that became null are counted."""
_FLUSH_BYTES = 32 << 10
"""More at a time, and the allocator gives the lines' memory back to the system after each flush: twice the time."""
_REFUSALS = {
    "finished": "the dataset is finished, nothing can be added; choose another folder, or remove this one",
    "finalized": "this writer was finalized already; choose another folder for other samples",
    "closed": "this writer is closed; a new one on the folder goes on after the last complete block",
    "failed": "this writer was closed by an error; a new one on the folder goes on after the last complete block",
}


def find_text_column(sample: Mapping[str, Any]) -> str | None:
    """Choose the key of the text: the first of `TEXT_COLUMNS` that is there, else the first key.

    >>> find_text_column({"id": 1, "body": "…", "title": "…"})
    'body'
    """
    return next((name for name in TEXT_COLUMNS if name in sample), next(iter(sample), None))


class StreamingBlockWriter:
    """Write samples, one at a time, into blocks of one JSON object a line.

    Memory is that of a few lines, whatever the size of a block. One writer at a time holds a folder, and
    one thread at a time may use it. As a context manager it finalizes at the end, or, after an error,
    closes and keeps the complete blocks.

    Args:
        output_dir: the dataset's folder; made if it is not there. In one that an earlier writer left, this
            one goes on after the last complete block: see `resume_from`.
        dataset_name: goes into the manifest.
        block_size: samples of every block but the last.
        log_callback: called with a line of text for every complete block.
        compression: None, or "zstd" for .jsonl.zst blocks.
        source: what the samples come from, a JSON value; a folder begun from another is refused.
        on_nan: "raise" refuses a sample with NaN or an infinity, "null" writes null for it and counts it.

    Raises:
        ConfigError: an argument can't work, or differs from what the folder was begun with; or the folder holds
            blocks of someone else.
        ObjectChanged: the folder was begun from another source.
        StoreError: another writer holds the folder, or it can't be written.
        BadBlock: a complete block is missing or has another size.
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str],
        dataset_name: str,
        block_size: int = 100_000,
        log_callback: Callable[[str], None] | None = None,
        *,
        compression: str | None = None,
        source: Any = None,
        on_nan: str = "raise",
    ) -> None:
        if not isinstance(dataset_name, str) or not dataset_name:
            raise ConfigError(f"dataset_name must be a text that is not empty, got {dataset_name!r}")
        check_choice("compression", compression, (None, "zstd"))
        # Where it is now: the process may go elsewhere while it writes.
        self.output_dir = Path(output_dir).absolute()
        self.dataset_name = dataset_name
        self.block_size = check_int("block_size", block_size, minimum=1)
        self._compression = compression
        # As it will be read back: tuples are lists then.
        self._source = orjson.loads(orjson.dumps(source))
        self._log = log_callback
        self._encoder = LineEncoder(dataset_name, self.output_dir / ASSETS_FOLDER, on_nan=on_nan)
        self._encode = self._encoder.encode
        self._lines: list[bytes] = []
        self._lines_bytes = 0
        self._block: BlockFile | None = None
        with store_errors(self.output_dir):
            (self.output_dir / BLOCKS_FOLDER).mkdir(parents=True, exist_ok=True)
        self._held = ExitStack()
        self._held.enter_context(lock_folder(self.output_dir))
        try:
            self._resume()
        except BaseException:
            self._held.close()
            raise

    def _resume(self) -> None:
        info = begin_or_resume(
            DatasetBlockInfo(
                dataset_name=self.dataset_name,
                total_samples=0,
                total_blocks=0,
                block_size=self.block_size,
                text_column=None,
                finished=False,
                source=None if self._source is None else {"from": self._source, "position": None, "skip": 0},
            ),
            self.output_dir,
            self._compression,
        )
        self._info = info
        self._state = "finished" if info.finished else "open"
        self._blocks = list(info.blocks)
        self._text_column = info.text_column
        self.resume_from = info.total_samples
        """Samples that are there: give the others, from this one on."""
        begun = info.source or {}
        self.position: dict[str, Any] | None = begun.get("position")
        """What `commit_source` was given last, as far as it counts; None at the beginning."""
        self.skip: int = begun.get("skip", info.total_samples)
        """Samples between `position` and `resume_from`: what a reader that begins at `position` leaves out."""
        self.counts = dict(info.counts)
        """What was counted up to `position`, by reason."""
        self._at_position = self.resume_from - self.skip
        self._count = self.resume_from
        self._room = self.block_size

    @property
    def samples_in_current_block(self) -> int:
        """Samples of the block that is not complete yet."""
        return self.block_size - self._room

    @property
    def is_finished(self) -> bool:
        """Whether the folder was finished by an earlier writer: then there is nothing to add."""
        return self._state == "finished"

    @property
    def size_bytes(self) -> int:
        """Bytes of all complete blocks, as they lie on the disk."""
        return sum(block.size_bytes for block in self._blocks)

    @property
    def total_samples(self) -> int:
        """Samples in all blocks, the incomplete one included."""
        return self._count

    def add_sample(self, sample: dict[str, Any]) -> BlockMetadata | None:
        """Write a sample.

        Args:
            sample: JSON values; bytes become files under assets/, dates and times ISO 8601 texts.

        Returns:
            The block that is complete by this sample, else None.

        Raises:
            ConfigError: no dict, or the writer is finalized or closed.
            BadRecord: it holds what JSON can't say; nothing was written, the next sample may follow.
            StoreError: the disk is full, or can't be written; complete blocks stay, the writer is closed.
        """
        if self._state != "open":
            raise self._refusal("add_sample")
        if not isinstance(sample, dict):
            raise ConfigError(f"a sample must be a dict, sample {self._count} is a {type(sample).__name__}")
        try:
            line = self._encode(sample, self._count)
        except StoreError as error:
            self._fail(error)
            raise
        if self._text_column is None:
            # As it is in the line: there all keys are texts.
            self._text_column = find_text_column(orjson.loads(line))
        self._lines.append(line)
        self._lines_bytes += len(line)
        self._count += 1
        self._room -= 1
        if self._room and self._lines_bytes < _FLUSH_BYTES:
            return None
        try:
            self._flush()
            return None if self._room else self._complete()
        except BaseException as error:
            self._fail(error)
            raise

    def add_lines(self, data: Any, ends: np.ndarray) -> list[BlockMetadata]:
        r"""Write samples that are JSON lines already; they are not looked into.

        Args:
            data: contiguous bytes: objects in UTF-8, each with its "\n".
            ends: int64 [n]: where each line ends, its "\n" included; the last one is the length of data.

        Returns:
            The blocks that are complete by them.

        Raises:
            ConfigError: the ends don't fit the data, or the writer is finalized or closed.
            StoreError: as `add_sample`.
        """
        if self._state != "open":
            raise self._refusal("add_lines")
        view = memoryview(data).cast("B")
        ends = np.asarray(ends, np.int64)
        self._check_ends(view, ends)
        if self._text_column is None and len(ends):
            self._text_column = find_text_column(orjson.loads(view[: ends[0]]))
        complete: list[BlockMetadata] = []
        try:
            self._flush()
            first, start = 0, 0
            while first < len(ends):
                last = min(len(ends), first + self._room)
                stop = int(ends[last - 1])
                self._open_block().write(view[start:stop], ends[first:last] - start)
                self._count += last - first
                self._room -= last - first
                if self._room == 0:
                    complete.append(self._complete())
                first, start = last, stop
        except BaseException as error:
            self._fail(error)
            raise
        return complete

    def _check_ends(self, view: memoryview, ends: np.ndarray) -> None:
        size = int(ends[-1]) if len(ends) else 0
        if size != len(view) or (len(ends) and (int(ends[0]) < 1 or (ends[1:] <= ends[:-1]).any())):
            raise ConfigError(f"ends must rise to the {len(view)} bytes of data; the last one is {size}")
        if (np.frombuffer(view, np.uint8)[ends - 1] != 10).any():
            raise ConfigError("each line must end with a newline, where its end is")

    def commit_source(self, position: dict[str, Any], counts: Mapping[str, int] | None = None) -> None:
        """Say that reading goes on at a position of the source, after all samples given so far.

        It gets into the manifest with the next complete block. A writer that resumes has the last position
        before the end of a block as `position`, and the number of samples from there to that end as `skip`.

        Args:
            position: a JSON value.
            counts: what was left out or changed up to here, by reason, from the first sample on: those of `counts`
                after resuming, and more.
        """
        self.position = position
        self._at_position = self._count
        if counts is not None:
            self.counts = dict(counts)

    def finalize(self) -> DatasetBlockInfo:
        """Write the last, short block and the finished manifest, and give the folder back.

        Raises:
            ConfigError: it was called before, or the writer is closed.
            StoreError: as `add_sample`.
        """
        if self._state not in ("open", "finished"):
            raise self._refusal("finalize")
        if self._state == "open":
            try:
                self._flush()
                if self._block is not None:
                    self._complete(finished=True)
                else:
                    self._publish(finished=True)
            except BaseException as error:
                self._fail(error)
                raise
        self._state = "finalized"
        self._held.close()
        return self._info

    def close(self) -> None:
        """Give the folder back without finishing; complete blocks stay, the samples after them are dropped."""
        self._state = "closed" if self._state in ("open", "finished") else self._state
        self._lines.clear()
        block, self._block = self._block, None
        try:
            if block is not None:
                block.discard()
        finally:
            self._held.close()

    def __enter__(self) -> StreamingBlockWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if kind is None and self._state in ("open", "finished"):
            self.finalize()
        else:
            self.close()

    def _refusal(self, call: str) -> ConfigError:
        return ConfigError(f"{call}: {_REFUSALS[self._state]} ({self.output_dir})")

    def _fail(self, error: BaseException) -> None:
        """Close after an error, and add to it what is left of the work."""
        self._state = "failed"
        self.close()
        kept = f"{self._info.total_samples:,} samples in {self._info.total_blocks:,} complete blocks"
        error.add_note(f"{kept} are safe in {self.output_dir}; a new writer there goes on after them")

    def _open_block(self) -> BlockFile:
        if self._block is None:
            self._block = BlockFile(self.output_dir / BLOCKS_FOLDER, len(self._blocks), self._compression)
        return self._block

    def _flush(self) -> None:
        """Hand the lines that wait to the block's file."""
        if self._lines:
            ends = np.fromiter(accumulate(map(len, self._lines)), np.int64, len(self._lines))
            self._open_block().write(b"".join(self._lines), ends)
            self._lines.clear()
            self._lines_bytes = 0

    def _complete(self, *, finished: bool = False) -> BlockMetadata:
        """End the block: its files get their names, and then the manifest knows it."""
        assert self._block is not None, "a block is completed when it has samples"
        sync_assets(self.output_dir / ASSETS_FOLDER)
        checksum = self._block.finish()
        start = self._blocks[-1].end_index if self._blocks else 0
        block = BlockMetadata(
            block_id=len(self._blocks),
            sample_count=self._count - start,
            start_index=start,
            end_index=self._count,
            file_path=f"{BLOCKS_FOLDER}/{self._block.path.name}",
            size_bytes=self._block.size_bytes,
            checksum=checksum,
        )
        self._block = None
        self._room = self.block_size
        self._blocks.append(block)
        self._publish(finished=finished)
        if self._log is not None:
            self._log(
                f"block {block.block_id}: {block.sample_count:,} samples, {block.size_bytes / 1e6:,.1f} MB "
                f"({self._count:,} samples in all)"
            )
        return block

    def _publish(self, *, finished: bool) -> None:
        counts = dict(self.counts)
        if self._encoder.nulled:
            counts[NULLED] = counts.get(NULLED, 0) + self._encoder.nulled
        source = None
        if self._source is not None or self.position is not None:
            source = {"from": self._source, "position": self.position, "skip": self._count - self._at_position}
        self._info = DatasetBlockInfo(
            dataset_name=self.dataset_name,
            total_samples=self._count,
            total_blocks=len(self._blocks),
            block_size=self.block_size,
            text_column=self._text_column,
            blocks=tuple(self._blocks),
            finished=finished,
            source=source,
            counts=counts,
        )
        write_block_manifest(self.output_dir, self._info)
