"""Texts become token samples while training."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

import text_subjects as subjects
from penstock import ConfigError, FormatError, ObjectMissing, Tokenizer
from penstock.transforms.pad import pad
from penstock.transforms.tokenize_text import FLAT_FROM_CHARACTERS, TokenizeText


@pytest.mark.parametrize("text", ["", "a", "abcd", "abcde", "abcdefgh"])
def test_texts_are_cut_or_padded_to_the_length_asked_for(text):
    sample = TokenizeText(subjects.DictTokenizer(), 4, pad_id=7)({"text": text, "id": 3})
    pairs = max(0, min(4, len(text) - 1))
    ids = list(text.encode())
    assert sample["input_ids"].tolist() == ids[:pairs] + [7] * (4 - pairs)
    assert sample["labels"].tolist() == ids[1 : pairs + 1] + [-100] * (4 - pairs)
    assert sample["attention_mask"].tolist() == [1] * pairs + [0] * (4 - pairs)
    assert sample["id"] == 3
    assert "text" not in sample


def test_padding_now_or_in_the_batch_is_the_same():
    now, later = (TokenizeText(subjects.ListTokenizer(), 16, pad_to_length=pads) for pads in (True, False))
    batch = pad([later({"text": text}) for text in subjects.TEXTS], length=16)
    for j, text in enumerate(subjects.TEXTS):
        for name, values in now({"text": text}).items():
            assert values.tolist() == batch[name][j].tolist()


def test_long_texts_are_encoded_like_short_ones():
    tokenizer = Tokenizer.from_pretrained("bytes")
    text = "wäter " * FLAT_FROM_CHARACTERS
    ids = TokenizeText(tokenizer, 10**6, pad_to_length=False)({"text": text})["input_ids"]
    assert ids.tolist() == tokenizer.encode(text)[:-1]


def test_a_name_or_path_stands_for_a_tokenizer(tmp_path):
    assert TokenizeText("bytes", 4)({"text": "abc"})["labels"].tolist() == [98, 99, -100, -100]
    with pytest.raises(ObjectMissing, match=r"none\.json does not exist"):
        TokenizeText(tmp_path / "none.json", 4)


def test_it_travels_to_workers():
    copy = pickle.loads(pickle.dumps(TokenizeText(Tokenizer.from_pretrained("bytes"), 4)))
    assert copy({"text": "abc"})["labels"].tolist() == [98, 99, -100, -100]
    assert copy({"text": "abc"})["labels"].dtype == np.int64


def test_what_cannot_be_tokenized_is_refused():
    transform = TokenizeText(subjects.ListTokenizer(), 4)
    with pytest.raises(ConfigError, match="no field 'text', it has"):
        transform({"body": "x"})
    with pytest.raises(ConfigError, match="must be a str"):
        transform({"text": 5})
    with pytest.raises(FormatError, match="lone surrogate"):
        transform({"text": "\ud800"})
    with pytest.raises(ConfigError, match=r"a path, a name, or something with a method encode\(text\), got <object"):
        TokenizeText(object(), 4)
    with pytest.raises(ConfigError, match="seq_length"):
        TokenizeText(subjects.ListTokenizer(), 0)
