from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
import sentencepiece

from penstock import ConfigError, FormatError, Tokenizer

GEMMA = {
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "add_dummy_prefix": False,
    "allow_whitespace_only_pieces": True,
    "split_digits": True,
    "pad_id": 0,
    "eos_id": 1,
    "bos_id": 2,
    "unk_id": 3,
}
LLAMA = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True}
USER_DEFINED = {"user_defined_symbols": ["<unused1>", "[multimodal]", "\n\n", "▁▁", "▁▁▁"]}


@pytest.fixture
def trained(shakespeare, tmp_path):
    """Train a model and give its path and the library's own processor."""

    def train(**options: Any):
        writer = io.BytesIO()
        lines = [line for line in shakespeare[:200_000].split("\n") if line] + ["中文 日本 🙂 é"] * 20
        defaults = {"vocab_size": 1200, "model_type": "bpe", "byte_fallback": True, "minloglevel": 2}
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=writer, **{**defaults, **options}
        )
        path = tmp_path / "tokenizer.model"
        path.write_bytes(writer.getvalue())
        return path, sentencepiece.SentencePieceProcessor(model_proto=writer.getvalue())

    return train


@pytest.mark.parametrize(
    ("options", "engine"),
    [
        (GEMMA, "gigatoken"),
        (GEMMA | USER_DEFINED, "gigatoken"),
        (LLAMA, "gigatoken"),
        ({}, "sentencepiece"),  # normalises text
        ({"normalization_rule_name": "identity"}, "sentencepiece"),  # removes white space
        ({"byte_fallback": False}, "sentencepiece"),
        ({"model_type": "unigram", "byte_fallback": True}, "sentencepiece"),
        ({"model_type": "unigram", "byte_fallback": False}, "sentencepiece"),
        ({"model_type": "char", "byte_fallback": False, "vocab_size": 80}, "sentencepiece"),
    ],
)
def test_any_model_gives_sentencepieces_ids(trained, options, engine, nasty, shakespeare, same_ids):
    path, processor = trained(**options)
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.engine == engine
    assert tokenizer.vocab_size == processor.get_piece_size()
    texts = [*nasty, shakespeare[:20_000]]
    assert tokenizer.encode_batch(texts) == processor.encode(texts, out_type=int)
    same_ids(tokenizer, texts)


def test_control_pieces_are_text_and_bos_and_eos_come_on_request(trained):
    path, _ = trained(**GEMMA)
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.eot_id == 1
    plain = tokenizer.encode("hello")
    assert tokenizer.encode("hello", add_special_tokens=True) == [2, *plain, 1]
    for literal in ("</s>", "<s>", "<pad>", "<unk>", "<0x0A>"):
        for ids in (tokenizer.encode(literal), tokenizer.encode_batch([literal])[0]):
            assert min(ids) > 3
            assert tokenizer.decode(ids) == literal
    path, _ = trained(bos_id=-1, eos_id=-1)
    tokenizer = Tokenizer.from_pretrained(path)
    assert tokenizer.eot_id is None
    assert tokenizer.encode("hello", add_special_tokens=True) == tokenizer.encode("hello")


def test_user_defined_pieces_match(trained):
    path, processor = trained(**GEMMA | USER_DEFINED)
    tokenizer = Tokenizer.from_pretrained(path)
    ids = [processor.piece_to_id(piece) for piece in ("<unused1>", "\n\n", "▁▁")]
    assert tokenizer.encode("<unused1>\n\n  ") == ids == tokenizer.encode_batch(["<unused1>\n\n  "])[0]


def test_a_folder_with_one_model_is_that_model_and_pickles(trained):
    path, processor = trained(**GEMMA)
    tokenizer = Tokenizer.from_pretrained(path.parent)
    path.unlink()
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.fingerprint == tokenizer.fingerprint
    assert again.encode_batch(["so it is"]) == [processor.encode("so it is")]


def test_a_damaged_model_is_refused(tmp_path):
    (tmp_path / "x.model").write_bytes(b"\x0a\xff no model")
    with pytest.raises(FormatError, match="no SentencePiece model"):
        Tokenizer.from_pretrained(tmp_path / "x.model")
    (tmp_path / "x.model").write_bytes(b"")
    with pytest.raises(FormatError, match="no SentencePiece model"):
        Tokenizer.from_pretrained(tmp_path / "x.model")


def test_asking_for_the_fast_engine_says_why_there_is_none(trained):
    path, _ = trained(model_type="unigram", byte_fallback=False)
    with pytest.raises(ConfigError, match=r"no fast engine: gigatoken cannot load it: .*unigram"):
        Tokenizer.from_pretrained(path, engine="fast")
