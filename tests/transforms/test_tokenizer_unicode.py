from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock import Tokenizer
from penstock.transforms.tiktoken import ENCODINGS
from penstock.transforms.tokenizer_engine import flatten
from penstock.transforms.tokenizer_unicode import CHUNK_BYTES, RANGES, newer_documents

CASES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?"
REST = r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
SPLITS = {
    "llama3": CASES + r"\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+" + REST,
    "qwen2": CASES + r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+" + REST,
    "marks": CASES + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+" + REST,
    "cases": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
        r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
ENGINES = ["gpt2", "cl100k_base", "o200k_base", "byte level", *SPLITS]


@pytest.fixture
def opened(gpt2_ranks, trained_json, tmp_path):
    """Open a tokenizer that splits in a given way."""

    def open_(name: str) -> Tokenizer:
        if name == "gpt2":
            return Tokenizer.from_pretrained(gpt2_ranks)
        if name == "byte level":
            return Tokenizer.from_pretrained(trained_json)
        if name in ENCODINGS:
            return Tokenizer.from_pretrained(longer_ranks(gpt2_ranks, name, tmp_path))
        spec = json.loads(trained_json.read_bytes())
        split = {"type": "Split", "pattern": {"Regex": SPLITS[name]}, "behavior": "Isolated", "invert": False}
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
        spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(spec))
        return Tokenizer.from_pretrained(path)

    return open_


def longer_ranks(gpt2_ranks: Path, encoding: str, folder: Path) -> Path:
    """Extend GPT-2's ranks to another encoding's number of them, by tokens with a byte that no text has."""
    tokens = [base64.b64decode(line.split()[0]) for line in gpt2_ranks.read_bytes().splitlines()]
    piece = Tokenizer.from_pretrained(gpt2_ranks)._reference._encoding._core_bpe.encode_single_piece
    wholes = [token for token in tokens if len(token) > 1 and len(piece(token)) == 1]
    joined = [token + bytes([byte]) for byte in range(0xF8, 0x100) for token in wholes]
    tokens += joined[: ENCODINGS[encoding].num_ranks - len(tokens)]
    path = folder / f"{encoding}.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % i for i, token in enumerate(tokens)))
    return path


def around(points: list[int]) -> list[str]:
    """Put characters where it matters whether they are letters, marks, digits or neither."""
    return [f"a{c}b 1{c}2 {c}{c} .{c}. {c}'s A{c}\n{c} \n 's{c} /{c}/ {c}A{c}" for c in map(chr, points)]


@pytest.mark.parametrize("name", ENGINES)
def test_nasty_text_and_characters_at_the_edge_of_the_list_are_exact(name, opened, nasty, same_ids):
    tokenizer = opened(name)
    assert tokenizer.engine == "gigatoken"
    edges = {int(point) + step for point in RANGES.ravel() for step in (-1, 0, 1)}
    same_ids(tokenizer, nasty + around(sorted(edges)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ENGINES)
def test_every_unicode_character_is_exact(name, opened):
    tokenizer = opened(name)
    # Beyond the third plane nothing is assigned yet but variation selectors, or is for private use: a sample.
    points = [*range(1, 0xD800), *range(0xE000, 0x34000), *range(0xE0000, 0xE0200), *range(0x34000, 0x110000, 499)]
    for start in range(0, len(points), 100_000):
        documents = flatten(around(points[start : start + 100_000]))
        assert tokenizer.verify(*documents) == len(documents[1]) - 1


def listed(text: str) -> bool:
    return any(first <= ord(char) <= last for char in text for first, last in RANGES.tolist())


@given(
    texts=st.lists(
        st.text(st.characters(codec="utf-8") | st.sampled_from([chr(point) for point in RANGES.ravel()]), max_size=8),
        max_size=6,
    )
)
def test_the_documents_found_are_those_that_hold_a_listed_character(texts):
    found = newer_documents(*flatten(texts))
    assert found.tolist() == [i for i, text in enumerate(texts) if listed(text)]


def test_a_listed_character_is_found_across_chunks_and_at_the_end():
    for pad in range(6):
        text = "x" * (CHUNK_BYTES - pad) + "\U000323b0"
        data, offsets = flatten(["é", text, "", "plain"])
        assert newer_documents(data, offsets).tolist() == [1]
        assert newer_documents(data[: offsets[2]], offsets[:3]).tolist() == [1]
        assert newer_documents(data, offsets[2:]).tolist() == []


def test_documents_given_to_the_reference_take_their_place_among_the_others(opened):
    tokenizer = opened("gpt2")
    texts = ["\u088fa", "one", "", "x\u088f", "\u088f", "two", "\U000323b0b"]
    ids, offsets = tokenizer.encode_flat(*flatten(texts))
    assert (ids.dtype, offsets.dtype) == (np.uint32, np.int64)
    assert [row.tolist() for row in np.split(ids, offsets[1:-1])] == [tokenizer.encode(text) for text in texts]
