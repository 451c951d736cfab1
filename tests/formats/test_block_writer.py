"""Writing blocks: exact files, the same however the samples came."""

from __future__ import annotations

import json
import shutil
import subprocess
from datetime import date
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from block_subjects import sample, write_blocks
from penstock import BadBlock, BadRecord, BlockDataset, ConfigError, ObjectChanged, StoreError, StreamingBlockWriter
from penstock.formats.block_file import FRAME_BYTES
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest, write_block_manifest
from penstock.formats.files import digest, lock_folder

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "blocks-v1"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(place.relative_to(folder)): place.read_bytes() for place in folder.rglob("*") if place.is_file()}


def lines_of(samples) -> tuple[bytes, np.ndarray]:
    lines = [json.dumps(each, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for each in samples]
    return b"".join(lines), np.cumsum([len(line) for line in lines])


def long_samples(count: int) -> list[dict]:
    """Lines of up to 18 kB, in no order of length."""
    return [{"id": number, "text": f"{number} " * (number * 377 % 4999)} for number in range(count)]


def test_250_samples_are_blocks_of_100_100_and_50(tmp_path):
    said = []
    with StreamingBlockWriter(tmp_path, "water", 100, said.append) as writer:
        complete = {}
        for number in range(250):
            assert writer.samples_in_current_block == number % 100
            block = writer.add_sample(sample(number))
            if block is not None:
                complete[number] = block
        info = writer.finalize()
    assert list(complete) == [99, 199]
    assert (complete[99], complete[199]) == info.blocks[:2]
    manifest = json.loads((tmp_path / MANIFEST_NAME).read_text())
    assert manifest == {
        "dataset_name": "water",
        "total_samples": 250,
        "total_blocks": 3,
        "block_size": 100,
        "text_column": "text",
        "output_dir": None,
        "blocks": [
            {
                "block_id": number,
                "sample_count": count,
                "start_index": 100 * number,
                "end_index": 100 * number + count,
                "file_path": f"blocks/block_0000{number}.jsonl",
                "size_bytes": (tmp_path / f"blocks/block_0000{number}.jsonl").stat().st_size,
                "is_complete": True,
                "checksum": digest((tmp_path / f"blocks/block_0000{number}.jsonl").read_bytes()),
            }
            for number, count in enumerate([100, 100, 50])
        ],
        "format_version": 1,
        "finished": True,
        "source": None,
        "counts": {},
    }
    assert [line.split(",")[0] for line in said] == [
        "block 0: 100 samples",
        "block 1: 100 samples",
        "block 2: 50 samples",
    ]
    text = b"".join((tmp_path / block.file_path).read_bytes() for block in info.blocks)
    assert text == lines_of(map(sample, range(250)))[0]
    assert sorted(place.name for place in tmp_path.iterdir()) == [MANIFEST_NAME, "blocks"]
    assert len(list((tmp_path / "blocks").iterdir())) == 6


def test_the_table_beside_a_block_says_where_each_line_starts(tmp_path):
    write_blocks(tmp_path, 250, 100)
    for number in range(3):
        raw = (tmp_path / f"blocks/block_0000{number}.jsonl").read_bytes()
        table = np.fromfile(tmp_path / f"blocks/block_0000{number}.idx", "<u8")
        starts = np.cumsum([0, *(len(line) for line in raw.splitlines(keepends=True))])
        assert np.array_equal(table, starts)
        idx, block = (tmp_path / f"blocks/block_0000{number}.{suffix}" for suffix in ("idx", "jsonl"))
        assert idx.stat().st_mtime_ns >= block.stat().st_mtime_ns, "a reader would take it for outdated"


def test_a_manifest_is_there_after_every_complete_block(tmp_path):
    writer = StreamingBlockWriter(tmp_path, "water", 10)
    assert read_block_manifest(tmp_path).total_blocks == 0
    for number in range(35):
        writer.add_sample(sample(number))
        info = read_block_manifest(tmp_path)
        assert (info.total_blocks, info.finished) == ((number + 1) // 10, False)
    assert writer.finalize() == read_block_manifest(tmp_path)
    assert read_block_manifest(tmp_path).finished


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=12),
    st.integers(1, 30),
    st.sampled_from([None, "zstd"]),
)
def test_samples_and_ready_lines_in_any_portions_leave_the_same_bytes(tmp_path_factory, portions, size, compression):
    home = tmp_path_factory.mktemp("portions")
    total = sum(count for _, count in portions)
    complete, at = [], 0
    with StreamingBlockWriter(home / "mixed", "water", size, compression=compression) as writer:
        for ready, count in portions:
            samples = [sample(number) for number in range(at, at + count)]
            if ready:
                complete += writer.add_lines(*lines_of(samples))
            else:
                complete += filter(None, map(writer.add_sample, samples))
            at += count
        info = writer.finalize()
    assert tuple(complete) == info.blocks[: total // size]
    write_blocks(home / "one", total, size, compression=compression)
    assert contents(home / "mixed") == contents(home / "one")
    shutil.rmtree(home)


def test_the_frames_of_compressed_blocks_do_not_depend_on_the_portions(tmp_path):
    samples = long_samples(400)
    data, ends = lines_of(samples)
    assert len(data) > 10 * FRAME_BYTES
    for name, step in (("a", 1), ("b", 7), ("c", 400)):
        with StreamingBlockWriter(tmp_path / name, "water", 150, compression="zstd") as writer:
            for first in range(0, 400, step):
                start = int(ends[first - 1]) if first else 0
                part = ends[first : first + step]
                writer.add_lines(data[start : int(part[-1])], part - start)
    assert contents(tmp_path / "a") == contents(tmp_path / "b") == contents(tmp_path / "c")


@pytest.mark.skipif(shutil.which("zstd") is None, reason="the zstd command is not here")
def test_the_zstd_command_unpacks_compressed_blocks(tmp_path):
    samples = long_samples(400)
    with StreamingBlockWriter(tmp_path, "water", 1000, compression="zstd") as writer:
        for each in samples:
            writer.add_sample(each)
    unpacked = subprocess.run(
        ["zstd", "-dc", tmp_path / "blocks/block_00000.jsonl.zst"], capture_output=True, check=True
    )
    assert unpacked.stdout == lines_of(samples)[0]
    listed = subprocess.run(["zstd", "-lv", tmp_path / "blocks/block_00000.jsonl.zst"], capture_output=True, check=True)
    assert b"# Skippable Frames: 1" in listed.stdout
    assert len(BlockDataset(tmp_path)) == 400
    assert BlockDataset(tmp_path)[333] == samples[333]


@pytest.mark.parametrize(
    ("first", "column"),
    [
        ({"id": 1, "text": "", "body": ""}, "text"),
        ({"output": "", "input": "", "content": ""}, "content"),
        ({"title": "", "article": ""}, "article"),
        ({"question": "", "answer": ""}, "question"),
        ({7: "", "answer": ""}, "7"),
    ],
)
def test_the_text_column_is_the_likeliest_of_the_first_sample(tmp_path, first, column):
    with StreamingBlockWriter(tmp_path / "a", "water") as writer:
        writer.add_sample(first)
        writer.add_sample({"text": "later samples do not decide"})
    assert read_block_manifest(tmp_path / "a").text_column == column
    with StreamingBlockWriter(tmp_path / "b", "water") as writer:
        writer.add_lines(*lines_of([first, {"text": "later"}]))
    assert read_block_manifest(tmp_path / "b").text_column == column


def test_a_relative_folder_is_where_it_was_when_the_writer_began(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with StreamingBlockWriter("water", "water", 2) as writer:
        for number in range(5):
            writer.add_sample(sample(number))
            monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(BlockDataset(tmp_path / "water")) == 5
    assert not list((tmp_path / "elsewhere").iterdir())


def test_no_samples_are_no_blocks(tmp_path):
    with StreamingBlockWriter(tmp_path, "water") as writer:
        writer.add_lines(b"", np.empty(0, np.int64))
    info = read_block_manifest(tmp_path)
    assert (info.total_samples, info.total_blocks, info.text_column, info.finished) == (0, 0, None, True)


def test_a_text_with_line_ends_is_one_sample(tmp_path):
    write_blocks(tmp_path, 5, 2, make=lambda number: {"text": f"{number}\nand\r\nmore\n"})
    assert [row["text"][0] for row in BlockDataset(tmp_path).fetch(np.arange(5))] == list("01234")


def test_after_finalize_nothing_more_is_written(tmp_path):
    writer = StreamingBlockWriter(tmp_path, "water", 10)
    writer.add_sample(sample(0))
    writer.finalize()
    before = contents(tmp_path)
    for call in (
        writer.finalize,
        lambda: writer.add_sample(sample(1)),
        lambda: writer.add_lines(*lines_of([sample(1)])),
    ):
        with pytest.raises(ConfigError, match="was finalized already"):
            call()
    writer.close()
    assert contents(tmp_path) == before


def test_opening_a_finished_folder_again_adds_nothing(tmp_path):
    info = read_block_manifest(write_blocks(tmp_path, 25, 10))
    before = contents(tmp_path)
    writer = StreamingBlockWriter(tmp_path, "water", 10)
    assert (writer.is_finished, writer.resume_from) == (True, 25)
    with pytest.raises(ConfigError, match="the dataset is finished"):
        writer.add_sample(sample(25))
    assert writer.finalize() == info
    with StreamingBlockWriter(tmp_path, "water", 10):
        pass
    assert contents(tmp_path) == before


def test_an_error_in_the_block_keeps_complete_blocks_and_drops_the_rest(tmp_path):
    writer = StreamingBlockWriter(tmp_path, "water", 10)

    def fail_in_the_middle():
        with writer:
            for number in range(25):
                writer.add_sample(sample(number))
            raise KeyError("the caller's own")

    with pytest.raises(KeyError):
        fail_in_the_middle()
    info = read_block_manifest(tmp_path)
    assert (info.total_samples, info.finished) == (20, False)
    assert sorted(place.name for place in tmp_path.iterdir()) == [MANIFEST_NAME, "blocks"]
    assert len(list((tmp_path / "blocks").iterdir())) == 4
    with pytest.raises(ConfigError, match="this writer is closed"):
        writer.add_sample(sample(25))


def test_a_bad_sample_is_refused_and_the_next_one_follows(tmp_path):
    with StreamingBlockWriter(tmp_path, "water", 10) as writer:
        writer.add_sample(sample(0))
        with pytest.raises(BadRecord, match="sample 1 of water"):
            writer.add_sample({"text": "x", "what": object()})
        for wrong in (["a", "list"], "a text", None):
            with pytest.raises(ConfigError, match="a sample must be a dict, sample 1 is a"):
                writer.add_sample(wrong)
        writer.add_sample(sample(1))
    assert read_block_manifest(tmp_path).total_samples == 2


def test_nan_that_becomes_null_is_counted_over_interruptions(tmp_path):
    samples = [{"x": float("nan") if number % 3 == 0 else 1.0} for number in range(30)]

    def write(folder, part, **options):
        writer = StreamingBlockWriter(folder, "water", 10, on_nan="null", **options)
        for each in part[writer.resume_from :]:
            writer.add_sample(each)
        return writer

    write(tmp_path / "whole", samples).finalize()
    write(tmp_path / "stopped", samples[:17]).close()
    assert read_block_manifest(tmp_path / "stopped").counts == {"nan-to-null": 4}
    write(tmp_path / "stopped", samples).finalize()
    assert read_block_manifest(tmp_path / "whole").counts == {"nan-to-null": 10}
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_bytes_and_dates_of_samples(tmp_path):
    with StreamingBlockWriter(tmp_path, "water", 10) as writer:
        writer.add_sample({"text": "x", "sound": b"RIFFdata", "day": date(2026, 1, 2)})
    row = BlockDataset(tmp_path)[0]
    assert row["day"] == "2026-01-02"
    assert (tmp_path / row["sound"]).read_bytes() == b"RIFFdata"
    assert row["sound"].startswith("assets/")


@pytest.mark.parametrize(
    ("data", "ends"),
    [
        (b"{}\n", [2]),
        (b"{}\n{}\n", [3, 3]),
        (b"{}\n{}\n", [6, 3]),
        (b"{}\n", [0, 3]),
        (b"{}\n{}", [3, 5]),
        (b"{}\n", []),
    ],
)
def test_ends_that_are_not_those_of_the_lines_are_refused(tmp_path, data, ends):
    with StreamingBlockWriter(tmp_path, "water") as writer:
        with pytest.raises(ConfigError, match=r"ends must rise|must end with a newline"):
            writer.add_lines(data, np.array(ends, np.int64))
        writer.add_lines(b"{}\n", np.array([3]))
    assert read_block_manifest(tmp_path).total_samples == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"dataset_name": ""}, "dataset_name"),
        ({"dataset_name": 7}, "dataset_name"),
        ({"block_size": 0}, "block_size"),
        ({"block_size": 2.5}, "block_size"),
        ({"compression": "gzip"}, "compression"),
        ({"on_nan": "skip"}, "on_nan"),
    ],
)
def test_arguments_that_can_not_work_are_named(tmp_path, arguments, words):
    with pytest.raises(ConfigError, match=words):
        StreamingBlockWriter(tmp_path / "new", **{"dataset_name": "water", **arguments})
    assert not (tmp_path / "new" / MANIFEST_NAME).exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"block_size": 20}, "block_size=10, not 20"),
        ({"dataset_name": "fire"}, "dataset_name='water', not 'fire'"),
        ({"compression": "zstd"}, "compression=None, not 'zstd'"),
    ],
)
def test_a_folder_goes_on_as_it_was_begun(tmp_path, change, words):
    writer = StreamingBlockWriter(tmp_path, "water", 10)
    for number in range(15):
        writer.add_sample(sample(number))
    writer.close()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=words):
        StreamingBlockWriter(tmp_path, **{"dataset_name": "water", "block_size": 10, **change})
    assert contents(tmp_path) == before


