"""Which files of a Hub dataset are the rows of a split, at one commit.

A dataset's card says it under `configs:`, else the names of its files and folders do. The rules are those
of the `datasets` library, so a split is the same rows in the same order there and here; what only
that library can read is refused with its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from penstock.errors import ConfigError, ObjectMissing
from penstock.store.hub import card_metadata
from penstock.store.store import ObjectInfo, Store, open_store

Patterns = Mapping[str, Sequence[str]]

SEPARATORS = "-._ 0-9"
SPLIT_WORDS: Patterns = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SHARDED = re.compile(r"data/(\w+(?:\.\w+)*)-\d{5}-of-\d{5}[^/]*\.[^/]*")
_NEVER_DATA = {
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dummy_data.zip",
    "dataset_dict.json",
}
READ_HERE: Mapping[str, str] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".txt": "text",
}
# Suffixes of data that only other readers know, in case most files of a split are such.
_READ_ELSEWHERE = """
    .tar .zip .xml .h5 .hdf5 .lance .eval .jpg .jpeg .png .webp .gif .tiff .bmp .wav .mp3 .flac .ogg .opus .m4a
    .mp4 .avi .mkv .mov .webm .pdf .npy .npz .pt .pkl
"""
# What breaks a tie between suffixes, best first.
_FAVOURITES = (".parquet", ".arrow", ".jsonl", ".json", ".csv")
# Settings of a card that change how files are read; others only describe.
_READING = """
    sep delimiter header names column_names index_col usecols dtype quotechar quoting escapechar encoding comment
    skiprows nrows skipfooter thousands decimal field columns filters sample_by
"""


class LibraryOnly(ConfigError):
    """The files of a dataset can be read by the `datasets` library only; see `library_records`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HubReference:
    """What `hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]` names."""

    repo: str
    revision: str = "main"
    config: str | None = None
    split: str = "train"


@dataclass(frozen=True, kw_only=True, slots=True)
class HubSplit:
    """The files of one split at one commit: what they hold never changes."""

    repo: str
    commit: str
    config: str | None
    """None where the dataset has no named configurations."""
    split: str
    kind: str
    """What the files hold: "csv", "json" (lines or arrays), "parquet", "arrow" or "text"."""
    files: tuple[ObjectInfo, ...]
    """In the order of their rows; paths below the repository, etag = what identifies the content."""

    @property
    def urls(self) -> tuple[str, ...]:
        """Where the files are, for `open_file`."""
        return tuple(f"hf://datasets/{self.repo}@{self.commit}/{file.path}" for file in self.files)

    @property
    def size_bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def parse_hub_reference(uri: str) -> HubReference:
    """Take `hf://[datasets/]ORG/NAME[@REVISION][:CONFIG][:SPLIT]` apart; one name after a colon is a config.

    Raises:
        ConfigError: it is something else.

    >>> parse_hub_reference("hf://org/name:en:validation")
    HubReference(repo='org/name', revision='main', config='en', split='validation')
    """
    match = re.fullmatch(
        r"hf://(?:datasets/)?([\w.-]+/[\w.-]+)(?:@([^:]+))?(?::([^:/]*))?(?::([^:/]+))?/?", uri.strip()
    )
    if match is None:
        raise ConfigError(f"{uri!r} names no dataset: write hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]")
    repo, revision, config, split = match.groups()
    return HubReference(repo=repo, revision=revision or "main", config=config or None, split=split or "train")


