"""`penstock inspect`: what a file holds, told without being told what it is."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from penstock import (
    StreamingDataLoader,
    TokenDataset,
    Tokenizer,
    save_best,
    save_training_checkpoint,
    tokenize,
    train_tokenizer,
)
from penstock.formats.token_writer import TokenWriter

TEXTS = [f"the river {number} runs to the sea" for number in range(60)]


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def inspected(*arguments: object) -> dict:
    done = penstock("inspect", *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A corpus, a tokenizer learned from it, and bins made with it, as they lie after a run."""
    home = tmp_path_factory.mktemp("home")
    (home / "corpus.jsonl").write_text(
        "".join(json.dumps({"text": text, "id": i}) + "\n" for i, text in enumerate(TEXTS))
    )
    tokenizer = train_tokenizer(TEXTS, 300, home / "tokenizer.json")
    tokenize(home / "corpus.jsonl", home / "bins", tokenizer=tokenizer, eot=True, val_fraction=0.2, show_progress=False)
    return home


def test_a_bin_shows_its_first_documents_as_text(home):
    facts = inspected(home / "bins" / "validation.bin", "--rows", 2)
    kept = TokenDataset(home / "bins" / "validation.bin", 4).bin
    assert (facts["tokens"], facts["documents"], facts["dtype"]) == (len(kept), len(kept.doc_ends), "uint16")
    assert facts["tokenizer"]["vocab_size"] == Tokenizer.from_pretrained(home / "tokenizer.json").vocab_size
    assert [document["text"].removesuffix("<|endoftext|>") in TEXTS for document in facts["first_documents"]] == [
        True
    ] * 2
    assert facts["first_documents"][0]["ids"] == kept.tokens[:8].tolist()


def test_a_bin_whose_tokenizer_is_not_at_hand_shows_ids_and_says_so(home, tmp_path):
    for place in (home / "bins").glob("train.*"):
        (tmp_path / place.name).write_bytes(place.read_bytes())
    facts = inspected(tmp_path / "train.bin")
    assert "text" not in facts["first_documents"][0]
    assert "--tokenizer PATH" in facts["note"]
    told = inspected(tmp_path / "train.bin", "--tokenizer", home / "tokenizer.json")
    assert told["first_documents"][0]["text"].removesuffix("<|endoftext|>") in TEXTS


def test_a_tokenizer_of_another_kind_beside_a_bin_is_not_used(home, tmp_path):
    for place in (home / "bins").glob("train.*"):
        (tmp_path / place.name).write_bytes(place.read_bytes())
    train_tokenizer(["other words altogether " * 9], 270, tmp_path / "tokenizer.json")
    assert "text" not in inspected(tmp_path / "train.bin")["first_documents"][0]


def test_the_side_cars_of_a_bin_lead_to_it(home):
    facts = [inspected(home / "bins" / name) for name in ("train.bin", "train.json", "train.docs")]
    assert facts[0] == facts[1] == facts[2]


def test_a_bare_bin_is_read_as_told(tmp_path):
    np.arange(100, dtype="<u4").tofile(tmp_path / "bare.bin")
    assert inspected(tmp_path / "bare.bin")["tokens"] == 200
    facts = inspected(tmp_path / "bare.bin", "--dtype", "uint32")
    assert (facts["tokens"], facts["documents"], facts["first_documents"][0]["ids"]) == (100, None, list(range(8)))


def test_a_folder_lists_its_bins(home):
    facts = inspected(home)
    assert [Path(each["path"]).name for each in facts["bins"]] == ["train.bin", "validation.bin"]
    assert sum(each["documents"] for each in facts["bins"]) == len(TEXTS)
    shown = penstock("inspect", home)
    assert "bins/train.bin" in shown.stdout


def test_json_lines_are_counted_and_their_fields_named(home, tmp_path):
    facts = inspected(home / "corpus.jsonl", "--rows", 1)
    assert (facts["kind"], facts["rows"], facts["fields"]) == ("JSON lines", len(TEXTS), {"text": "str", "id": "int"})
    assert facts["first_rows"] == [{"text": TEXTS[0], "id": 0}]
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wb") as packed:
        packed.write((home / "corpus.jsonl").read_bytes())
    assert inspected(tmp_path / "corpus.jsonl.gz")["rows"] == len(TEXTS)


def test_a_broken_line_is_shown_as_it_is(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "whole"}\n{"text": "bro\n')
    facts = inspected(tmp_path / "a.jsonl")
    assert facts["rows"] == 2
    assert facts["first_rows"][1].startswith("no JSON")


def test_a_table_shows_its_columns(tmp_path):
    pq.write_table(pa.table({"text": TEXTS, "score": [0.5] * len(TEXTS)}), tmp_path / "a.parquet")
    facts = inspected(tmp_path / "a.parquet", "--rows", 2)
    assert (facts["rows"], facts["fields"]) == (len(TEXTS), {"text": "string", "score": "double"})
    assert [row["text"] for row in facts["first_rows"]] == TEXTS[:2]
    (tmp_path / "broken.parquet").write_bytes((tmp_path / "a.parquet").read_bytes()[:-50])
    done = penstock("inspect", tmp_path / "broken.parquet")
    assert done.returncode == 2
    assert "cannot be read as Parquet" in done.stderr


def test_plain_text_is_counted_in_lines(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:5]) + "\n\n")
    assert inspected(tmp_path / "a.txt", "--rows", 1)["first_rows"] == TEXTS[:1]
    assert inspected(tmp_path / "a.txt")["lines"] == 5


