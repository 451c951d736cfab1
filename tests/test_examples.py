"""The examples run as they are, on small data, and do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import load_checkpoint, tokenize

TRAIN_GPT = Path(__file__).resolve().parent.parent / "examples" / "train_gpt.py"
SMALL = ("--batch-size=4", "--seq-len=16", "--dim=16", "--layers=1", "--eval-every=5", "--log-every=1")
# One thread each, so that sums are added up in one order and losses can be compared to the last digit.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("data")
    rows = [{"text": f"Number {i}: water flows from the hill to the mill, {i % 5} times a day."} for i in range(60)]
    (home / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenize(home / "a.jsonl", home / "bins", tokenizer="bytes", val_fraction=0.2, show_progress=False)
    return home / "bins"


def command(data: Path, out: Path, steps: int, *options: str) -> list[str]:
    return [str(TRAIN_GPT), str(data), f"--out={out}", f"--steps={steps}", *SMALL, *options]


def run(arguments: list[str]) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def losses(printed: str) -> dict[int, str]:
    """Step → loss, as printed: six decimals."""
    return {int(step): loss for step, loss in re.findall(r"step (\d+) loss ([\d.]+)", printed)}


def test_train_gpt_fits_on_two_pages():
    assert len(TRAIN_GPT.read_text().splitlines()) <= 120


def test_train_gpt_says_so_when_there_is_nothing_left_to_do(data, tmp_path):
    run(command(data, tmp_path, 5))
    resumed = [sys.executable, *command(data, tmp_path, 5, "--resume")]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert "last.pt is at step 5 already: to go on, give --steps more than that" in done.stderr


@pytest.mark.slow
def test_train_gpt_killed_and_resumed_trains_as_if_nothing_had_happened(data, tmp_path):
    """Losses are those of an uninterrupted run to the last digit: the same weights saw the same batches."""
    whole = losses(run(command(data, tmp_path / "whole", 70)))
    assert list(whole) == list(range(1, 71))

    arguments = [sys.executable, *command(data, tmp_path / "cut", 70)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("step 28 "):
                process.send_signal(signal.SIGKILL)
    first = losses(printed)
    assert 28 <= max(first) < 70
    rest = losses(run(command(data, tmp_path / "cut", 70, "--resume")))
    assert min(rest) % 5 == 1
    assert min(rest) <= max(first) + 1
    assert list(rest) == list(range(min(rest), 71))
    assert first == {step: whole[step] for step in first}
    assert rest == {step: whole[step] for step in rest}
    assert sorted(load_checkpoint(tmp_path / "whole")) == sorted(load_checkpoint(tmp_path / "cut"))


@pytest.mark.slow
def test_train_gpt_goes_on_with_two_processes_where_one_stopped(data, tmp_path):
    """Under torchrun the batches are cut in two, so each rank's loss is another; what is learned is the same."""
    alone = run(command(data, tmp_path / "alone", 10))
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "last.pt").write_bytes((tmp_path / "alone" / "last.pt").read_bytes())
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    both = run([*torchrun, *command(data, tmp_path / "both", 20, "--resume")])
    alone += run(command(data, tmp_path / "alone", 20, "--resume"))
    assert list(losses(both)) == list(range(11, 21))
    reached = [float(re.search(r"step 20 validation ([\d.]+)", printed)[1]) for printed in (alone, both)]
    assert reached[0] == pytest.approx(reached[1], abs=1e-3)
    assert reached[0] < float(re.search(r"step 5 validation ([\d.]+)", alone)[1])
