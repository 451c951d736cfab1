"""`penstock blocks`, and what `inspect` and `verify` say about folders of blocks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from block_subjects import sample, write_lines
from penstock import tokenize
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A source and the blocks that the command makes of it."""
    home = tmp_path_factory.mktemp("made")
    lines = [json.dumps(sample(number)) for number in range(250)]
    (home / "source.jsonl").write_text("\n".join([*lines[:100], "{bad", *lines[100:]]) + "\n")
    done = penstock("blocks", home / "source.jsonl", home / "water", "--block-size", 100, "--on-error", "skip")
    assert done.returncode == 0, done.stderr
    assert "250 samples in 3 blocks" in done.stdout
    assert "1 malformed-json" in done.stdout
    assert "  skipped source.jsonl:101: malformed-json" in done.stdout
    return home


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return shutil.copytree(made / "water", tmp_path / "water")


def test_a_second_run_says_the_same_and_changes_nothing(made):
    before = {place: place.stat().st_mtime_ns for place in (made / "water").rglob("*.*")}
    done = penstock("blocks", made / "source.jsonl", made / "water", "--block-size", 100, "--on-error", "skip")
    assert (done.returncode, done.stderr) == (0, "")
    assert "250 samples in 3 blocks" in done.stdout
    assert {place: place.stat().st_mtime_ns for place in (made / "water").rglob("*.*")} == before


def test_blocks_may_be_compressed_and_named(made, tmp_path):
    arguments = ("--compression", "zstd", "--name", "rivers", "--on-error", "skip")
    assert penstock("blocks", made / "source.jsonl", tmp_path / "out", *arguments).returncode == 0
    facts = json.loads(penstock("inspect", tmp_path / "out", "--json").stdout)
    assert (facts["dataset_name"], facts["compression"], facts["samples"]) == ("rivers", "zstd", 250)
    assert penstock("verify", tmp_path / "out").returncode == 0


def test_errors_are_one_line(made, tmp_path):
    done = penstock("blocks", made / "source.jsonl", tmp_path / "out", "--block-size", 50)
    assert done.returncode == 2
    assert "error: line 101 of" in done.stderr
    assert "--on-error skip" in done.stderr
    done = penstock("blocks", made / "source.jsonl", made / "water", "--block-size", 60)
    assert done.returncode == 2
    assert "was begun with block_size=100, not 60" in done.stderr
    assert "Traceback" not in done.stderr


def test_inspect_shows_counts_sizes_and_a_few_samples(made, folder):
    facts = json.loads(penstock("inspect", folder, "--rows", 2, "--json").stdout)
    size = sum(place.stat().st_size for place in folder.glob("blocks/*.jsonl"))
    assert facts["kind"] == "folder of blocks"
    assert (facts["samples"], facts["blocks"], facts["block_size"], facts["bytes"]) == (250, 3, 100, size)
    assert (facts["text_column"], facts["finished"], facts["counts"]) == ("text", True, {"malformed-json": 1})
    source = made / "source.jsonl"
    assert facts["source"]["files"] == {source.name: source.stat().st_size}
    assert facts["first_rows"] == [sample(0), sample(1)]
    shown = penstock("inspect", folder / MANIFEST_NAME).stdout
    assert "250" in shown
    assert "sample 2, drop drop" in shown


def test_inspect_of_older_and_of_unfinished_folders(folder, tmp_path):
    write_lines(tmp_path / "old" / "block_0.jsonl", range(7))
    facts = json.loads(penstock("inspect", tmp_path / "old", "--json").stdout)
    assert (facts["samples"], facts["format_version"]) == (7, 0)
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "finished": False}))
    assert json.loads(penstock("inspect", folder, "--json").stdout)["kind"].startswith("unfinished folder of blocks")


def test_verify_names_the_first_bad_block(folder):
    done = penstock("verify", folder)
    assert done.returncode == 0
    assert done.stdout.startswith("ok ")
    assert "250 samples in 3 blocks" in done.stdout
    for number in (2, 1):
        path = folder / "blocks" / f"block_0000{number}.jsonl"
        path.write_bytes(path.read_bytes().replace(b"drop", b"drip", 1))
    done = penstock("verify", folder)
    assert done.returncode == 1
    assert "BAD  block 1: " in done.stdout
    assert "changed after it was written" in done.stdout
    facts = json.loads(penstock("verify", folder, "--json").stdout)
    assert facts["ok"] is False
    assert facts["blocks"][0]["problem"].startswith("block 1: ")


def test_verify_finds_blocks_and_bins_below_a_folder(folder, tmp_path):
    (tmp_path / "text.txt").write_text("water")
    tokenize(tmp_path / "text.txt", tmp_path / "bins", tokenizer="bytes", show_progress=False)
    done = penstock("verify", tmp_path)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["ok", "ok"]
    assert "water: 250 samples" in done.stdout
    assert "train.bin" in done.stdout


def test_a_manifest_of_a_newer_version_asks_for_an_upgrade(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "format_version": 2}))
    for command, code in (("inspect", 2), ("verify", 1)):
        done = penstock(command, folder)
        assert done.returncode == code
        assert "upgrade penstock" in done.stdout + done.stderr


def test_settings_say_how_large_blocks_are_and_an_option_says_it_louder(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n' * 10)
    (tmp_path / "settings.yaml").write_text("samples_per_block: 4\n")
    for options, sizes in (((), [4, 4, 2]), (("--block-size", "6"), [6, 4])):
        out = tmp_path / f"out{len(options)}"
        done = penstock("blocks", tmp_path / "a.jsonl", out, "--config", tmp_path / "settings.yaml", *options)
        assert done.returncode == 0, done.stderr
        assert [block.sample_count for block in read_block_manifest(out).blocks] == sizes


def test_a_key_that_settings_do_not_have_is_refused_with_the_nearest(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    (tmp_path / "settings.yaml").write_text("sample_per_block: 4\n")
    done = penstock("blocks", tmp_path / "a.jsonl", tmp_path / "out", "--config", tmp_path / "settings.yaml")
    assert "did you mean samples_per_block" in done.stderr
    assert not (tmp_path / "out").exists()
