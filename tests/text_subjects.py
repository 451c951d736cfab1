"""Tokenizers as users bring them, and small corpora; importable in worker processes as well."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np


class ListTokenizer:
    """One id a byte, as a list: what every other one here gives in its own way."""

    def encode(self, text: str):
        return list(text.encode())


class DictTokenizer(ListTokenizer):
    def encode(self, text: str):
        ids = super().encode(text)
        return {"input_ids": ids, "token_type_ids": [0] * len(ids), "attention_mask": [1] * len(ids)}


class NestedTokenizer(ListTokenizer):
    def encode(self, text: str):
        return {"input_ids": [super().encode(text)]}


class BatchEncodingTokenizer(ListTokenizer):
    """A mapping that is no dict and has its keys as attributes too."""

    class BatchEncoding(UserDict):
        def __getattr__(self, name: str):
            try:
                return self.__dict__["data"][name]
            except KeyError:
                raise AttributeError(name) from None

    def encode(self, text: str):
        return self.BatchEncoding(DictTokenizer().encode(text))


class AttributeTokenizer(ListTokenizer):
    def encode(self, text: str):
        return SimpleNamespace(input_ids=super().encode(text))


class NumpyTokenizer(ListTokenizer):
    def encode(self, text: str):
        return np.frombuffer(text.encode(), np.uint8)


class TorchTokenizer(ListTokenizer):
    def encode(self, text: str):
        import torch

        return torch.tensor([super().encode(text)])


class CountingTokenizer(ListTokenizer):
    """Writes a line to a file for every text; the same tokenizer wherever it writes to."""

    fingerprint = "counting-bytes"
    vocab_size = 256

    def __init__(self, log: Path, *, delay_s: float = 0.0, dies_at: int | None = None) -> None:
        self.log = log
        self.delay_s = delay_s
        self.dies_at = dies_at

    def encode(self, text: str):
        with open(self.log, "a") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(self.delay_s)
        if self.dies_at is not None and len(self.log.read_text().split()) >= self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(text)


def add_noise(sample, rng):
    """An augmentation that needs randomness."""
    ids = sample["input_ids"].copy()
    ids[rng.integers(len(ids))] = 0
    return {**sample, "input_ids": ids}


def write_jsonl(path: Path, texts, field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return path


TEXTS = [f"Document {i}: " + "water flows one way. " * (1 + i % 5) + "é🙂" * (i % 3) for i in range(40)]
STREAM = "".join(TEXTS).encode()
