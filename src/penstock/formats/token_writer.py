"""Writing a token bin so that it can be stopped at any moment and gone on with.

    train.bin.partial, train.docs.partial    what has been appended
    train.partial.json                       the journal: how much of it counts, and what it was made from

Law: the journal never speaks of bytes that are not on the disk. A commit syncs both files, then
replaces the journal; whatever lies beyond its lengths after a crash is cut off by the next writer.
Publishing gives the document table its name first, then the side-car, and the .bin last, so a .bin is
never there without what describes it.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from penstock.errors import BadManifest, ConfigError, FormatError
from penstock.formats.files import digest, publish, read_json, store_errors, write_json
from penstock.formats.tokens import (
    DOC_DTYPE,
    FORMAT_NAME,
    FORMAT_VERSION,
    SEGMENT_BYTES,
    docs_path,
    dtype_for,
    meta_path,
)

_JOURNAL_FORMAT = "penstock-tokens-partial"


@dataclass(frozen=True, kw_only=True, slots=True)
class Journal:
    """How far a bin has been written, and what is to be remembered with it."""

    job: dict[str, Any]
    """What decides the bytes: two writers with equal jobs write the same file."""
    num_tokens: int
    num_documents: int
    segments: tuple[str, ...]
    """Checksums of the whole segments so far."""
    progress: dict[str, Any]
    """The caller's own, as given to `commit`."""


def journal_path(path: Path) -> Path:
    """Give the journal's path for a .bin's."""
    return path.with_suffix(".partial.json")


def partial_paths(path: Path) -> tuple[Path, Path]:
    """Give the paths of the unfinished .bin and .docs."""
    return path.with_suffix(".bin.partial"), path.with_suffix(".docs.partial")


