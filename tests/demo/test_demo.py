"""`penstock demo`: the whole way, and a proof that could have failed."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from penstock import TokenDataset, load_checkpoint
from penstock.demo import runs
from penstock.demo.check import compare, time_data_alone, uninterrupted_hashes
from penstock.demo.corpus import write_python_corpus
from penstock.demo.settings import DemoSettings, log_path, read_log, steps_of
from penstock.errors import LoaderTimeout

PNG = b"\x89PNG\r\n\x1a\n"
STEPS = 48


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock", "demo", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes, **options)


def demo(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    with start(*arguments, **options) as process:
        stdout, stderr = process.communicate(timeout=280)
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def write_corpus(path: Path, documents: int = 300) -> Path:
    rows = [{"body": f"Row {i}: the water of the river number {i % 7} runs down to the sea."} for i in range(documents)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A demo with a recipe of one's own: a corpus of another field's texts, and bytes for a tokenizer."""
    home = tmp_path_factory.mktemp("demo")
    corpus = write_corpus(home / "mine.jsonl")
    recipe = ("--corpus", corpus, "--text-field", "body", "--tokenizer", "bytes")
    return home / "out", demo(*recipe, "--out", home / "out", "--steps", STEPS)


@pytest.mark.slow
def test_the_whole_way_leaves_a_model_a_checkpoint_a_plot_and_a_report(finished):
    out, done = finished
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "report.json").read_text())
    assert report["corpus"]["documents"] == 300
    assert report["corpus"]["train_tokens"] == len(TokenDataset(out / "bins" / "train.bin", 8).bin)
    assert report["training"]["steps"] == STEPS
    assert report["training"]["last_loss"] < report["training"]["first_loss"] - 1
    at_checkpoints = report["training"]["validation_loss_at_checkpoints"]
    assert at_checkpoints["best"] < 5.5
    assert f"{at_checkpoints['best']:.2f} on the part of it that checkpoints" in " ".join(done.stdout.split())
    assert 0 <= report["training"]["wait_share"] < 1
    assert report["data"]["tokens_per_s"] > report["training"]["tokens_per_s"] > 0
    assert report["sample"]
    assert (out / "loss.png").read_bytes().startswith(PNG)
    assert "embed.weight" in load_checkpoint(out)
    for path in report["files"].values():
        assert Path(path).exists()
    for said in ("data alone", "training", "waiting for data", "identical batches  yes", "The model writes"):
        assert said in done.stdout


@pytest.mark.slow
def test_the_run_was_really_cut_and_continued_by_another_process(finished):
    out, _ = finished
    report = json.loads((out / "report.json").read_text())
    first, second = read_log(out, 1), read_log(out, 2)
    cut = report["interruption"]
    assert first[-1]["event"] != "end"
    assert second[-1]["event"] == "end"
    assert second[0]["step"] == max(record["step"] for record in first if record["event"] == "checkpoint")
    assert cut["killed_at_step"] == steps_of(first)[-1]["step"] > cut["resumed_from_step"] == second[0]["step"] > 0
    assert 0 < cut["killed_in_epoch_at"] < 1
    assert [process["lane"] for process in cut["processes"]] == ["inline", "process"]
    proof = report["identical_batches"]
    assert proof["identical"] is True
    assert proof["compared"] == STEPS + cut["steps_taken_again"] > STEPS


@pytest.mark.slow
def test_a_log_that_was_tampered_with_is_found_out(finished, tmp_path):
    """The proof must be able to fail: another hash, a step left out, one twice, a shorter run."""
    out = shutil.copytree(finished[0], tmp_path / "out")
    settings = DemoSettings.read(out)
    expected = uninterrupted_hashes(out, settings)
    logs = [read_log(out, 1), read_log(out, 2)]
    assert compare(expected, logs).identical

    lines = log_path(out, 2).read_text().splitlines()
    number = next(i for i, line in enumerate(lines) if f'"step":{STEPS - 5},' in line)
    record = json.loads(lines[number])
    record["hash"] = "0" * 32
    lines[number] = json.dumps(record)
    log_path(out, 2).write_text("\n".join(lines) + "\n")
    verdict = compare(expected, [read_log(out, 1), read_log(out, 2)])
    assert not verdict.identical
    assert f"at step {STEPS - 5} process 2 had seen other batches" in verdict.problem


