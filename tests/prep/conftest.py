"""A corpus and tokenizers for the tests of tokenizing."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path

import numpy as np
import pytest

from penstock.formats.tokens import open_bin, verify_bin
from penstock.prep import token_pipeline
from penstock.prep.train_tokenizer import train_tokenizer
from penstock.transforms.tokenizer import Tokenizer

WORDS = ["water", "flows", "down", "the", "penstock", "épsilon", "漢字", "😀", "\n", "<|endoftext|>", "{", "'s"]
GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2.tiktoken"


class Corpus:
    """Texts that are the same in every run, and what became of them."""

    def texts(self, count: int, seed: int = 0) -> list[str]:
        rng = random.Random(seed)
        return [" ".join(rng.choices(WORDS, k=rng.randint(1, 60))) for _ in range(count)]

    def write(self, path: Path, texts: list[str]) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
        return path

    def documents_of(self, path: Path, tokenizer: Tokenizer) -> list[str]:
        """Decode every document of a bin, after verifying it."""
        verify_bin(path)
        opened = open_bin(path)
        return [
            tokenizer.decode(row.tolist()) for row in np.split(opened.tokens, opened.doc_ends[:-1].astype(np.int64))
        ]

    def contents(self, folder: Path, split: str = "train") -> dict[str, bytes]:
        """The files of a split; the side-car without what tells of its source's name and time."""
        files = {suffix: (folder / f"{split}{suffix}").read_bytes() for suffix in (".bin", ".docs")}
        side_car = json.loads((folder / f"{split}.json").read_text())
        side_car.pop("source")
        side_car["job"].pop("source")
        return {**files, ".json": json.dumps(side_car).encode()}


@pytest.fixture(scope="session")
def corpus() -> Corpus:
    return Corpus()


@pytest.fixture(scope="session")
def bpe_path(corpus, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    train_tokenizer(corpus.texts(500), 400, path)
    return path


@pytest.fixture(scope="session")
def bpe(bpe_path) -> Tokenizer:
    return Tokenizer.from_pretrained(bpe_path)


@pytest.fixture(scope="session")
def gpt2() -> Tokenizer:
    if not GPT2.is_file():
        pytest.skip(f"no GPT-2 ranks at {GPT2.name} in the folder shared beside the checkout")
    return Tokenizer.from_pretrained(GPT2)


@pytest.fixture
def _small_blocks(monkeypatch):
    """Read two kilobytes at a time, so that small sources have many batches."""
    monkeypatch.setattr(token_pipeline, "iter_text", functools.partial(token_pipeline.iter_text, block_bytes=2048))
