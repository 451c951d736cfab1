"""Token bins as samples: what they say of themselves, and random windows for ranks that know nothing of each other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from penstock import ConfigError, TokenDataset, get_batch
from penstock.datasets.documents import DocumentDataset
from penstock.seeds import uniform

TOKENS = np.arange(10_000, dtype=np.uint16)


@pytest.fixture
def folder(tmp_path):
    for split in ("train", "validation"):
        TOKENS.tofile(tmp_path / f"{split}.bin")
    return tmp_path


DRAW = """
import json, sys
from penstock import get_batch
print(json.dumps([get_batch("train", 8, 4, data_dir=sys.argv[1], seed=5)[0][:, 0].tolist() for _ in range(2)]))
"""


def drawn_by(folder, **environment):
    """What a process of its own draws first: the starts of two batches."""
    clean = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    command = [sys.executable, "-c", DRAW, str(folder)]
    environment = {name: str(value) for name, value in environment.items()}
    done = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment}, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def starts(seed):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(len(TOKENS) - 8, (4,), generator=generator).tolist() for _ in range(2)]


def test_data_parallel_ranks_draw_different_windows_and_the_first_those_of_a_process_alone(folder):
    ranks = [drawn_by(folder, RANK=rank, WORLD_SIZE=2) for rank in range(2)]
    assert ranks[0] == drawn_by(folder) == starts(5)
    assert ranks[1] == starts(uniform(5, "get_batch", 1)) != ranks[0]


def test_a_generator_of_ones_own_is_used_whatever_the_rank(folder, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    x, y = get_batch("val", 8, 4, data_dir=folder, generator=torch.Generator().manual_seed(5))
    assert x[:, 0].tolist() == starts(5)[0]
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_random_windows_are_refused_for_a_device_that_is_not_there(folder):
    with pytest.raises(ConfigError, match="device='cuda:99', but torch finds"):
        get_batch("train", 8, 4, "cuda:99", data_dir=folder)


def test_datasets_say_in_one_line_what_they_are(folder):
    path = folder / "train.bin"
    text = repr(TokenDataset(path, 100, stride=50))
    assert text == f"TokenDataset({str(path)!r}, seq_len=100, stride=50: 198 samples of 10,000 tokens)"
    np.array([4_000, 10_000], np.uint64).tofile(folder / "train.docs")
    text = repr(DocumentDataset(path, 100))
    assert text == f"DocumentDataset({str(path)!r}, seq_len=100, overlap=0: 100 samples of 2 documents)"
