"""What tokenizers return, and what they are, whoever made them."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

import text_subjects as subjects
from penstock import ConfigError, Tokenizer
from penstock.transforms.any_tokenizer import encode_documents, fingerprint_of, ids_of, vocab_size_of

tokenizers = pytest.importorskip("tokenizers")
tiktoken = pytest.importorskip("tiktoken")

KINDS = [
    subjects.ListTokenizer,
    subjects.DictTokenizer,
    subjects.NestedTokenizer,
    subjects.BatchEncodingTokenizer,
    subjects.AttributeTokenizer,
    subjects.NumpyTokenizer,
    subjects.TorchTokenizer,
]


def trained(texts=subjects.TEXTS):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_found_in_whatever_encode_returns(kind):
    ids = ids_of(kind().encode("hé"))
    assert ids.tolist() == [104, 195, 169]
    assert ids.dtype == np.uint32
    assert ids_of(kind().encode("")).tolist() == []


def test_ids_are_found_in_an_encoding_of_tokenizers():
    tokenizer = trained()
    encoded = tokenizer.encode("water flows")
    assert ids_of(encoded).tolist() == encoded.ids != []


@pytest.mark.parametrize(
    ("encoded", "words"),
    [
        ({"ids": [1]}, "without 'input_ids'"),
        (["wa", "ter"], "must give the ids of one text"),
        ([0.5, 1.0], "must give the ids of one text"),
        ([[1, 2], [3, 4]], "must give the ids of one text"),
        ([[1, 2], [3]], "rows of different lengths"),
        ([1, -1], "ids from -1 to 1"),
        ([2**32], "ids from 4294967296"),
        (None, "must give the ids of one text"),
        ([True, False], "must give the ids of one text"),
    ],
)
def test_what_is_no_row_of_ids_is_refused(encoded, words):
    with pytest.raises(ConfigError, match=words):
        ids_of(encoded)


def test_flat_documents_come_out_as_each_alone():
    texts = [text.encode() for text in subjects.TEXTS]
    data = np.frombuffer(b"".join(texts), np.uint8)
    offsets = np.cumsum([0, *map(len, texts)]).astype(np.int64)
    tokenizer = trained()
    ids, ends = encode_documents(tokenizer, data, offsets)
    assert [ids[a:b].tolist() for a, b in pairwise(ends)] == [tokenizer.encode(text).ids for text in subjects.TEXTS]
    ours = Tokenizer.from_pretrained("bytes")
    assert encode_documents(ours, data, offsets)[0].tolist() == data.tolist()


def test_an_error_of_the_tokenizer_says_which_text_it_was():
    class Picky(subjects.ListTokenizer):
        def encode(self, text: str):
            return super().encode(text) if "bad" not in text else None

    data = np.frombuffer(b"goodbad text", np.uint8)
    with pytest.raises(ConfigError) as caught:
        encode_documents(Picky(), data, np.array([0, 4, 12]))
    assert caught.value.__notes__ == ["while encoding a text of 8 characters that begins 'bad text'"]


def test_vocabulary_sizes_count_added_tokens():
    tokenizer = trained()
    before = vocab_size_of(tokenizer)
    tokenizer.add_tokens(["<|water|>"])
    assert vocab_size_of(tokenizer) == before + 1
    assert vocab_size_of(Tokenizer.from_pretrained("bytes")) == 256
    assert vocab_size_of(subjects.ListTokenizer()) is None


def test_equal_tokenizers_have_equal_fingerprints_and_others_have_not():
    encoding = {
        name: tiktoken.Encoding(
            name, pat_str=r"\w+|\W+", mergeable_ranks={bytes([i]): i for i in range(256)} | extra, special_tokens={}
        )
        for name, extra in {"plain": {}, "same": {}, "merged": {b"zq": 256}}.items()
    }
    bpe = trained()
    added = tokenizers.Tokenizer.from_str(bpe.to_str())
    assert fingerprint_of(bpe) == fingerprint_of(added)
    added.add_tokens(["<|water|>"])
    assert fingerprint_of(encoding["plain"]) == fingerprint_of(encoding["same"])
    marks = [bpe, added, *(encoding[name] for name in ("plain", "merged")), *(kind() for kind in KINDS)]
    assert len({fingerprint_of(tokenizer) for tokenizer in marks}) == len(marks)
    ours = Tokenizer.from_pretrained("bytes")
    assert fingerprint_of(ours) == ours.fingerprint


def test_fingerprints_are_the_same_in_another_process():
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import text_subjects as s;"
        "from penstock.transforms.any_tokenizer import fingerprint_of; print(fingerprint_of(s.DictTokenizer()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == fingerprint_of(subjects.DictTokenizer())
