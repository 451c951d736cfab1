"""The examples run as they are, on small data, and do what they say."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from penstock import ChunkTracker, load_checkpoint, tokenize

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TRAIN_GPT = EXAMPLES / "train_gpt.py"
LONG_SEQUENCES = EXAMPLES / "long_sequences.py"
TRAIN_BLOCKS = EXAMPLES / "train_blocks.py"
IMAGE_CLASSIFICATION = EXAMPLES / "image_classification.py"
TRAIN_SASHIMI = EXAMPLES / "train_sashimi.py"
SHAKESPEARE = EXAMPLES.parent.parent / "shared" / "data" / "tinyshakespeare.txt"
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


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_fits_on_two_pages(example):
    assert len(example.read_text().splitlines()) <= 120


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


@pytest.mark.parametrize("model", ["ssm", "transformer"])
def test_long_sequences_learns_from_real_text_in_chunks(model, tmp_path):
    if not SHAKESPEARE.exists():
        pytest.skip("needs tinyshakespeare.txt in the folder of shared data beside the checkout")
    (tmp_path / "text.txt").write_text(SHAKESPEARE.read_text()[:40_000])
    tokenize(tmp_path / "text.txt", tmp_path, tokenizer="bytes", splits=["train"], show_progress=False)
    sizes = ("--steps=4", "--seq-len=3000", "--chunk-size=512", "--dim=32")
    printed = run([str(LONG_SEQUENCES), str(tmp_path), f"--model={model}", *sizes])
    found = losses(printed)
    assert list(found) == [1, 2, 3, 4]
    assert float(found[4]) < float(found[1]) - 0.1
    assert printed.count("in 6 chunks") == 4


CONFIG = """\
samples_per_block: 100
dataset_chunk_size: 25
use_chunked_training: true
chunk_size: 16
seq_len: 48
batch_size: 5
learning_rate: 5e-3
lease_s: 3
"""


@pytest.fixture
def corpus(tmp_path) -> Path:
    rows = [{"text": f"Number {i}: water flows from the hill to the mill, {i % 5} times a day."} for i in range(250)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "training.yaml").write_text(CONFIG)
    return tmp_path / "corpus.jsonl"


def train_blocks(source: Path, out: Path, steps: int) -> list[str]:
    options = (f"--config={out.parent / 'training.yaml'}", f"--steps={steps}", "--save-every=10", "--dim=16")
    return [str(TRAIN_BLOCKS), str(source), f"--out={out}", *options]


def test_train_blocks_makes_blocks_and_learns(corpus, tmp_path):
    """10 chunks of 5 batches: 60 steps are one epoch, and two chunks of the next."""
    printed = run(train_blocks(corpus, tmp_path / "run", 60))
    found = losses(printed)
    assert list(found) == list(range(1, 61))
    assert float(found[60]) < float(found[1]) - 0.5
    assert printed.endswith("12 chunks trained, in epoch 1\n")
    blocks = sorted(path.name for path in (tmp_path / "run" / "blocks" / "blocks").glob("*.jsonl"))
    assert blocks == ["block_00000.jsonl", "block_00001.jsonl", "block_00002.jsonl"]
    # Called again it goes on, and a folder of blocks will do for a source.
    again = losses(run(train_blocks(tmp_path / "run" / "blocks", tmp_path / "other", 10)))
    assert again == {step: found[step] for step in range(1, 11)}
    more = run(train_blocks(corpus, tmp_path / "run", 70))
    assert list(losses(more)) == list(range(61, 71))
    assert more.endswith("14 chunks trained, in epoch 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("chunk_sise: 16\n", "training.yaml, line 1: there is no key 'chunk_sise'; did you mean"),
        ("chunk_size: many\n", "training.yaml, line 1: chunk_size must be"),
        (None, "training.yaml does not exist"),
    ],
)
def test_train_blocks_says_what_is_wrong_with_its_settings_and_nothing_else(corpus, tmp_path, text, message):
    settings = tmp_path / "training.yaml"
    settings.unlink() if text is None else settings.write_text(text)
    command = [sys.executable, *train_blocks(corpus, tmp_path / "run", 10)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_train_blocks_killed_goes_on_where_it_was_saved_with_two_processes(corpus, tmp_path):
    """What the killed one held comes back when its lease ends; then every chunk is complete once."""
    whole = losses(run(train_blocks(corpus, tmp_path / "whole", 30)))
    arguments = [sys.executable, *train_blocks(corpus, tmp_path / "cut", 30)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        printed = ""
        for line in process.stdout:
            printed += line
            if line.startswith("step 17 "):
                process.send_signal(signal.SIGKILL)
    first = losses(printed)
    assert first == {step: whole[step] for step in first}
    assert 17 <= max(first) < 30
    saved = max(first) // 10 * 10
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    rest = run([*torchrun, *train_blocks(corpus, tmp_path / "cut", saved + 20)])
    assert list(losses(rest)) == list(range(saved + 1, saved + 21))
    # One process took `saved` steps and two took 20 each, 5 a chunk; what the killed one held is as if never begun.
    with ChunkTracker(tmp_path / "cut" / "chunks.db", "example", corpus.stem) as tracker:
        stats = tracker.get_progress_stats()
    assert saved + 40 - 4 * 3 <= stats["total_steps"] <= saved + 40
    assert stats["total_chunks_trained"] * 5 == stats["total_steps"]


def images(folder: Path) -> list[str]:
    """Have the example draw 90 images beside a broken one: 4 batches of 16 an epoch."""
    (folder / "images" / "circle").mkdir(parents=True)
    (folder / "images" / "circle" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 no more came")
    return [str(IMAGE_CLASSIFICATION), str(folder / "images"), "--make=90", "--batch-size=16"]


def test_image_classification_learns_and_leaves_out_what_is_broken(tmp_path):
    printed = run([*images(tmp_path), "--steps=24", f"--out={tmp_path / 'run'}"])
    found = losses(printed)
    assert list(found) == list(range(1, 25))
    assert np.mean([float(found[step]) for step in range(20, 25)]) < float(found[1])
    assert re.search(r"of (17|18|19) images right, \{('truncated': \d+)?\} left out", printed)


@pytest.mark.slow
def test_image_classification_goes_on_where_it_stopped(tmp_path):
    command = images(tmp_path)
    whole = losses(run([*command, "--steps=24", f"--out={tmp_path / 'whole'}"]))
    first = losses(run([*command, "--steps=10", f"--out={tmp_path / 'cut'}"]))
    rest = losses(run([*command, "--steps=24", f"--out={tmp_path / 'cut'}"]))
    assert {**first, **rest} == whole
    assert list(rest) == list(range(11, 25))


# Runs the example several times in one process: importing Lightning takes longer than a run.
SEVERAL = """
import json, runpy, sys
for arguments in json.loads(sys.argv[1]):
    sys.argv = arguments
    runpy.run_path(sys.argv[0], run_name="__main__")
