"""Which files a text source means, what is in them, and which split each belongs to.

A source is a file, a folder, a glob, or a list of these. Its files come in sorted order, so the rows
of a source have numbers that mean the same on every machine. Nothing is guessed where a guess could
mix data up: a folder with several kinds of files, or with files of no known split beside `train` and
`validation`, is refused with the way to say what was meant.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from penstock.errors import ConfigError, ObjectMissing

Kind = Literal["text", "jsonl", "json", "parquet"]
Compression = Literal["gzip", "zstd"]
Place = str | os.PathLike[str]
Source = Place | Sequence[Place]

KINDS: Mapping[str, Kind] = {
    ".txt": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSIONS: Mapping[str, Compression] = {".gz": "gzip", ".zst": "zstd"}
KNOWN = f"{', '.join(KINDS)}, each but .parquet also as {' or '.join(COMPRESSIONS)}"

SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
_WORDS = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
_IN_NAME = re.compile(rf"(?:^|.*[-_.])({_WORDS})(?:[-_.]\d.*)?|({_WORDS})[-_.].*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceFile:
    """One file of a source."""

    path: Path
    name: str
    """Its path below the source, with forward slashes: the same wherever the source lies."""
    kind: Kind
    compression: Compression | None
    size_bytes: int
    mtime_ns: int

    @property
    def signature(self) -> list[object]:
        """Name, size and time of change: tells whether results made from the file still hold."""
        return [self.name, self.size_bytes, self.mtime_ns]


def find_files(source: Source) -> list[SourceFile]:
    """List the files of a source, in sorted order; those of a list in the order of the list.

    A folder gives all files below it of a known suffix, hidden ones left out; its .json files only if
    there is nothing else, since such files often describe the data.

    Raises:
        ObjectMissing: there is no such file or folder, or a glob matches nothing.
        ConfigError: no file of a known kind, or several kinds in one folder; a URL.
    """
    if isinstance(source, str | os.PathLike):
        return _found(source)
    if not isinstance(source, Sequence) or not source:
        raise ConfigError(f"source must be a file, a folder, a glob or a list of these, got {source!r:.80}")
    return [file for place in source for file in _found(place)]


def source_file(path: Place, *, name: str | None = None, kind: Kind | None = None) -> SourceFile:
    """Describe one file.

    Args:
        path: where it is.
        name: its path below its source. None: the name of the file.
        kind: what is in it. None: what its suffix says.

    Raises:
        ObjectMissing: it does not exist.
        ConfigError: its suffix is not known.
    """
    path = Path(path)
    compression = COMPRESSIONS.get(path.suffix.lower())
    suffix = Path(path.stem).suffix if compression else path.suffix
    found = kind or KINDS.get(suffix.lower())
    if found is None or (found == "parquet" and compression):
        raise ConfigError(f"cannot tell what is in {path}: penstock reads {KNOWN}")
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ObjectMissing(f"{path} does not exist") from error
    return SourceFile(
        path=path,
        name=name or path.name,
        kind=found,
        compression=compression,
        size_bytes=status.st_size,
        mtime_ns=status.st_mtime_ns,
    )


def _found(place: Place) -> list[SourceFile]:
    text = os.fspath(place)
    path = Path(text)
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return [source_file(path)]
    if "://" in text:
        raise ConfigError(f"{text} is a URL; download it first, a source must be on this machine's disks")
    if glob.has_magic(text):
        return _matched(text)
    raise ObjectMissing(f"{text} does not exist: a source is a file, a folder, a glob or a list of these")


def _in_folder(folder: Path) -> list[SourceFile]:
    paths = sorted(
        (Path(root) / name for root, _, names in os.walk(folder) for name in names), key=lambda path: path.parts
    )
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    known = [path for path in visible if _is_known(path)]
    data = [path for path in known if _described(path) != ".json"] or known
    if not data:
        raise ConfigError(f"the folder {folder} has no file that penstock reads: {KNOWN}")
    files = [source_file(path, name=path.relative_to(folder).as_posix()) for path in data]
    if len({file.kind for file in files}) > 1:
        kinds = ", ".join(sorted({_described(file.path) for file in files}))
        raise ConfigError(
            f"the folder {folder} holds files of several kinds ({kinds}): say which by a glob like {folder}/*"
        )
    return files


def _matched(pattern: str) -> list[SourceFile]:
    paths = sorted((Path(match) for match in glob.glob(pattern, recursive=True)), key=lambda path: path.parts)
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ObjectMissing(f"no file matches {pattern}")
    base = Path(os.path.commonpath([path.parent for path in files]))
    return [source_file(path, name=path.relative_to(base).as_posix()) for path in files]


def _described(path: Path) -> str:
    """Give the suffix that says what is in a file, without its compression's."""
    return (Path(path.stem).suffix if path.suffix.lower() in COMPRESSIONS else path.suffix).lower()


def _is_known(path: Path) -> bool:
    return _described(path) in KINDS and not (_described(path) == ".parquet" and path.suffix.lower() in COMPRESSIONS)


def split_of(name: str) -> str | None:
    """Tell the split a file's name or folders speak of; None if they don't.

    >>> split_of("train-00000-of-00002.parquet"), split_of("corpus_val.jsonl.gz"), split_of("dev/a.txt")
    ('train', 'validation', 'validation')
    >>> split_of("contest.txt") is None
    True
    """
    *folders, base = name.split("/")
    stem = base
    while Path(stem).suffix.lower() in {*KINDS, *COMPRESSIONS}:
        stem = Path(stem).stem
    for part in (stem, *reversed(folders)):
        match = _IN_NAME.fullmatch(part)
        if match:
            return SPLIT_WORDS[(match[1] or match[2]).lower()]
    return None


def by_split(files: Sequence[SourceFile]) -> dict[str, list[SourceFile]]:
    """Sort files into the splits their names speak of; all is `train` where neither it nor `validation` is named.

    Raises:
        ConfigError: some files name a split, others none.
    """
    splits: dict[str | None, list[SourceFile]] = {}
    for file in files:
        splits.setdefault(split_of(file.name), []).append(file)
    if not {"train", "validation"} & splits.keys():
        return {"train": list(files)}
    if None in splits:
        named = next(group[0] for split, group in splits.items() if split is not None)
        raise ConfigError(
            f"{named.name} names a split, {splits[None][0].name} does not: give the source as "
            f'{{"train": …, "validation": …}}'
        )
    return {split: group for split, group in splits.items() if split is not None}