@pytest.mark.slow
def test_other_data_or_another_order_would_be_found_out(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    settings = DemoSettings.read(out)
    logs = [read_log(out, 1), read_log(out, 2)]
    with open(out / "bins" / "train.bin", "r+b") as file:
        file.write(b"\x01")
    assert not compare(uninterrupted_hashes(out, settings), logs).identical
    assert time_data_alone(out, settings) > 0


def records(first: int, last: int, hashes: list[str]) -> list[dict]:
    return [{"event": "step", "step": step, "hash": hashes[step - 1]} for step in range(first, last + 1)]


HASHES = [f"{step:032x}" for step in range(1, 11)]


@pytest.mark.parametrize(
    ("logs", "problem"),
    [
        ([records(1, 6, HASHES), records(5, 10, HASHES)], None),
        ([records(1, 6, HASHES), records(7, 10, HASHES)], None),
        ([records(1, 6, HASHES), records(8, 10, HASHES)], "process 2 logged step 8 where 7 was due"),
        ([records(1, 6, HASHES), records(5, 9, HASHES)], "the logs end at step 9, and the run has 10"),
        ([records(1, 6, HASHES), []], "the logs end at step 6"),
        ([records(2, 6, HASHES), records(5, 10, HASHES)], "process 1 logged step 2 where 1 was due"),
        ([records(1, 4, HASHES[::-1]), records(5, 10, HASHES)], "at step 1 process 1 had seen other batches"),
        ([records(1, 6, HASHES), records(4, 6, HASHES[::-1])], "at step 4 process 2 had seen other batches"),
        ([records(1, 6, HASHES)[::2], records(7, 10, HASHES)], "process 1 logged step 3 where 2 was due"),
        ([records(1, 10, HASHES) + records(10, 10, HASHES)], "process 1 logged step 10 where 11 was due"),
    ],
)
def test_the_comparison_finds_what_is_missing_or_different(logs, problem):
    verdict = compare(HASHES, logs)
    assert verdict.identical == (problem is None)
    assert verdict.num_compared == sum(map(len, logs))
    assert problem is None or problem in verdict.problem


@pytest.mark.slow
def test_a_second_demo_replaces_the_first_and_nothing_else(finished, tmp_path):
    out = shutil.copytree(finished[0], tmp_path / "out")
    (out / "notes.txt").write_text("mine")
    done = demo("--corpus", write_corpus(tmp_path / "b.jsonl"), "--out", out, "--steps", 40)
    assert done.returncode == 2
    assert "text_field" in done.stderr
    assert "'body'" in done.stderr
    assert (out / "notes.txt").read_text() == "mine"
    assert not (out / "report.json").exists()


def test_a_folder_of_someone_elses_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = demo("--out", tmp_path)
    assert done.returncode == 2
    assert "holds files that are no demo's" in done.stderr
    assert done.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["thesis.tex"]
    done = demo("--out", tmp_path / "thesis.tex")
    assert done.returncode == 2
    assert "is a file" in done.stderr


def test_a_corpus_that_is_not_there_or_too_short_is_one_line(tmp_path):
    done = demo("--out", tmp_path / "out", "--corpus", tmp_path / "none.jsonl")
    assert done.returncode == 2
    assert "does not exist" in done.stderr
    done = demo("--out", tmp_path / "out", "--dataset", "hf://org/name", "--tokenizer", "none.json")
    assert (done.returncode, done.stdout) == (2, "")  # said before anything is asked of the network
    assert "the tokenizer none.json does not exist" in done.stderr
    short = write_corpus(tmp_path / "short.jsonl", documents=10)
    done = demo("--out", tmp_path / "out", "--corpus", short, "--text-field", "body", "--tokenizer", "bytes")
    assert done.returncode == 2
    assert "tokens" in done.stderr
    assert "Traceback" not in done.stderr


def test_without_matplotlib_the_plot_is_refused_with_the_way_to_get_it(tmp_path):
    program = (
        "import pathlib, sys\nsys.modules['matplotlib'] = None\n"
        "from penstock.demo.command import _draw\nfrom rich.console import Console\n"
        "_draw(pathlib.Path(sys.argv[1]), 256, [[], []], Console())"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "no plot: the loss plot needs matplotlib: pip install 'penstock[plot]'" in done.stdout.replace("\n", " ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", "has not begun its log .*run-1.jsonl in 3 s; all it printed is in .*run-1.err"),
        ("open(sys.argv[1] + '/run-1.jsonl', 'w').close(); ", "logged nothing for 3 s; see .*run-1.jsonl"),
    ],
)
def test_a_training_process_that_hangs_is_given_up_and_ended(tmp_path, monkeypatch, program, said):
    hanging = f"import sys, time; {program}time.sleep(600)"
    monkeypatch.setattr(runs, "_command", lambda folder, _: [sys.executable, "-c", hanging, str(folder)])
    monkeypatch.setattr(runs, "SILENCE_S", 3.0)
    attempt = runs.Attempt(run=1, num_workers=0, worker_type="thread")
    with pytest.raises(LoaderTimeout, match=said):
        runs.train_in_process(tmp_path, DemoSettings(steps=8, num_threads=1, vocab_size=256), attempt)
    assert family(tmp_path) == []


