"""Runs that are killed, interrupted, or run out of disk, and what the next run makes of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from penstock.errors import ObjectChanged, StoreError
from penstock.formats.token_writer import journal_path, read_journal
from penstock.formats.tokens import open_bin, verify_bin
from penstock.prep import token_pipeline
from penstock.prep.tokenize import tokenize

# Runs the command line on blocks of two kilobytes with a commit after each; with a number as its first
# argument it is killed, as by kill -9, before its so-many-th step on the disk.
RUN = """
import functools, itertools, os, signal, sys, threading
from penstock.cli import main
from penstock.prep import token_pipeline, tokenize

token_pipeline.iter_text = functools.partial(token_pipeline.iter_text, block_bytes=2048)
tokenize.tokenize.__kwdefaults__["commit_every_s"] = 0

fatal, steps = int(sys.argv.pop(1)), itertools.count(1)

def mortal(step):
    def call(*args, **options):
        # How often the disk is nudged ahead of a commit depends on timing; the other steps are the same in every run.
        if not threading.current_thread().name.startswith("penstock-sync") and next(steps) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(*args, **options)
    return call

for name in ("fsync", "replace", "unlink"):
    setattr(os, name, mortal(getattr(os, name)))
try:
    main.main()
finally:
    print("steps on the disk:", next(steps) - 1, file=sys.stderr)
