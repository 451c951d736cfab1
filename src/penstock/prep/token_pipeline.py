"""The three stages of tokenizing, each at work on another batch.

    read + parse ──▶ encode ──▶ narrow + write + hash
      a thread      all cores        a thread

Law: what a split's file holds after a batch depends on the batches before it only. A row belongs to
a split by its number, and to an interrupted split's rest by being at or behind its position, so splits
that were interrupted at different places go on together.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from penstock.errors import ObjectChanged
from penstock.formats.columns import select_documents
from penstock.formats.sources import SourceFile, source_file
from penstock.formats.text import MAX_LISTED, Documents, OnError, Position, TextBatch, iter_text
from penstock.formats.token_writer import TokenWriter
from penstock.prep.token_job import Share
from penstock.progress import Meter
from penstock.transforms.tokenizer import Tokenizer

_VERIFY_DOCUMENTS = 64
_VERIFY_BYTES = 1 << 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """How texts become tokens: the same for all splits of a run."""

    tokenizer: Tokenizer
    text_field: str
    documents: Documents
    on_error: OnError
    eot_id: int | None
    """Appended to each document; None: nothing is."""
    num_workers: int | None
    show_progress: bool
    commit_every_s: float


@dataclass(kw_only=True, slots=True)
class Sink:
    """One split being written, and what has been counted for it."""

    split: str
    share: Share | None
    writer: TokenWriter
    first_row: int = 0
    """Rows before it were written by an earlier run."""
    position: Position = field(default_factory=Position)
    rows_in: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, split: str, share: Share | None, writer: TokenWriter) -> Sink:
        """Begin a split, or go on with it where its writer's last commit left it."""
        done = writer.progress
        if not done:
            return cls(split=split, share=share, writer=writer)
        position = Position(**done["position"])
        return cls(
            split=split,
            share=share,
            writer=writer,
            first_row=position.row,
            position=position,
            rows_in=done["rows_in"],
            skipped=dict(done["skipped"]),
            listed=list(done["listed"]),
        )

    def wants(self, rows: np.ndarray) -> np.ndarray:
        """Tell which rows, int64 [n], belong to this split and were not written by an earlier run: bool [n]."""
        fresh = rows >= self.first_row
        return fresh if self.share is None else fresh & self.share.takes(rows)

    def add(self, batch: TextBatch, ids: np.ndarray, offsets: np.ndarray) -> None:
        """Append this split's documents of a batch, and count the rows that became none."""
        self.rows_in += len(offsets) - 1
        for reason, rows in batch.skipped.items():
            lost = int(self.wants(rows).sum())
            if lost:
                self.skipped[reason] = self.skipped.get(reason, 0) + lost
                self.rows_in += lost
        self._list_skipped(batch)
        if batch.after.row >= self.position.row:
            self.position = batch.after
        self.writer.append(ids, offsets, self._progress())

    def _list_skipped(self, batch: TextBatch) -> None:
        room = MAX_LISTED - len(self.listed)
        if room and batch.listed:
            wanted = self.wants(np.array([row.row for row in batch.listed], np.int64))
            rows = [row for row, ours in zip(batch.listed, wanted.tolist(), strict=True) if ours]
            self.listed += [{"file": row.file, "line": row.line, "reason": row.reason} for row in rows[:room]]

    def _progress(self) -> dict[str, Any]:
        return {
            "position": asdict(self.position),
            "rows_in": self.rows_in,
            "skipped": dict(self.skipped),
            "listed": list(self.listed),
        }


def fill(files: Sequence[SourceFile], sinks: Sequence[Sink], options: Options) -> None:
    """Read, encode and write what the sinks lack.

    On an error, and on Ctrl-C, all threads have ended when it leaves.

    Raises:
        BadRecord, BadBlock, ConfigError, StoreError: see `iter_text` and `TokenWriter`.
        FormatError: the fast tokenizer and the reference differ.
        ObjectChanged: a file changed while it was read.
    """
    start = min((sink.position for sink in sinks), key=lambda position: (position.file, position.offset))
    batches = iter_text(
        files, text_field=options.text_field, documents=options.documents, on_error=options.on_error, start=start
    )
    label, total = f"tokenizing {', '.join(sink.split for sink in sinks)}", sum(file.size_bytes for file in files)
    stage = _WriteStage(sinks, options)
    with Meter(label, total=total, unit="B", show=options.show_progress) as meter, ExitStack() as stack:
        writing = stack.enter_context(ThreadPoolExecutor(1, "penstock-write"))
        # Closed after the reading thread has ended: a generator can't be closed while it runs.
        stack.enter_context(closing(batches))
        reading = stack.enter_context(ThreadPoolExecutor(1, "penstock-read"))
        ahead: Future[TextBatch | None] = reading.submit(next, batches, None)
        behind: Future[None] | None = None
        verified = False
        while (batch := ahead.result()) is not None:
            ahead = reading.submit(next, batches, None)
            if not verified and len(batch.rows):
                _verify(options.tokenizer, batch)
                verified = True
            encoded = _encoded(batch, sinks, options)
            if behind is not None:
                behind.result()
            behind = writing.submit(stage.write, batch, *encoded)
            meter.add(_bytes_before(files, batch.after) - meter.done)
        if behind is not None:
            behind.result()
    _refuse_change(files)


