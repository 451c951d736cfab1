"""A writer stopped anywhere is gone on with, and the file is the same."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from penstock.errors import BadManifest, ConfigError, FormatError
from penstock.formats import token_writer
from penstock.formats.token_writer import TokenWriter
from penstock.formats.tokens import open_bin, verify_bin

SUFFIXES = (".bin", ".docs", ".json")


def batches():
    """Eight batches of documents, some empty: ids and offsets."""
    rng = np.random.default_rng(0)
    for _ in range(8):
        lengths = rng.integers(0, 40, size=rng.integers(0, 9))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        yield rng.integers(0, 300, size=offsets[-1], dtype=np.uint32), offsets


def finish(writer):
    n = writer.num_documents
    return writer.finish({"counts": {"rows_in": n, "documents_out": n, "skipped": {}}})


def append(writer, start, stop, *, commit=True):
    for number, (ids, offsets) in enumerate(itertools.islice(batches(), start, stop), start):
        writer.append(ids, offsets, {"done": number + 1})
        if commit:
            writer.commit()


def contents(path):
    return [path.with_suffix(suffix).read_bytes() for suffix in SUFFIXES]


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch):
    monkeypatch.setattr(token_writer, "SEGMENT_BYTES", 256)
    monkeypatch.setattr("penstock.formats.tokens.SEGMENT_BYTES", 256)


@pytest.fixture
def uninterrupted(tmp_path):
    path = tmp_path / "whole.bin"
    with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
        append(writer, 0, 8)
        finish(writer)
    verify_bin(path)
    return path


@pytest.mark.parametrize("stop", [0, 1, 7, 8])
@pytest.mark.parametrize("garbage", [0, 1000])
def test_stopping_after_any_commit_and_going_on_gives_the_same_files(tmp_path, uninterrupted, stop, garbage):
    path = tmp_path / "train.bin"
    writer = TokenWriter(path, vocab_size=300, job={"a": 1})
    append(writer, 0, stop)
    writer.close()
    for part in token_writer.partial_paths(path):
        part.write_bytes(part.read_bytes() + b"x" * garbage)  # what a crash left behind the last commit
    with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
        assert writer.progress == ({"done": stop} if stop else {})
        append(writer, stop, 8)
        finish(writer)
    assert contents(path) == contents(uninterrupted)
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n}{s}" for n in ("train", "whole") for s in SUFFIXES)


def test_closing_keeps_what_was_appended_without_a_commit(tmp_path):
    path = tmp_path / "train.bin"
    with TokenWriter(path, vocab_size=300, job={}) as writer:
        append(writer, 0, 5, commit=False)
    with TokenWriter(path, vocab_size=300, job={}) as writer:
        assert writer.progress == {"done": 5}


STEPS = ["publish", "write_json", "publish", "discard_partial"]


@pytest.mark.parametrize("step", range(len(STEPS)))
@pytest.mark.parametrize("before", [False, True])
def test_a_crash_at_any_step_of_publishing_leaves_no_wrong_bin(tmp_path, uninterrupted, monkeypatch, step, before):
    path = tmp_path / "train.bin"
    if before:
        path.write_bytes(b"an older one, being replaced")
    writer = TokenWriter(path, vocab_size=300, job={"a": 1})
    append(writer, 0, 8)
    calls = itertools.count()

    def crashing(real):
        def call(*args):
            if next(calls) == step:
                raise KeyboardInterrupt
            return real(*args)

        return call

    with monkeypatch.context() as patch:
        # The commit within finish has nothing left to write, so these are the steps after it.
        for name in set(STEPS):
            patch.setattr(token_writer, name, crashing(getattr(token_writer, name)))
        with pytest.raises(KeyboardInterrupt):
            finish(writer)
    if step < 3:
        assert not path.exists()
        with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
            assert writer.progress == {"done": 8}
            finish(writer)
    assert contents(path) == contents(uninterrupted)


def test_an_id_outside_the_vocabulary_is_refused_before_anything_is_written(tmp_path):
    path = tmp_path / "train.bin"
    with TokenWriter(path, vocab_size=300, job={}) as writer:
        with pytest.raises(FormatError, match="gave id 300, outside its vocabulary of 300"):
            writer.append(np.array([1, 300], np.uint32), np.array([0, 2]), {})
        assert writer.num_tokens == 0
    assert [part.stat().st_size for part in token_writer.partial_paths(path)] == [0, 0]


def test_another_job_or_a_damaged_journal_is_refused(tmp_path):
    path = tmp_path / "train.bin"
    with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
        append(writer, 0, 3)
    with pytest.raises(ConfigError, match="begun by another job"):
        TokenWriter(path, vocab_size=300, job={"a": 2})
    journal = token_writer.journal_path(path)
    journal.write_bytes(journal.read_bytes()[:40])
    with pytest.raises(BadManifest, match="not valid JSON"):
        TokenWriter(path, vocab_size=300, job={"a": 1})


def test_parts_shorter_than_the_journal_says_are_begun_anew(tmp_path, uninterrupted):
    path = tmp_path / "train.bin"
    with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
        append(writer, 0, 6)
    os.truncate(token_writer.partial_paths(path)[0], 10)
    with TokenWriter(path, vocab_size=300, job={"a": 1}) as writer:
        assert writer.progress == {}
        append(writer, 0, 8)
        finish(writer)
    assert contents(path) == contents(uninterrupted)
    assert len(open_bin(path)) == len(open_bin(uninterrupted))
