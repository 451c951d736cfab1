"""Fast engine: gigatoken, for the tokenizers it computes exactly.

Its flat buffers keep documents out of Python. It remembers every distinct word it has met, without
a limit, so the engine starts anew once that memory has grown; ids don't depend on it.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.errors import ConfigError
from penstock.transforms import tokenizer_json
from penstock.transforms.tokenizer_gate import BYTE_PIECES, why_not_fast

PATTERN_OF_ENCODING = {
    "gpt2": "gpt2",
    "r50k_base": "gpt2",
    "cl100k_base": "cl100k",
    "o200k_base": "o200k",
    "o200k_harmony": "o200k",
}
"""gigatoken's name for a tiktoken encoding's split pattern. It refuses p50k's ranks, which have a hole."""

RENEW_AFTER_TEXT = 256 << 20
RENEW_AFTER_GROWTH = 1 << 30
"""Start anew after this much text if the process has grown by this much since: ordinary text never gets
there, while text without repeated words (hashes, base64, random strings) costs six times its size."""


class CannotBeFast(ConfigError):
    """gigatoken is not installed, or does not compute this tokenizer exactly."""


class GigatokenEngine:
    """Encodes flat buffers many times faster than a reference, and nothing else.

    Args:
        load: opens the library's tokenizer; called again when its memory has grown.
        splits_by_unicode: True where ids depend on tables of letters, digits and white space.

    Raises:
        CannotBeFast: see there.
    """

    library = "gigatoken"

    def __init__(self, load: Callable[[], Any], *, splits_by_unicode: bool) -> None:
        self.splits_by_unicode = splits_by_unicode
        self._load = load
        self._renew()

    @classmethod
    def from_ranks(cls, encoding: str, content: bytes) -> GigatokenEngine:
        """Load a tiktoken encoding."""
        if encoding not in PATTERN_OF_ENCODING:
            raise CannotBeFast(f"gigatoken does not compute the encoding {encoding}")
        return cls(lambda: _from_ranks(content, PATTERN_OF_ENCODING[encoding]), splits_by_unicode=True)

    @classmethod
    def from_json(cls, content: bytes) -> GigatokenEngine:
        """Load a tokenizer.json."""
        return cls._from_plain(tokenizer_json.plain(tokenizer_json.parse(content)))

    @classmethod
    def from_sentencepiece(cls, model: bytes) -> GigatokenEngine:
        """Load a SentencePiece model."""
        # The library's own way from a model to its backend goes through this, with control pieces
        # matching text; taking the step apart is what lets them be text.
        _library()
        from gigatoken._load.sentencepiece import sentencepiece_to_tokenizer_json

        try:
            converted: str = sentencepiece_to_tokenizer_json(model)
        except ValueError as error:
            raise CannotBeFast(f"gigatoken cannot load it: {error}") from error
        spec = tokenizer_json.plain(tokenizer_json.parse(converted.encode()))
        # SentencePiece spells bytes only where no piece matches, and looks for user-defined pieces
        # after spaces became ▁.
        spec["model"]["merges"] = tokenizer_json.without_merges(spec["model"]["merges"], set(BYTE_PIECES))
        spec["added_tokens"] = [{**token, "normalized": True} for token in spec["added_tokens"]]
        return cls._from_plain(spec)

    @classmethod
    def _from_plain(cls, spec: tokenizer_json.Spec) -> GigatokenEngine:
        reason = why_not_fast(spec)
        if reason is not None:
            raise CannotBeFast(f"gigatoken is not exact for it: {reason}")
        content = orjson.dumps(spec)
        by_unicode = not spec["model"].get("byte_fallback")
        return cls(lambda: _library().Tokenizer.from_json(content), splits_by_unicode=by_unicode)

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents; more than one thread means the library's own pool, one for each core."""
        self._text_bytes += int(offsets[-1] - offsets[0])
        if self._has_grown():
            self._renew()
        documents = _as_documents(data, offsets)
        layout = self._tokenizer.encode_batch(documents, parallel=num_threads != 1).layout
        ids, ends = np.asarray(layout.content.data), np.asarray(layout.offsets.data)
        return ids[: int(ends[-1])], ends

    def _has_grown(self) -> bool:
        if self._text_bytes <= RENEW_AFTER_TEXT:
            return False
        now = _resident_bytes()
        grown = self._text_bytes if now is None or self._resident is None else now - self._resident
        return grown > RENEW_AFTER_GROWTH

    def _renew(self) -> None:
        # Never None in between, for other threads may be encoding; measured once the old one is freed.
        self._tokenizer = _guarded(self._load)
        self._text_bytes, self._resident = 0, _resident_bytes()


def _as_documents(data: np.ndarray, offsets: np.ndarray) -> Any:
    """Wrap flat buffers, without copying them, as the array of byte strings the library takes."""
    import awkward

    characters = awkward.contents.NumpyArray(np.ascontiguousarray(data), parameters={"__array__": "byte"})
    rows = awkward.index.Index64(np.ascontiguousarray(offsets))
    return awkward.Array(awkward.contents.ListOffsetArray(rows, characters, parameters={"__array__": "bytestring"}))


def _from_ranks(content: bytes, pattern: str) -> Any:
    """Load ranks; the library reads them from a file only."""
    library = _library()
    with tempfile.TemporaryDirectory(prefix="penstock-") as folder:
        path = Path(folder) / "ranks.tiktoken"
        path.write_bytes(content)
        return library.Tokenizer.from_tiktoken(path, pattern)


def _library() -> Any:
    try:
        import awkward  # noqa: F401 - the library answers in its arrays
        import gigatoken
    except ImportError as error:
        raise CannotBeFast("gigatoken and awkward are not installed: pip install 'penstock[text]'") from error
    return gigatoken


def _guarded(load: Callable[[], Any]) -> Any:
    """Run a loader of the library and name what it refuses."""
    try:
        return load()
    except (RuntimeError, ValueError) as error:
        raise CannotBeFast(f"gigatoken cannot load it: {str(error).splitlines()[0]}") from error
    except BaseException as error:
        # A failed assertion in compiled code arrives as a class of its own, outside Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise CannotBeFast(f"gigatoken cannot load it: {str(error).splitlines()[0]}") from error


def _resident_bytes() -> int | None:
    """Memory this process holds; None where the system does not say."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None
