"""`penstock export-bq` does what its file says, says what it has done, and shows errors in a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest


def begin(path, **more) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "penstock", "export-bq", str(path)]
    environment = {**os.environ, **more}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def run(path, **more) -> tuple[int, str, str]:
    process = begin(path, **more)
    out, errors = process.communicate(timeout=120)
    return process.returncode, out, errors


def write(folder, bigquery, destination, *more: str):
    path = folder / "export.yaml"
    lines = [
        "bq_project: p",
        f"bq_endpoint: {bigquery.url}",
        "sql_query: |",
        "  SELECT *  -- all of it",
        "  FROM words",
        f"s3_destination_path: {destination}",
        *more,
    ]
    path.write_text("\n".join(lines))
    return path


def test_a_file_of_settings_becomes_two_tables(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=1000)
    config = write(tmp_path, bigquery, tmp_path / "x.parquet", "max_num_val_rows: 50")
    code, out, errors = run(config)
    assert code == 0, errors
    assert out.splitlines() == [f"{tmp_path}/x.parquet: 950 rows", f"{tmp_path}/x-val.parquet: 50 rows"]
    assert "exporting: 1,000 rows of 1,000 rows" in errors
    assert pq.read_metadata(tmp_path / "x.parquet").num_rows == 950
    code, out, _ = run(config)
    assert code == 0
    assert out.startswith("skipped: both files are there; set recompute: true to make them anew\n")


def test_a_bucket_is_reached_by_the_usual_variables(bigquery, s3, tmp_path):
    s3.create_bucket("exports-cli")
    bigquery.add_table("words", num_rows=100)
    config = write(tmp_path, bigquery, "s3://exports-cli/x.parquet", "s3_bucket_region: us-east-1")
    variables = {"AWS_ENDPOINT_URL": s3.url, "AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}
    code, out, errors = run(config, **variables)
    assert (code, out.splitlines()[0]) == (0, "s3://exports-cli/x.parquet: 90 rows"), errors


def test_a_mistake_is_a_line_and_no_traceback(bigquery, tmp_path):
    code, out, errors = run(write(tmp_path, bigquery, tmp_path / "x.parquet", "row_group_sise: 3"))
    assert (code, out) == (2, "")
    assert "there is no key 'row_group_sise'; did you mean row_group_size?" in errors
    assert "Traceback" not in errors


def test_who_stops_waiting_stops_the_query_as_well(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=10, polls=1000)
    process = begin(write(tmp_path, bigquery, tmp_path / "x.parquet"))
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(bigquery.requests("/jobs/", settle=False)) < 2:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(bigquery.requests("/cancel$")) == 1
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.slow
def test_what_a_killed_export_left_is_removed_by_the_next_and_one_that_runs_keeps_its_own(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=2000)
    config = write(tmp_path, bigquery, tmp_path / "x.parquet", "row_group_size: 100")
    (killed, gone), (other, both) = [_stopped_in_the_middle(bigquery, config, tmp_path) for _ in range(2)]
    try:
        killed.kill()
        killed.communicate(timeout=60)
        bigquery.heal()
        code, _, errors = run(config)
        assert code == 0, errors
        assert len(gone) == 2
        assert {path.name for path in tmp_path.glob(".*.tmp")} == both - gone
        assert other.poll() is None
    finally:
        other.kill()
        other.communicate(timeout=60)
    assert run(config)[1].startswith("skipped")
    assert not list(tmp_path.glob(".*.tmp"))


def _stopped_in_the_middle(bigquery, config, folder) -> tuple[subprocess.Popen[str], set[str]]:
    """Begin an export, whose second page does not come; give it and the files without a name that are there then."""
    bigquery.fault(path="pageToken", times=9, delay_s=100)
    process, found = begin(config), set()
    before = {path.name for path in folder.glob(".*.tmp")}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and len(found) < len(before) + 2:
        time.sleep(0.05)
        found = {path.name for path in folder.glob(".*.tmp")}
    return process, found
