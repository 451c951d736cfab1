"""Text files as a token bin that is made once and kept.

    text, tokenizer ──▶ CACHE/<digest of both>/tokens.bin, .docs, .json ──▶ every process maps it

Text streams through in blocks of some megabytes, whatever the corpus's size; a builder that is killed
leaves parts, and the next one goes on with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from penstock.datasets.cache import built_once, content_digest, open_cache
from penstock.errors import ConfigError
from penstock.formats.files import digest
from penstock.formats.sources import Source, SourceFile, find_files, source_file
from penstock.formats.text import Position, TextBatch, iter_text
from penstock.formats.token_writer import TokenWriter
from penstock.progress import Meter
from penstock.transforms.any_tokenizer import MAX_ID, as_tokenizer, encode_documents, fingerprint_of, vocab_size_of
from penstock.types import check_choice

BIN = "tokens.bin"
VERIFIED_DOCUMENTS = 64
SHOWN_FROM_BYTES = 64 << 20
"""Smaller corpora are done before a bar could be read."""


def text_files(source: Source, is_jsonl: bool | None) -> list[SourceFile]:
    """List the files of a source; what is in each follows its suffix, or is_jsonl where that is given.

    A file of a suffix that says nothing is text.

    Raises:
        ObjectMissing: there is no such file.
        ConfigError: is_jsonl is not True, False or None; a folder has no file of a known suffix.
    """
    check_choice("is_jsonl", is_jsonl, (None, True, False))
    kind: Any = None if is_jsonl is None else "jsonl" if is_jsonl else "text"
    if not isinstance(source, str | os.PathLike):
        if not source:
            raise ConfigError("no data files were given")
        return [file for place in source for file in text_files(place, is_jsonl)]
    if not Path(source).is_file():
        found = find_files(source)
        return found if kind is None else [source_file(file.path, name=file.name, kind=kind) for file in found]
    try:
        return [source_file(source, kind=kind)]
    except ConfigError:
        return [source_file(source, kind="text")]


def cached_bin(
    files: list[SourceFile],
    tokenizer: Any,
    *,
    text_field: str,
    cache_dir: str | os.PathLike[str] | None,
    timeout: float,
) -> Path:
    """Give the token bin of files: all their documents in order, tokenized by the first process that asks.

    Documents of text files are paragraphs: what stands between blank lines.

    Raises:
        BadRecord: a record can't be used; names its file and line.
        FormatError: the tokenizer's vocabulary is larger than it says.
        ConfigError: no record has the field, or the tokenizer gave something that is not ids.
        StoreError: the cache can't be written, or its builder stopped without ending.
    """
    tokenizer = as_tokenizer(tokenizer)
    cache = open_cache(files[0].path.parent, cache_dir)
    job = {
        "files": [[file.kind, file.compression, content_digest(file.path, cache, timeout=timeout)] for file in files],
        "text_field": text_field,
        "tokenizer": fingerprint_of(tokenizer),
    }
    entry = cache / digest(repr(sorted(job.items())).encode())

    def build(path: Path, gets_on: Callable[[], None]) -> None:
        _build(path, files, tokenizer, job, gets_on)

    return built_once(entry, BIN, build, timeout=timeout)


def _build(
    path: Path, files: list[SourceFile], tokenizer: Any, job: dict[str, Any], gets_on: Callable[[], None]
) -> None:
    """Tokenize files into a bin, from where an earlier builder stopped."""
    size = sum(file.size_bytes for file in files)
    vocab_size = vocab_size_of(tokenizer) or MAX_ID + 1
    with (
        TokenWriter(path, vocab_size=vocab_size, job=job) as writer,
        Meter("tokenizing", total=size, unit="B", show=size >= SHOWN_FROM_BYTES) as meter,
    ):
        done = writer.progress or {"after": asdict(Position()), "empty": 0}
        start = Position(**done["after"])
        meter.add(_bytes_before(files, start))
        if start == Position():
            _verify(tokenizer, files, job["text_field"])
        for batch in iter_text(files, text_field=job["text_field"], documents="paragraph", start=start):
            ids, offsets = encode_documents(tokenizer, batch.data, batch.offsets)
            done = {"after": asdict(batch.after), "empty": done["empty"] + _num_skipped(batch)}
            writer.append(ids, offsets, done)
            writer.commit()
            gets_on()
            meter.add(_bytes_before(files, batch.after) - meter.done)
        name = getattr(tokenizer, "name", type(tokenizer).__name__)
        writer.finish(
            {
                "vocab_size": vocab_size,
                "tokenizer": {"name": str(name), "fingerprint": job["tokenizer"]},
                "counts": {
                    "rows_in": done["after"]["row"],
                    "documents_out": writer.num_documents,
                    "skipped": {"empty": done["empty"]} if done["empty"] else {},
                },
            }
        )


def _verify(tokenizer: Any, files: list[SourceFile], text_field: str) -> None:
    """Hold a tokenizer's fast engine, where it has one, to its reference on the first documents."""
    if callable(verify := getattr(tokenizer, "verify", None)) and hasattr(tokenizer, "encode_flat"):
        for batch in iter_text(files, text_field=text_field, documents="paragraph", block_bytes=1 << 18):
            verify(batch.data, batch.offsets[: VERIFIED_DOCUMENTS + 1])
            return


def _num_skipped(batch: TextBatch) -> int:
    return sum(len(rows) for rows in batch.skipped.values())


def _bytes_before(files: list[SourceFile], at: Position) -> int:
    """Say about how much of the files lies before a position."""
    before = sum(file.size_bytes for file in files[: at.file])
    return before + (min(at.offset, files[at.file].size_bytes) if at.file < len(files) else 0)
