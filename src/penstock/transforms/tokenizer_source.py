"""What a tokenizer's name or path stands for.

A source is the content itself, never a path: it can be sent to another process and opened there
after the file has gone. Nothing here opens a connection unless a Hub name is given.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from penstock.errors import ConfigError, FormatError, ObjectMissing, PenstockError, StoreError
from penstock.transforms.tokenizer_json import from_vocab_and_merges

SUFFIXES = (".json", ".tiktoken", ".model")
RANK_LINE = re.compile(rb"[A-Za-z0-9+/=]+ \d+\r?\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A tokenizer as it was found."""

    name: str
    """For people: a published name, or the name of the file or folder."""
    kind: Literal["json", "ranks", "sentencepiece", "bytes"]
    content: bytes = b""
    """A tokenizer.json, canonical ranks, or a SentencePiece model; empty for bytes."""
    encoding: str = ""
    """Of ranks: the tiktoken encoding they belong to."""
    eos: str | None = None
    """The end token that a folder's tokenizer_config.json names."""


def open_source(path_or_name: str | os.PathLike[str]) -> Source:
    """Read what a path or name stands for.

    A published name ("bytes", "gpt2", …) means the same in every folder; a folder that is called so
    is given as "./gpt2".

    Raises:
        ObjectMissing: a path that does not exist.
        ConfigError: no such name, or its ranks are not at hand.
        FormatError: the file is not what its name says.
    """
    from penstock.transforms.tiktoken import ENCODINGS, cached_ranks, canonical_ranks

    if not isinstance(path_or_name, str | os.PathLike) or not os.fspath(path_or_name):
        raise ConfigError(f"a tokenizer is named by a path or a name, got {path_or_name!r}")
    name, path = os.fspath(path_or_name), Path(path_or_name)
    if name == "bytes":
        return Source(name=name, kind="bytes")
    if name in ENCODINGS:
        _, ranks = canonical_ranks(cached_ranks(name))
        return Source(name=name, kind="ranks", content=ranks, encoding=name)
    try:
        if path.is_dir():
            return _from_folder(path)
        if path.exists():
            # "tokenizer.json" names nothing; its folder does.
            return _from_file(path, path.resolve().parent.name if path.stem == "tokenizer" else path.name)
    except PenstockError as error:
        error.add_note(f"while reading the tokenizer {name}")
        raise
    return _from_hub(name, [*ENCODINGS, "bytes"])


def _from_folder(folder: Path) -> Source:
    here = {path.name for path in folder.iterdir()}
    name = folder.resolve().name
    if "tokenizer.json" in here:
        eos = _eos_of(folder / "tokenizer_config.json") if "tokenizer_config.json" in here else None
        return Source(name=name, kind="json", content=_read(folder / "tokenizer.json"), eos=eos)
    if {"vocab.json", "merges.txt"} <= here:
        if "added_tokens.json" in here:
            raise ConfigError(
                f"{folder} has added_tokens.json beside vocab.json, which does not say how its tokens match: "
                "save the tokenizer as tokenizer.json"
            )
        pair = from_vocab_and_merges(_read(folder / "vocab.json"), _read(folder / "merges.txt"))
        return Source(name=name, kind="json", content=pair)
    models = sorted(entry for entry in here if entry.endswith((".model", ".tiktoken")))
    if len(models) == 1:
        return _from_file(folder / models[0], name)
    raise ConfigError(
        f"{folder} holds no tokenizer: expected tokenizer.json, vocab.json with merges.txt, or one .model or .tiktoken "
        f"file; found {', '.join(sorted(here)[:8]) or 'nothing'}"
    )


def _from_file(path: Path, name: str) -> Source:
    from penstock.transforms.tiktoken import canonical_ranks

    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} is no tokenizer file: its name must end in one of {', '.join(SUFFIXES)}")
    content = _read(path)
    if path.suffix == ".json":
        return Source(name=name, kind="json", content=content)
    # Some models are published as rank files under the name tokenizer.model.
    if path.suffix == ".tiktoken" or RANK_LINE.match(content):
        encoding, ranks = canonical_ranks(content)
        return Source(name=name, kind="ranks", content=ranks, encoding=encoding)
    return Source(name=name, kind="sentencepiece", content=content)


def _from_hub(name: str, published: list[str]) -> Source:
    from penstock.transforms.huggingface import read_from_hub

    if name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ObjectMissing(f"the tokenizer {name} does not exist (seen from {Path.cwd()})")
    if "/" not in name:
        raise ConfigError(
            f"there is no tokenizer {name!r}: give a path, a Hub name (owner/name), or one of {', '.join(published)}"
        )
    return Source(name=name, kind="json", content=read_from_hub(name))


def _eos_of(path: Path) -> str | None:
    try:
        named = orjson.loads(_read(path)).get("eos_token")
    except (ValueError, AttributeError):
        raise FormatError(f"{path} is no JSON object") from None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"the tokenizer file {path} cannot be read: {error.strerror}") from error
