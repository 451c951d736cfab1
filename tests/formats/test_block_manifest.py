"""The manifest: what it says is what is written, and what contradicts itself is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from penstock import BadManifest, BlockMetadata, ConfigError, DatasetBlockInfo, ObjectMissing, estimate_block_count
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest, write_block_manifest


def block(number: int, **more) -> BlockMetadata:
    return BlockMetadata(
        block_id=number,
        sample_count=100,
        start_index=100 * number,
        end_index=100 * number + 100,
        file_path=f"blocks/block_{number:05d}.jsonl",
        size_bytes=2_000,
        checksum="5f" * 16,
        **more,
    )


def info(**more) -> DatasetBlockInfo:
    return DatasetBlockInfo(
        **{
            "dataset_name": "water",
            "total_samples": 200,
            "total_blocks": 2,
            "block_size": 100,
            "text_column": "text",
            "blocks": (block(0), block(1)),
            "source": {"from": ["a.jsonl"], "position": {"row": 3}, "skip": 0},
            "counts": {"malformed-json": 2},
            **more,
        }
    )


def test_what_is_written_is_read_back(tmp_path):
    write_block_manifest(tmp_path, info())
    assert read_block_manifest(tmp_path) == info()
    assert list(json.loads((tmp_path / MANIFEST_NAME).read_text())) == [
        "dataset_name",
        "total_samples",
        "total_blocks",
        "block_size",
        "text_column",
        "output_dir",
        "blocks",
        "format_version",
        "finished",
        "source",
        "counts",
    ]
    assert DatasetBlockInfo.from_json(info().to_json()) == info()


def test_a_manifest_without_our_own_keys_is_an_older_one(tmp_path):
    value = info().to_json()
    for key in ("format_version", "finished", "source", "counts", "output_dir"):
        del value[key]
    for entry in value["blocks"]:
        del entry["checksum"]
    value["blocks"][0]["file_path"] = "blocks\\block_00000.jsonl"
    value["written_by"] = "somebody else"
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    found = read_block_manifest(tmp_path)
    assert (found.format_version, found.finished, found.blocks[0].checksum) == (0, True, None)
    assert found.blocks[0].file_path == "blocks/block_00000.jsonl"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format_version": 2}, "format version 2, this penstock reads up to 1: upgrade penstock"),
        ({"format_version": "new"}, "format version 'new'"),
        ({"total_samples": 201}, "total_samples is 201, its blocks hold 200"),
        ({"total_blocks": 3}, "total_blocks is 3, it lists 2"),
        ({"blocks": [block(0), block(0)]}, "block 1 is numbered 0"),
        ({"blocks": [block(0), {"block_id": 1}]}, "not a whole manifest"),
        ({"blocks": [replace(block(0), is_complete=False), block(1)]}, "block 1 is complete, and block 0 before it"),
        ({"source": "web"}, "source is a str"),
        ({"blocks": None}, "not a whole manifest"),
        ({"block_size": "many"}, "not a whole manifest"),
    ],
)
def test_a_manifest_of_the_future_or_at_odds_with_itself_is_refused(tmp_path, change, words):
    value = {**info().to_json(), **change}
    if isinstance(value["blocks"], list):
        value["blocks"] = [entry if isinstance(entry, dict) else info(blocks=(entry,)).to_json()["blocks"][0]
                           for entry in value["blocks"]]  # fmt: skip
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(BadManifest, match=words) as caught:
        read_block_manifest(tmp_path)
    assert str(tmp_path / MANIFEST_NAME) in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '"text"'])
def test_what_is_no_manifest_is_refused_by_its_path(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_text(content)
    with pytest.raises(BadManifest, match=MANIFEST_NAME):
        read_block_manifest(tmp_path)


def test_no_manifest_is_a_missing_object(tmp_path):
    with pytest.raises(ObjectMissing, match=MANIFEST_NAME):
        read_block_manifest(tmp_path)


@pytest.mark.parametrize(("samples", "size", "blocks"), [(0, 100, 0), (1, 100, 1), (100, 100, 1), (250, 100, 3)])
def test_the_number_of_blocks_is_told_in_advance(samples, size, blocks):
    assert estimate_block_count(samples, size) == blocks


@pytest.mark.parametrize(("samples", "size"), [(-1, 100), (5, 0), (2.5, 100), (True, 2)])
def test_impossible_numbers_of_samples_are_refused(samples, size):
    with pytest.raises(ConfigError):
        estimate_block_count(samples, size)
