"""What an engine of a tokenizer must do, and the flat buffers between engines and bins.

Documents travel flat: their UTF-8 bytes end to end and the offsets between them go in, ids end to
end and the offsets between them come out. So a batch of a million documents is four arrays.

    data uint8 [N], offsets int64 [n + 1] ──engine──▶ ids uint32 [T], offsets int64 [n + 1]

Every engine is of one of two kinds. A *reference* knows the whole tokenizer: its special tokens,
decoding, one text at a time. A *fast* engine only encodes flat, and its ids are the reference's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Protocol

import numpy as np

from penstock.errors import ConfigError, FormatError

REFERENCE_BATCH_BYTES = 4 << 20
"""Text handed to a reference engine at a time: its Python objects take about 20 times as much."""


class FlatEngine(Protocol):
    """Encodes documents from flat buffers to flat buffers."""

    @property
    def library(self) -> str:
        """The package that does the work, as error messages name it."""

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode valid documents: ids uint32 [T], offsets int64 [n + 1] from 0."""


class Reference(FlatEngine, Protocol):
    """The engine whose ids are right by definition."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""

    @property
    def eot_id(self) -> int | None:
        """The id that ends a text, where the tokenizer defines one."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode one text free of lone surrogates."""

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids below `vocab_size`; raises KeyError for an id that nothing has."""


def check_flat(data: np.ndarray, offsets: np.ndarray) -> None:
    """Raise ConfigError unless data and offsets describe documents."""
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1:
        raise ConfigError(f"data must be a uint8 array of one dimension, got {_described(data)}")
    if not isinstance(offsets, np.ndarray) or offsets.dtype != np.int64 or offsets.ndim != 1 or not offsets.size:
        raise ConfigError(f"offsets must be an int64 array [documents + 1], got {_described(offsets)}")
    if offsets[0] < 0 or offsets[-1] > data.size or (np.diff(offsets) < 0).any():
        raise ConfigError(
            f"offsets must rise from >= 0 to <= {data.size} (the bytes of data), got {offsets[0]} … {offsets[-1]}"
        )


def check_text(text: object, name: str = "text") -> str:
    """Return text if it is a string that UTF-8 can hold.

    Raises:
        ConfigError: it is no string.
        FormatError: it holds a lone surrogate, half of a character, which engines would replace in silence.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{name} must be a str, got {text!r:.80} ({type(text).__name__})")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise FormatError(
            f"{name} has the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}: it is no "
            "Unicode text. Repair its source, or replace such characters: text.encode('utf-8', 'replace').decode()."
        ) from None
    return text


def flatten(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Lay checked texts end to end: data uint8 [N], offsets int64 [n + 1]."""
    parts = [check_text(text, f"texts[{i}]").encode() for i, text in enumerate(texts)]
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.frombuffer(b"".join(parts), np.uint8), offsets


def encode_as_texts(
    data: np.ndarray, offsets: np.ndarray, encode_texts: Callable[[list[str]], list[list[int]]]
) -> tuple[np.ndarray, np.ndarray]:
    """Encode flat documents through an engine that takes strings, a few megabytes at a time.

    Raises:
        FormatError: a document is not valid UTF-8.
    """
    pieces, ends = [np.zeros(0, np.uint32)], np.zeros(len(offsets), np.int64)
    for start, stop in _batches(offsets):
        rows = encode_texts(_decoded(data, offsets, start, stop))
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        pieces.append(np.fromiter(chain.from_iterable(rows), np.uint32, int(lengths.sum())))
        ends[start + 1 : stop + 1] = lengths
    return np.concatenate(pieces), np.cumsum(ends)


def _batches(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    start, documents = 0, len(offsets) - 1
    while start < documents:
        stop = int(np.searchsorted(offsets, offsets[start] + REFERENCE_BATCH_BYTES, side="right")) - 1
        stop = min(max(stop, start + 1), documents)
        yield start, stop
        start = stop


def _decoded(data: np.ndarray, offsets: np.ndarray, start: int, stop: int) -> list[str]:
    base = int(offsets[start])
    raw = data[base : int(offsets[stop])].tobytes()
    cuts = (offsets[start : stop + 1] - base).tolist()
    texts = []
    for i in range(stop - start):
        try:
            texts.append(raw[cuts[i] : cuts[i + 1]].decode())
        except UnicodeDecodeError as error:
            raise FormatError(
                f"document {start + i} is not valid UTF-8: {error.reason} at its byte {error.start}"
            ) from None
    return texts


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} of shape {value.shape}"
    return type(value).__name__
