"""`penstock plan`: what it says is what the loaders do, and it reads nothing to say it."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from penstock import StreamingDataLoader, TokenDataset, World


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def bare_bin(tmp_path):
    np.arange(1003, dtype="<u2").tofile(tmp_path / "train.bin")
    return tmp_path / "train.bin"


@pytest.mark.parametrize(
    ("options", "loader_options"),
    [
        ([], {}),
        (["--shuffle", "--seed", 5, "--epoch", 2], {"shuffle": True, "seed": 5}),
        (["--shuffle", "--drop-last"], {"shuffle": True, "drop_last": True}),
        (["--stride", 3], {}),
    ],
)
def test_the_plan_is_what_each_rank_is_handed(bare_bin, options, loader_options):
    """1,003 tokens in windows of 8: 126 of them, the last one moved back; 4 ranks of 5; 6 batches and a short one."""
    done = penstock(*("plan", bare_bin, "--world", 4, "--batch", 5, "--seq-len", 8, "--steps", 100, "--json", *options))
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    told = {(row["step"], row["rank"]): row for row in facts["rows"]}

    tokens = np.fromfile(bare_bin, "<u2")
    stride = options[1] if "--stride" in options else None
    handed = 0
    for rank in range(4):
        dataset = TokenDataset(bare_bin, 8, stride=stride)
        loader = StreamingDataLoader(dataset, 5, world=World(dp_rank=rank, dp_size=4), **loader_options)
        loader.set_epoch(facts["epoch"])
        assert facts["batches_per_epoch"] == len(loader)
        for step, batch in enumerate(loader):
            row = told[step, rank]
            assert row["windows"] == loader.batch_info.sample_ids.tolist()
            assert row["repeats"] == loader.batch_info.repeats
            for inputs, labels, (start, stop) in zip(batch["input_ids"], batch["labels"], row["tokens"], strict=True):
                assert inputs.tolist() == tokens[start : stop - 1].tolist()
                assert set(labels.tolist()) <= {-100, *tokens[start + 1 : stop].tolist()}
            assert row["bytes"] == [[2 * start, 2 * stop] for start, stop in row["tokens"]]
            handed += 1
    assert handed == len(told) == 4 * facts["batches_per_epoch"]


def test_a_repeated_sample_is_flagged(bare_bin):
    """101 windows, 100 a step: the last step has one for four ranks."""
    options = ("--world", 4, "--batch", 25, "--seq-len", 10, "--step", 1)
    rows = json.loads(penstock("plan", bare_bin, *options, "--json").stdout)["rows"]
    assert [(row["windows"], row["repeats"]) for row in rows] == [([100], 0), ([100], 1), ([100], 1), ([100], 1)]
    assert penstock("plan", bare_bin, *options).stdout.count("in step") == 3


def test_a_terabyte_is_planned_without_reading_it(tmp_path):
    """The file is one hole: it holds no byte to read, and its plan takes no longer than a small one's."""
    with open(tmp_path / "huge.bin", "wb") as file:
        file.truncate(1 << 40)
    options = ("--world", 512, "--batch", 2, "--seq-len", 4096, "--shuffle", "--step", 100_000, "--steps", 1)
    done = penstock("plan", tmp_path / "huge.bin", *options, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert facts["windows"] == (1 << 39) // 4096
    windows = [window for row in facts["rows"] for window in row["windows"]]
    assert len(set(windows)) == 1024
    assert max(stop for row in facts["rows"] for _, stop in row["bytes"]) <= 1 << 40


def test_the_table_names_each_step_and_rank(bare_bin):
    done = penstock("plan", bare_bin, "--world", 2, "--batch", 4, "--seq-len", 8, "--steps", 3)
    assert (done.returncode, done.stderr) == (0, "")
    head, _, table = done.stdout.partition("windows   ")
    assert head.startswith("126 windows of 8 tokens")
    rows = [line.split() for line in table.splitlines() if line.strip()[:1].isdigit()]
    assert [row[:2] for row in rows] == [[str(step), str(rank)] for step in range(3) for rank in range(2)]
    assert rows[0] == ["0", "0", "0", "2", "4", "6", "0–9", "0–18"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seq-len", 2000, "--batch", 1], "window of 2000"),
        (["--seq-len", 8, "--batch", 0], "--batch must be an integer >= 1"),
        (["--seq-len", 8, "--batch", 1, "--world", 0], "--world must be an integer >= 1"),
        (["--seq-len", 8, "--batch", 4, "--step", 9999], "--step 9999 is past the end: an epoch has 32 steps"),
        (["--seq-len", 8, "--batch", 1, "--dtype", "int8"], "dtype must be"),
    ],
)
def test_what_cannot_be_planned_is_one_line(bare_bin, options, words):
    done = penstock("plan", bare_bin, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_folder_of_a_bin_and_windows_of_the_usual_length_are_understood(tmp_path):
    np.arange(60_000, dtype="<u2").tofile(tmp_path / "train.bin")
    short = penstock("plan", tmp_path, "--world", 8, "--batch", 4, "--json")
    spelled_out = penstock("plan", tmp_path / "train.bin", "--world", 8, "--batch", 4, "--seq-len", 1024, "--json")
    assert (short.returncode, short.stdout) == (0, spelled_out.stdout)
    assert json.loads(short.stdout)["windows"] == 59