def read_journal(path: Path) -> Journal | None:
    """Read the journal of an unfinished .bin; None where there is none.

    Raises:
        BadManifest: it can't be read.
    """
    place = journal_path(path)
    if not place.is_file():
        return None
    found = read_json(place)
    try:
        if (found["format"], found["format_version"]) != (_JOURNAL_FORMAT, FORMAT_VERSION):
            raise ValueError(f"its format is {found['format']} {found['format_version']}")
        return Journal(
            job=found["job"],
            num_tokens=int(found["num_tokens"]),
            num_documents=int(found["num_documents"]),
            segments=tuple(found["segments"]),
            progress=found["progress"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadManifest(f"{place} is no journal of this penstock ({error!r}); remove it to begin anew") from error


def discard_partial(path: Path) -> None:
    """Remove what an unfinished writer of a .bin has left, the journal first."""
    for place in (journal_path(path), *partial_paths(path)):
        with store_errors(place):
            place.unlink(missing_ok=True)


class TokenWriter:
    """Append documents to a token bin; go on where an earlier writer stopped.

    One thread at a time may use it, `sync` apart.

    Args:
        path: the .bin to be; its folder exists.
        vocab_size: ids are below it; decides the type of the ids.
        job: what decides the bytes, JSON values. A journal of another job is refused.

    Raises:
        ConfigError: the parts there belong to another job.
        BadManifest: the journal there can't be read.
        StoreError: the folder can't be written.
    """

    def __init__(self, path: str | os.PathLike[str], *, vocab_size: int, job: dict[str, Any]) -> None:
        self.path = Path(path)
        self.dtype = dtype_for(vocab_size)
        self._vocab_size = vocab_size
        journal = read_journal(self.path)
        if journal is not None and journal.job != job:
            raise ConfigError(f"{self.path} was begun by another job; remove {journal_path(self.path)} to begin anew")
        if journal is not None and not _recovered(self.path, journal, self.dtype):
            journal = None
        self._journal = journal or Journal(job=job, num_tokens=0, num_documents=0, segments=(), progress={})
        self._open_parts()

    def _open_parts(self) -> None:
        journal = self._journal
        self.num_tokens, self.num_documents = journal.num_tokens, journal.num_documents
        self._segments = list(journal.segments)
        self._pending: dict[str, Any] | None = None
        self._widths: np.ndarray = np.empty(0, self.dtype)
        self._broken = False
        ids, docs = partial_paths(self.path)
        with store_errors(ids):
            self._ids = _open_cut(ids, self.num_tokens * self.dtype.itemsize)
            try:
                self._docs = _open_cut(docs, self.num_documents * DOC_DTYPE.itemsize)
                self._hasher = self._hash_of_tail()
            except BaseException:
                self._ids.close()
                raise

    def _hash_of_tail(self) -> Any:
        hasher = blake2b(digest_size=16)
        start = len(self._segments) * SEGMENT_BYTES
        self._room = SEGMENT_BYTES - (self.num_tokens * self.dtype.itemsize - start)
        self._ids.seek(start)
        hasher.update(self._ids.read())
        return hasher

    @property
    def progress(self) -> dict[str, Any]:
        """What was given to the last `commit` that holds; empty for a new file."""
        return self._journal.progress

    def append(self, ids: np.ndarray, offsets: np.ndarray, progress: dict[str, Any]) -> None:
        """Write documents; they count from the next `commit` on.

        Args:
            ids: uint32 [T].
            offsets: int64 [n + 1] from 0: document i is ids[offsets[i]:offsets[i + 1]].
            progress: JSON values to be remembered with all that was appended so far.

        Raises:
            FormatError: an id is outside the vocabulary; nothing was written.
            StoreError: the disk is full, or can't be written.
        """
        if len(ids) and int(ids.max()) >= self._vocab_size:
            raise FormatError(
                f"the tokenizer gave id {int(ids.max())}, outside its vocabulary of {self._vocab_size}: nothing was "
                f"written to {self.path.name}; the tokenizer is damaged, or its vocab_size is wrong"
            )
        if len(self._widths) < len(ids):
            # Kept between calls: writing to memory for the first time costs many times the copy itself.
            self._widths = np.empty(len(ids) + len(ids) // 8, self.dtype)
        narrow = self._widths[: len(ids)]
        np.copyto(narrow, ids, casting="unsafe")
        self._broken = True
        with store_errors(self.path):
            self._write_ids(memoryview(narrow.view(np.uint8).data))
            _write(self._docs, memoryview((offsets[1:] + self.num_tokens).astype(DOC_DTYPE).tobytes()))
        self._broken = False
        self.num_tokens += len(ids)
        self.num_documents += len(offsets) - 1
        self._pending = progress

    def _write_ids(self, data: memoryview) -> None:
        while len(data):
            piece, data = data[: self._room], data[self._room :]
            _write(self._ids, piece)
            self._hasher.update(piece)
            self._room -= len(piece)
            if self._room == 0:
                self._segments.append(self._hasher.hexdigest())
                self._hasher, self._room = blake2b(digest_size=16), SEGMENT_BYTES

    def sync(self) -> None:
        """Force to the disk what was appended, so that the next commit is short.

        Another thread may do it while this one appends.

        Raises:
            StoreError: the disk can't be written.
        """
        with store_errors(self.path):
            os.fsync(self._ids.fileno())

    def commit(self) -> None:
        """Make all that was appended survive a crash.

        Raises:
            StoreError: the disk is full, or can't be written; the commit before still holds.
        """
        if self._pending is None:
            return
        with store_errors(self.path):
            os.fsync(self._ids.fileno())
            os.fsync(self._docs.fileno())
        self._journal = Journal(
            job=self._journal.job,
            num_tokens=self.num_tokens,
            num_documents=self.num_documents,
            segments=tuple(self._segments),
            progress=self._pending,
        )
        write_json(journal_path(self.path), _as_json(self._journal))
        self._pending = None

    def finish(self, meta: dict[str, Any]) -> dict[str, Any]:
        """Publish the bin, replacing an older one, and close.

        Args:
            meta: what the side-car says besides what the writer knows; "counts" must hold
                {"rows_in", "documents_out", "skipped"}.

        Returns:
            The side-car.

        Raises:
            StoreError: as `commit`; the parts stay and can be gone on with.
        """
        counts = meta["counts"]
        assert counts["documents_out"] == self.num_documents, "documents counted and written differ"
        assert counts["rows_in"] == self.num_documents + sum(counts["skipped"].values()), "a row was lost"
        self.commit()
        self.close()
        ids, docs = partial_paths(self.path)
        tail = [self._hasher.hexdigest()] if self._room < SEGMENT_BYTES else []
        side_car = {
            "format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "dtype": self.dtype.name,
            "num_tokens": self.num_tokens,
            "num_documents": self.num_documents,
            **meta,
            "checksums": {"algorithm": "blake2b-128", "segment_bytes": SEGMENT_BYTES, "bin": self._segments + tail},
        }
        side_car["checksums"]["docs"] = digest(docs.read_bytes())
        with store_errors(self.path):
            self.path.unlink(missing_ok=True)
        publish(docs, docs_path(self.path))
        write_json(meta_path(self.path), side_car)
        publish(ids, self.path)
        discard_partial(self.path)
        return side_car

    def close(self) -> None:
        """Commit what was appended whole, and close the files; the parts stay."""
        try:
            if not self._broken and not self._ids.closed:
                self.commit()
        finally:
            self._ids.close()
            self._docs.close()

    def __enter__(self) -> TokenWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _open_cut(path: Path, size: int) -> BinaryIO:
    """Open a part for reading and appending, cut to its committed size."""
    file = open(path, "r+b" if path.exists() else "w+b", buffering=0)  # noqa: SIM115 - the writer closes it
    file.truncate(size)
    file.seek(size)
    return file


def _write(file: BinaryIO, data: memoryview) -> None:
    """Write all of it: the system may take less at a time, and says so only by the count."""
    while len(data):
        data = data[file.write(data) :]


def _recovered(path: Path, journal: Journal, dtype: np.dtype) -> bool:
    """Bring back the parts that a journal speaks of; False if they are not there, at least that long."""
    ids, docs = partial_paths(path)
    ids_bytes, docs_bytes = journal.num_tokens * dtype.itemsize, journal.num_documents * DOC_DTYPE.itemsize
    published = docs_path(path)
    if not docs.exists() and not path.exists() and published.exists() and published.stat().st_size == docs_bytes:
        # A crash while publishing: the table had its name already, the .bin had not.
        with store_errors(docs):
            os.replace(published, docs)
    return all(part.exists() and part.stat().st_size >= size for part, size in ((ids, ids_bytes), (docs, docs_bytes)))


def _as_json(journal: Journal) -> dict[str, Any]:
    return {"format": _JOURNAL_FORMAT, "format_version": FORMAT_VERSION, **asdict(journal)}
