"""Verifying: every way in which a block can be bad is found, and the first bad block is the one named."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from block_subjects import sample, write_blocks, write_lines
from penstock import (
    BadBlock,
    BadManifest,
    BlockDataset,
    ConfigError,
    ObjectMissing,
    StreamingBlockWriter,
    get_block_info,
    verify_block_structure,
)
from penstock.formats.block_manifest import MANIFEST_NAME


@pytest.fixture(scope="module", params=[None, "zstd"], ids=["plain", "zstd"])
def written(request, tmp_path_factory) -> Path:
    """Five blocks, of several frames each."""
    return write_blocks(
        tmp_path_factory.mktemp("written") / "water",
        4_500,
        1_000,
        compression=request.param,
        make=lambda number: {"id": number, "text": f"{number} " * 150},
    )


@pytest.fixture
def folder(written, tmp_path) -> Path:
    return shutil.copytree(written, tmp_path / "water")


def block_path(folder: Path, number: int) -> Path:
    return next(iter(folder.glob(f"blocks/block_0000{number}.jsonl*")))


def edit(path: Path, change) -> None:
    """Change a file's bytes, and leave its time."""
    status = path.stat()
    content = bytearray(path.read_bytes())
    path.write_bytes(change(content) or content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_blocks_as_they_were_written_are_fine(folder):
    ok, message = verify_block_structure(folder)
    assert ok
    assert "4,500 samples in 5 blocks" in message
    assert message.endswith("as they were written")


@pytest.mark.parametrize("place", [0, 0.3, -1])
def test_a_flipped_bit_is_found_wherever_it_is(folder, place):
    path = block_path(folder, 2)
    at = -1 if place == -1 else int(path.stat().st_size * place)

    def flip(content):
        content[at] ^= 1

    edit(path, flip)
    ok, message = verify_block_structure(folder)
    assert not ok
    assert message.startswith(f"block 2: {path} changed after it was written")


def test_of_several_bad_blocks_the_first_is_named(folder):
    for number in (4, 1, 3):
        edit(block_path(folder, number), lambda content: content[:-1])
    assert verify_block_structure(folder)[1].startswith("block 1: ")


def test_a_block_shorter_or_longer_than_the_manifest_says(folder):
    edit(block_path(folder, 3), lambda content: content[:-5])
    assert "block 3: " in verify_block_structure(folder)[1]
    assert "shorter than the manifest's" in verify_block_structure(folder)[1]
    edit(block_path(folder, 3), lambda content: content + b"123456")
    assert "longer than the manifest's" in verify_block_structure(folder)[1]


def test_a_missing_block(folder):
    block_path(folder, 0).unlink()
    ok, message = verify_block_structure(folder)
    assert not ok
    assert "block_00000" in message
    assert "is missing" in message


def test_lines_are_counted_anew_and_not_believed(folder):
    """A manifest with right checksums and wrong counts, as a careless tool might write."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    one, two = manifest["blocks"][1:3]
    one["sample_count"] -= 1
    one["end_index"] = two["start_index"] = one["end_index"] - 1
    two["sample_count"] += 1
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    ok, message = verify_block_structure(folder)
    assert not ok
    assert message.startswith("block 1: ")
    assert "has 1,000 lines, the manifest says 999" in message


def test_a_table_that_points_between_lines_is_found(folder):
    idx = folder / "blocks" / "block_00002.idx"
    table = np.fromfile(idx, "<u8")
    table[500] += 1
    status = idx.stat()
    table.tofile(idx)
    os.utime(idx, ns=(status.st_atime_ns, status.st_mtime_ns))
    ok, message = verify_block_structure(folder)
    assert not ok
    assert message.startswith(f"block 2: {idx} does not say where the lines are")
    idx.unlink()
    assert verify_block_structure(folder)[0], "without a table there is none that lies"


def test_a_manifest_of_a_newer_version_is_a_clear_error(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps({**manifest, "format_version": 2}))
    ok, message = verify_block_structure(folder)
    assert not ok
    assert "format version 2, this penstock reads up to 1: upgrade penstock" in message
    with pytest.raises(BadManifest, match="upgrade penstock"):
        get_block_info(folder)
    with pytest.raises(BadManifest, match="upgrade penstock"):
        BlockDataset(folder)


def test_files_beside_blocks_are_held_to_their_names(tmp_path):
    with StreamingBlockWriter(tmp_path, "water", 2) as writer:
        for number in range(5):
            writer.add_sample({"text": "x", "raw": b"bytes %d" % number})
    assert verify_block_structure(tmp_path)[0]
    asset = sorted((tmp_path / "assets").glob("*/*"))[2]
    asset.write_bytes(b"others")
    ok, message = verify_block_structure(tmp_path)
    assert not ok
    assert message.startswith(f"{asset} changed after it was written")


def test_what_is_there_is_told_without_being_changed(folder):
    info = get_block_info(folder)
    assert (info.dataset_name, info.total_samples, info.total_blocks) == ("water", 4_500, 5)
    assert [block.sample_count for block in info.blocks] == [1_000] * 4 + [500]


LAYOUTS = ["blocks/block_{:05d}.jsonl", "blocks/block_{:d}.jsonl", "block_{:05d}.jsonl", "block_{:d}.jsonl"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_older_layouts_are_counted_and_their_lines_read(tmp_path, layout):
    for number, count in enumerate([10, 10, 4]):
        write_lines(tmp_path / layout.format(number), range(number * 10, number * 10 + count))
    info = get_block_info(tmp_path)
    assert (info.total_samples, info.total_blocks, info.block_size, info.text_column) == (24, 3, 10, "text")
    assert [(block.start_index, block.end_index) for block in info.blocks] == [(0, 10), (10, 20), (20, 24)]
    assert [block.file_path for block in info.blocks] == [layout.format(number) for number in range(3)]
    ok, message = verify_block_structure(tmp_path)
    assert ok
    assert "24 samples in 3 blocks" in message
    assert "no checksums to compare with" in message
    with open(tmp_path / layout.format(1), "r+b") as file:
        file.seek(len(json.dumps(sample(10))) + 1)
        file.write(b"}")
    ok, message = verify_block_structure(tmp_path)
    assert not ok
    assert message.startswith("block 1: line 2 of ")


def test_the_oldest_layout_is_one_text_a_line(tmp_path):
    for number, texts in enumerate((["one", "two"], ["three"])):
        (tmp_path / f"block_{number}").mkdir()
        (tmp_path / f"block_{number}" / "samples.txt").write_text("".join(f"{text}\n" for text in texts))
    assert [block.sample_count for block in get_block_info(tmp_path).blocks] == [2, 1]
    assert verify_block_structure(tmp_path)[0]


def test_an_older_manifest_is_held_to_its_counts(tmp_path):
    write_blocks(tmp_path, 25, 10)
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    for key in ("format_version", "finished", "source", "counts"):
        del manifest[key]
    for entry in manifest["blocks"]:
        del entry["checksum"]
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert verify_block_structure(tmp_path)[0]
    manifest["total_samples"] += 1
    manifest["blocks"][2]["sample_count"] += 1
    manifest["blocks"][2]["end_index"] += 1
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(manifest))
    ok, message = verify_block_structure(tmp_path)
    assert not ok
    assert message.startswith("block 2: ")


def test_a_block_that_is_missing_between_others_is_named(tmp_path):
    for number in (0, 2):
        write_lines(tmp_path / f"blocks/block_0000{number}.jsonl", range(10))
    with pytest.raises(BadBlock, match=r"block_00001.jsonl is missing"):
        get_block_info(tmp_path)
    assert not verify_block_structure(tmp_path)[0]


def test_no_folder_and_no_blocks(tmp_path):
    with pytest.raises(ObjectMissing):
        get_block_info(tmp_path / "none")
    with pytest.raises(ConfigError, match="holds neither"):
        get_block_info(tmp_path)
    assert verify_block_structure(tmp_path / "none")[0] is False
    assert "neither block_manifest.json nor blocks" in verify_block_structure(tmp_path)[1]


def test_a_block_that_is_not_complete_is_named_since_readers_leave_it_out(folder):
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    manifest["blocks"][-1]["is_complete"] = False
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    assert len(BlockDataset(folder)) == 4_000
    ok, message = verify_block_structure(folder)
    assert not ok
    assert "block 4 is not complete" in message