def test_a_folder_without_a_complete_block_may_begin_otherwise(tmp_path):
    StreamingBlockWriter(tmp_path, "water", 10).close()
    with StreamingBlockWriter(tmp_path, "fire", 20, compression="zstd") as writer:
        writer.add_sample(sample(0))
    assert read_block_manifest(tmp_path).dataset_name == "fire"


def test_another_source_is_refused_by_what_differs(tmp_path):
    with StreamingBlockWriter(tmp_path, "water", 1, source={"files": [("a.jsonl", 5)]}) as writer:
        writer.add_sample(sample(0))
    assert StreamingBlockWriter(tmp_path, "water", 1, source={"files": [("a.jsonl", 5)]}).finalize().total_samples == 1
    with pytest.raises(ObjectChanged, match=r"source.files\[0\]\[1\] was 5 and is 6 now"):
        StreamingBlockWriter(tmp_path, "water", 1, source={"files": [("a.jsonl", 6)]})


def test_folders_of_others_are_left_alone(tmp_path):
    (tmp_path / "a" / "blocks").mkdir(parents=True)
    (tmp_path / "a" / "blocks" / "block_0.jsonl").write_text("{}\n")
    with pytest.raises(ConfigError, match=r"has no block_manifest.json but holds blocks/block_0.jsonl"):
        StreamingBlockWriter(tmp_path / "a", "water")
    info = read_block_manifest(write_blocks(tmp_path / "b", 5, 5)).to_json()
    for key in ("format_version", "finished"):
        del info[key]
    (tmp_path / "b" / MANIFEST_NAME).write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="format_version=0, not 1"):
        StreamingBlockWriter(tmp_path / "b", "water", 5)
    (tmp_path / "b" / MANIFEST_NAME).write_text(json.dumps({**info, "format_version": 9}))
    with pytest.raises(ValueError, match="upgrade penstock"):
        StreamingBlockWriter(tmp_path / "b", "water", 5)


