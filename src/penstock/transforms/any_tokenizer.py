"""Tokenizers of every make, through one door.

Whatever has `encode(text)` is a tokenizer: penstock's own, those of tokenizers, transformers,
tiktoken or SentencePiece, or a user's class; a path or name stands for one of penstock's. What
`encode` returns is understood by `ids_of`; what the tokenizer *is*, for caches, is told by
`fingerprint_of`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from hashlib import blake2b
from itertools import pairwise
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.transforms.tokenizer import Tokenizer

PROBE = "The quick brown fox's 1,234 jumps\n\n\tover – naïve Ωmega 漢字 🙂  lazy_dogs()."
"""Encoded for every fingerprint: shows much of what a tokenizer does, and holds no special token's text."""

MAX_ID = 2**32 - 1


def as_tokenizer(tokenizer: Any) -> Any:
    """Return a tokenizer as it is, or the one that a path or name stands for: see `Tokenizer.from_pretrained`.

    Raises:
        ConfigError: it has no method `encode`, or no tokenizer is called so.
        ObjectMissing, FormatError: as `Tokenizer.from_pretrained`.
    """
    # Text has a method `encode` too, which is not meant.
    if isinstance(tokenizer, str | os.PathLike):
        return Tokenizer.from_pretrained(tokenizer)
    if not callable(getattr(tokenizer, "encode", None)):
        raise ConfigError(
            "tokenizer must be a path, a name, or something with a method encode(text), got "
            f"{tokenizer!r:.80} ({type(tokenizer).__name__})"
        )
    return tokenizer


def ids_of(encoded: Any) -> np.ndarray:
    """Take the token ids out of whatever a tokenizer's `encode` returned.

    Args:
        encoded: a sequence of integers, a numpy array or a tensor; a mapping with "input_ids" or an object
            with `input_ids` (transformers' BatchEncoding is both), or with `ids` (tokenizers' Encoding), holding
            one of those. A leading axis of one is dropped.

    Returns:
        uint32 [n].

    Raises:
        ConfigError: it is none of these, several texts' ids, or not ids; says what was found.

    >>> ids_of({"input_ids": [[3, 1]], "attention_mask": [[1, 1]]}).tolist()
    [3, 1]
    """
    if isinstance(encoded, Mapping):
        if "input_ids" not in encoded:
            raise ConfigError(
                f"tokenizer.encode gave a mapping without 'input_ids': it has {sorted(map(str, encoded))}"
            )
        return ids_of(encoded["input_ids"])
    for name in ("input_ids", "ids"):
        if hasattr(encoded, name):
            return ids_of(getattr(encoded, name))
    if hasattr(encoded, "detach"):
        encoded = encoded.detach().cpu().numpy()
    try:
        ids = np.asarray(encoded)
    except ValueError as error:
        raise ConfigError(
            f"tokenizer.encode gave rows of different lengths, not the ids of one text: {error}"
        ) from None
    if ids.ndim == 2 and len(ids) == 1:
        ids = ids[0]
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        raise ConfigError(f"tokenizer.encode must give the ids of one text, got {_described(encoded, ids)}")
    if ids.size and (int(ids.min()) < 0 or int(ids.max()) > MAX_ID):
        raise ConfigError(f"tokenizer.encode gave ids from {ids.min()} to {ids.max()}: ids are from 0 to {MAX_ID}")
    return ids.astype(np.uint32)


def vocab_size_of(tokenizer: Any) -> int | None:
    """Count the ids of a tokenizer, added tokens included; None where it does not say."""
    said = [_number(getattr(tokenizer, name, None)) for name in ("get_vocab_size", "vocab_size", "n_vocab")]
    if hasattr(type(tokenizer), "__len__"):
        said.append(len(tokenizer))
    return max((size for size in said if size is not None), default=None)


def fingerprint_of(tokenizer: Any) -> str:
    """Digest what a tokenizer does to text, as 32 hex digits: the same in every process and on every host.

    A tokenizer with a string `fingerprint`, such as penstock's own, speaks for itself. Of others the digest covers
    the class's name, the ids of a probe text, the size of the vocabulary, and the most complete form it offers:
    `backend_tokenizer.to_str()`, `to_str()`, `serialized_model_proto()`, `token_byte_values()` or `get_vocab()`.
    A tokenizer with none of these that changes without changing the probe's ids keeps its digest: give
    it a `fingerprint`.
    """
    own = getattr(tokenizer, "fingerprint", None)
    if isinstance(own, str) and own:
        return own
    kind, probe = type(tokenizer), ids_of(tokenizer.encode(PROBE))
    seen = blake2b(digest_size=16, person=b"penstock-anytok1")
    parts = f"{kind.__module__}.{kind.__qualname__} {vocab_size_of(tokenizer)}".encode(), probe.astype("<u4").tobytes()
    for part in (*parts, _serialised(tokenizer)):
        seen.update(len(part).to_bytes(8, "little") + part)
    return seen.hexdigest()


def encode_documents(
    tokenizer: Any, data: np.ndarray, offsets: np.ndarray, *, num_threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Encode flat documents with any tokenizer.

    penstock's own go through `encode_flat`; others are given one text at a time.

    Args:
        tokenizer: see `ids_of` for what its `encode` may return.
        data: uint8 [N], UTF-8.
        offsets: int64 [n + 1]; document i is data[offsets[i]:offsets[i + 1]].
        num_threads: for `encode_flat`.

    Returns:
        ids uint32 [T] and offsets int64 [n + 1] from 0.
    """
    if callable(getattr(tokenizer, "encode_flat", None)):
        return tokenizer.encode_flat(data, offsets, num_threads=num_threads)
    rows, raw = [np.zeros(0, np.uint32)], data.data
    for start, stop in pairwise(offsets.tolist()):
        text = str(raw[start:stop], "utf-8")
        try:
            rows.append(ids_of(tokenizer.encode(text)))
        except Exception as error:
            error.add_note(f"while encoding a text of {len(text)} characters that begins {text[:60]!r}")
            raise
    ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
    return np.concatenate(rows), ends


def _serialised(tokenizer: Any) -> bytes:
    """Give the most complete form that a tokenizer offers; nothing where it offers none."""
    for holder in (getattr(tokenizer, "backend_tokenizer", None), tokenizer):
        if callable(to_str := getattr(holder, "to_str", None)):
            return str(to_str()).encode()
    if callable(proto := getattr(tokenizer, "serialized_model_proto", None)):
        return bytes(proto())
    if callable(values := getattr(tokenizer, "token_byte_values", None)):
        return b"".join(len(value).to_bytes(4, "little") + value for value in values())
    if callable(vocab := getattr(tokenizer, "get_vocab", None)):
        return repr(sorted(vocab().items(), key=repr)).encode()
    return b""


def _number(value: Any) -> int | None:
    value = value() if callable(value) else value
    return int(value) if isinstance(value, int | np.integer) and not isinstance(value, bool) else None


def _described(encoded: Any, ids: np.ndarray) -> str:
    what = f"{type(encoded).__name__} of shape {ids.shape} and {ids.dtype}"
    return f"{what}: {encoded!r:.60}"
