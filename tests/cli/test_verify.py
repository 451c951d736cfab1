"""`penstock verify`: a changed byte is found and named."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from penstock import tokenize
from penstock.formats.tokens import SEGMENT_BYTES


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    """Bins of two segments and of one."""
    home = tmp_path_factory.mktemp("written")
    line = "water under the bridge " * 40
    for name, count in (("large", SEGMENT_BYTES // 2 // len(line) + 100), ("small", 20)):
        (home / f"{name}.txt").write_text("\n".join([line] * count))
        tokenize(home / f"{name}.txt", home / name, tokenizer="bytes", documents="line", show_progress=False)
    return home


@pytest.fixture
def home(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "home", ignore=shutil.ignore_patterns("*.txt"))


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def test_bins_as_they_were_written_are_fine(home):
    done = penstock("verify", home)
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok"]
    assert penstock("verify", home / "large" / "train.bin").returncode == 0


@pytest.mark.parametrize("offset", [0, SEGMENT_BYTES - 1, SEGMENT_BYTES, SEGMENT_BYTES + 4321])
def test_a_flipped_byte_is_found_and_its_segment_named(home, offset):
    flip(home / "large" / "train.bin", offset)
    segment = offset // SEGMENT_BYTES * SEGMENT_BYTES
    for place in (home / "large" / "train.bin", home):
        done = penstock("verify", place)
        assert done.returncode == 1
        assert f"large/train.bin changed after it was written: bytes {segment} and following" in done.stdout
    assert "ok " in done.stdout, "the other bin is as it was"


def test_the_first_of_two_bad_segments_is_the_one_named(home):
    flip(home / "large" / "train.bin", SEGMENT_BYTES + 5)
    flip(home / "large" / "train.bin", 5)
    facts = json.loads(penstock("verify", home, "--json").stdout)
    problems = {Path(each["path"]).parent.name: each["problem"] for each in facts["bins"]}
    assert facts["ok"] is False
    assert "bytes 0 and following" in problems["large"]
    assert problems["small"] is None


def test_a_changed_document_table_a_truncated_bin_and_a_missing_one_are_found(home):
    flip(home / "small" / "train.docs", 0)
    with open(home / "large" / "train.bin", "r+b") as file:
        file.truncate(1000)
    done = penstock("verify", home)
    assert done.returncode == 1
    assert "train.docs changed after it was written" in done.stdout
    assert "truncated" in done.stdout
    (home / "small" / "train.bin").unlink()
    done = penstock("verify", home)
    assert done.returncode == 1
    assert "small/train.bin does not exist" in done.stdout


def test_a_bin_without_checksums_is_no_proof(home):
    (home / "small" / "train.json").unlink()
    done = penstock("verify", home / "small" / "train.bin")
    assert done.returncode == 1
    assert "no checksums" in done.stdout


def test_nothing_to_verify_is_an_error(tmp_path):
    for place, words in ((tmp_path / "none", "does not exist"), (tmp_path, "holds no .bin file")):
        done = penstock("verify", place)
        assert (done.returncode, done.stdout) == (2, "")
        assert words in done.stderr
