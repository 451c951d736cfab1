"""Writers that are killed, stopped by a full disk, or not alone: real processes, and the same bytes in the end."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from block_subjects import sample, write_blocks
from penstock import StoreError, StreamingBlockWriter, verify_block_structure
from penstock.formats.block_manifest import read_block_manifest
from penstock.formats.files import LOCK_NAME

TESTS = Path(__file__).resolve().parent.parent
# Writes samples from where the folder is to `stop`, says so, and waits to be killed.
PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from block_subjects import sample
from penstock import StreamingBlockWriter
folder, size, stop, total, compression = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5] or None
writer = StreamingBlockWriter(folder, "water", size, compression=compression)
print("from", writer.resume_from, flush=True)
for number in range(writer.resume_from, stop):
    writer.add_sample(sample(number))
if stop == total:
    writer.finalize()
print("at", stop, flush=True)
if stop < total:
    time.sleep(120)
"""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(place.relative_to(folder)): place.read_bytes() for place in folder.rglob("*") if place.is_file()}


def writing(folder: Path, size: int, stop: int, total: int, compression: str | None = None) -> subprocess.Popen:
    arguments = [str(folder), str(size), str(stop), str(total), compression or ""]
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("compression", [None, "zstd"])
def test_killed_after_230_of_250_samples_the_next_run_completes_the_same_bytes(tmp_path, compression):
    with writing(tmp_path / "out", 100, 230, 250, compression) as process:
        assert process.stdout.readline() == "from 0\n"
        assert process.stdout.readline() == "at 230\n"
        process.kill()
    info = read_block_manifest(tmp_path / "out")
    assert (info.total_samples, info.total_blocks, info.finished) == (200, 2, False)
    assert [block.sample_count for block in info.blocks] == [100, 100]
    ok, message = verify_block_structure(tmp_path / "out")
    assert not ok
    assert "is not finished: 200 samples in 2 blocks" in message
    with writing(tmp_path / "out", 100, 250, 250, compression) as process:
        assert process.stdout.readline() == "from 200\n"
        process.communicate(timeout=60)
    write_blocks(tmp_path / "whole", 250, 100, compression=compression)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert verify_block_structure(tmp_path / "out")[0]


