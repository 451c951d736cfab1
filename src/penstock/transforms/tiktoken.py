"""Reference engine for tiktoken's encodings: rank files, and the definitions they do not carry.

A `.tiktoken` file holds ranks and nothing else; the pattern that splits text and the special
tokens belong to the encoding. Each published encoding has its own number of ranks, so that number
says which one a file is. Nothing here opens a connection: ranks come from a file or from the
folder in which tiktoken itself keeps its downloads.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import ConfigError, FormatError
from penstock.transforms.tokenizer_engine import encode_as_texts

END = "<|endoftext|>"
FIM = {"<|fim_prefix|>": 0, "<|fim_middle|>": 1, "<|fim_suffix|>": 2}
BLOBS = "https://openaipublic.blob.core.windows.net/"

R50K_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
CL100K_PATTERN = (
    r"""'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"""
    r"""|\s+(?!\S)|\s"""
)
O200K_PATTERN = (
    r"""[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"""
    r"""|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoding:
    """What a rank file leaves unsaid about one published encoding."""

    blob: str
    """Where the ranks are published, below `BLOBS`; tiktoken's cache names the file after it."""
    sha256: str
    """Of that file's bytes."""
    num_ranks: int
    pattern: str
    special_tokens: dict[str, int] = field(default_factory=dict)


def _harmony_tokens() -> dict[str, int]:
    named = {
        200002: "return",
        200003: "constrain",
        200005: "channel",
        200006: "start",
        200007: "end",
        200008: "message",
    }
    named |= {199998: "startoftext", 199999: "endoftext", 200012: "call"}
    tokens = {f"<|{named.get(i, f'reserved_{i}')}|>": i for i in range(199998, 201088)}
    return tokens | {"<|endofprompt|>": 200018}


_R50K = ("encodings/r50k_base.tiktoken", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930", 50256)
_P50K = ("encodings/p50k_base.tiktoken", "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069", 50280)
_CL100K = ("encodings/cl100k_base.tiktoken", "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7", 100256)
_O200K = ("encodings/o200k_base.tiktoken", "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d", 199998)


def _encoding(published: tuple[str, str, int], pattern: str, special_tokens: dict[str, int]) -> Encoding:
    blob, sha256, num_ranks = published
    return Encoding(blob=blob, sha256=sha256, num_ranks=num_ranks, pattern=pattern, special_tokens=special_tokens)


ENCODINGS = {
    "gpt2": _encoding(_R50K, R50K_PATTERN, {END: 50256}),
    "r50k_base": _encoding(_R50K, R50K_PATTERN, {END: 50256}),
    "p50k_base": _encoding(_P50K, R50K_PATTERN, {END: 50256}),
    "p50k_edit": _encoding(_P50K, R50K_PATTERN, {END: 50256} | {k: 50281 + i for k, i in FIM.items()}),
    "cl100k_base": _encoding(
        _CL100K, CL100K_PATTERN, {END: 100257, "<|endofprompt|>": 100276} | {k: 100258 + i for k, i in FIM.items()}
    ),
    "o200k_base": _encoding(_O200K, O200K_PATTERN, {END: 199999, "<|endofprompt|>": 200018}),
    "o200k_harmony": _encoding(_O200K, O200K_PATTERN, _harmony_tokens()),
}
ENCODING_OF_FILE = {50256: "gpt2", 50280: "p50k_base", 100256: "cl100k_base", 199998: "o200k_base"}
"""The encoding of a rank file by its number of ranks. Encodings that share ranks differ in special tokens only."""

# GPT-2 itself was published before rank files, as a list of merges; tiktoken caches that list under these names.
_GPT2_MERGES = ("gpt-2/encodings/main/vocab.bpe", "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """Read the lines "base64-token rank" of a `.tiktoken` file.

    Raises:
        FormatError: a line is something else, or a token or rank comes twice.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(content.splitlines(), 1):
        if not line:
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise FormatError(f"line {number} of the rank file is not 'base64-token rank': {line[:60]!r}") from None
    if len(set(ranks.values())) != len(ranks) or min(ranks.values(), default=0) < 0:
        raise FormatError("the rank file gives one rank to two tokens, or a negative one: it is damaged")
    return ranks


def canonical_ranks(content: bytes) -> tuple[str, bytes]:
    """Find which encoding a rank file belongs to.

    Returns:
        The encoding's name, and the file's ranks in one form: sorted, without special tokens, so
        that every file with the same ids gives the same bytes.

    Raises:
        FormatError: it is no rank file.
        ConfigError: no published encoding has this number of ranks.
    """
    ranks = parse_ranks(content)
    for name in ENCODING_OF_FILE.values():
        encoding = ENCODINGS[name]
        special = {token.encode(): i for token, i in encoding.special_tokens.items()}
        mergeable = {token: rank for token, rank in ranks.items() if special.get(token) != rank}
        if len(mergeable) == encoding.num_ranks:
            ordered = sorted(mergeable.items(), key=lambda item: item[1])
            return name, b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ordered)
    known = ", ".join(f"{count} ({name})" for count, name in ENCODING_OF_FILE.items())
    raise ConfigError(
        f"the rank file has {len(ranks)} ranks, and a rank file does not say how text is split before it is merged. "
        f"Known are {known}. For another tokenizer give its tokenizer.json, which says it."
    )


def cached_ranks(name: str) -> bytes:
    """Read an encoding's ranks from tiktoken's own cache.

    Raises:
        ConfigError: they are not there, or not intact. Nothing is downloaded.
    """
    folder = _cache_folder()
    encoding = ENCODINGS[name]
    content = _cached_blob(folder, encoding.blob, encoding.sha256)
    if content is None and encoding.num_ranks == ENCODINGS["gpt2"].num_ranks:
        merges = _cached_blob(folder, *_GPT2_MERGES)
        content = None if merges is None else _ranks_from_merges(merges)
    if content is None:
        hub = " or the Hub name openai-community/gpt2" if name in ("gpt2", "r50k_base") else ""
        place = folder or "switched off by an empty TIKTOKEN_CACHE_DIR"
        raise ConfigError(
            f"the ranks of {name!r} are not in tiktoken's cache ({place}), and nothing is downloaded unasked. Give the "
            f"path of a .tiktoken file{hub}, or fill the cache once with "
            f"python -c \"import tiktoken; tiktoken.get_encoding('{name}')\"."
        )
    return content


def _cache_folder() -> Path | None:
    for variable in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR"):
        if variable in os.environ:
            return Path(os.environ[variable]) if os.environ[variable] else None
    return Path(tempfile.gettempdir()) / "data-gym-cache"


def _cached_blob(folder: Path | None, blob: str, sha256: str) -> bytes | None:
    if folder is None:
        return None
    # tiktoken names its cached files by the SHA-1 of their address; no security rests on it.
    path = folder / hashlib.sha1((BLOBS + blob).encode(), usedforsecurity=False).hexdigest()
    try:
        content = path.read_bytes()
    except OSError:
        return None
    return content if hashlib.sha256(content).hexdigest() == sha256 else None


def _ranks_from_merges(merges: bytes) -> bytes:
    """Turn GPT-2's list of merges into a rank file: bytes first, then each merge's product."""
    printable = [b for b in range(256) if chr(b).isprintable() and b != 32]
    order = printable + [b for b in range(256) if b not in set(printable)]
    byte_of = {chr(b): b for b in printable}
    byte_of |= {chr(256 + i): b for i, b in enumerate(order[len(printable) :])}
    tokens = [bytes([b]) for b in order]
    for line in merges.decode().split("\n")[1:-1]:
        tokens.append(bytes(byte_of[char] for char in line.replace(" ", "")))
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


class TiktokenEngine:
    """A tiktoken encoding over given ranks.

    Args:
        encoding: name in `ENCODINGS`.
        content: its ranks, as `canonical_ranks` gives them.

    Raises:
        ConfigError: the tiktoken package is missing.
    """

    library = "tiktoken"

    def __init__(self, encoding: str, content: bytes) -> None:
        try:
            import tiktoken
        except ImportError as error:
            raise ConfigError(f"{encoding!r} needs tiktoken: pip install 'penstock[text]'") from error
        known = ENCODINGS[encoding]
        ranks = parse_ranks(content)
        self._encoding: Any = tiktoken.Encoding(
            encoding, pat_str=known.pattern, mergeable_ranks=ranks, special_tokens=dict(known.special_tokens)
        )
        self.vocab_size = 1 + max(*ranks.values(), *known.special_tokens.values())
        self.eot_id: int | None = known.special_tokens[END]

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode one text; these encodings put no special tokens around it."""
        ids: list[int] = self._encoding.encode_ordinary(text)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids; bytes that are no UTF-8 become U+FFFD."""
        text: str = self._encoding.decode(ids)
        return text

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents on tiktoken's own threads."""
        threads = num_threads or os.cpu_count() or 1
        return encode_as_texts(
            data, offsets, lambda texts: self._encoding.encode_ordinary_batch(texts, num_threads=threads)
        )