def find_hub_split(reference: str | HubReference, **storage_options: Any) -> HubSplit:
    """Find the files of a split on the Hub, pinned to the commit that its revision is now.

    Args:
        reference: `hf://ORG/NAME[@REVISION][:CONFIG][:SPLIT]`; split `train` if not said.
        storage_options: see `open_store`.

    Raises:
        ObjectMissing, AccessDenied, StoreUnavailable: see `Store`.
        BadManifest: the dataset's card has a head that is not YAML.
        ConfigError: no such configuration or split, with those there are.
        LibraryOnly: a ConfigError too: only the `datasets` library can read it.
    """
    wanted = parse_hub_reference(reference) if isinstance(reference, str) else reference
    store = open_store(f"hf://datasets/{wanted.repo}@{wanted.revision.replace('/', '%2F')}", **storage_options)
    files = {file.path: file for file in store.list()}
    config, settings = _config(wanted, _card(store, files))
    patterns = _patterns(wanted, settings, files)
    if wanted.split not in patterns:
        raise ConfigError(
            f"the dataset {wanted.repo} has no split {wanted.split!r}; it has {', '.join(patterns)}: "
            f"write hf://{wanted.repo}:{config or ''}:SPLIT"
        )
    matched = _matched(patterns[wanted.split], files)
    kind, paths = _of_one_kind(wanted, matched, settings)
    found = tuple(files[path] for path in paths)
    return HubSplit(
        repo=wanted.repo,
        commit=str(found[0].version),
        config=config,
        split=wanted.split,
        kind=kind,
        files=found,
    )


def _card(store: Store, files: Iterable[str]) -> list[Mapping[str, Any]]:
    """Give the configurations that the dataset's card describes."""
    if "README.md" not in files:
        return []
    configs = card_metadata(store.get("README.md").decode("utf-8", "replace")).get("configs") or []
    return [config for config in configs if isinstance(config, Mapping) and "config_name" in config]


def _config(wanted: HubReference, configs: Sequence[Mapping[str, Any]]) -> tuple[str | None, Mapping[str, Any]]:
    """Pick a configuration: the one named, else the only one, `default`, or the one marked so."""
    if not configs:
        if wanted.config not in (None, "default"):
            raise ConfigError(
                f"the dataset {wanted.repo} has no configuration {wanted.config!r}: it has none by name. "
                f"For a split write hf://{wanted.repo}::{wanted.config}"
            )
        return None, {}
    names = [str(config["config_name"]) for config in configs]
    defaults = [
        config for config in configs if len(configs) == 1 or config["config_name"] == "default" or config.get("default")
    ]
    picked = [config for config in configs if config["config_name"] == wanted.config] if wanted.config else defaults
    if not picked:
        what = f"no configuration {wanted.config!r}" if wanted.config else "several configurations and no default"
        raise ConfigError(
            f"the dataset {wanted.repo} has {what}; there are {', '.join(names)}: write hf://{wanted.repo}:CONFIG"
        )
    return str(picked[0]["config_name"]), picked[0]


def _patterns(wanted: HubReference, settings: Mapping[str, Any], files: Mapping[str, ObjectInfo]) -> Patterns:
    """Give the patterns of each split: those of the card, else those that file names fit first."""
    declared = settings.get("data_files")
    if declared is not None:
        return _declared(wanted, declared)
    base = str(settings.get("data_dir") or "").strip("/")
    return _by_name([path for path in files if not base or path.startswith(f"{base}/")], f"{base}/" if base else "")


def _declared(wanted: HubReference, declared: Any) -> Patterns:
    """Read a card's data_files: a pattern, a list of them, or a list of {split, path}."""
    entries = declared if isinstance(declared, list) else [declared]
    if all(isinstance(entry, str) for entry in entries):
        return {"train": entries}
    splits: dict[str, Sequence[str]] = {}
    for entry in entries:
        path = entry.get("path") if isinstance(entry, Mapping) else None
        if not isinstance(path, str | list) or "split" not in entry:
            raise ConfigError(f"the card of {wanted.repo} has data_files that name no split and path: {entry!r:.200}")
        splits[str(entry["split"])] = [path] if isinstance(path, str) else path
    return splits