"""


def command(fatal, *arguments):
    return [sys.executable, "-c", RUN, str(fatal), "tokenize", *map(str, arguments)]


def run(fatal, *arguments):
    return subprocess.run(command(fatal, *arguments), capture_output=True, text=True, check=False, timeout=120)


def position_of(folder: Path) -> int:
    journals = [read_journal(folder / f"{split}.bin") for split in ("train", "validation")]
    rows = [journal.progress["position"]["row"] for journal in journals if journal]
    return max(rows, default=0)


def assert_only_whole_bins(folder):
    for path in folder.glob("*.bin"):
        verify_bin(path)


def test_a_run_killed_again_and_again_ends_with_the_same_files(tmp_path, corpus, bpe_path):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(150))
    options = ["--tokenizer", bpe_path, "--val-fraction", "0.3"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    uninterrupted = run(0, source, whole, *options)
    assert uninterrupted.returncode == 0, uninterrupted.stderr
    had, kills = 0, [9, 1, 2, 40, 13, 30, 5, 47]
    for fatal in kills:
        ended = run(fatal, source, out, *options)
        assert ended.returncode == -signal.SIGKILL, ended.stderr
        assert not list(out.glob("*.bin"))
        assert position_of(out) >= had
        had = position_of(out)
    assert 0 < had < 150
    assert run(0, source, out, *options).returncode == 0
    for split in ("train", "validation"):
        assert corpus.contents(out, split) == corpus.contents(whole, split)
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))


@pytest.mark.parametrize("before_end", [0, 2, 5, 9, 12])
def test_a_run_killed_while_it_publishes_ends_with_the_same_files(tmp_path, corpus, bpe_path, before_end):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(20))
    options = ["--tokenizer", bpe_path, "--val-fraction", "0.3"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    counted = run(0, source, whole, *options)
    last = int(counted.stderr.rsplit("steps on the disk: ", 1)[1])
    assert run(last - before_end, source, out, *options).returncode == -signal.SIGKILL
    assert_only_whole_bins(out)
    assert run(0, source, out, *options).returncode == 0
    for split in ("train", "validation"):
        assert corpus.contents(out, split) == corpus.contents(whole, split)
    assert sorted(os.listdir(out)) == sorted(os.listdir(whole))


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.usefixtures("_small_blocks")
def test_a_resumed_run_does_not_read_what_is_committed_again(tmp_path, corpus, bpe, kind):
    texts = corpus.texts(200)
    source = tmp_path / f"a.{kind}"
    write(source, texts)
    whole = tokenize(source, tmp_path / "whole", tokenizer=bpe, show_progress=False)["train"]
    stop_in_the_middle(source, tmp_path / "out", bpe)
    done = position_of_unfinished(tmp_path / "out" / "train.bin")
    assert 20 < done < 180
    # Texts of the same length where the first ones were, in a file that looks unchanged: reading them again would show.
    status = source.stat()
    write(source, [text.translate(str.maketrans("aeiou", "uoiea")) for text in texts[:20]] + texts[20:])
    if source.stat().st_size != status.st_size:
        pytest.skip("this file format packs the changed texts to another size")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    resumed = tokenize(source, tmp_path / "out", tokenizer=bpe, show_progress=False)["train"]
    assert resumed.status == "resumed"
    assert corpus.contents(tmp_path / "out") == corpus.contents(tmp_path / "whole")
    assert resumed.num_documents == whole.num_documents


def write(path, texts):
    if path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.table({"text": texts})
        pq.write_table(table, path, row_group_size=10, compression="none", use_dictionary=False, write_statistics=False)
        return
    import json

    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


class Stop(Exception):
    """Ends a run in the middle."""


def stop_in_the_middle(source, out, tokenizer, **more):
    """Let a run end after half of its batches, as an error in the reading would."""
    reading = token_pipeline.iter_text

    def interrupted(*args, **options):
        for number, batch in enumerate(reading(*args, **options)):
            if number == 8:
                raise Stop
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_pipeline, "iter_text", interrupted)
        with pytest.raises(Stop):
            tokenize(source, out, tokenizer=tokenizer, show_progress=False, **more)


def position_of_unfinished(path):
    journal = read_journal(path)
    assert journal is not None
    return journal.progress["position"]["row"]


@pytest.mark.usefixtures("_small_blocks")
def test_splits_interrupted_at_different_places_go_on_together(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(200))
    options = {"tokenizer": bpe, "val_fraction": 0.3, "show_progress": False}
    tokenize(source, tmp_path / "whole", **options)
    stop_in_the_middle(source, tmp_path / "out", bpe, val_fraction=0.3)
    for path in (tmp_path / "out").glob("validation.*"):
        path.unlink()
    tokenize(source, tmp_path / "out", **options)
    for split in ("train", "validation"):
        assert corpus.contents(tmp_path / "out", split) == corpus.contents(tmp_path / "whole", split)


@pytest.mark.usefixtures("_small_blocks")
def test_an_interrupted_rebuilding_goes_on_and_keeps_the_old_bin_until_then(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(200))
    old = tokenize(source, tmp_path / "out", tokenizer="bytes", show_progress=False)["train"]
    stop_in_the_middle(source, tmp_path / "out", bpe, overwrite=True)
    verify_bin(old.path)
    assert len(open_bin(old.path)) == old.num_tokens
    assert position_of_unfinished(old.path) > 0
    report = tokenize(source, tmp_path / "out", tokenizer=bpe, show_progress=False, overwrite=True)["train"]
    assert report.status == "resumed"
    assert corpus.documents_of(report.path, bpe) == corpus.texts(200)


def test_ctrl_c_ends_quietly_and_the_next_run_goes_on(tmp_path, corpus, bpe_path):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(8000))
    out = tmp_path / "out"
    arguments = command(0, source, out, "--tokenizer", bpe_path)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not journal_path(out / "train.bin").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert sorted(os.listdir(out)) == ["train.bin.partial", "train.docs.partial", "train.partial.json"]
    done = position_of_unfinished(out / "train.bin")
    assert 0 < done < 8000
    report = tokenize(source, out, tokenizer=bpe_path, show_progress=False)["train"]
    assert (report.status, report.num_documents) == ("resumed", 8000)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two megabytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("a small disk can't be mounted here: that takes root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.usefixtures("_small_blocks")
def test_a_full_disk_says_so_and_the_run_goes_on_when_there_is_room(tmp_path, corpus, bpe, small_disk):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(2000))
    tokenize(source, tmp_path / "whole", tokenizer=bpe, show_progress=False)
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * ((2 << 20) - 40_000))
    with pytest.raises(StoreError, match=r"no space left on the disk of .*disk/out; free some") as caught:
        tokenize(source, small_disk / "out", tokenizer=bpe, show_progress=False, commit_every_s=0)
    assert caught.value.errno == errno.ENOSPC
    left = sorted(os.listdir(small_disk / "out"))
    assert left == ["train.bin.partial", "train.docs.partial", "train.partial.json"]
    ballast.unlink()
    report = tokenize(source, small_disk / "out", tokenizer=bpe, show_progress=False)["train"]
    assert report.status == "resumed"
    assert corpus.contents(small_disk / "out") == corpus.contents(tmp_path / "whole")


@pytest.mark.skipif(os.name == "posix" and os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written_is_named(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", ["one"])
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(StoreError, match="choose a folder you may write to"):
        tokenize(source, tmp_path / "out", tokenizer=bpe, show_progress=False)


@pytest.mark.usefixtures("_small_blocks")
def test_a_source_that_grows_while_it_is_read_is_noticed(tmp_path, corpus, bpe):
    source = corpus.write(tmp_path / "a.jsonl", corpus.texts(50))
    reading = token_pipeline.iter_text

    def growing(*args, **options):
        yield from reading(*args, **options)
        with open(source, "a") as file:
            file.write('{"text": "late"}\n')

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_pipeline, "iter_text", growing)
        with pytest.raises(ObjectChanged, match=r"a.jsonl changed while it was read"):
            tokenize(source, tmp_path / "out", tokenizer=bpe, show_progress=False)
    assert not (tmp_path / "out" / "train.bin").exists()
