"""A tokenizer of one's own, from one's own text, without a network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from penstock.errors import ConfigError
from penstock.formats.files import atomic_write
from penstock.transforms.huggingface import train_byte_level_bpe
from penstock.transforms.tokenizer import Tokenizer
from penstock.transforms.tokenizer_engine import check_text
from penstock.types import check_int

NUM_BYTES = 256


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out: str | os.PathLike[str],
    *,
    special_tokens: Sequence[str] = ("<|endoftext|>",),
    min_frequency: int = 2,
) -> Tokenizer:
    """Learn a byte-level BPE and write its tokenizer.json.

    All 256 bytes are in its alphabet, so it encodes any text and decodes to the same text. Ids: the
    special tokens, the bytes, then merges as they were learned. Same texts, same file.

    Args:
        texts: the corpus, read once; its distinct words are kept in memory, the texts are not.
        vocab_size: ids wanted, special tokens and bytes included; a small corpus may give fewer.
        out: the file to write, or an existing folder, which gets a tokenizer.json.
        special_tokens: set apart from text; the first known to end a text becomes `eot_id`.
        min_frequency: a pair seen less often is not merged.

    Raises:
        ConfigError: vocab_size leaves no room for the bytes and special tokens, there is no text,
            or an argument is of the wrong type.
        FormatError: a text holds a lone surrogate.
        StoreError: the file can't be written.
    """
    if isinstance(special_tokens, str) or not all(isinstance(token, str) for token in special_tokens):
        raise ConfigError(f"special_tokens must be a sequence of strings, got {special_tokens!r}")
    if any(len(token) < 2 for token in special_tokens):
        raise ConfigError(
            f"special_tokens must be longer than one character, which text is made of: {special_tokens!r}"
        )
    if len(set(special_tokens)) != len(special_tokens):
        raise ConfigError(f"special_tokens names a token twice: {special_tokens!r}")
    if isinstance(texts, str):
        raise ConfigError("texts must be an iterable of strings, got one string: put it into a list")
    check_int("vocab_size", vocab_size, minimum=NUM_BYTES + len(special_tokens))
    check_int("min_frequency", min_frequency, minimum=1)
    path = Path(out) / "tokenizer.json" if Path(out).is_dir() else Path(out)
    if path.suffix != ".json":
        raise ConfigError(f"out must be a folder that exists or a path that ends in .json, got {os.fspath(out)!r}")
    content = train_byte_level_bpe(_checked(texts), vocab_size, special_tokens, min_frequency)
    with atomic_write(path) as file:
        file.write(content)
    return Tokenizer.from_pretrained(path)


def _checked(texts: Iterable[str]) -> Iterator[str]:
    empty = True
    for number, text in enumerate(texts):
        empty = empty and not text
        yield check_text(text, f"texts[{number}]")
    if empty:
        raise ConfigError("there is no text to learn from: texts is empty")
