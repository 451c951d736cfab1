"""The three stages of tokenizing, each at work on another batch.

    read + parse ──▶ encode ──▶ narrow + write + hash
      a thread       threads         a thread

Law: what a split's file holds after a batch depends on the batches before it only. A row belongs to
a split by its number, and to an interrupted split's rest by being at or behind its position, so splits
that were interrupted at different places go on together.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from penstock.formats.columns import select_documents
from penstock.formats.sources import SourceFile
from penstock.formats.text import MAX_LISTED, Documents, OnError, Position, TextBatch, iter_text
from penstock.formats.token_writer import TokenWriter
from penstock.prep.source_change import refuse_change
from penstock.prep.token_job import Share
from penstock.progress import Meter
from penstock.transforms.tokenizer import Tokenizer

FAST_ENGINE = "gigatoken"
_MAX_ENCODERS = 4
_WORTH_BYTES = 256 << 20
"""Source for which a further encoder is worth its opening."""
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
    """Threads that encode; None: as many as are worth it."""
    show_progress: bool
    commit_every_s: float


@dataclass(kw_only=True, slots=True)
class Sink:
    """One split being written, and what has been counted for it."""

    split: str
    share: Share | None
    writer: TokenWriter
    tokenizer: str
    """Its name: the journal tells it to whoever comes with another."""
    first_row: int = 0
    """Rows before it were written by an earlier run."""
    position: Position = field(default_factory=Position)
    rows_in: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, split: str, share: Share | None, writer: TokenWriter, tokenizer: str) -> Sink:
        """Begin a split, or go on with it where its writer's last commit left it."""
        done = writer.progress
        if not done:
            return cls(split=split, share=share, writer=writer, tokenizer=tokenizer)
        position = Position(**done["position"])
        return cls(
            split=split,
            share=share,
            writer=writer,
            tokenizer=tokenizer,
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
            "tokenizer": self.tokenizer,
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
    encoders = _Encoders(sinks, options, sum(file.size_bytes for file in files))
    with ExitStack() as stack:
        writer = stack.enter_context(_Writer(files, sinks, options))
        # Closed after the reading thread has ended: a generator can't be closed while it runs.
        stack.enter_context(closing(batches))
        reading = stack.enter_context(ThreadPoolExecutor(1, "penstock-read"))
        encoding = stack.enter_context(ThreadPoolExecutor(encoders.count, "penstock-encode"))
        stack.callback(encoding.shutdown, wait=False, cancel_futures=True)
        queue: deque[Future[_Encoded]] = deque()
        for batch in _one_ahead(reading, batches):
            queue.append(encoding.submit(encoders.encode, batch))
            if len(queue) > encoders.count:
                writer.take(queue.popleft().result())
        while queue:
            writer.take(queue.popleft().result())
        writer.close()
    refuse_change(files)


def _one_ahead(reading: ThreadPoolExecutor, batches: Iterator[TextBatch]) -> Iterator[TextBatch]:
    """Give batches, while the next is being read."""
    ahead: Future[TextBatch | None] = reading.submit(next, batches, None)
    while (batch := ahead.result()) is not None:
        ahead = reading.submit(next, batches, None)
        yield batch


@dataclass(frozen=True, kw_only=True, slots=True)
class _Encoded:
    """A batch on its way from encoding to writing."""

    batch: TextBatch
    ids: np.ndarray
    offsets: np.ndarray
    takes: list[np.ndarray]
    """For each sink, which of the documents encoded it takes."""


class _Encoders:
    """The middle stage: several batches at a time, or one at a time on several threads.

    The fast engine is fastest on one thread with a batch to itself; calls of one tokenizer wait for each
    other, so each thread has one of its own. The other engines spread a batch over threads themselves.
    """

    def __init__(self, sinks: Sequence[Sink], options: Options, source_bytes: int) -> None:
        self._sinks = sinks
        self._tokenizer = options.tokenizer
        self._free = [options.tokenizer]
        self._is_verified = False
        is_fast = options.tokenizer.engine == FAST_ENGINE
        # A further tokenizer takes up to seconds to open, and reading and writing need a core too.
        worth = min((os.cpu_count() or 1) - 1, 1 + source_bytes // _WORTH_BYTES, _MAX_ENCODERS)
        self.count = (options.num_workers or max(1, worth)) if is_fast else 1
        self._num_threads = 1 if is_fast else options.num_workers

    def encode(self, batch: TextBatch) -> _Encoded:
        """Encode the documents that some split lacks."""
        takes = [sink.wants(batch.rows) for sink in self._sinks]
        needed = np.logical_or.reduce(takes)
        data, offsets = batch.data, batch.offsets
        if not needed.all():
            data, offsets = select_documents(data, offsets, needed)
            takes = [take[needed] for take in takes]
        tokenizer = self._open()
        if not self._is_verified and len(offsets) > 1:
            _verify(tokenizer, data, offsets)
            self._is_verified = True
        ids, ends = tokenizer.encode_flat(data, offsets, num_threads=self._num_threads)
        self._free.append(tokenizer)
        return _Encoded(batch=batch, ids=ids, offsets=ends, takes=takes)

    def _open(self) -> Tokenizer:
        """Give a tokenizer that no other thread is using."""
        try:
            return self._free.pop()
        except IndexError:
            return copy(self._tokenizer)


def _verify(tokenizer: Tokenizer, data: np.ndarray, offsets: np.ndarray) -> None:
    """Compare the fast engine with the reference on the first documents."""
    stop = int(np.searchsorted(offsets, _VERIFY_BYTES, side="right")) - 1
    first = offsets[: min(stop, _VERIFY_DOCUMENTS) + 1]
    if len(first) > 1:
        tokenizer.verify(data[: first[-1]], first)
        return
    # One long document: its beginning, cut between two characters.
    head = data[:_VERIFY_BYTES].tobytes().decode(errors="ignore").encode()
    tokenizer.verify(np.frombuffer(head, np.uint8), np.array([0, len(head)], np.int64))


class _Writer:
    """The last stage: append batches to their splits on a thread, and commit now and then."""

    def __init__(self, files: Sequence[SourceFile], sinks: Sequence[Sink], options: Options) -> None:
        self._files = files
        self._sinks = sinks
        self._options = options
        self._committed_at = time.monotonic()
        self._pool = ThreadPoolExecutor(1, "penstock-write")
        self._behind: Future[Position] | None = None
        # The disk works while the next batches are made, so that commits have little left to wait for.
        self._sync_pool = ThreadPoolExecutor(1, "penstock-sync")
        self._syncing: Future[None] | None = None
        label = f"tokenizing {', '.join(sink.split for sink in sinks)}"
        total = sum(file.size_bytes for file in files)
        self._meter = Meter(label, total=total, unit="B", show=options.show_progress)

    def __enter__(self) -> _Writer:
        self._meter.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._pool.shutdown()
        self._sync_pool.shutdown()
        self._meter.__exit__(*error)

    def take(self, encoded: _Encoded) -> None:
        """Begin to write a batch, as soon as the one before is written."""
        self.wait()
        self._behind = self._pool.submit(self._write, encoded)

    def wait(self) -> None:
        """Wait until all batches taken are written; raise the error if one could not be."""
        if self._behind is None:
            return
        self._meter.add(_bytes_before(self._files, self._behind.result()) - self._meter.done)
        if self._syncing is None or self._syncing.done():
            self._finish_sync()
            self._syncing = self._sync_pool.submit(self._sync)

    def close(self) -> None:
        """Wait for all that is under way, and raise its error."""
        self.wait()
        self._finish_sync()

    def _finish_sync(self) -> None:
        # The system reports a failed sync once: who does not look here would take the next one's word for it.
        if self._syncing is not None:
            self._syncing.result()

    def _sync(self) -> None:
        for sink in self._sinks:
            sink.writer.sync()

    def _write(self, encoded: _Encoded) -> Position:
        for sink, take in zip(self._sinks, encoded.takes, strict=True):
            ids, offsets = encoded.ids, encoded.offsets
            if not take.all():
                ids, offsets = select_documents(ids, offsets, take)
            if self._options.eot_id is not None:
                ids, offsets = with_eot(ids, offsets, self._options.eot_id)
            sink.add(encoded.batch, ids, offsets)
        if time.monotonic() - self._committed_at >= self._options.commit_every_s:
            for sink in self._sinks:
                sink.writer.commit()
            self._committed_at = time.monotonic()
        return encoded.batch.after


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
