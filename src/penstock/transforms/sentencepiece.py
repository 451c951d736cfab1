"""Reference engine for SentencePiece `.model` files, BPE and unigram."""

from __future__ import annotations

import numpy as np

from penstock.errors import ConfigError, FormatError
from penstock.transforms.tokenizer_engine import encode_as_texts


class SentencePieceEngine:
    """A SentencePiece model.

    Control pieces (`<s>`, `</s>`) never match text: the library spells them out like any other
    characters. Pieces the model calls user-defined do match, as its authors meant.

    Args:
        model: content of the `.model` file.

    Raises:
        ConfigError: the sentencepiece package is missing.
        FormatError: the content is no SentencePiece model.
    """

    library = "sentencepiece"

    def __init__(self, model: bytes) -> None:
        try:
            from sentencepiece import SentencePieceProcessor
        except ImportError as error:
            raise ConfigError(".model tokenizers need sentencepiece: pip install 'penstock[text]'") from error
        if not model:
            raise FormatError("the file is no SentencePiece model: it is empty")
        try:
            self._processor = SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise FormatError(f"the file is no SentencePiece model: {error}") from error
        self.vocab_size = int(self._processor.get_piece_size())
        eos = int(self._processor.eos_id())
        self.eot_id = eos if eos >= 0 else None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode one text; special tokens are the model's BOS and EOS, those it has."""
        ids: list[int] = self._processor.encode(text, out_type=int)
        if not add_special_tokens:
            return ids
        bos = int(self._processor.bos_id())
        return ([bos] if bos >= 0 else []) + ids + ([] if self.eot_id is None else [self.eot_id])

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids."""
        text: str = self._processor.decode(ids)
        return text

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents on the library's own threads."""
        threads = -1 if num_threads is None else num_threads
        return encode_as_texts(
            data, offsets, lambda texts: self._processor.encode(texts, out_type=int, num_threads=threads)
        )
