"""Raw files to blocks: all formats, bad rows by policy, and going on at the place where it stopped."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from block_subjects import ids, sample
from penstock import (
    BadRecord,
    BlockDataset,
    ConfigError,
    ObjectChanged,
    ObjectMissing,
    process_raw_dataset_to_blocks,
    verify_block_structure,
)
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {str(place.relative_to(folder)): place.read_bytes() for place in folder.rglob("*") if place.is_file()}


def rows_of(folder: Path) -> list[dict]:
    dataset = BlockDataset(folder)
    return dataset.fetch(np.arange(len(dataset)))


def write_jsonl(path: Path, count: int, first: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(sample(number)) + "\n" for number in range(first, first + count)))
    return path


def write_source(kind: str, home: Path, count: int) -> Path:
    """The samples from 0 to count in a file of a kind."""
    samples = [sample(number) for number in range(count)]
    path = home / f"source.{kind}"
    if kind == "jsonl":
        return write_jsonl(path, count)
    if kind == "jsonl.gz":
        path.write_bytes(gzip.compress(write_jsonl(home / "plain" / "source.jsonl", count).read_bytes()))
    elif kind == "jsonl.zst":
        content = write_jsonl(home / "plain" / "source.jsonl", count).read_bytes()
        with pa.CompressedOutputStream(str(path), "zstd") as file:
            file.write(content)
    elif kind == "json":
        path.write_text(json.dumps(samples, indent=1))
    elif kind == "csv":
        path.write_text("id,text\n" + "".join(f'{row["id"]},"{row["text"]}"\n' for row in samples))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(samples), path, row_group_size=20)
    elif kind == "folder":
        for part in range(5):
            write_jsonl(path / f"part-{part}.jsonl", count // 5, part * count // 5)
    return path


KINDS = ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "parquet", "folder"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_samples(tmp_path, kind):
    source = write_source(kind, tmp_path, 250)
    before = contents(tmp_path)
    info = process_raw_dataset_to_blocks(source, tmp_path / "out", "water", 100)
    assert [block.sample_count for block in info.blocks] == [100, 100, 50]
    assert (info.finished, info.text_column, info.counts) == (True, "text", {})
    # CSV has texts only.
    expected = [{**sample(number), "id": str(number) if kind == "csv" else number} for number in range(250)]
    assert rows_of(tmp_path / "out") == expected
    assert verify_block_structure(tmp_path / "out")[0]
    assert {name: content for name, content in contents(tmp_path).items() if not name.startswith("out/")} == before


def test_lines_of_text_are_samples(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n   \nthree")
    process_raw_dataset_to_blocks(tmp_path / "a.txt", tmp_path / "out", "lines", 2)
    assert rows_of(tmp_path / "out") == [{"text": "one"}, {"text": "two"}, {"text": "three"}]


def test_a_text_with_line_ends_stays_one_sample(tmp_path):
    texts = ["a\nb", "c\r\nd\n", "e"]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet")
    info = process_raw_dataset_to_blocks(tmp_path / "a.parquet", tmp_path / "out", "texts", 2)
    assert info.total_samples == 3
    assert [row["text"] for row in rows_of(tmp_path / "out")] == texts


def test_a_folder_that_datasets_saved(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.Dataset.from_list([sample(number) for number in range(25)]).save_to_disk(tmp_path / "saved")
    process_raw_dataset_to_blocks(tmp_path / "saved", tmp_path / "out", "saved", 10)
    assert rows_of(tmp_path / "out") == [sample(number) for number in range(25)]


def test_bytes_and_times_of_tables(tmp_path):
    table = pa.table({"text": ["x", "y"], "raw": [b"\x89PNG1", b"\x89PNG2"], "at": [datetime(2026, 1, 2, 3)] * 2})
    pq.write_table(table, tmp_path / "a.parquet")
    process_raw_dataset_to_blocks(tmp_path / "a.parquet", tmp_path / "out", "images", 10)
    rows = rows_of(tmp_path / "out")
    assert [(tmp_path / "out" / row["raw"]).read_bytes() for row in rows] == [b"\x89PNG1", b"\x89PNG2"]
    assert rows[0]["at"].startswith("2026-01-02T03:00:00")
    assert verify_block_structure(tmp_path / "out")[0]


def test_bad_lines_end_the_run_or_are_counted_and_named_by_number(tmp_path):
    lines = [json.dumps(sample(number)) for number in range(30)]
    lines[7], lines[21] = '{"id": 7, "text": ', "[1, 2]"
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadRecord, match=r"line 8 of .*a.jsonl") as caught:
        process_raw_dataset_to_blocks(tmp_path / "a.jsonl", tmp_path / "out", "water", 5)
    assert (caught.value.line, caught.value.reason) == (8, "malformed-json")
    said = []
    info = process_raw_dataset_to_blocks(
        tmp_path / "a.jsonl", tmp_path / "out", "water", 5, said.append, on_error="skip"
    )
    assert info.counts == {"malformed-json": 1, "not-an-object": 1}
    assert ids(rows_of(tmp_path / "out")) == [number for number in range(30) if number not in (7, 21)]
    assert [line for line in said if line.startswith("skipped")] == [
        "skipped a.jsonl:8: malformed-json",
        "skipped a.jsonl:22: not-an-object",
    ]
    assert read_block_manifest(tmp_path / "out").counts == info.counts


def test_nan_is_an_error_or_null_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "x", "y": NaN}\n{"text": "z", "y": 1.5}\n')
    with pytest.raises(BadRecord) as caught:
        process_raw_dataset_to_blocks(tmp_path / "a.jsonl", tmp_path / "out", "water")
    assert caught.value.reason == "nan"
    info = process_raw_dataset_to_blocks(tmp_path / "a.jsonl", tmp_path / "out", "water", on_nan="null")
    assert info.counts == {"nan-to-null": 1}
    assert [row["y"] for row in rows_of(tmp_path / "out")] == [None, 1.5]


RUN = (
    "import sys; from penstock import process_raw_dataset_to_blocks as run; run(sys.argv[1], sys.argv[2], 'water', 400)"
)


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet", "folder"])
def test_killed_in_the_middle_a_second_run_leaves_the_same_bytes(tmp_path, kind):
    source = write_source(kind, tmp_path, 40_000)
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", RUN, str(source), str(out)]) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if (out / MANIFEST_NAME).exists() and read_block_manifest(out).total_blocks >= 3:
                break
            time.sleep(0.001)
        process.kill()
    done = read_block_manifest(out)
    assert 3 <= done.total_blocks < 100
    assert not done.finished
    process_raw_dataset_to_blocks(source, out, "water", 400)
    process_raw_dataset_to_blocks(source, tmp_path / "whole", "water", 400)
    assert contents(out) == contents(tmp_path / "whole")
    assert ids(rows_of(out)) == list(range(40_000))


def interrupted(source: Path, out: Path, after: int, **options) -> None:
    """Let a run end after a number of blocks, as a failing log would."""

    class Stop(Exception):
        pass

    def stop(line):
        if line.startswith(f"block {after - 1}:"):
            raise Stop

    with pytest.raises(Stop):
        process_raw_dataset_to_blocks(source, out, "water", 100, stop, **options)


def test_a_resumed_run_does_not_read_what_is_in_blocks_again(tmp_path):
    source = tmp_path / "a.jsonl"
    # More than a reader takes at a time, so that the stored position is past the beginning.
    source.write_text("".join(json.dumps({"id": number, "text": "x" * 40_000}) + "\n" for number in range(600)))
    interrupted(source, tmp_path / "out", 5)
    position = read_block_manifest(tmp_path / "out").source["position"]
    assert position is not None
    assert position["offset"] > 4_000_000
    # Other letters in a file that looks unchanged: reading the first lines again would show.
    status = source.stat()
    with open(source, "r+b") as file:
        file.seek(20)
        file.write(b"not JSON at all {{{{")
    os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
    info = process_raw_dataset_to_blocks(source, tmp_path / "out", "water", 100)
    assert (info.total_samples, info.finished) == (600, True)
    assert ids(rows_of(tmp_path / "out")) == list(range(600))


def test_counts_of_skipped_lines_survive_an_interruption(tmp_path):
    lines = [json.dumps(sample(number)) if number % 50 else "{bad" for number in range(2_000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    interrupted(tmp_path / "a.jsonl", tmp_path / "out", 3, on_error="skip")
    info = process_raw_dataset_to_blocks(tmp_path / "a.jsonl", tmp_path / "out", "water", 100, on_error="skip")
    assert info.counts == {"malformed-json": 40}
    assert info.total_samples == 1_960
    process_raw_dataset_to_blocks(tmp_path / "a.jsonl", tmp_path / "whole", "water", 100, on_error="skip")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_a_bad_line_ended_goes_on_passing_over_it(tmp_path):
    lines = [json.dumps(sample(number)) for number in range(1_000)] + ["{bad"]
    for number in (1, 2):
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{number}.jsonl").write_text("\n".join(lines[: 1_000 + number - 1]) + "\n")
    with pytest.raises(BadRecord):
        process_raw_dataset_to_blocks(tmp_path / "in", tmp_path / "out", "water", 300)
    assert read_block_manifest(tmp_path / "out").total_blocks == 3
    info = process_raw_dataset_to_blocks(tmp_path / "in", tmp_path / "out", "water", 300, on_error="skip")
    assert (info.total_samples, info.counts) == (2_000, {"malformed-json": 1})


def test_a_finished_folder_is_left_as_it_is(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", 250)
    info = process_raw_dataset_to_blocks(source, tmp_path / "out", "water", 100)
    before = {place: place.stat().st_mtime_ns for place in (tmp_path / "out").rglob("*")}
    assert process_raw_dataset_to_blocks(source, tmp_path / "out", "water", 100) == info
    assert {place: place.stat().st_mtime_ns for place in (tmp_path / "out").rglob("*.*")}.items() <= before.items()


def test_a_source_that_changed_is_refused_by_name(tmp_path):
    home = tmp_path / "in"
    for name in "abc":
        write_jsonl(home / f"{name}.jsonl", 200)
    interrupted(home, tmp_path / "out", 2)
    before = contents(tmp_path / "out")

    def refused(words):
        with pytest.raises(ObjectChanged, match=words):
            process_raw_dataset_to_blocks(home, tmp_path / "out", "water", 100)
        assert contents(tmp_path / "out") == before

    status = (home / "b.jsonl").stat()
    os.utime(home / "b.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    refused(r"the source of .*out changed since the run that began it: b.jsonl was written to")
    os.utime(home / "b.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    write_jsonl(home / "d.jsonl", 1)
    refused("d.jsonl is new")
    (home / "d.jsonl").unlink()
    c = (home / "c.jsonl").rename(tmp_path / "c.jsonl")
    refused("c.jsonl is gone")
    c.rename(home / "c.jsonl")
    info = process_raw_dataset_to_blocks(home, tmp_path / "out", "water", 100)
    assert info.total_samples == 600
    write_jsonl(home / "a.jsonl", 201)
    before = contents(tmp_path / "out")
    refused("a.jsonl has another size")
    other = write_jsonl(tmp_path / "other.jsonl", 5)
    with pytest.raises(ObjectChanged, match=r"begun from another source, from a\.jsonl and not other\.jsonl: choose"):
        process_raw_dataset_to_blocks(other, tmp_path / "out", "water", 100)


def test_a_source_that_grows_while_it_is_read_is_noticed(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", 250)

    def grow(line):
        with open(source, "a") as file:
            file.write(json.dumps(sample(250)) + "\n")

    with pytest.raises(ObjectChanged, match=r"a.jsonl changed while it was read"):
        process_raw_dataset_to_blocks(source, tmp_path / "out", "water", 100, grow)
    assert not read_block_manifest(tmp_path / "out").finished


def test_sources_that_can_not_be_read_leave_no_folder(tmp_path):
    with pytest.raises(ObjectMissing):
        process_raw_dataset_to_blocks(tmp_path / "none", tmp_path / "out", "water")
    assert not (tmp_path / "out").exists()


def test_a_source_in_the_output_folder_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", 3)
    with pytest.raises(ConfigError, match=r"a.jsonl lies in the output folder"):
        process_raw_dataset_to_blocks(tmp_path, tmp_path, "water")