def family(out: Path) -> list[psutil.Process]:
    """The processes whose command line names a demo's folder, and their children."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            if str(out) in " ".join(process.cmdline()):
                found |= {each.pid: each for each in (process, *process.children(recursive=True))}
        except psutil.Error:
            continue  # it has ended in the meantime
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize(("run", "how"), [(1, signal.SIGINT), (2, signal.SIGINT), (2, signal.SIGKILL)])
def test_stopped_in_the_middle_it_leaves_no_process(tmp_path, run, how):
    """Ctrl-C reaches the whole group, as in a terminal; SIGKILL the demo alone. In run 2 there are workers too."""
    out = tmp_path / "out"
    recipe = ("--corpus", write_corpus(tmp_path / "mine.jsonl"), "--text-field", "body", "--tokenizer", "bytes")
    steps = 10_000 if run == 1 else 160
    with start(*recipe, "--out", out, "--steps", steps, start_new_session=True) as process:
        deadline = time.monotonic() + 120
        while len(steps_of(read_log(out, run))) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        relatives = family(out)
        assert len(relatives) >= (2 if run == 1 else 4)
        if how == signal.SIGINT:
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.kill()
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    assert "Traceback" not in stderr
    gone, alive = psutil.wait_procs(relatives, timeout=20)
    assert alive == []
    assert len(gone) == len(relatives)


@pytest.mark.slow
def test_pythons_own_documentation_is_a_corpus(tmp_path):
    assert write_python_corpus(tmp_path / "a.jsonl") > 100
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    by_source = {row["source"]: row["text"] for row in rows}
    assert len(by_source) == len(rows)
    assert 'The "with" statement' in by_source["topic with"]
    assert ast.get_docstring(ast.parse(Path(json.__file__).read_text()))[:200] in by_source["json/__init__.py"]
    assert sum(len(row["text"]) for row in rows) > 1_000_000
    write_python_corpus(tmp_path / "b.jsonl")
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_making_the_corpus_imports_nothing_of_it(tmp_path):
    """The standard library has modules that print, open a browser or need a display when imported."""
    program = (
        "import sys, pathlib\nfrom penstock.demo.corpus import write_python_corpus\nbefore = set(sys.modules)\n"
        "write_python_corpus(pathlib.Path(sys.argv[1]))\nprint(sorted(set(sys.modules) - before))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "a.jsonl")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    new = ast.literal_eval(done.stdout)
    assert not {"this", "antigravity", "tkinter", "turtle", "idlelib", "pydoc_data"} & {
        name.split(".")[0] for name in new
    }
