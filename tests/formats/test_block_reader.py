"""Samples out of blocks: only what is asked, from any layout, and damage named by file and line."""

from __future__ import annotations

import json
import os
import shutil
import threading

import numpy as np
import pytest

from block_subjects import ids, sample, write_blocks, write_lines
from penstock import BadBlock, BadManifest, BadRecord, ConfigError, ObjectMissing
from penstock.formats import block_reader
from penstock.formats.block_reader import BlockReader

WAYS = [
    pytest.param({"compression": None}, {"mapped_bytes": 0}, id="read"),
    pytest.param({"compression": None}, {"mapped_bytes": 1 << 30}, id="mapped"),
    pytest.param({"compression": "zstd"}, {}, id="zstd"),
]


@pytest.mark.parametrize(("written", "opened"), WAYS)
def test_any_samples_in_any_order_are_those_that_were_written(tmp_path, written, opened):
    reader = BlockReader(write_blocks(tmp_path, 2_500, 1_000, **written), **opened)
    assert reader.counts.tolist() == [1_000, 1_000, 500]
    asked = np.random.default_rng(0).integers(0, 2_500, 400)
    assert reader.gather(asked) == [sample(number) for number in asked.tolist()]
    assert reader.gather(np.array([7])) == [sample(7)]
    assert reader.gather(np.arange(990, 1_010)) == [sample(number) for number in range(990, 1_010)]
    assert reader.gather(np.empty(0, np.int64)) == []
    assert ids(reader.read(1, 20, 30)) == list(range(1_020, 1_030))
    assert ids(reader.read(2, 490, 999)) == list(range(2_490, 2_500))
    line = '{{"id":{id},"text":"{text}"}}\n'
    assert reader.lengths().tolist() == [len(line.format(**sample(number))) for number in range(2_500)]


LAYOUTS = ("blocks/block_{:05d}.jsonl", "blocks/block_{:d}.jsonl", "block_{:05d}.jsonl", "block_{:d}.jsonl")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_older_layouts_are_read_with_and_without_a_manifest(tmp_path, layout, with_manifest):
    spans = [(0, 100), (100, 200), (200, 250)]
    blocks = []
    for number, (start, stop) in enumerate(spans):
        path = tmp_path / layout.format(number)
        write_lines(path, range(start, stop))
        entry = {"block_id": number, "sample_count": stop - start, "start_index": start, "end_index": stop}
        # As some left it: the name in the manifest is not the name on the disk.
        blocks.append({**entry, "file_path": f"elsewhere_{number}.jsonl", "size_bytes": path.stat().st_size})
    if with_manifest:
        whole = {"dataset_name": "old", "total_samples": 250, "total_blocks": 3, "block_size": 100}
        manifest = {**whole, "text_column": "text", "output_dir": None, "blocks": blocks}
        (tmp_path / "block_manifest.json").write_text(json.dumps(manifest))
    for _ in range(2):
        reader = BlockReader(tmp_path)
        assert reader.counts.tolist() == [100, 100, 50]
        assert ids(reader.gather(np.array([249, 0, 101]))) == [249, 0, 101]
        assert reader.text_column() == "text"
    assert (tmp_path / layout.format(2)).with_suffix(".idx").stat().st_size == 51 * 8


def test_the_oldest_layout_holds_a_text_a_line(tmp_path):
    for number, texts in enumerate((["eins", "zwei ", "drei"], ["vier"])):
        (tmp_path / f"block_{number}").mkdir()
        (tmp_path / f"block_{number}" / "samples.txt").write_text("\n".join(texts) + "\n")
    reader = BlockReader(tmp_path)
    assert reader.gather(np.array([3, 1])) == [{"text": "vier"}, {"text": "zwei "}]
    assert reader.read(0, 0, 9) == [{"text": "eins"}, {"text": "zwei "}, {"text": "drei"}]


def test_the_first_layout_that_is_there_counts(tmp_path):
    write_lines(tmp_path / "block_0.jsonl", range(5))
    write_lines(tmp_path / "blocks" / "block_0.jsonl", range(10, 13))
    assert ids(BlockReader(tmp_path).read(0, 0, 9)) == [10, 11, 12]


def test_blank_lines_and_carriage_returns_of_other_writers_are_no_samples(tmp_path):
    path = tmp_path / "block_0.jsonl"
    path.write_bytes(b'\n\n{"id":0}\r\n  \n{"id":1}\n\n\n{"id":2}')
    reader = BlockReader(tmp_path)
    assert reader.counts.tolist() == [3]
    assert ids(reader.read(0, 0, 3)) == ids(reader.gather(np.array([0, 1, 2]))) == [0, 1, 2]
    assert ids(reader.gather(np.array([2, 0]))) == [2, 0]


