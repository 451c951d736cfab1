"""Reference engine for tokenizer.json, and the training of new ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from penstock.errors import ConfigError, FormatError
from penstock.transforms import tokenizer_json
from penstock.transforms.tokenizer_engine import encode_as_texts


class HuggingFaceEngine:
    """A tokenizer.json, run by the tokenizers library.

    Args:
        content: the file.
        eos: end token that the tokenizer's configuration names, if it does.

    Raises:
        ConfigError: the tokenizers package is missing, or the tokenizer is random.
        FormatError: the content is no tokenizer.json, or contradicts itself.
    """

    library = "tokenizers"

    def __init__(self, content: bytes, eos: str | None = None) -> None:
        spec = tokenizer_json.parse(content)
        plain = tokenizer_json.plain(spec)
        self._whole = tokenizer_json.canonical(spec)
        self._plain = _load(tokenizer_json.canonical(plain))
        self.vocab_size = tokenizer_json.vocab_size(spec)
        self.eot_id = tokenizer_json.eot_id(spec, eos)
        for token in plain["added_tokens"]:
            found = self._plain.token_to_id(token["content"])
            if found != token["id"]:
                raise FormatError(
                    f"tokenizer.json gives {token['content']!r} the id {token['id']} and, in its model, {found}"
                )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode one text; special tokens are those of the file's post-processor."""
        ids: list[int] = self._plain.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids, special tokens spelled out."""
        text: str = self._decoder.decode(ids, skip_special_tokens=False)
        return text

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents; more than one thread means the library's own pool, one for each core."""

        def encode_texts(texts: list[str]) -> list[list[int]]:
            if num_threads == 1:
                return [self._plain.encode(text, add_special_tokens=False).ids for text in texts]
            return [row.ids for row in self._plain.encode_batch_fast(texts, add_special_tokens=False)]

        return encode_as_texts(data, offsets, encode_texts)

    @cached_property
    def _decoder(self) -> Any:
        return _load(self._whole)


def _load(content: bytes) -> Any:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError("tokenizer.json needs tokenizers: pip install 'penstock[text]'") from error
    try:
        return Tokenizer.from_buffer(content)
    except ValueError as error:
        raise FormatError(f"the tokenizers library cannot load this tokenizer.json: {error}") from error


def read_from_hub(name: str) -> bytes:
    """Fetch a Hub repository's tokenizer.json, from the local cache where the library finds it there.

    Raises:
        ConfigError: no such repository or file, no access, or no network.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ConfigError("tokenizers from the Hub need tokenizers: pip install 'penstock[text]'") from error
    try:
        loaded = Tokenizer.from_pretrained(name)
    except Exception as error:
        # The library raises the bare class for every failure.
        raise ConfigError(
            f"{name!r} is no path here, and the Hub did not give its tokenizer.json: {error}. Check the name, the "
            "network (HF_ENDPOINT) and, for a gated repository, HF_TOKEN; or give the path of a downloaded copy."
        ) from error
    content: str = loaded.to_str()
    return content.encode()


def train_byte_level_bpe(
    texts: Iterable[str], vocab_size: int, special_tokens: Sequence[str], min_frequency: int
) -> bytes:
    """Train a byte-level BPE and give its tokenizer.json.

    Ids: the special tokens, then the 256 bytes, then merges in the order they were learned.
    """
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigError("training a tokenizer needs tokenizers: pip install 'penstock[text]'") from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(special_tokens),
        # Sorted: the library numbers the alphabet in the order given, and its own list has no fixed one.
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    content: str = tokenizer.to_str(pretty=True)
    return content.encode()
