"""`penstock index`: a source becomes a file that opens at once, and `inspect` says what is in it."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from penstock import open_index


def penstock(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "penstock", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("index,url,score\n" + "".join(f"k{i:03},{i}.jpg,{i / 4}\n" for i in range(100)))
    return path


def test_an_index_is_made_and_inspected(table, tmp_path):
    done = penstock("index", table, tmp_path / "out" / "all.arrow")
    index = open_index(tmp_path / "out" / "all.arrow")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"100 rows in {tmp_path}/out/all.arrow (fingerprint {index.fingerprint})\n"
    assert index.rows([99]) == [{"index": "k099", "url": "99.jpg", "score": 24.75}]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["all.arrow"]
    facts = json.loads(penstock("inspect", tmp_path / "out" / "all.arrow", "--rows", 1, "--json").stdout)
    assert facts.pop("bytes") > 0
    assert facts == {
        "kind": "index",
        "path": f"{tmp_path}/out/all.arrow",
        "rows": 100,
        "key": "index",
        "base": str(tmp_path),
        "fingerprint": index.fingerprint,
        "fields": {"index": "string", "url": "string", "score": "double"},
        "first_rows": [{"index": "k000", "url": "0.jpg", "score": 0.0}],
    }
    assert "fingerprint" in penstock("inspect", tmp_path / "out" / "all.arrow").stdout


def test_rows_are_selected_and_parted(table, tmp_path):
    out = tmp_path / "part.arrow"
    done = penstock(
        "index",
        table,
        out,
        "--sql",
        "SELECT * FROM dataframe WHERE score >= 5",
        "--columns",
        "url",
        "--split",
        "0.25",
        "--json",
    )
    written = json.loads(done.stdout)
    assert written["columns"] == ["index", "url"]
    assert [(part["index"], part["rows"]) for part in written["written"]] == [
        (str(out), 60),
        (str(tmp_path / "part-val.arrow"), 20),
    ]
    keys = [set(open_index(part["index"]).keys.to_pylist()) for part in written["written"]]
    assert keys[0] | keys[1] == {f"k{i:03}" for i in range(20, 100)}
    assert penstock("index", table, out, "--max-size", 10, "--split", "3").returncode == 0
    assert len(open_index(out)) == 7


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rows.csv", "out.arrow", "--sql", "SELECT * FORM dataframe"], "LINE 1: SELECT * FORM dataframe"),
        (["rows.csv", "out.arrow", "--key", "id"], "no column 'id', which --key says the keys are in"),
        (["rows.csv", "out.arrow", "--columns", "url,Score"], "its columns are 'index', 'url', 'score'\n"),
        (["rows.csv", "out.parquet"], "end in .arrow"),
        (["rows.csv", "out.arrow", "--split", "half"], "--split"),
        (["none.csv", "out.arrow"], "none.csv"),
    ],
)
def test_what_cannot_be_indexed_is_one_line_and_exit_code_2(arguments, told, table, tmp_path):
    done = penstock("index", *(tmp_path / part if "." in part and " " not in part else part for part in arguments))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_table_is_inspected_as_the_index_of_it_would_be(table):
    facts = json.loads(penstock("inspect", table, "--rows", 2, "--json").stdout)
    assert (facts["kind"], facts["rows"]) == ("CSV", 100)
    assert facts["fields"] == {"index": "string", "url": "string", "score": "double"}
    assert [row["index"] for row in facts["first_rows"]] == ["k000", "k001"]


def test_a_server_that_has_to_be_asked_again_is_no_silence(table, tmp_path, web):
    web.add_files({"rows.csv": table.read_bytes()})
    web.fault(times=2, status=503)
    done = penstock("index", f"{web.url}/rows.csv?sig=s3cr3t", tmp_path / "out.arrow")
    assert done.returncode == 0, done.stderr
    first, *_ = done.stderr.splitlines()
    assert first.startswith(f"GET {web.url}/rows.csv: the server says 503 Service Unavailable; trying again in ")
    assert "s3cr3t" not in done.stderr
    assert done.stdout.startswith("100 rows in ")