@pytest.mark.parametrize("change", ["removed", "older", "cut", "of another block"])
def test_a_table_that_does_not_fit_its_block_is_made_again(tmp_path, change):
    folder = write_blocks(tmp_path, 300, 100)
    table = folder / "blocks" / "block_00001.idx"
    good = table.read_bytes()
    if change == "removed":
        table.unlink()
    elif change == "older":
        table.write_bytes(bytes(8) * 101)
        os.utime(table, ns=(0, 0))
    elif change == "cut":
        table.write_bytes(good[:-16])
    else:
        shutil.copy(folder / "blocks" / "block_00002.idx", table)
        os.utime(table)
    for read in (lambda reader: reader.read(1, 30, 40), lambda reader: reader.gather(np.arange(130, 140)[::-1])[::-1]):
        assert ids(read(BlockReader(folder))) == list(range(130, 140))
    assert table.read_bytes() == good
    assert [name.name for name in table.parent.iterdir() if name.name.startswith(".")] == []


def test_a_folder_that_may_only_be_read_is_read_without_tables(tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write anywhere")
    write_lines(tmp_path / "block_0.jsonl", range(50))
    tmp_path.chmod(0o500)
    try:
        assert ids(BlockReader(tmp_path).gather(np.array([49, 3]))) == [49, 3]
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    "line", ['{"id": 3', "null", '{"id": 1},{"id": 2}', '{"id": "\ud800', '[{"id": 3}]', "{'a': 1}"]
)
def test_a_malformed_line_is_named_and_takes_no_other_with_it(tmp_path, line):
    folder = write_blocks(tmp_path, 200, 100)
    path = folder / "blocks" / "block_00001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    broken = line.encode("utf-8", "surrogatepass")
    lines[41] = broken + b" " * (len(lines[41]) - 1 - len(broken)) + b"\n"
    path.write_bytes(b"".join(lines))
    os.utime(folder / "blocks" / "block_00001.idx")
    reader = BlockReader(folder)
    for read in (lambda: reader.read(1, 40, 50), lambda: reader.gather(np.array([5, 141, 7]))):
        with pytest.raises(BadRecord, match=r"line 42 of .*block_00001\.jsonl cannot be used") as raised:
            read()
        assert (raised.value.line, raised.value.file) == (42, str(path))
    # Nothing outside of what is asked is parsed.
    assert ids(reader.read(1, 0, 41)) == list(range(100, 141))
    assert ids(reader.gather(np.array([142, 140]))) == [142, 140]


def test_two_broken_lines_do_not_make_up_for_each_other(tmp_path):
    """One line holds two objects and two lines hold one: the number of objects is right, and none is taken."""
    lines = ['{"id":0},{"id":1}', '{"id":[{"a":1}', '{"b":2}]}', '{"id":3}']
    (tmp_path / "block_0.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(BadRecord, match="line 1 of"):
        BlockReader(tmp_path).read(0, 0, 4)
    with pytest.raises(BadRecord, match="line 2 of"):
        BlockReader(tmp_path).read(0, 1, 4)


def test_what_python_writes_beyond_json_is_read_as_python_reads_it(tmp_path):
    (tmp_path / "block_0.jsonl").write_text('{"x": NaN}\n{"x": "\\ud800"}\n{"x": 1}\n')
    rows = BlockReader(tmp_path).read(0, 0, 3)
    assert rows[0]["x"] != rows[0]["x"]
    assert [row["x"] for row in rows[1:]] == ["\ud800", 1]


@pytest.mark.parametrize("compression", [None, "zstd"])
@pytest.mark.parametrize(
    ("damage", "said"),
    [("cut", "is shorter than the manifest says"), ("grown", "is longer than"), ("gone", "is missing")],
)
def test_a_block_that_is_not_what_the_manifest_says_is_refused_by_name(tmp_path, compression, damage, said):
    folder = write_blocks(tmp_path, 200, 100, compression=compression)
    path = next((folder / "blocks").glob("block_00001.jsonl*"))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-30] if damage == "cut" else content + b'{"id": 200}\n')
    reader = BlockReader(folder)
    assert ids(reader.read(0, 98, 100)) == [98, 99]
    for read in (lambda: reader.read(1, 0, 5), lambda: reader.gather(np.array([150, 3]))):
        with pytest.raises(BadBlock, match=rf"block_00001\.jsonl.* {said}"):
            read()


