"""Documents by id, straight from text files: for training without tokenizing first."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from penstock.datasets.cache import built_once, content_digest, open_cache
from penstock.datasets.ids import check_id, check_ids
from penstock.datasets.token_cache import text_files
from penstock.errors import BadRecord, ConfigError, ObjectChanged
from penstock.formats.files import digest
from penstock.formats.json_lines import read_json_lines
from penstock.formats.sources import Source, SourceFile
from penstock.formats.spans import Unit, open_spans, write_spans
from penstock.transforms.collate import stack
from penstock.transforms.pad import pad
from penstock.types import check_choice, check_int

SPANS = "documents.spans"
COUNT_BYTES = 16 << 20


class TextDataset:
    """The documents of JSON lines or plain text, by id, read where they lie.

    A table of byte ranges is made once for each file and kept beside it, found again by the file's
    content: 16 bytes a document, mapped, not loaded. So a corpus of any size opens at once and costs no memory, and
    `penstock.transforms.tokenize_text.TokenizeText` turns its samples into tokens while training.

    Args:
        data_path: JSON lines or text, uncompressed: a file, a folder or glob of them, or a list.
        is_jsonl: True or False says what is in the files. None: what their suffix says, text where it says nothing.
        text_field: key of the text in JSON records.
        documents: what is one document in a text file: what stands between blank lines ("paragraph"), or a "line".
        pad_id: id that fills the shorter rows of a batch whose samples have been tokenized.
        cache_dir: where to keep the tables. None: `.penstock` beside the data, or the user's cache folder
            if that can't be written.
        timeout: seconds to wait for another process that makes a table.

    Raises:
        ConfigError: an argument cannot work, a file is compressed, or there are no documents.
        ObjectMissing: there is no such file.
        StoreError: the cache can't be written.

    A sample is {"text": str}. A record that can't be used raises BadRecord when it is asked for, with its file
    and line; one with an empty text is a sample like any other.
    """

    def __init__(
        self,
        data_path: Source,
        *,
        is_jsonl: bool | None = None,
        text_field: str = "text",
        documents: Unit = "paragraph",
        pad_id: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float = 600.0,
    ) -> None:
        check_choice("documents", documents, ("paragraph", "line"))
        self.text_field = text_field
        self.documents = documents
        self.pad_id = check_int("pad_id", pad_id, minimum=0)
        self._files = text_files(data_path, is_jsonl)
        cache = open_cache(self._files[0].path.parent, cache_dir)
        self._digests = [content_digest(file.path, cache, timeout=timeout) for file in self._files]
        self._tables = [self._table(file, content, cache, timeout) for file, content in self._keyed()]
        self._open()
        if not len(self):
            raise ConfigError(f"{self._files[0].path}{' and the others' * (len(self._files) > 1)}: no document in it")

    def __len__(self) -> int:
        """Count the documents."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, str]:
        """Give one document.

        Raises:
            IndexError: there is no such document.
            BadRecord: it can't be used.
        """
        return self.fetch(np.array([check_id(index, len(self), self._files[0].path)]))[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, str]]:
        """Give several documents, as torch's DataLoader asks for them."""
        return self.fetch(np.asarray(indices, np.int64))

    @property
    def fingerprint(self) -> str:
        """What the samples are: the files' contents and how they are read."""
        what = [[file.kind for file in self._files], self._digests, self.text_field, self.documents]
        return digest(repr(what).encode())

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of every document in its file, int64 [len(self)]; made when first asked for."""
        return np.concatenate([np.diff(spans.astype(np.int64), axis=1)[:, 0] for spans in self._spans])

    def fetch(self, ids: np.ndarray) -> list[dict[str, str]]:
        """Read the documents of ids, int64 [n]: the system is told of all of them before the first is waited for.

        Raises:
            IndexError: there is no such document.
            BadRecord: one can't be used.
            ObjectChanged: a file is shorter than when it was opened.
        """
        check_ids(ids, len(self), self._files[0].path)
        homes = np.searchsorted(self._ends, ids, side="right")  # [n]
        texts: list[str] = [""] * len(ids)
        for home in np.unique(homes).tolist():
            asked = np.flatnonzero(homes == home)
            rows = ids[asked] - (self._ends[home - 1] if home else 0)
            spans = self._spans[home][rows].astype(np.int64)  # [n, 2]
            raw = self._read(home, spans)
            found = self._decoded(home, spans, raw)
            for place, text in zip(asked.tolist(), found, strict=True):
                texts[place] = text
        return [{"text": text} for text in texts]

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples; those that a transform has tokenized are padded to the longest of the batch."""
        batch: dict[str, Any] = pad(samples, pad_id=self.pad_id) if "input_ids" in samples[0] else stack(samples)
        return batch

    def _keyed(self) -> list[tuple[SourceFile, str]]:
        return list(zip(self._files, self._digests, strict=True))

    def _table(self, file: SourceFile, content: str, cache: Path, timeout: float) -> Path:
        """Give the table of one file, made by the first process that asks."""
        unit = "line" if file.kind == "jsonl" else self.documents

        def build(path: Path, gets_on: Callable[[], None]) -> None:
            write_spans(path, file, self.documents)

        seen = blake2b(f"spans-v1 {file.kind} {unit} {file.compression} {content}".encode(), digest_size=16)
        return built_once(cache / seen.hexdigest(), SPANS, build, timeout=timeout)

    def _open(self) -> None:
        self._spans = [open_spans(table) for table in self._tables]
        self._ends = np.cumsum([len(spans) for spans in self._spans], dtype=np.int64)
        self._descriptors = [os.open(file.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0)) for file in self._files]
        weakref.finalize(self, _close_all, self._descriptors)
        for file, descriptor in zip(self._files, self._descriptors, strict=True):
            status = os.fstat(descriptor)
            if (status.st_size, status.st_mtime_ns) != (file.size_bytes, file.mtime_ns):
                raise ObjectChanged(f"{file.path} was written to since this dataset was made: make it again")

    def _read(self, home: int, spans: np.ndarray) -> list[bytes]:
        """Read byte ranges of a file."""
        descriptor, parts = self._descriptors[home], []
        ranges = [(start, stop - start) for start, stop in spans.tolist()]
        if hasattr(os, "posix_fadvise") and len(ranges) > 1:
            # So that the disk works on all of them at once, while we wait for the first.
            for start, size in ranges:
                os.posix_fadvise(descriptor, start, size, os.POSIX_FADV_WILLNEED)
        for start, size in ranges:
            part = os.pread(descriptor, size, start)
            if len(part) < size:
                raise ObjectChanged(f"{self._files[home].path} is shorter than when it was opened: open it again")
            parts.append(part)
        return parts

    def _decoded(self, home: int, spans: np.ndarray, raw: list[bytes]) -> list[str]:
        """Turn the bytes of documents into their texts."""
        file = self._files[home]
        if file.kind == "text":
            return [self._decode(home, int(span[0]), part) for span, part in zip(spans, raw, strict=True)]
        # One parse for all: lines hold no line ends, so joined by them they are JSON lines again.
        block = np.frombuffer(b"\n".join(raw), np.uint8)
        column, _ = read_json_lines(block, self.text_field, 1)
        for fault in column.faults:
            raise self._bad(home, int(spans[fault.row, 0]), fault.reason, fault.detail)
        data, cuts = column.data.data, column.offsets.tolist()
        return [str(data[start:stop], "utf-8") for start, stop in pairwise(cuts)]

    def _decode(self, home: int, start: int, part: bytes) -> str:
        try:
            return part.decode()
        except UnicodeDecodeError as error:
            detail = f"its byte {error.start} is not UTF-8 ({error.reason})"
            raise self._bad(home, start, "invalid-utf8", detail) from None

    def _bad(self, home: int, start: int, reason: str, detail: str) -> BadRecord:
        """Name a record by its line, counted only now that someone needs to know."""
        path, line, at = self._files[home].path, 1, 0
        while at < start:
            part = os.pread(self._descriptors[home], min(COUNT_BYTES, start - at), at)
            line, at = line + part.count(b"\n"), at + max(1, len(part))
        message = f"line {line} of {path} cannot be used ({reason}): {detail}; repair it"
        return BadRecord(message, file=str(path), line=line, reason=reason)

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in self.__dict__.items() if name not in ("_spans", "_ends", "lengths")}
        del state["_descriptors"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The receiving process opens the files and maps the tables itself.
        self.__dict__.update(state)
        self._open()


def _close_all(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