def test_going_on_after_a_lost_block_is_refused(tmp_path):
    writer = StreamingBlockWriter(tmp_path, "water", 10)
    for number in range(25):
        writer.add_sample(sample(number))
    writer.close()
    block = tmp_path / "blocks" / "block_00001.jsonl"
    block.write_bytes(block.read_bytes()[:-3])
    with pytest.raises(BadBlock, match=r"block_00001.jsonl has \d+ bytes, the manifest says"):
        StreamingBlockWriter(tmp_path, "water", 10)
    block.unlink()
    with pytest.raises(BadBlock, match=r"block_00001.jsonl is missing"):
        StreamingBlockWriter(tmp_path, "water", 10)


def test_a_second_writer_on_a_folder_is_refused_until_the_first_has_ended(tmp_path):
    first = StreamingBlockWriter(tmp_path, "water", 10)
    first.add_sample(sample(0))
    with pytest.raises(StoreError, match="another process is writing"):
        StreamingBlockWriter(tmp_path, "water", 10)
    first.add_sample(sample(1))
    first.finalize()
    with lock_folder(tmp_path):
        pass
    assert len(BlockDataset(tmp_path)) == 2


def test_positions_of_a_source_come_back_with_the_samples_behind_them(tmp_path):
    def open_writer():
        return StreamingBlockWriter(tmp_path, "water", 10, source="lines")

    writer = open_writer()
    assert (writer.position, writer.skip, writer.counts) == (None, 0, {})
    for batch in range(4):
        writer.add_lines(*lines_of(sample(number) for number in range(batch * 7, batch * 7 + 7)))
        writer.commit_source({"batch": batch + 1}, {"skipped": batch + 1})
    writer.close()
    info = read_block_manifest(tmp_path)
    # Block 1 ended within the third batch: the last position before its end was that after the second.
    assert info.source == {"from": "lines", "position": {"batch": 2}, "skip": 6}
    writer = open_writer()
    assert (writer.resume_from, writer.position, writer.skip, writer.counts) == (20, {"batch": 2}, 6, {"skipped": 2})
    writer.close()


def test_blocks_of_the_first_version_are_still_written_and_read(tmp_path):
    expected = json.loads((GOLDEN / "expected.json").read_text())
    for compression in ("plain", "zstd"):
        # A copy: readers make tables anew that a checkout has made older than their blocks.
        folder = shutil.copytree(GOLDEN / compression, tmp_path / compression)
        found = BlockDataset(folder).fetch(np.arange(len(expected)))
        assert found == expected
    with StreamingBlockWriter(tmp_path / "new", "golden", 3) as writer:
        for each in expected:
            writer.add_sample(each)
    assert contents(tmp_path / "new") == contents(GOLDEN / "plain")


def test_writing_a_manifest_leaves_no_other_file(tmp_path):
    info = read_block_manifest(write_blocks(tmp_path / "a", 3, 2))
    (tmp_path / "b").mkdir()
    write_block_manifest(tmp_path / "b", info)
    assert [place.name for place in (tmp_path / "b").iterdir()] == [MANIFEST_NAME]
