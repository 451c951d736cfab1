"""Texts and tokenizers the tokenizer tests share."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from penstock import Tokenizer
from penstock.prep.train_tokenizer import train_tokenizer

DATA = Path(__file__).parents[3] / "shared" / "data"
SPACES = [" ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u3000", "\u200b", "\ufeff", "\u2028", "\x85"]
WORDS = ["a", "the", " the", "THE", "é", "e\u0301", "ß", "ſ", "K", "İ", "Ⅷ", "½", "1", "23", "4567", "'s", "'S", "'ll"]
SCRIPTS = [
    "中文",
    "日本語",
    "한국어",
    "ไทย",
    "हिन्दी",
    "🙂",
    "👩\u200d👩\u200d👧",
    "\u0300",
    "\u088f",
    "\U000323b0",
    "\U0010ffff",
]
SIGNS = ["'", '"', "_", "/", "..", "--", "▁", "▁▁", "\x00", "\x7f", "\x1c"]
SPECIAL = ["<|endoftext|>", "<s>", "</s>", "<eos>", "<bos>", "<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
PIECES = [*SPACES, *WORDS, *SCRIPTS, *SIGNS, *SPECIAL, "<0x0A>", "<unused1>", "[multimodal]", "<extra>"]


def nasty_texts(count: int) -> list[str]:
    """Random joins of what trips tokenizers: white space, marks, emoji, special tokens, rare planes."""
    random_ = random.Random(7)
    points = [range(0x20, 0x7F), range(0x80, 0x800), range(0x800, 0xD800), range(0xE000, 0x110000)]
    texts = ["", " ", "<|endoftext|>"]
    for _ in range(count):
        if random_.random() < 0.7:
            texts.append("".join(random_.choices(PIECES, k=random_.randrange(30))))
        else:
            texts.append("".join(chr(random_.choice(random_.choice(points))) for _ in range(random_.randrange(20))))
    return texts


@pytest.fixture(scope="session")
def nasty() -> list[str]:
    return nasty_texts(3000)


def shared(name: str) -> Path:
    path = DATA / name
    if not path.exists():
        pytest.skip(f"{path} is not there: it is not part of the package")
    return path


@pytest.fixture(scope="session")
def gpt2_ranks() -> Path:
    return shared("gpt2.tiktoken")


@pytest.fixture(scope="session")
def shakespeare() -> str:
    return shared("tinyshakespeare.txt").read_text()


@pytest.fixture(scope="session")
def docstrings() -> list[str]:
    """Documentation that every Python brings along."""
    from pydoc_data.topics import topics

    return list(topics.values())


@pytest.fixture(scope="session")
def trained_json(docstrings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "tokenizer.json"
    train_tokenizer(docstrings[:40], 1000, path)
    return path


@pytest.fixture
def same_ids():
    """Check that a tokenizer's batch path gives, for any thread count, what its reference gives."""

    def check(tokenizer: Tokenizer, texts: list[str]) -> None:
        want = [tokenizer.encode(text) for text in texts]
        assert tokenizer.encode_batch(texts) == want
        assert tokenizer.encode_batch(texts, num_threads=1) == want
        assert tokenizer.encode_batch(texts, num_threads=3) == want
        data = np.frombuffer("".join(texts).encode(), np.uint8)
        ends = np.cumsum([0, *(len(text.encode()) for text in texts)])
        assert tokenizer.verify(data, ends) in (0, len(texts))

    return check
