"""Downloads: exact, by ranges, and little of them lost whatever ends them; the server's log is the witness."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock import download_dataset, process_raw_dataset_to_blocks, verify_block_structure
from penstock.errors import AccessDenied, BadRecord, ObjectChanged, ObjectMissing, StoreError, StoreUnavailable
from penstock.formats.block_manifest import MANIFEST_NAME, read_block_manifest
from penstock.prep.size_guard import estimate
from penstock.prep.spool import SPOOL_NAME, Spool

FOOTER = 64 << 10
MEGABYTE = 1_000_000
SAMPLES = 6000


def texts(count: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [f"{i} {rng.randbytes(500).hex()}\n" for i in range(count)]


def as_lines(rows: list[str]) -> bytes:
    return b"".join(orjson.dumps({"text": row}) + b"\n" for row in rows)


def as_parquet(rows: list[str], group: int = 500) -> bytes:
    out = io.BytesIO()
    table = pa.table({"text": rows, "image": [row * 2 for row in rows]})
    pq.write_table(table, out, row_group_size=group, compression="zstd", use_dictionary=False, write_statistics=False)
    return out.getvalue()


def largest_group(content: bytes) -> int:
    meta = pq.read_metadata(io.BytesIO(content))
    groups = [meta.row_group(number) for number in range(meta.num_row_groups)]
    return max(sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups)


KINDS = {
    "parquet": ("data/train-00000-of-00001.parquet", as_parquet),
    "text": ("train.jsonl", as_lines),
}


@pytest.fixture(params=KINDS)
def remote(request, hub):
    """A dataset on the Hub: its content, and what a crash may cost in bytes."""
    name, make = KINDS[request.param]
    rows = texts(SAMPLES)
    content = make(rows)
    hub.add_dataset("org/web", {name: content})
    hub.lost = MEGABYTE if request.param == "text" else largest_group(content) + 2 * FOOTER
    hub.size = len(content)
    hub.rows = rows
    return hub


def lines_in(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((folder / "blocks").glob("*.jsonl")))


def texts_in(folder: Path) -> list[str]:
    return [orjson.loads(line)["text"] for line in lines_in(folder).splitlines()]


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def download(out: Path, uri: str = "hf://org/web", **options):
    return download_dataset(uri, out, block_size=700, free_space_margin=0, show_progress=False, **options)


def client(out: Path, uri: str = "hf://org/web", *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock", "download", uri, str(out), "--block-size", "700"]
    command += ["--free-space-margin", "0", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition, process: subprocess.Popen[str] | None = None) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def blocks_there(out: Path) -> int:
    """Count the complete ones: a block is in its place a moment before the manifest names it."""
    return read_block_manifest(out).total_blocks if (out / MANIFEST_NAME).exists() else 0


def test_a_dataset_becomes_blocks_by_ranges_and_nothing_is_fetched_twice(remote, tmp_path):
    said = []
    info = download(tmp_path / "out", log_callback=said.append)
    assert texts_in(tmp_path / "out") == remote.rows
    assert [block.sample_count for block in info.blocks] == [700] * 8 + [400]
    assert (info.dataset_name, info.total_samples, info.finished) == ("web", SAMPLES, True)
    assert len(said) == 9
    assert verify_block_structure(tmp_path / "out")[0]
    asked = remote.requests("resolve/.*(parquet|jsonl)")
    assert all(line["range"] for line in asked if line["method"] == "GET")
    assert max(line["sent"] for line in asked) < remote.size / 3
    # The footer of Parquet is looked at once more, to estimate the size.
    assert remote.bytes_sent("resolve") <= remote.size + 2 * FOOTER
    assert not (tmp_path / "out" / SPOOL_NAME).exists()


def test_done_is_done_and_costs_no_data(remote, tmp_path):
    first = download(tmp_path / "out")
    remote.forget()
    assert download(tmp_path / "out") == first
    assert remote.bytes_sent("resolve") == 0


def test_of_a_table_only_the_wanted_columns_are_fetched(hub, tmp_path):
    content = as_parquet(texts(SAMPLES))
    hub.add_dataset("org/web", {"train.parquet": content})
    download(tmp_path / "out", columns=["text"])
    meta = pq.read_metadata(io.BytesIO(content))
    groups = range(meta.num_row_groups)
    wanted = sum(meta.row_group(group).column(0).total_compressed_size for group in groups)
    assert wanted < hub.bytes_sent("resolve") <= wanted + 2 * FOOTER < len(content)
    assert orjson.loads(lines_in(tmp_path / "out").splitlines()[5]).keys() == {"text"}


@pytest.mark.parametrize("wanted_blocks", [0, 4])
def test_killed_and_run_again_the_files_are_the_same_and_little_was_sent_twice(remote, tmp_path, wanted_blocks):
    download(tmp_path / "whole")
    remote.forget()
    remote.fault(path="resolve/.*(parquet|jsonl)", rate=4_000_000, times=1000)
    with client(tmp_path / "out") as process:
        started = 0.2 * remote.size if not wanted_blocks else 0
        wait_for(
            lambda: (
                blocks_there(tmp_path / "out") >= wanted_blocks and remote.bytes_sent("resolve", settle=False) > started
            ),
            process,
        )
        process.kill()
    assert not read_block_manifest(tmp_path / "out").finished
    remote.heal()
    # What the killed client left unread is not logged until the server finds the connection gone.
    time.sleep(0.5)
    download(tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")
    assert remote.bytes_sent("resolve") <= remote.size + remote.lost + FOOTER


def test_a_server_that_dies_and_returns_is_waited_for(remote, tmp_path):
    remote.fault(path="resolve/.*(parquet|jsonl)", rate=4_000_000, times=12)
    remote.fault(path="resolve/.*(parquet|jsonl)", rate=4_000_000, times=12)
    with client(tmp_path / "out") as process:
        wait_for(lambda: blocks_there(tmp_path / "out") >= 1, process)
        remote.kill()
        time.sleep(1.0)
        remote.start()
        assert process.wait(60) == 0, process.communicate()
    assert texts_in(tmp_path / "out") == remote.rows


def test_a_server_that_stays_away_too_long_costs_little_as_well(remote, tmp_path):
    download(tmp_path / "whole")
    remote.forget()
    # Two requests or more are answered before the one that ends the server in the middle of its body.
    asked = "resolve/.*(parquet|jsonl)"
    impatient = {"retries": 0}
    failing = threading.Thread(target=lambda: (wait_for(lambda: blocks_there(tmp_path / "out") >= 2), remote.kill()))
    remote.fault(path=asked, rate=2_000_000, times=1000)
    failing.start()
    with pytest.raises(StoreUnavailable, match="org/web"):
        download(tmp_path / "out", storage_options=impatient)
    failing.join()
    there = read_block_manifest(tmp_path / "out")
    assert there.total_blocks >= 2
    assert not there.finished
    remote.start()
    download(tmp_path / "out")
    assert files_in(tmp_path / "out") == files_in(tmp_path / "whole")
    assert remote.bytes_sent("resolve") <= remote.size + remote.lost + FOOTER


def test_ctrl_c_keeps_complete_blocks_and_shows_no_traceback(remote, tmp_path):
    remote.fault(path="resolve/.*(parquet|jsonl)", rate=4_000_000, times=1000)
    with client(tmp_path / "out") as process:
        wait_for(lambda: blocks_there(tmp_path / "out") >= 2, process)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    there = read_block_manifest(tmp_path / "out")
    assert there.total_blocks >= 2
    assert verify_block_structure(tmp_path / "out")[0] or not there.finished
    remote.heal()
    assert download(tmp_path / "out").finished
    assert texts_in(tmp_path / "out") == remote.rows


def test_cancelled_from_another_thread_it_returns_what_is_there(remote, tmp_path):
    cancel = threading.Event()
    info = download(tmp_path / "out", cancel=cancel, log_callback=lambda _: cancel.set())
    assert not info.finished
    assert 1 <= info.total_blocks < 9
    assert download(tmp_path / "out").finished
    assert texts_in(tmp_path / "out") == remote.rows


def test_a_source_that_changed_under_an_interrupted_download_is_refused_and_named(remote, tmp_path):
    cancel = threading.Event()
    download(tmp_path / "out", cancel=cancel, log_callback=lambda _: cancel.set())
    before = files_in(tmp_path / "out")
    name = next(name for name, make in KINDS.values() if len(make(remote.rows)) == remote.size)
    make = dict(KINDS.values())[name]
    remote.add_dataset("org/web", {name: make(texts(SAMPLES, seed=1))})
    with pytest.raises(ObjectChanged, match=name):
        download(tmp_path / "out")
    assert files_in(tmp_path / "out") == before


def test_a_new_commit_with_the_same_files_is_no_change(remote, tmp_path):
    cancel = threading.Event()
    download(tmp_path / "out", cancel=cancel, log_callback=lambda _: cancel.set())
    name, make = next((name, make) for name, make in KINDS.values() if len(make(remote.rows)) == remote.size)
    remote.add_dataset("org/web", {name: make(remote.rows), "README.md": b"# Now with a card\n"})
    assert download(tmp_path / "out").finished
    assert texts_in(tmp_path / "out") == remote.rows


def test_compressed_text_goes_on_without_fetching_it_again(hub, tmp_path):
    import gzip

    content = gzip.compress(as_lines(texts(SAMPLES)), 1)
    hub.add_dataset("org/web", {"train.jsonl.gz": content})
    cancel = threading.Event()
    download(tmp_path / "out", cancel=cancel, log_callback=lambda _: cancel.set())
    assert download(tmp_path / "out").finished
    assert texts_in(tmp_path / "out") == texts(SAMPLES)
    assert hub.bytes_sent("resolve") <= len(content) + MEGABYTE


@pytest.mark.parametrize("suffix", ["csv", "json", "arrow", "txt"])
def test_other_formats_from_a_web_server_and_with_an_interruption(hub, tmp_path, suffix):
    rows = [f"row {i} {'x' * 300}" for i in range(3000)]
    table = pa.table({"text": rows})
    out = io.BytesIO()
    if suffix == "csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, out)
    elif suffix == "arrow":
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table, max_chunksize=100)
    else:
        out.write(orjson.dumps([{"text": row} for row in rows]) if suffix == "json" else "\n".join(rows).encode())
    hub.add_dataset("org/web", {f"data.{suffix}": out.getvalue()})
    url = f"{hub.url}/datasets/org/web/resolve/main/data.{suffix}"
    cancel = threading.Event()
    download(tmp_path / "out", url, cancel=cancel, log_callback=lambda _: cancel.set())
    assert download(tmp_path / "out", url).finished
    assert texts_in(tmp_path / "out") == rows


def test_a_local_source_gives_the_blocks_that_processing_it_gives(tmp_path):
    (tmp_path / "web.jsonl").write_bytes(as_lines(texts(2000)))
    download(tmp_path / "a", str(tmp_path / "web.jsonl"))
    process_raw_dataset_to_blocks(tmp_path / "web.jsonl", tmp_path / "b", "web", 700)
    assert lines_in(tmp_path / "a") == lines_in(tmp_path / "b")


@pytest.mark.parametrize("count", [1, 700, 1234, SAMPLES, 10 * SAMPLES])
def test_only_so_many_samples_are_taken_and_little_more_is_fetched(remote, tmp_path, count):
    info = download(tmp_path / "out", max_samples=count)
    assert texts_in(tmp_path / "out") == remote.rows[:count]
    assert info.total_samples == min(count, SAMPLES)
    if count == 1:
        assert remote.bytes_sent("resolve") < remote.size


def test_a_disk_that_is_too_small_is_found_out_before_anything_is_written(remote, tmp_path):
    with pytest.raises(StoreError, match=r"must stay free.*--free-space-margin"):
        download_dataset("hf://org/web", tmp_path / "out", free_space_margin=1 << 60)
    with pytest.raises(StoreError, match=r"storage_cap \(--storage-cap\) is 1\.0 MB"):
        download(tmp_path / "out", storage_cap=MEGABYTE)
    assert not (tmp_path / "out").exists()


def test_a_cap_that_only_the_blocks_reach_ends_it_and_a_higher_one_goes_on(hub, tmp_path):
    import gzip

    # Compressed text that grows to more than the estimate says.
    rows = ["water " * 400 for _ in range(SAMPLES)]
    hub.add_dataset("org/web", {"train.jsonl.gz": gzip.compress(as_lines(rows))})
    with pytest.raises(StoreError, match="complete blocks are kept"):
        download(tmp_path / "out", storage_cap=3 * MEGABYTE)
    assert read_block_manifest(tmp_path / "out").total_blocks >= 1
    assert download(tmp_path / "out").finished
    assert texts_in(tmp_path / "out") == rows


def test_an_estimate_is_near_what_the_blocks_take(tmp_path):
    from penstock.formats.sources import RECORD_KINDS, find_files

    rows = texts(SAMPLES)
    for name, content in {"a.parquet": as_parquet(rows), "a.jsonl": as_lines(rows)}.items():
        (tmp_path / name).write_bytes(content)
        expected = estimate(find_files(tmp_path / name, RECORD_KINDS), columns=None, max_samples=0, compression=None)
        info = download(tmp_path / f"out-{name}", str(tmp_path / name))
        took = sum(block.size_bytes for block in info.blocks)
        assert 0.8 * took < expected.num_bytes < 1.25 * took


def test_bad_rows_are_counted_in_the_manifest(hub, tmp_path):
    lines = as_lines(texts(1500)).splitlines(keepends=True)
    lines[3], lines[1200] = b"{\n", b"[]\n"
    hub.add_dataset("org/web", {"train.jsonl": b"".join(lines)})
    info = download(tmp_path / "out", on_error="skip")
    assert (info.total_samples, info.counts) == (1498, {"malformed-json": 1, "not-an-object": 1})


@pytest.mark.parametrize(
    ("bad", "policy", "counts"),
    [
        (b"{\n", {"on_error": "skip"}, {"malformed-json": 1}),
        (b'{"text": NaN}\n', {"on_nan": "null"}, {"nan-to-null": 1}),
    ],
)
def test_a_download_that_a_bad_row_ended_goes_on_by_another_policy_from_where_it_was(
    hub, tmp_path, bad, policy, counts
):
    lines = as_lines(texts(SAMPLES)).splitlines(keepends=True)
    lines[5000] = bad
    hub.add_dataset("org/web", {"train.jsonl": b"".join(lines)})
    with pytest.raises(BadRecord, match="line 5001"):
        download(tmp_path / "out")
    assert read_block_manifest(tmp_path / "out").total_blocks >= 5
    hub.forget()
    info = download(tmp_path / "out", **policy)
    assert (info.finished, info.counts) == (True, counts)
    assert hub.bytes_sent(r"train\.jsonl") < 0.5 * len(b"".join(lines))
    download(tmp_path / "whole", **policy)
    assert lines_in(tmp_path / "out") == lines_in(tmp_path / "whole")


def test_who_may_not_read_is_told_so(hub, tmp_path):
    hub.add_dataset("org/gated", {"train.jsonl": as_lines(texts(5))}, gated="manual", readers=("hf_reader",))
    with pytest.raises((AccessDenied, ObjectMissing), match="org/gated"):
        download(tmp_path / "out", "hf://org/gated")
    with pytest.raises(ObjectMissing, match="org/nowhere"):
        download(tmp_path / "out", "hf://org/nowhere")
    assert not (tmp_path / "out").exists()
    assert download(tmp_path / "out", "hf://org/gated", storage_options={"token": "hf_reader"}).finished


def test_two_downloads_into_one_folder_are_one_too_many(remote, tmp_path):
    remote.fault(path="resolve/.*(parquet|jsonl)", rate=2_000_000, times=1000)
    with client(tmp_path / "out") as process:
        wait_for(lambda: blocks_there(tmp_path / "out") >= 1, process)
        with pytest.raises(StoreError, match="another process"):
            download(tmp_path / "out")
        process.kill()


def test_a_part_that_a_power_cut_garbled_is_fetched_again(tmp_path):
    spool = Spool(tmp_path, "source")
    for start in (0, 10):
        spool.ensure(3, start, start + 10, lambda start, stop: bytes(range(start, stop)))
    (first,) = (tmp_path / SPOOL_NAME).glob("00003-0-10")
    first.write_bytes(bytes(14))
    asked = []

    def fetch(start: int, stop: int) -> bytes:
        asked.append((start, stop))
        return bytes(range(start, stop))

    again = Spool(tmp_path, "source")
    for start in (0, 10):
        again.ensure(3, start, start + 10, fetch)
        assert again.read(3, start, start + 10) == bytes(range(start, start + 10))
    assert asked == [(0, 10)]
    other = Spool(tmp_path, "another source")
    assert other.size_bytes == 0
    assert os.listdir(tmp_path / SPOOL_NAME) == ["source.json"]