def test_a_block_with_another_number_of_lines_than_the_manifest_says_is_refused(tmp_path):
    folder = write_blocks(tmp_path, 200, 100)
    path = folder / "blocks" / "block_00001.jsonl"
    path.write_bytes(path.read_bytes().replace(b"}\n", b"} ", 1))
    with pytest.raises(BadBlock, match=r"block_00001\.jsonl has 99 lines, the manifest says 100"):
        BlockReader(folder).read(1, 0, 5)


def test_a_block_cut_short_while_it_is_read_is_noticed(tmp_path):
    folder = write_blocks(tmp_path, 100, 100)
    reader = BlockReader(folder, mapped_bytes=0)
    reader.read(0, 0, 1)
    os.truncate(folder / "blocks" / "block_00000.jsonl", 500)
    with pytest.raises(BadBlock, match="shorter than it was"):
        reader.gather(np.array([99, 98]))


def test_damaged_frames_and_seek_tables_are_refused(tmp_path):
    folder = write_blocks(tmp_path, 100, 100, compression="zstd")
    path = folder / "blocks" / "block_00000.jsonl.zst"
    content = path.read_bytes()
    path.write_bytes(content[:20] + bytes(20) + content[40:])
    with pytest.raises(BadBlock, match="frame 0 is damaged"):
        BlockReader(folder).read(0, 0, 5)
    path.write_bytes(content[:-4] + bytes(4))
    with pytest.raises(BadBlock, match="no Zstandard file with a seek table"):
        BlockReader(folder).read(0, 0, 5)


def test_many_frames_are_read_where_they_are_asked_for(tmp_path):
    def long(number: int) -> dict:
        return {"id": number, "text": f"{number} " * 3_000}

    reader = BlockReader(write_blocks(tmp_path, 400, 400, compression="zstd", make=long))
    asked = np.random.default_rng(1).permutation(400)
    assert reader.gather(asked) == [long(number) for number in asked.tolist()]
    assert reader.read(0, 100, 300) == [long(number) for number in range(100, 300)]


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda folder: folder / "nothing", ObjectMissing, "is no folder"),
        (lambda folder: folder, ConfigError, "holds neither block_manifest.json nor blocks"),
    ],
)
def test_what_is_no_folder_of_blocks_is_refused(tmp_path, make, error, said):
    with pytest.raises(error, match=said):
        BlockReader(make(tmp_path))


def test_a_block_missing_between_others_and_a_newer_manifest_are_refused(tmp_path):
    for number in (0, 2):
        write_lines(tmp_path / f"block_{number}.jsonl", range(3))
    with pytest.raises(BadBlock, match=r"block_1\.jsonl is missing"):
        BlockReader(tmp_path)
    (tmp_path / "block_manifest.json").write_text(json.dumps({"format_version": 99, "blocks": []}))
    with pytest.raises(BadManifest, match="upgrade penstock"):
        BlockReader(tmp_path)


def test_tables_that_do_not_fit_in_memory_are_read_where_they_lie(tmp_path, monkeypatch):
    folder = write_blocks(tmp_path, 1_000, 100)
    (folder / "blocks" / "block_00007.idx").unlink()
    monkeypatch.setattr(block_reader, "TABLE_BYTES", 250 * 8)
    reader = BlockReader(folder)
    for seed in range(3):
        asked = np.random.default_rng(seed).permutation(1_000)
        assert ids(reader.gather(asked)) == asked.tolist()
    assert ids(reader.read(9, 5, 8)) == [905, 906, 907]


def test_threads_may_read_more_blocks_than_may_be_open(tmp_path, monkeypatch):
    reader = BlockReader(write_blocks(tmp_path, 2_000, 20), mapped_bytes=0)
    reader._place.max_open = 7
    wrong = []

    def work(seed: int) -> None:
        draw = np.random.default_rng(seed)
        for _ in range(30):
            asked = draw.integers(0, 2_000, 64)
            if ids(reader.gather(asked)) != asked.tolist():
                wrong.append(seed)

    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert not before or len(os.listdir("/proc/self/fd")) <= before + 8


def test_fingerprints_tell_contents_apart_and_know_no_paths(tmp_path):
    first, second = (write_blocks(tmp_path / name, 50, 20) for name in "ab")
    other = write_blocks(tmp_path / "c", 50, 20, make=lambda number: sample(number + (number == 49)))
    assert BlockReader(first).fingerprint() == BlockReader(second).fingerprint() != BlockReader(other).fingerprint()
    for name, last in (("d", 5), ("e", 55)):
        write_lines(tmp_path / name / "block_0.jsonl", [1, 2, last])
    assert BlockReader(tmp_path / "d").fingerprint() != BlockReader(tmp_path / "e").fingerprint()