"""
MODES = {
    "both": """\
# Full chunked training (both partitions explicitly specified):
train:
  train_chunk_size: 2000               # Training batches per chunk
  val_chunk_size: 200                  # Validation batches per chunk
  # Note: limit_train_batches and limit_val_batches are IGNORED when chunk sizes are specified

loader:
  batch_size: 32  # Actual batch size for DataLoader
""",
    "train": """\
# Chunked training with inference (only train_chunk_size specified):
train:
  train_chunk_size: 2000               # Training uses chunking
  # val_chunk_size will be inferred from validation partition size
  limit_val_batches: 200               # IGNORED - val_chunk_size will be inferred

loader:
  batch_size: 32
""",
    "val": """\
# Chunked validation with inference (only val_chunk_size specified):
train:
  val_chunk_size: 200                  # Validation uses chunking
  # train_chunk_size will be inferred from training partition size
  limit_train_batches: 2000            # IGNORED - train_chunk_size will be inferred

loader:
  batch_size: 32
""",
    "standard": """\
# Standard training (existing behavior - no changes needed):
train:
  # No chunk_size parameters specified = standard behavior
  limit_train_batches: 2000            # This will be used (standard behavior)
  limit_val_batches: 200               # This will be used (standard behavior)

loader:
  batch_size: 32  # Existing batch size
""",
}


def sashimi(runs: list[list[str]]) -> tuple[str, str]:
    """Run the example once for each list of arguments; what was printed, and what was logged."""
    runs = [[str(TRAIN_SASHIMI), *arguments] for arguments in runs]
    command = [sys.executable, "-c", SEVERAL, json.dumps(runs)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=ENVIRONMENT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


@pytest.mark.slow
def test_train_sashimi_takes_every_mode_of_a_configuration(tmp_path):
    """The documented files as they are: with their sizes a round would take long, so each run is of two steps."""
    pytest.importorskip("lightning")
    small = ["dataset.sample_len=64", "model.dim=4", "model.layers=1", "model.state=2", "trainer.max_steps=2"]
    runs = []
    for mode, text in MODES.items():
        (tmp_path / f"{mode}.yaml").write_text(text)
        runs.append([str(tmp_path / f"{mode}.yaml"), f"--out={tmp_path}", *small])
    printed, logged = sashimi(runs)
    assert re.findall(r"^step (\d+)", printed, re.MULTILINE) == ["2"] * 4
    assert logged.count("round 1/1, cycle 0") == 3
    assert logged.count("train.limit_val_batches=200: ignored, because train.train_chunk_size makes rounds") == 1
    assert logged.count("train.limit_train_batches=2000: ignored, because train.val_chunk_size makes rounds") == 1
    assert logged.count("write trainer.limit_") == 2


@pytest.mark.slow
def test_train_sashimi_stopped_between_rounds_goes_on_as_if_nothing_had_happened(tmp_path):
    pytest.importorskip("lightning")
    small = ["dataset.sample_len=64", "model.dim=8", "model.layers=1", "train.train_chunk_size=7", "model.state=4"]
    config = [str(EXAMPLES / "sashimi.yaml"), *small]
    whole = [*config, f"--out={tmp_path / 'whole'}", "trainer.max_epochs=5"]
    cut = [*config, f"--out={tmp_path / 'cut'}", f"--data={tmp_path / 'whole' / 'tones'}"]
    first = [*cut, "trainer.max_epochs=2"]
    printed, _ = sashimi([whole, first])
    lines = re.findall(r"^step .*", printed, re.MULTILINE)
    assert [int(re.match(r"step (\d+)", line)[1]) for line in lines] == [7, 14, 21, 28, 35, 7, 14]
    assert lines[:2] == lines[5:]
    assert float(re.search(r"train ([\d.]+)", lines[4])[1]) < float(re.search(r"train ([\d.]+)", lines[0])[1]) - 0.2
    rest, _ = sashimi([[*cut, "trainer.max_epochs=5", "--resume"]])
    assert re.findall(r"^step .*", rest, re.MULTILINE) == lines[2:5]
