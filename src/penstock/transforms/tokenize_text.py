"""Text samples → token samples, while training: for corpora that nobody wants to tokenize first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.transforms.any_tokenizer import as_tokenizer, encode_documents, ids_of
from penstock.transforms.pad import IGNORED
from penstock.transforms.tokenizer_engine import check_text, flatten
from penstock.types import check_int

FLAT_FROM_CHARACTERS = 8192
"""A fast engine's call costs as much as encoding about so much text by its reference."""


class TokenizeText:
    """Tokenize a sample's text and cut it to `seq_length` pairs of a token and the next one.

    What a text has beyond that is left out: to train on whole long documents, tokenize ahead. A text
    of fewer than two tokens has no pair; its labels are all padding. If the text is None, all that is made of it is.

    Args:
        tokenizer: a path or name for `Tokenizer.from_pretrained`, or anything with `encode(text)`; see
            `penstock.transforms.any_tokenizer`. For worker processes it must be picklable.
        seq_length: most tokens per sample.
        text_field: which field of the sample holds the text.
        pad_to_length: fill every sample up to seq_length. False leaves that to collate, as length buckets need.
        pad_id: id that fills `input_ids`; labels are filled with -100, attention_mask with 0.

    Raises:
        ConfigError: an argument cannot work, or a sample has no such field.

    >>> class Bytes:
    ...     def encode(self, text):
    ...         return list(text.encode())
    >>> sample = TokenizeText(Bytes(), 4)({"text": "abc"})
    >>> sample["input_ids"].tolist(), sample["labels"].tolist(), sample["attention_mask"].tolist()
    ([97, 98, 0, 0], [98, 99, -100, -100], [1, 1, 0, 0])
    """

    def __init__(
        self, tokenizer: Any, seq_length: int, *, text_field: str = "text", pad_to_length: bool = True, pad_id: int = 0
    ) -> None:
        self.tokenizer = as_tokenizer(tokenizer)
        self.seq_length = check_int("seq_length", seq_length, minimum=1)
        self.text_field = text_field
        self.pad_to_length = pad_to_length
        self.pad_id = check_int("pad_id", pad_id, minimum=0)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with `input_ids` and `labels`, int64, in place of its text."""
        if self.text_field not in sample:
            raise ConfigError(f"the sample has no field {self.text_field!r}, it has {sorted(map(str, sample))}")
        rest = {name: value for name, value in sample.items() if name != self.text_field}
        if sample[self.text_field] is None:
            made = ("input_ids", "labels", "attention_mask") if self.pad_to_length else ("input_ids", "labels")
            return {**rest, **dict.fromkeys(made)}
        tokens = self._encode(check_text(sample[self.text_field], self.text_field))
        tokens = tokens[: self.seq_length + 1].astype(np.int64)
        pair = {"input_ids": tokens[:-1], "labels": tokens[1:]}
        if self.pad_to_length:
            pair = self._padded(pair)
        return {**rest, **pair}

    def _encode(self, text: str) -> np.ndarray:
        """Encode a text on the way that is quicker for its length; both give the same ids."""
        if len(text) < FLAT_FROM_CHARACTERS:
            return ids_of(self.tokenizer.encode(text))
        # One thread: the loader's workers share the cores already.
        return encode_documents(self.tokenizer, *flatten([text]), num_threads=1)[0]

    def _padded(self, pair: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Fill a sample up to seq_length, as `penstock.transforms.pad` would."""
        size = len(pair["input_ids"])
        fills = {"input_ids": self.pad_id, "labels": IGNORED, "attention_mask": 0}
        full = {name: np.full(self.seq_length, fill, np.int64) for name, fill in fills.items()}
        full["input_ids"][:size], full["labels"][:size] = pair["input_ids"], pair["labels"]
        full["attention_mask"][:size] = 1
        return full
