"""Tokenize: text in, token bins out, at the speed of the tokenizer.

    source ──▶ train.bin, train.docs, train.json     and the same for each further split

Laws: the bytes written depend on the source, the tokenizer and the options only, not on threads or
interruptions; rows in = documents out + rows skipped, by reason; a crash leaves parts that the next
run goes on from, and no .bin.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from penstock.errors import ConfigError, FormatError
from penstock.formats.files import lock_folder, store_errors
from penstock.formats.sources import Source, SourceFile
from penstock.formats.text import DOCUMENTS, ON_ERROR, Documents, OnError
from penstock.formats.token_writer import TokenWriter, discard_partial
from penstock.formats.tokens import open_bin
from penstock.prep.token_job import (
    MORE_DOCUMENTS,
    Pass,
    State,
    job_of,
    plan_passes,
    refuse_other_dataset,
    refuse_too_few,
    state_of,
)
from penstock.prep.token_pipeline import Options, Sink, fill
from penstock.transforms.tokenizer import Tokenizer
from penstock.types import check_choice, check_int, check_number

COMMIT_EVERY_S = 1.0
_MAX_SOURCES = 1000
"""A side-car lists its source's files up to this many; its job has a signature of all."""

Status = Literal["written", "resumed", "unchanged"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitReport:
    """What became of one split."""

    path: Path
    status: Status
    """`resumed`: an earlier run had begun it. `unchanged`: it was there, made from the same by the same."""
    num_tokens: int
    num_documents: int
    rows_in: int
    skipped: dict[str, int]
    """Rows that became no document, by reason."""
    listed: list[dict[str, Any]]
    """Some of those rows, at most a hundred: file, line, reason."""


def tokenize(
    source: Source | Mapping[str, Source],
    out_dir: str | os.PathLike[str],
    *,
    tokenizer: Tokenizer | str | os.PathLike[str],
    splits: Sequence[str] | None = None,
    val_fraction: float = 0.0,
    text_field: str = "text",
    documents: Documents | None = None,
    eot: bool = False,
    on_error: OnError = "raise",
    num_workers: int | None = None,
    seed: int = 0,
    overwrite: bool = False,
    show_progress: bool = True,
    commit_every_s: float = COMMIT_EVERY_S,
) -> dict[str, SplitReport]:
    """Turn text into token bins: `<split>.bin`, its document table and its side-car.

    Running it again after a crash, a full disk or Ctrl-C goes on at the last commit; running it again
    when all is there does nothing; a split that is missing is built alone.

    Args:
        source: a file, folder, glob, URL or list of these, of .txt, .jsonl, .json or .parquet, plain or .gz
            or .zst; a folder of blocks; `hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]`, without SPLIT its train,
            validation and test; or a mapping of splits to such. Without a mapping, names like train.jsonl,
            validation/… or train-00000-of-00002.parquet say the split; where none does, all is train.
        out_dir: where the bins go; made if missing.
        tokenizer: an open one, or what `Tokenizer.from_pretrained` takes.
        splits: the ones to make. None: all there are.
        val_fraction: share of the train rows that become the validation split instead, each picked by
            a hash of its number and the seed.
        text_field: key of the text in JSON records, column of it in tables.
        documents: what a document of a .txt file is: "file", "line" or "paragraph". None: "file". Lines and
            paragraphs come without the line ends and empty lines that separate them; see `eot`.
        eot: end each document with the tokenizer's end-of-text token; without it, the end of a document
            touches the beginning of the next.
        on_error: "raise" ends the run at the first row that can't be used, naming file and line; "skip"
            counts such rows by reason. Rows with an empty text are counted as "empty" under both.
        num_workers: threads that encode. None: as many as the cores and the size of the source are worth.
            Any number gives the same bytes.
        seed: of the hash that picks the validation rows.
        overwrite: rebuild splits that are there, of whatever run; an interrupted rebuilding goes on.
        show_progress: draw a bar, or print a line now and then, on standard error.
        commit_every_s: work that a crash may cost, in seconds.

    Returns:
        A report for each split.

    Raises:
        ConfigError: an argument can't work, the folder holds something else, or there are fewer text files
            than splits to fill with them; nothing was changed.
        ObjectMissing: a source or the tokenizer does not exist.
        BadRecord: on_error is "raise", and a row can't be used.
        FormatError: a split got no document (its parts are removed), or the fast tokenizer and the reference differ.
        BadBlock: a source file, or a split that is there, is damaged.
        StoreError: the disk is full or can't be written, or another run is writing there.
    """
    check_choice("documents", documents, (None, *DOCUMENTS))
    check_choice("on_error", on_error, ON_ERROR)
    check_int("seed", seed, minimum=-(2**63), maximum=2**64 - 1)
    if num_workers is not None:
        check_int("num_workers", num_workers, minimum=1)
    check_number("val_fraction", val_fraction, below=1.0)
    check_number("commit_every_s", commit_every_s, below=float("inf"))
    passes = plan_passes(source, splits, val_fraction, seed)
    if documents is not None and not any(file.kind == "text" for each in passes for file in each.files):
        raise ConfigError(
            f"documents={documents!r} (--documents) is about .txt files, and the source has none; leave it out"
        )
    if documents in (None, "file"):
        refuse_too_few(passes)
    opened = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_pretrained(tokenizer)
    if eot and opened.eot_id is None:
        raise ConfigError(f"eot=True (--eot) was given, but the tokenizer {opened.name} has no end-of-text token")
    options = Options(
        tokenizer=opened,
        text_field=text_field,
        documents=documents or "file",
        on_error=on_error,
        eot_id=opened.eot_id if eot else None,
        num_workers=num_workers,
        show_progress=show_progress,
        commit_every_s=commit_every_s,
    )
    folder = Path(out_dir)
    with store_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder):
        return _make_all(folder, passes, options, overwrite=overwrite)


