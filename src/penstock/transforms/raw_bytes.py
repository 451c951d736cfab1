"""The tokenizer that needs no file: every byte is its own id."""

from __future__ import annotations

import numpy as np


class BytesEngine:
    """256 ids, the bytes of UTF-8.

    >>> BytesEngine().encode("é", add_special_tokens=False)
    [195, 169]
    """

    library = "bytes"
    vocab_size = 256
    eot_id = None

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Encode one text; bytes have no special tokens to add."""
        return list(text.encode())

    def decode(self, ids: list[int]) -> str:
        """Give the text of ids; bytes that are no UTF-8 become U+FFFD."""
        return bytes(ids).decode("utf-8", "replace")

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, num_threads: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Widen the bytes between the first and the last offset."""
        return data[offsets[0] : offsets[-1]].astype(np.uint32), offsets - offsets[0]
