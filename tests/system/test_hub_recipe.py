"""The recipe of a dataset of the Hub, end to end; and that others' readers see the same rows there as ours."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.formats.records import open_records

GPT2 = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2.tiktoken"
READER = """
import json, sys
from datasets import load_dataset
for row in load_dataset(sys.argv[1], split="train", streaming=True):
    print(json.dumps(row))
"""


def stories(count: int, seed: int) -> bytes:
    rng = random.Random(seed)
    names, things = ["Lily", "Tom", "Mia", "Ben"], ["ball", "dog", "boat", "tree"]
    rows = [
        f"Once upon a time there was a child named {rng.choice(names)}. It had a {rng.choice(things)}. "
        f"They played with the {rng.choice(things)} all day.\n\nThe end."
        for _ in range(count)
    ]
    out = io.BytesIO()
    pq.write_table(pa.table({"text": rows}), out, row_group_size=200)
    return out.getvalue()


@pytest.fixture
def tiny_stories(hub):
    hub.add_dataset(
        "roneneldan/TinyStories",
        {
            "data/train-00000-of-00002.parquet": stories(1500, 0),
            "data/train-00001-of-00002.parquet": stories(1500, 1),
            "data/validation-00000-of-00001.parquet": stories(300, 2),
        },
    )
    return hub


def test_the_datasets_library_streams_the_same_rows_from_there(tiny_stories):
    pytest.importorskip("datasets")
    command = [sys.executable, "-c", READER, "roneneldan/TinyStories"]
    theirs = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    ours = b"".join(batch.data.tobytes() for batch in open_records("hf://roneneldan/TinyStories").read())
    assert list(map(json.loads, theirs.splitlines())) == list(map(json.loads, ours.splitlines()))
    assert len(ours.splitlines()) == 3000


@pytest.mark.slow
@pytest.mark.timeout(1000)
@pytest.mark.parametrize("tokenizer", ["gpt2", "learned"])
def test_a_model_is_trained_on_a_dataset_of_the_hub(tiny_stories, tmp_path, tokenizer):
    if tokenizer == "gpt2" and not GPT2.exists():
        pytest.skip("needs gpt2.tiktoken in the folder of shared data beside the checkout")
    recipe = ["--tokenizer", str(GPT2)] if tokenizer == "gpt2" else []
    command = [sys.executable, "-m", "penstock", "demo", "--dataset", "hf://roneneldan/TinyStories", *recipe]
    command += ["--out", str(tmp_path / "out"), "--max-samples", "2000", "--steps", "40"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["corpus"]["source"] == "hf://roneneldan/TinyStories"
    assert report["corpus"]["documents"] == 2100
    assert report["identical_batches"]["identical"]
    assert report["training"]["last_loss"] < report["training"]["first_loss"] - 1
    if tokenizer == "gpt2":
        assert report["corpus"]["vocab_size"] == 50257
    # Two thousand of the three thousand stories of the train split: the second file is read in part only.
    sent = tiny_stories.bytes_sent("resolve.*train-00001")
    assert 0 < sent < len(stories(1500, 1)) + 2 * (64 << 10)