def _make_all(folder: Path, passes: Sequence[Pass], options: Options, *, overwrite: bool) -> dict[str, SplitReport]:
    """Look at all that is there before changing any of it, then make what is missing."""
    jobs = {
        split: job_of(
            each.files,
            share,
            text_field=options.text_field,
            documents=options.documents,
            tokenizer=options.tokenizer.fingerprint,
            vocab_size=options.tokenizer.vocab_size,
            eot=options.eot_id,
        )
        for each in passes
        for split, share in each.splits.items()
    }
    name = options.tokenizer.name
    refuse_other_dataset(folder, jobs, name)
    states = {
        split: state_of(folder / f"{split}.bin", job, tokenizer=name, on_error=options.on_error, overwrite=overwrite)
        for split, job in jobs.items()
    }
    reports: dict[str, SplitReport] = {}
    for each in passes:
        reports |= _make(folder, each, jobs, states, options)
    return {split: reports[split] for split in jobs}


def _make(
    folder: Path, each: Pass, jobs: Mapping[str, dict[str, Any]], states: Mapping[str, State], options: Options
) -> dict[str, SplitReport]:
    """Make the splits of one pass that are not there yet; report on all of them."""
    done = [split for split in each.splits if states[split] == "done"]
    reports = {split: _found(folder / f"{split}.bin", options) for split in done}
    missing = {split: share for split, share in each.splits.items() if split not in done}
    if not missing:
        return reports
    with ExitStack() as stack:
        sinks = []
        for split, share in missing.items():
            writer = stack.enter_context(_open_writer(folder, split, jobs[split], states[split], options))
            sinks.append(Sink.open(split, share, writer, options.tokenizer.name))
        fill(each.files, sinks, options)
        is_whole = all(sink.writer.num_documents for sink in sinks)
        for sink in sinks if is_whole else ():
            reports[sink.split] = _finished(sink, each.files, jobs[sink.split], options)
    if not is_whole:
        # Going on from these parts would end here again, and they would stand in the way of other options.
        for sink in sinks:
            discard_partial(sink.writer.path)
        _refuse_empty(sinks, each.files, options)
    return reports


def _found(path: Path, options: Options) -> SplitReport:
    # A crash between the last two steps of publishing leaves them.
    discard_partial(path)
    meta = open_bin(path).meta
    assert meta is not None, "a split that is done has a side-car"
    if options.show_progress:
        print(f"{path} is there, made from the same: nothing to do", file=sys.stderr, flush=True)
    return _report(path, "unchanged", meta)


def _open_writer(folder: Path, split: str, job: dict[str, Any], state: State, options: Options) -> TokenWriter:
    path = folder / f"{split}.bin"
    for leftover in folder.glob(f".{split}.*.tmp"):
        leftover.unlink()
    if state == "new":
        discard_partial(path)
    return TokenWriter(path, vocab_size=options.tokenizer.vocab_size, job=job)


def _refuse_empty(sinks: Sequence[Sink], files: Sequence[SourceFile], options: Options) -> None:
    sink = next(sink for sink in sinks if sink.writer.num_documents == 0)
    total = sum(other.writer.num_documents for other in sinks)
    if sink.share is None or (total == 0 and len(sinks) > 1):
        advice = "the source has no text"
    elif options.documents == "file" and any(file.kind == "text" for file in files):
        advice = f"the source is {total} document{'s' * (total > 1)} (a .txt file is one document): {MORE_DOCUMENTS}"
    elif total == 1:
        advice = "the source is 1 document, which cannot be divided"
    else:
        advice = "a larger val_fraction (--val-fraction) or another seed (--seed) gives it some"
    raise FormatError(
        f"the split {sink.split} got no document: {sink.rows_in} rows, skipped {sink.skipped or 0}; {advice}"
    )


def _finished(sink: Sink, files: Sequence[SourceFile], job: dict[str, Any], options: Options) -> SplitReport:
    tokenizer = options.tokenizer
    counts = {"rows_in": sink.rows_in, "documents_out": sink.writer.num_documents}
    meta = sink.writer.finish(
        {
            "tokenizer": {
                "name": tokenizer.name,
                "fingerprint": tokenizer.fingerprint,
                "vocab_size": tokenizer.vocab_size,
            },
            "special_tokens": {"eot": "none" if options.eot_id is None else "append", "eot_id": options.eot_id},
            "counts": {**counts, "skipped": dict(sorted(sink.skipped.items()))},
            "skipped_rows": sink.listed,
            "source": [file.signature for file in files[:_MAX_SOURCES]],
            "job": job,
        }
    )
    return _report(sink.writer.path, "resumed" if sink.first_row else "written", meta)


def _report(path: Path, status: Status, meta: Mapping[str, Any]) -> SplitReport:
    return SplitReport(
        path=path,
        status=status,
        num_tokens=meta["num_tokens"],
        num_documents=meta["num_documents"],
        rows_in=meta["counts"]["rows_in"],
        skipped=meta["counts"]["skipped"],
        listed=meta["skipped_rows"],
    )