def test_a_tokenizer_describes_itself(home):
    facts = inspected(home / "tokenizer.json")
    opened = Tokenizer.from_pretrained(home / "tokenizer.json")
    assert (facts["kind"], facts["vocab_size"], facts["fingerprint"]) == (
        "tokenizer",
        opened.vocab_size,
        opened.fingerprint,
    )


def test_a_file_of_ranks_describes_itself():
    ranks = Path(__file__).resolve().parents[3] / "shared" / "data" / "gpt2.tiktoken"
    if not ranks.is_file():
        pytest.skip("no GPT-2 ranks in the folder shared beside the checkout")
    facts = inspected(ranks)
    assert (facts["kind"], facts["name"], facts["vocab_size"]) == ("tokenizer", "gpt2.tiktoken", 50257)
    assert (facts["end_of_text"], facts["fingerprint"]) == (50256, Tokenizer.from_pretrained(ranks).fingerprint)


def test_a_file_of_several_states_says_what_each_is(home, tmp_path):
    loader = StreamingDataLoader(TokenDataset(home / "bins" / "train.bin", 8), batch_size=4)
    next(iter(loader))
    model = torch.nn.Linear(3, 2)
    saved = {"model": model.state_dict(), "data": loader.state_dict(), "step": 3, "notes": ["a", "b"]}
    torch.save(saved, tmp_path / "mine.pt")
    assert inspected(tmp_path / "mine.pt")["holds"] == {
        "model": "2 tensors, 8 numbers, 32 bytes",
        "data": "loader state: epoch 0, 4 samples",
        "step": "int 3",
        "notes": "list of 2",
    }
    assert "loader state: epoch 0" in penstock("inspect", tmp_path / "mine.pt").stdout
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    assert inspected(tmp_path / "list.pt")["holds"] == "1 tensor, 2 numbers, 8 bytes"
    facts = inspected(tmp_path)
    assert (facts["kind"], list(facts["files"])) == ("folder of checkpoints", ["list.pt", "mine.pt"])


def test_an_unfinished_run_is_told_how_to_go_on(tmp_path):
    with TokenWriter(tmp_path / "train.bin", vocab_size=256, job={}) as writer:
        writer.append(np.arange(5, dtype=np.uint32), np.array([0, 2, 5]), {})
    facts = inspected(tmp_path)
    assert facts["kind"].startswith("unfinished tokenize run")
    assert facts["unfinished"] == {"train.bin": "5 tokens of 2 documents so far; run the same command again to go on"}
    done = penstock("inspect", tmp_path)
    assert (done.returncode, "run the same command again to go on" in done.stdout) == (0, True)


def test_checkpoints_and_loader_states_say_where_they_stand(home, tmp_path):
    loader = StreamingDataLoader(TokenDataset(home / "bins" / "train.bin", 8), batch_size=4, shuffle=True)
    next(iter(loader))
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    save_training_checkpoint(
        tmp_path / "last.pt", model=model, optimizer=optimizer, loader=loader, step=17, note="before lunch"
    )
    facts = inspected(tmp_path / "last.pt")
    assert (facts["kind"], facts["step"], facts["parameters"]) == ("training checkpoint", 17, 8)
    assert facts["loader"] == loader.state_dict()
    assert facts["extra"] == {"note": "before lunch"}

    save_best(tmp_path, model, 1.25)
    best = inspected(tmp_path / "best_model_params.pt")
    assert (best["kind"], best["validation_loss"], best["tensors"]["bias"]) == ("state_dict", 1.25, "2 float32")

    (tmp_path / "state.json").write_text(json.dumps(loader.state_dict()))
    assert inspected(tmp_path / "state.json")["samples"] == 4


def test_every_kind_has_a_page_for_people(home, tmp_path):
    save_best(tmp_path, torch.nn.Linear(3, 2), 1.25)
    for place in (
        home,
        home / "bins" / "train.bin",
        home / "corpus.jsonl",
        home / "tokenizer.json",
        tmp_path / "best_model_params.pt",
    ):
        done = penstock("inspect", place)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("kind ")


def test_what_is_not_there_or_unknown_is_one_line(tmp_path):
    (tmp_path / "a.xyz").write_text("?")
    (tmp_path / "half.pt").write_bytes(b"PK\x03\x04 half")
    (tmp_path / "odd.bin").write_bytes(b"abc")
    said = {
        "none.bin": "does not exist",
        "a.xyz": "cannot tell what is in",
        "half.pt": "damaged",
        "odd.bin": "multiple",
    }
    for name, words in said.items():
        done = penstock("inspect", tmp_path / name)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
        assert done.stderr.count("\n") == 1