def _verify(tokenizer: Tokenizer, batch: TextBatch) -> None:
    """Compare the fast engine with the reference on the first documents of this run."""
    stop = int(np.searchsorted(batch.offsets, _VERIFY_BYTES, side="right")) - 1
    offsets = batch.offsets[: min(stop, _VERIFY_DOCUMENTS) + 1]
    if len(offsets) > 1:
        tokenizer.verify(batch.data[: offsets[-1]], offsets)
        return
    # One long document: its beginning, cut between two characters.
    head = batch.data[:_VERIFY_BYTES].tobytes().decode(errors="ignore").encode()
    tokenizer.verify(np.frombuffer(head, np.uint8), np.array([0, len(head)], np.int64))


def _encoded(
    batch: TextBatch, sinks: Sequence[Sink], options: Options
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Encode the documents that some split lacks: ids, offsets, and for each split which of them it takes."""
    takes = [sink.wants(batch.rows) for sink in sinks]
    needed = np.logical_or.reduce(takes)
    data, offsets = batch.data, batch.offsets
    if not needed.all():
        data, offsets = select_documents(data, offsets, needed)
        takes = [take[needed] for take in takes]
    ids, ends = options.tokenizer.encode_flat(data, offsets, num_threads=options.num_workers)
    return ids, ends, takes


class _WriteStage:
    """The last stage: append a batch to its splits, and commit now and then."""

    def __init__(self, sinks: Sequence[Sink], options: Options) -> None:
        self._sinks = sinks
        self._eot_id = options.eot_id
        self._commit_every_s = options.commit_every_s
        self._committed_at = time.monotonic()

    def write(self, batch: TextBatch, ids: np.ndarray, offsets: np.ndarray, takes: Sequence[np.ndarray]) -> None:
        """Hand each split the documents it takes."""
        for sink, take in zip(self._sinks, takes, strict=True):
            part, ends = (ids, offsets) if take.all() else select_documents(ids, offsets, take)
            if self._eot_id is not None:
                part, ends = with_eot(part, ends, self._eot_id)
            sink.add(batch, part, ends)
        if time.monotonic() - self._committed_at >= self._commit_every_s:
            for sink in self._sinks:
                sink.writer.commit()
            self._committed_at = time.monotonic()


def with_eot(ids: np.ndarray, offsets: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
    """End each document with one more id.

    >>> ids, offsets = with_eot(np.array([5, 6, 7]), np.array([0, 2, 2, 3]), 9)
    >>> ids.tolist(), offsets.tolist()
    ([5, 6, 9, 9, 7, 9], [0, 3, 4, 6])
    """
    ends = offsets + np.arange(len(offsets))
    is_eot = np.zeros(int(ends[-1]), bool)
    is_eot[ends[1:] - 1] = True
    longer = np.empty(len(is_eot), ids.dtype)
    longer[is_eot] = eot_id
    longer[~is_eot] = ids
    return longer, ends


def _bytes_before(files: Sequence[SourceFile], position: Position) -> int:
    """Count the bytes of the source before a position, as well as its files tell."""
    file = files[position.file]
    here = position.offset if file.kind != "parquet" and file.compression is None else 0
    return sum(file.size_bytes for file in files[: position.file]) + min(here, file.size_bytes)


def _refuse_change(files: Sequence[SourceFile]) -> None:
    for file in files:
        if source_file(file.path, name=file.name, kind=file.kind).signature != file.signature:
            raise ObjectChanged(f"{file.path} changed while it was read; run again when nothing writes to it")
