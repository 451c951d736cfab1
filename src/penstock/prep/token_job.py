"""What a tokenizing run is to make, and what of it is there already.

A *pass* is one reading of a list of files; it feeds one split, or `train` and `validation` at once.
A split's *job* is all that decides its bytes. It is kept beside the bytes, so a later run knows
whether they are what it would write itself: then there is nothing to do, or only the rest.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from penstock.errors import BadManifest, ConfigError
from penstock.formats.files import digest
from penstock.formats.remote_sources import find_hub_splits, is_hub_dataset
from penstock.formats.sources import SPLIT_WORDS, Source, SourceFile, by_split, find_files
from penstock.formats.text import EMPTY
from penstock.formats.token_writer import journal_path, read_journal
from penstock.formats.tokens import docs_path, meta_path, open_bin, read_meta
from penstock.seeds import key

State = Literal["done", "begun", "new"]
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SHARED = ("tokenizer", "vocab_size", "eot")
"""Parts of a job that all splits of one folder have in common."""
_DIVIDING = ("share", "documents")
"""Parts that decide which rows of a source a split takes, and what a row is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """Which rows of a source a split takes: about `fraction` of them, picked by their number, or the rest."""

    fraction: float
    seed: int
    picked: bool

    def takes(self, rows: np.ndarray) -> np.ndarray:
        """Tell for row numbers, int64 [n], whether they are of this share, bool [n].

        The same rows in every run, whatever became of the others.
        """
        mixed = rows.astype(np.uint64)
        for word in key(self.seed, "tokenize", "validation")[:2]:
            mixed = mixed + word
            mixed ^= mixed >> np.uint64(33)
            mixed *= np.uint64(0xFF51AFD7ED558CCD)
            mixed ^= mixed >> np.uint64(33)
            mixed *= np.uint64(0xC4CEB9FE1A85EC53)
            mixed ^= mixed >> np.uint64(33)
        return (mixed < np.uint64(int(self.fraction * 2.0**64))) == self.picked


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One reading of files, and the splits it feeds: each with its share of the rows, None for all."""

    files: Sequence[SourceFile]
    splits: Mapping[str, Share | None]


def plan_passes(
    source: Source | Mapping[str, Source], splits: Sequence[str] | None, val_fraction: float, seed: int
) -> list[Pass]:
    """Find the files of each split that is wanted.

    Raises:
        ConfigError: a split that the source does not have, or two ways to get a validation split.
        ObjectMissing: a source does not exist.
    """
    groups = _groups(source)
    if val_fraction and ("validation" in groups or "train" not in groups):
        have = "has a validation split of its own" if "validation" in groups else "has no train split to take it from"
        raise ConfigError(f"val_fraction={val_fraction} (--val-fraction) was given, but the source {have}")
    passes = []
    for split, files in groups.items():
        shares: dict[str, Share | None] = {split: None}
        if split == "train" and val_fraction:
            shares = {
                name: Share(fraction=val_fraction, seed=seed, picked=name == "validation")
                for name in ("train", "validation")
            }
        passes.append(Pass(files=files, splits=shares))
    return passes if splits is None else _only(passes, splits)


def _groups(source: Source | Mapping[str, Source]) -> dict[str, list[SourceFile]]:
    if not isinstance(source, Mapping):
        if isinstance(source, str) and is_hub_dataset(source):
            splits = find_hub_splits(source)
            return {SPLIT_WORDS.get(name, name): files for name, files in splits.items()}
        return by_split(find_files(source, remote=True))
    groups = {}
    for name, place in source.items():
        if not isinstance(name, str) or not _SPLIT_NAME.fullmatch(name):
            raise ConfigError(f"a split is named by letters, digits, - and _, got {name!r}")
        split = SPLIT_WORDS.get(name, name)
        if split in groups:
            raise ConfigError(f"the source names the split {split!r} twice")
        groups[split] = find_files(place, remote=True)
    if not groups:
        raise ConfigError("the source names no split")
    return groups


def _only(passes: Sequence[Pass], splits: Sequence[str]) -> list[Pass]:
    if isinstance(splits, str) or not splits:
        raise ConfigError(f"splits must be a list of names, got {splits!r}")
    wanted = {SPLIT_WORDS.get(name, name) for name in splits}
    offered = [split for each in passes for split in each.splits]
    unknown = sorted(wanted - set(offered))
    if unknown:
        hint = "; val_fraction makes a validation split" if unknown == ["validation"] else ""
        raise ConfigError(f"unknown split {unknown[0]!r}: the source has {', '.join(offered)}{hint}")
    return [
        Pass(files=each.files, splits={name: share for name, share in each.splits.items() if name in wanted})
        for each in passes
        if wanted & each.splits.keys()
    ]


MORE_DOCUMENTS = 'documents="paragraph" or "line" (--documents) makes more'


def refuse_too_few(passes: Sequence[Pass]) -> None:
    """Raise if some split of text files that are one document each would get none of them.

    Raises:
        ConfigError: see above.
    """
    for each in passes:
        rows = np.arange(len(each.files))
        for split, share in each.splits.items():
            if share is None or any(file.kind != "text" for file in each.files):
                continue
            if len(rows) == 1 < len(each.splits):
                raise ConfigError(f"the source is 1 document (a .txt file is one document): {MORE_DOCUMENTS}")
            if not share.takes(rows).any():
                raise ConfigError(
                    f"the split {split} would get none of {len(rows)} documents (a .txt file is one document): "
                    f"{MORE_DOCUMENTS}; a larger val_fraction or another seed may do too"
                )


def job_of(
    files: Sequence[SourceFile], share: Share | None, *, text_field: str, documents: str, **tokens: Any
) -> dict[str, Any]:
    """Gather all that decides a split's bytes, as JSON values; options that its files don't look at are left out."""
    kinds = {file.kind for file in files}
    signatures = orjson.dumps([file.signature for file in files])
    return {
        **tokens,
        "text_field": text_field if kinds - {"text"} else None,
        "documents": documents if "text" in kinds else None,
        "source": {
            "files": len(files),
            "bytes": sum(file.size_bytes for file in files),
            "signature": digest(signatures),
            "layout": digest(orjson.dumps(sorted([file.name, file.size_bytes] for file in files))),
        },
        "share": None if share is None else {"val_fraction": share.fraction, "seed": share.seed},
    }


def state_of(path: Path, job: Mapping[str, Any], *, tokenizer: str, on_error: str, overwrite: bool) -> State:
    """Tell what of a split is there, changing nothing; `tokenizer` is the name of the job's, for messages.

    Raises:
        ConfigError: files that are not ours, or made by another job and overwrite is not given.
        BadBlock: the split is there, but truncated, and overwrite is not given.
        BadManifest: its side-car or journal can't be read, and overwrite is not given.
    """
    _refuse_foreign(path, overwrite=overwrite)
    if overwrite:
        return "begun" if _was_rebuilding(path, job, on_error) else "new"
    meta, journal = read_meta(path), read_journal(path)
    asked = _Named(job=job, tokenizer=tokenizer)
    if meta is not None and path.exists():
        _refuse_difference(f"{path} was made by another run", _made(meta), asked)
        open_bin(path)
        _refuse_skipped(path, meta["counts"]["skipped"], on_error)
        return "done"
    if journal is None:
        return "new"
    unfinished = f"{path.parent} holds an unfinished run with other options"
    there = _Named(job=journal.job, tokenizer=journal.progress.get("tokenizer", ""))
    _refuse_difference(unfinished, there, asked)
    _refuse_skipped(path, journal.progress.get("skipped", {}), on_error)
    return "begun"


def _was_rebuilding(path: Path, job: Mapping[str, Any], on_error: str) -> bool:
    """Tell whether the parts there are of the same rebuilding, interrupted."""
    try:
        journal = read_journal(path)
        if journal is None or journal.job != job:
            return False
        _refuse_skipped(path, journal.progress.get("skipped", {}), on_error)
    except (BadManifest, ConfigError):
        return False
    return True


def _refuse_foreign(path: Path, *, overwrite: bool) -> None:
    """Raise if a file of this split's names was not written by us: it would be lost."""
    try:
        ours = read_meta(path) is not None
    except BadManifest:
        # Damaged: ours if the rest of a split lies around it.
        if not overwrite:
            raise
        ours = path.exists() or docs_path(path).exists()
    if ours or journal_path(path).exists():
        return
    for place in (path, docs_path(path), meta_path(path)):
        if place.exists():
            raise ConfigError(f"{place} is there and not of a tokenizing run; choose another folder, or move it away")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Named:
    """A job with the name of its tokenizer, which is not part of it: what counts is the content."""

    job: Mapping[str, Any]
    tokenizer: str

    def shown(self, part: str) -> str:
        value = _shown(self.job.get(part))
        return f"{self.tokenizer} ({value})" if part == "tokenizer" and self.tokenizer else value