def _by_name(paths: Sequence[str], base: str) -> Patterns:
    """Sort files into splits by their names: data/SPLIT-00000-of-00001.…, else folders, else files, else all."""
    sharded = {match[1] for path in paths if (match := _SHARDED.fullmatch(path.removeprefix(base)))}
    if sharded:
        digits = "[0-9]" * 5
        order = [name for name in SPLIT_WORDS if name in sharded] + sorted(sharded - SPLIT_WORDS.keys())
        return {name: [f"{base}data/{name}-{digits}-of-{digits}*.*"] for name in order}
    folders = ("**/{word}/**", "**/{word}[{sep}]*/**", "**/*[{sep}]{word}/**", "**/*[{sep}]{word}[{sep}]*/**")
    names = ("**/{word}[{sep}]*", "**/*[{sep}]{word}[{sep}]*")
    for shapes in (folders, names):
        splits = {
            split: [base + shape.format(word=word, sep=SEPARATORS) for word in words for shape in shapes]
            for split, words in SPLIT_WORDS.items()
        }
        found = {split: patterns for split, patterns in splits.items() if _matched(patterns, paths)}
        if found:
            return found
    return {"train": [f"{base}**"]}


def _matched(patterns: Sequence[str], paths: Iterable[str]) -> list[str]:
    """Give the files that patterns mean, in the order of the patterns, then of their names; each once."""
    found: dict[str, None] = {}
    ordered = sorted(paths)
    for pattern in patterns:
        plain = re.sub(r"^(?:\./)+", "", pattern.strip("/"))
        parts = plain.split("/")
        for path in ordered:
            if _fits(path.split("/"), parts) and _is_data(path, plain):
                found[path] = None
    return list(found)


def _fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Match the parts of a path: `**` is any number of folders, and anything where it comes last."""
    if not pattern:
        return not path
    head, *rest = pattern
    if head == "**":
        return bool(path) if not rest else any(_fits(path[skip:], rest) for skip in range(len(path)))
    return bool(path) and fnmatchcase(path[0], head) and _fits(path[1:], rest)


def _is_data(path: str, pattern: str) -> bool:
    """Leave out what describes data, and what is hidden, unless the pattern says so itself."""
    name = path.rpartition("/")[2]
    if name in _NEVER_DATA and pattern.rpartition("/")[2] != name:
        return False

    def hidden(text: str) -> int:
        *folders, last = text.split("/")
        return sum(part.startswith((".", "__")) for part in folders) + last.startswith(".")

    return hidden(path) == hidden(pattern)


def _of_one_kind(wanted: HubReference, paths: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Keep the files of the most frequent kind, which must be one that is read here."""
    suffixes = Counter(f".{part.lower()}" for path in paths for part in path.rpartition("/")[2].split(".")[1:] if part)
    elsewhere = _READ_ELSEWHERE.split()
    known = {suffix: count for suffix, count in suffixes.items() if suffix in READ_HERE or suffix in elsewhere}
    if not known:
        raise ObjectMissing(f"the dataset {wanted.repo} has no data files for the split {wanted.split!r}")
    best = max(known, key=lambda suffix: (known[suffix], *(suffix == favourite for favourite in _FAVOURITES), suffix))
    changes = sorted(settings.keys() & _READING.split())
    if changes in (["sep"], ["delimiter"]) and best == ".tsv" and settings[changes[0]] == "\t":
        changes = []
    if best not in READ_HERE or changes:
        what = f"holds {best} files" if best not in READ_HERE else f"has files to be read with {', '.join(changes)}"
        raise LibraryOnly(
            f"the dataset {wanted.repo} {what}, which the `datasets` library reads and penstock does not: penstock "
            f"download makes blocks of it by way of that library, or try hf://{wanted.repo}@refs/convert/parquet"
        )
    kind = READ_HERE[best]
    readable = {suffix for suffix, other in READ_HERE.items() if other == kind}
    kept = [
        path for path in paths if readable & {f".{part.lower()}" for part in path.rpartition("/")[2].split(".")[1:]}
    ]
    return kind, kept
