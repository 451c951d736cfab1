"""The command line: one line for an error, an exit code, and the same results as the functions."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penstock.formats.tokens import open_bin
from penstock.transforms.tokenizer import Tokenizer


def penstock(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "penstock", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"line {i} of water"}) + "\n" for i in range(50)) + '{"text": ""}\n')
    return path


def test_text_becomes_bins_with_a_tokenizer_of_its_own(tmp_path, source):
    trained = penstock("tokenizer", "train", source, tmp_path / "bpe.json", "--vocab-size", "300")
    assert (trained.returncode, trained.stderr) == (0, "")
    made = penstock(
        "tokenize", source, tmp_path / "out", "--tokenizer", tmp_path / "bpe.json", "--val-fraction", "0.2", "--eot"
    )
    assert made.returncode == 0, made.stderr
    train, validation = (open_bin(tmp_path / "out" / f"{split}.bin") for split in ("train", "validation"))
    assert f"train: {len(train):,} tokens of {len(train.doc_ends)} documents" in made.stdout
    assert "1 empty" in made.stdout
    assert "skipped a.jsonl:51: empty" in made.stdout
    assert len(train.doc_ends) + len(validation.doc_ends) == 50
    assert train.tokens[-1] == Tokenizer.from_pretrained(tmp_path / "bpe.json").eot_id
    again = penstock(
        "tokenize", source, tmp_path / "out", "--tokenizer", tmp_path / "bpe.json", "--val-fraction", "0.2", "--eot"
    )
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert "(unchanged" in again.stdout


def test_splits_are_named_by_an_equals_sign(tmp_path, source):
    made = penstock(
        "tokenize", f"train={source}", f"val={source}", tmp_path / "out", "--tokenizer", "bytes", "--splits", "val"
    )
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "validation.bin",
        "validation.docs",
        "validation.json",
    ]
    mixed = penstock("tokenize", f"train={source}", source, tmp_path / "out", "--tokenizer", "bytes")
    assert (mixed.returncode, mixed.stderr) == (2, "error: either each source is given as SPLIT=SOURCE, or none\n")


def corrupt_table(folder):
    path = folder / "a.parquet"
    path.write_bytes(b"PAR1 no table PAR1")
    return [path]


def empty_file(folder):
    (folder / "empty.txt").touch()
    return [folder / "empty.txt"]


BAD_INPUT = {
    "missing": (lambda folder: [folder / "nowhere"], "nowhere does not exist"),
    "empty": (empty_file, "got no document"),
    "corrupt": (corrupt_table, "a.parquet cannot be read as Parquet"),
    "field": (lambda folder: [folder / "a.jsonl", "--text-field", "body"], "its fields are 'text'"),
    "split": (lambda folder: [folder / "a.jsonl", "--splits", "tests"], "unknown split 'tests': the source has train"),
    "url": (lambda folder: ["ftp2://host/a.jsonl"], "ftp2:// is not a store that penstock knows"),
    "tokenizer": (lambda folder: [folder / "a.jsonl", "--tokenizer", folder / "no.json"], "no.json does not exist"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, source, case):
    make, message = BAD_INPUT[case]
    given, *options = make(tmp_path)
    ended = penstock("tokenize", given, tmp_path / "out", "--tokenizer", "bytes", *options)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("error: ")
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out" / "train.bin").exists()


def test_what_is_missing_on_the_command_line_is_named(source):
    said = {
        ("tokenize",): "SOURCE and OUT are missing",
        ("tokenize", source): f"OUT is missing: penstock tokenize {source} OUT",
        ("tokenize", "hf://org/name"): "OUT is missing: penstock tokenize hf://org/name OUT",
        ("tokenize", source, "out"): "--tokenizer is missing: give a tokenizer.json, .tiktoken or .model, a folder",
        ("tokenizer", "train", source, "--vocab-size", "300"): f"OUT is missing: penstock tokenizer train {source} OUT",
    }
    for arguments, words in said.items():
        ended = penstock(*arguments)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
        assert words in ended.stderr


@pytest.mark.parametrize("command", ["tokenize", "plan", "inspect"])
def test_help_shows_no_value_for_flags(command):
    shown = [line for line in penstock(command, "--help").stdout.splitlines() if "bool" in line]
    assert [line for line in shown if "--help" not in line] == []


def test_debug_shows_where_an_error_came_from(tmp_path):
    ended = penstock("--debug", "tokenize", tmp_path / "nowhere", tmp_path / "out", "--tokenizer", "bytes")
    assert ended.returncode != 0
    assert "Traceback" in ended.stderr
    assert "ObjectMissing" in ended.stderr
