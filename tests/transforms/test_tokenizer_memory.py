from __future__ import annotations

import numpy as np

from penstock import Tokenizer
from penstock.transforms import gigatoken


def test_starting_anew_changes_no_ids(gpt2_ranks, monkeypatch):
    tokenizer = Tokenizer.from_pretrained(gpt2_ranks)
    data = np.random.default_rng(0).integers(97, 123, 1_000_000, dtype=np.uint8)
    data[::7] = 32
    offsets = np.arange(0, data.size + 1, 1000)
    want, _ = tokenizer.encode_flat(data, offsets)
    before = tokenizer._fast._tokenizer
    monkeypatch.setattr(gigatoken, "RENEW_AFTER_TEXT", 0)
    assert np.array_equal(tokenizer.encode_flat(data, offsets)[0], want)
    assert tokenizer._fast._tokenizer is before  # much text alone is no reason
    monkeypatch.setattr(gigatoken, "RENEW_AFTER_GROWTH", -(1 << 40))
    assert np.array_equal(tokenizer.encode_flat(data, offsets)[0], want)
    assert tokenizer._fast._tokenizer is not before