def test_killed_at_any_moment_again_and_again_the_bytes_are_the_same(tmp_path):
    """Small blocks, so that many kills hit the naming of files and the change of the manifest."""
    rng = random.Random(7)
    starts = [0]
    for _ in range(6):
        with writing(tmp_path / "out", 3, 200_000, 200_001) as process:
            starts.append(int(process.stdout.readline().split()[1]))
            time.sleep(rng.uniform(0.0, 0.25))
            process.kill()
        info = read_block_manifest(tmp_path / "out")
        for block in info.blocks:
            assert (tmp_path / "out" / block.file_path).stat().st_size == block.size_bytes
    assert starts == sorted(starts)
    assert starts[-1] > 0
    done = read_block_manifest(tmp_path / "out").total_samples + 10
    with writing(tmp_path / "out", 3, done, done) as process:
        process.communicate(timeout=60)
    write_blocks(tmp_path / "whole", done, 3)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_block_that_got_its_name_before_the_kill_is_written_again(tmp_path):
    writer = StreamingBlockWriter(tmp_path / "out", "water", 10)
    for number in range(25):
        writer.add_sample(sample(number))
    writer.close()
    # What a kill between the renaming and the manifest leaves, and within the writing of the manifest.
    blocks = tmp_path / "out" / "blocks"
    for name in ("block_00002.jsonl", "block_00002.idx", "block_00002.jsonl.partial"):
        (blocks / name).write_text("of the killed one")
    (tmp_path / "out" / ".block_manifest.json.0123456789ab.tmp").write_text("{")
    writer = StreamingBlockWriter(tmp_path / "out", "water", 10)
    assert writer.resume_from == 20
    assert sorted(os.listdir(blocks)) == [f"block_0000{n}.{suffix}" for n in (0, 1) for suffix in ("idx", "jsonl")]
    writer.add_sample(sample(20))
    writer.finalize()
    write_blocks(tmp_path / "whole", 21, 10)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_assets_of_a_killed_writer_are_neither_lost_nor_doubled(tmp_path):
    def write(folder, stop, total):
        writer = StreamingBlockWriter(folder, "water", 4)
        for number in range(writer.resume_from, stop):
            writer.add_sample({"text": "x", "raw": b"bytes of %d" % (number // 2)})
        return writer.finalize() if stop == total else writer.close()

    write(tmp_path / "out", 11, 20)
    half = next((tmp_path / "out" / "assets").iterdir()) / ".half-written.tmp"
    half.write_bytes(b"byt")
    write(tmp_path / "out", 20, 20)
    write(tmp_path / "whole", 20, 20)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(list((tmp_path / "out" / "assets").glob("*/*"))) == 10
    assert verify_block_structure(tmp_path / "out")[0]


def test_another_process_is_refused_while_one_writes_and_welcome_when_it_is_dead(tmp_path):
    with writing(tmp_path / "out", 100, 150, 250) as process:
        process.stdout.readline()
        process.stdout.readline()
        with pytest.raises(StoreError, match=r"another process is writing to .*out; wait until it ends"):
            StreamingBlockWriter(tmp_path / "out", "water", 100)
        process.kill()
    assert (tmp_path / "out" / LOCK_NAME).exists(), "the dead one left its lock file"
    with StreamingBlockWriter(tmp_path / "out", "water", 100) as writer:
        assert writer.resume_from == 100
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_an_interrupt_ends_a_writer_in_order(tmp_path):
    program = f"""
import sys, time
sys.path.insert(0, {str(TESTS)!r})
from block_subjects import sample
from penstock import StreamingBlockWriter
with StreamingBlockWriter(sys.argv[1], "water", 100) as writer:
    for number in range(230):
        writer.add_sample(sample(number))
    print("at 230", flush=True)
    time.sleep(120)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert sorted(os.listdir(tmp_path / "out")) == ["block_manifest.json", "blocks"]
    assert len(os.listdir(tmp_path / "out" / "blocks")) == 4
    assert read_block_manifest(tmp_path / "out").total_samples == 200


@pytest.mark.parametrize("way", ["samples", "lines"])
def test_a_full_disk_says_so_and_nothing_that_was_complete_is_lost(tmp_path, small_disk, way):
    import numpy as np
    import orjson

    def write(folder, first_is=0):
        with StreamingBlockWriter(folder, "water", 1000) as writer:
            assert writer.resume_from >= first_is
            for number in range(writer.resume_from, 12_000):
                if way == "samples":
                    writer.add_sample(sample(number))
                else:
                    line = orjson.dumps(sample(number)) + b"\n"
                    writer.add_lines(line, np.array([len(line)]))

    write(tmp_path / "whole")
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"x" * ((2 << 20) - 400_000))
    with pytest.raises(StoreError, match=r"no space left on the disk of .*; free some") as caught:
        write(small_disk / "out")
    assert caught.value.errno == errno.ENOSPC
    info = read_block_manifest(small_disk / "out")
    assert 1 < info.total_blocks < 12
    note = f"{info.total_samples:,} samples in {info.total_blocks} complete blocks are safe"
    assert note in "".join(caught.value.__notes__)
    assert not list((small_disk / "out" / "blocks").glob("*.partial")), "what does not count takes no room"
    assert "is not finished" in verify_block_structure(small_disk / "out")[1]
    ballast.unlink()
    write(small_disk / "out", first_is=info.total_samples)
    assert contents(small_disk / "out") == contents(tmp_path / "whole")


def test_a_limit_on_files_is_an_error_of_the_disk_too(tmp_path):
    """Where no disk can be mounted: the system refuses to make a file larger than a limit of the process."""
    program = f"""
import resource, signal, sys
sys.path.insert(0, {str(TESTS)!r})
from block_subjects import sample
from penstock import StoreError, StreamingBlockWriter
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
writer = StreamingBlockWriter({str(tmp_path)!r}, "water", 20_000)
try:
    for number in range(20_000):
        writer.add_sample(sample(number))
except StoreError as error:
    print(error.errno, error.__notes__[0])
try:
    writer.add_sample(sample(0))
except ValueError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    first, second = done.stdout.splitlines()
    assert first.startswith(f"{errno.EFBIG} 0 samples in 0 complete blocks are safe"), done.stderr
    assert "this writer was closed by an error" in second
    assert sorted(os.listdir(tmp_path)) == ["block_manifest.json", "blocks"]
    assert os.listdir(tmp_path / "blocks") == []


@pytest.mark.slow
def test_a_gigabyte_is_written_and_verified_in_less_than_300_megabytes(tmp_path):
    # Not getrusage: its peak begins with that of the process that started this one.
    program = f"""
from penstock import StreamingBlockWriter, verify_block_structure
def peak_kb():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
text = "the water flows down the penstock " * 30
with StreamingBlockWriter({str(tmp_path)!r}, "water", 400_000) as writer:
    for number in range(1_000_000):
        writer.add_sample({{"id": number, "text": text}})
peak_of_writing = peak_kb()
ok, message = verify_block_structure({str(tmp_path)!r})
assert ok, message
print(peak_of_writing, peak_kb())
"""
    if shutil.disk_usage(tmp_path).free < 3 << 30:
        pytest.skip("a gigabyte needs room")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=280, check=True)
    info = read_block_manifest(tmp_path)
    shutil.rmtree(tmp_path / "blocks")
    assert sum(block.size_bytes for block in info.blocks) > 1e9
    writing_kb, all_kb = map(int, done.stdout.split())
    assert writing_kb < 300_000, f"{writing_kb} kB while writing"
    assert all_kb < 300_000, f"{all_kb} kB while verifying"
