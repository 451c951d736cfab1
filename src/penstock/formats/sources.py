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
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Literal

from penstock.errors import ConfigError, ObjectMissing
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest
from penstock.store.urls import is_url, redact

Kind = Literal["text", "jsonl", "json", "parquet", "csv", "tsv", "arrow"]
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
RECORD_KINDS: Mapping[str, Kind] = {**KINDS, ".csv": "csv", ".tsv": "tsv", ".arrow": "arrow"}
"""What can be read as records; texts are read from `KINDS` only."""
TABLES = ("parquet", "arrow")
_HUB_NAME = re.compile(r"[\w.-]+/[\w-]+(@[\w./-]+)?(:\w*){0,2}")
COMPRESSIONS: Mapping[str, Compression] = {".gz": "gzip", ".zst": "zstd"}

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
    url: str | None = field(default=None, repr=False)
    """Where it is if not on this machine's disks; `path` is then its path below the source."""
    etag: str | None = None
    """What its store says changes with its content."""
    known: tuple[int, bytes] = field(default=(0, b""), repr=False, compare=False)
    """Of one that is elsewhere, bytes that came with its description, behind where they begin."""

    @property
    def place(self) -> str:
        """Where the file is, for people."""
        return str(self.path) if self.url is None else redact(self.url)

    @property
    def signature(self) -> list[object]:
        """Name, size, and time of change or etag: tells whether results made from the file still hold."""
        return [self.name, self.size_bytes, self.mtime_ns if self.url is None else self.etag]


def find_files(source: Source, kinds: Mapping[str, Kind] = KINDS, *, remote: bool = False) -> list[SourceFile]:
    """List the files of a source, in sorted order; those of a list in the order of the list.

    A folder gives all files below it of a known suffix, hidden ones left out; its .json files only if
    there is nothing else, since such files often describe the data. A folder of blocks gives its blocks.

    Args:
        source: where to look.
        kinds: what files of which suffix are; others are left out of folders, and refused by name.
        remote: whether URLs will do, those that `remote_sources.find_remote` takes.

    Raises:
        ObjectMissing: there is no such file or folder, or a glob matches nothing.
        ConfigError: no file of a known kind, or several kinds in one folder; a URL.
    """
    if isinstance(source, str | os.PathLike):
        return _found(source, kinds, remote=remote)
    if not isinstance(source, Sequence) or not source:
        raise ConfigError(f"source must be a file, a folder, a glob or a list of these, got {source!r:.80}")
    return [file for place in source for file in _found(place, kinds, remote=remote)]


def source_file(
    path: Place, *, name: str | None = None, kind: Kind | None = None, kinds: Mapping[str, Kind] = KINDS
) -> SourceFile:
    """Describe one file.

    Args:
        path: where it is.
        name: its path below its source. None: the name of the file.
        kind: what is in it. None: what its suffix says.
        kinds: what suffixes say.

    Raises:
        ObjectMissing: it does not exist.
        ConfigError: its suffix is not known.
    """
    path = Path(path)
    suffix, compression = described(path)
    found = kind or kinds.get(suffix)
    if found is None or (found in TABLES and compression):
        raise ConfigError(f"cannot tell what is in {path}: penstock reads {known(kinds)}{_elsewhere(suffix, kinds)}")
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


def known(kinds: Mapping[str, Kind]) -> str:
    """Say which suffixes are read."""
    tables = [suffix for suffix, kind in kinds.items() if kind in TABLES]
    return f"{', '.join(kinds)}, each but {' and '.join(tables)} also as {' or '.join(COMPRESSIONS)}"


def _elsewhere(suffix: str, kinds: Mapping[str, Kind]) -> str:
    return "; penstock blocks makes blocks of it, which it reads" if suffix in RECORD_KINDS.keys() - kinds else ""


def _found(place: Place, kinds: Mapping[str, Kind], *, remote: bool) -> list[SourceFile]:
    text = os.fspath(place)
    path = Path(text)
    if path.is_dir():
        return _in_folder(path, kinds)
    if path.exists():
        return [source_file(path, kinds=kinds)]
    if is_url(text) and not remote:
        raise ConfigError(f"{text} is a URL; download it first (penstock download), this needs files on the disk")
    if is_url(text):
        from penstock.formats.remote_sources import find_remote

        return find_remote(text, kinds)
    if glob.has_magic(text):
        return _matched(text, kinds)
    hub = f"; a dataset of the Hub is written hf://{text}" if _HUB_NAME.fullmatch(text) else ""
    raise ObjectMissing(f"{text} does not exist: a source is a file, a folder, a glob or a list of these{hub}")


def _in_folder(folder: Path, kinds: Mapping[str, Kind]) -> list[SourceFile]:
    if (folder / MANIFEST_NAME).is_file():
        return _blocks(folder, kinds)
    paths = sorted(
        (Path(root) / name for root, _, names in os.walk(folder) for name in names), key=lambda path: path.parts
    )
    visible = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    readable = [path for path in visible if _is_known(path, kinds)]
    data = [path for path in readable if described(path)[0] != ".json"] or readable
    if not data:
        raise ConfigError(f"the folder {folder} has no file that penstock reads: {known(kinds)}")
    files = [source_file(path, name=path.relative_to(folder).as_posix(), kinds=kinds) for path in data]
    if len({file.kind for file in files}) > 1:
        several = sorted({described(file.path)[0] for file in files})
        raise ConfigError(
            f"the folder {folder} holds files of several kinds ({', '.join(several)}): "
            f"say which by a glob like {folder}/*{several[0]}"
        )
    return files


def _blocks(folder: Path, kinds: Mapping[str, Kind]) -> list[SourceFile]:
    """List the blocks of a dataset, in the order of its manifest."""
    info = read_block_manifest(folder)
    if not info.finished:
        raise ConfigError(
            f"the blocks in {folder} are not finished, there are {info.total_samples:,} samples so far: run "
            "what writes them again, it goes on"
        )
    return [source_file(folder / block.file_path, name=block.file_path, kinds=kinds) for block in info.blocks]


def _matched(pattern: str, kinds: Mapping[str, Kind]) -> list[SourceFile]:
    paths = sorted((Path(match) for match in glob.glob(pattern, recursive=True)), key=lambda path: path.parts)
    files = [path for path in paths if path.is_file()]
    if not files:
        raise ObjectMissing(f"no file matches {pattern}")
    base = Path(os.path.commonpath([path.parent for path in files]))
    return [source_file(path, name=path.relative_to(base).as_posix(), kinds=kinds) for path in files]


def described(path: PurePath) -> tuple[str, Compression | None]:
    """Give the suffix that says what is in a file, in small letters, and how the file is compressed."""
    compression = COMPRESSIONS.get(path.suffix.lower())
    return (PurePath(path.stem).suffix if compression else path.suffix).lower(), compression


def _is_known(path: Path, kinds: Mapping[str, Kind]) -> bool:
    suffix, compression = described(path)
    return suffix in kinds and not (kinds[suffix] in TABLES and compression)


def split_of(name: str) -> str | None:
    """Tell the split a file's name or folders speak of; None if they don't.

    >>> split_of("train-00000-of-00002.parquet"), split_of("corpus_val.jsonl.gz"), split_of("dev/a.txt")
    ('train', 'validation', 'validation')
    >>> split_of("contest.txt") is None
    True
    """
    *folders, base = name.split("/")
    stem = base
    while Path(stem).suffix.lower() in {*RECORD_KINDS, *COMPRESSIONS}:
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