def _made(meta: Mapping[str, Any]) -> _Named:
    """Give the job that a side-car tells of."""
    return _Named(job=meta.get("job", {}), tokenizer=meta.get("tokenizer", {}).get("name", ""))


def _refuse_difference(what: str, there: _Named, asked: _Named, parts: Iterable[str] | None = None) -> None:
    """Raise if two jobs differ, in some parts or anywhere; the message begins with `what`."""
    names = [name for name in parts or {**asked.job, **there.job} if there.job.get(name) != asked.job.get(name)]
    if names:
        found = "; ".join(f"{name}: {there.shown(name)} there, {asked.shown(name)} asked for" for name in names)
        raise ConfigError(f"{what} ({found}); choose another folder, or overwrite=True (--overwrite) to begin anew")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items())
    return f"{value:.12}…" if isinstance(value, str) and len(value) > 20 else repr(value)


def _refuse_skipped(path: Path, skipped: Mapping[str, int], on_error: str) -> None:
    bad = {reason: count for reason, count in skipped.items() if reason != EMPTY}
    if bad and on_error == "raise":
        raise ConfigError(
            f'{path} was made with on_error="skip", which passed over {bad}; ask for that (--on-error skip), '
            "or overwrite=True (--overwrite)"
        )


def refuse_other_dataset(folder: Path, jobs: Mapping[str, Mapping[str, Any]], tokenizer: str) -> None:
    """Raise if a folder holds another dataset: blocks, or splits that this run would not fit.

    Args:
        folder: the output folder.
        jobs: what this run makes, by split.
        tokenizer: name of their tokenizer, for messages.

    Raises:
        ConfigError: see above.
        BadManifest: the side-car of another split can't be read.
    """
    if (folder / "block_manifest.json").exists():
        raise ConfigError(f"{folder} holds a dataset of blocks (block_manifest.json); choose another folder")
    for path in sorted(folder.glob("*.bin")):
        meta = None if path.stem in jobs else read_meta(path)
        if meta is None:
            continue
        there = _made(meta)
        for job in jobs.values():
            parts = [*_SHARED, *_DIVIDING] if _may_overlap(there.job, job) else _SHARED
            asked = _Named(job=job, tokenizer=tokenizer)
            _refuse_difference(f"{path} was made by another run", there, asked, parts)


def _may_overlap(there: Mapping[str, Any], job: Mapping[str, Any]) -> bool:
    """Tell whether two splits, at least one of them a share, are of one source: then only equal shares are disjoint.

    Names and sizes decide, not times: a file that was copied or touched has the same rows.
    """
    if there.get("share") is None and job["share"] is None:
        return False
    return there.get("source", {}).get("layout") == job["source"]["layout"]
