from __future__ import annotations

import json
import os

import pytest
import tokenizers

from penstock import ConfigError, FormatError, StoreError, Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def docstrings() -> list[str]:
    from pydoc_data.topics import topics

    return list(topics.values())


TEXTS = ["the cat sat on the mat", "the dog sat on the log", "", "naïve café 中文 🙂"] * 5


def test_a_trained_tokenizer_encodes_any_text_and_gives_it_back(tmp_path):
    tokenizer = train_tokenizer(iter(TEXTS), 280, tmp_path / "tokenizer.json")
    assert tokenizer.vocab_size == 280
    for text in ["the cat", "\x00\x7f\x85", "ไทย हिन्दी \U0010ffff", "<|endoftext|>", "\n\n  \t\r\n"]:
        assert tokenizer.decode(tokenizer.encode(text)) == text
        assert tokenizer.encode_batch([text]) == [tokenizer.encode(text)]
    assert len(tokenizer.encode(" the")) == 1


def test_it_learns_a_book_and_the_libraries_agree_on_it(docstrings, tmp_path):
    tokenizer = train_tokenizer(docstrings, 2000, tmp_path)
    assert (tokenizer.vocab_size, tokenizer.engine) == (2000, "gigatoken")
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = tokenizer.encode_batch(docstrings)
    assert ids == [row.ids for row in library.encode_batch(docstrings)]
    assert sum(map(len, ids)) < 0.5 * sum(map(len, docstrings))


def test_the_same_texts_give_the_same_file(docstrings, tmp_path):
    train_tokenizer(docstrings, 1000, tmp_path / "a.json")
    train_tokenizer(iter(docstrings), 1000, tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_special_tokens_come_first_and_never_from_text(tmp_path):
    special = ("<pad>", "</s>", "the")
    tokenizer = train_tokenizer(TEXTS, 400, tmp_path / "tokenizer.json", special_tokens=special)
    assert tokenizer.eot_id == 1
    assert tokenizer.decode([0, 1, 2]) == "<pad></s>the"
    assert min(tokenizer.encode("the<pad></s> the") + tokenizer.encode_batch(["the<pad></s> the"])[0]) > 2
    assert train_tokenizer(TEXTS, 400, tmp_path / "tokenizer.json", special_tokens=()).eot_id is None


def test_rare_pairs_are_merged_only_if_asked_for(tmp_path):
    often = train_tokenizer(TEXTS, 400, tmp_path / "a.json", min_frequency=6)
    ever = train_tokenizer(TEXTS, 400, tmp_path / "b.json", min_frequency=1)
    assert often.vocab_size < ever.vocab_size


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"texts": []}, "no text to learn from"),
        ({"texts": ["", ""]}, "no text to learn from"),
        ({"texts": "one string"}, "got one string"),
        ({"texts": ["fine", None]}, r"texts\[1\] must be a str, got None"),
        ({"vocab_size": 256}, "vocab_size must be an integer >= 257, got 256"),
        ({"vocab_size": 300.0}, "vocab_size must be an integer"),
        ({"min_frequency": 0}, "min_frequency must be an integer >= 1"),
        ({"special_tokens": "<s>"}, "special_tokens must be a sequence"),
        ({"special_tokens": ("<s>", "<s>")}, "names a token twice"),
        ({"special_tokens": ("", "<s>")}, "longer than one character"),
        ({"out": "tokenizer.model"}, r"ends in \.json, got 'tokenizer.model'"),
    ],
)
def test_arguments_that_cannot_work_are_named(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        train_tokenizer(**{"texts": TEXTS, "vocab_size": 300, "out": "tokenizer.json"} | arguments)
    assert os.listdir(tmp_path) == []


def test_a_failed_training_leaves_the_old_file(tmp_path):
    path = tmp_path / "tokenizer.json"
    train_tokenizer(TEXTS, 280, path)
    before = path.read_bytes()
    with pytest.raises(FormatError, match=r"texts\[1\] has the lone surrogate"):
        train_tokenizer(["good", "\ud800"], 300, path)
    assert os.listdir(tmp_path) == ["tokenizer.json"]
    assert path.read_bytes() == before
    assert json.loads(before)["model"]["type"] == "BPE"
    assert Tokenizer.from_pretrained(path).vocab_size == 280
    with pytest.raises(StoreError):
        train_tokenizer(TEXTS, 300, tmp_path / "missing" / "tokenizer.json")
