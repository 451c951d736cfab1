"""A query becomes two parquet files, whole and disjoint, in any store; nothing half-done is left.

BigQuery is a stand-in here that speaks its REST API (`servers/bigquery.py`); the client is Google's own.
"""

from __future__ import annotations

import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penstock import (
    AccessDenied,
    ConfigError,
    ExportConfig,
    FormatError,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    StreamingDataset,
    export_bigquery,
    open_file,
    open_store,
    read_export_config,
)
from penstock.prep.bigquery import open_query
from penstock.store.requests import Patience

RUN = """
import sys
from penstock import ExportConfig, export_bigquery
export_bigquery(ExportConfig(bq_project="p", sql_query="SELECT * FROM big", s3_destination_path=sys.argv[1],
                             bq_endpoint=sys.argv[2], row_group_size=5000))
"""
NO_CLIENT = "import sys; sys.modules['google.cloud.bigquery'] = None\n"
WITHOUT = """
from penstock import ExportConfig, PenstockError, export_bigquery
try:
    export_bigquery(ExportConfig(bq_project="p", sql_query="SELECT 1", s3_destination_path="x.parquet"))
except PenstockError as error:
    print(error)
"""
MEMORY = """
import resource, sys
from penstock import ExportConfig, export_bigquery
def run(table):
    config = ExportConfig(bq_project="p", sql_query=f"SELECT * FROM {table}", row_group_size=20_000,
                          s3_destination_path=f"{sys.argv[1]}/{table}.parquet", bq_endpoint=sys.argv[2])
    assert export_bigquery(config).num_rows > 20_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
warm = run("small")
print(run("large") - warm)
"""


def config_of(bigquery, destination, **more) -> ExportConfig:
    given = {"bq_project": "p", "sql_query": "SELECT * FROM words", "bq_endpoint": bigquery.url}
    return ExportConfig(s3_destination_path=str(destination), **(given | more))


def ids(path, **options) -> list[int]:
    with open_file(str(path), **options) as file:
        return pq.read_table(file).column("id").to_pylist()


def test_a_thousand_rows_become_fifty_and_nine_hundred_and_fifty(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=1000, polls=2)
    config = config_of(bigquery, tmp_path / "new" / "x.parquet", max_num_val_rows=50, row_group_size=300)
    report = export_bigquery(config)
    assert (report.num_rows, report.num_val_rows, report.skipped) == (950, 50, False)
    train, val = ids(config.s3_destination_path), ids(tmp_path / "new" / "x-val.parquet")
    assert (len(train), len(val)) == (950, 50)
    assert sorted(train + val) == list(range(1000))
    assert train == sorted(train), "rows keep the query's order"
    # Spread over all of the answer: a run of rows would not be.
    assert min(val) < 150
    assert max(val) > 850
    groups = pq.ParquetFile(config.s3_destination_path).metadata
    assert [groups.row_group(n).num_rows for n in range(groups.num_row_groups)] == [300, 300, 300, 50]
    pages = bigquery.requests("/queries/")
    assert [("maxResults=300" in line["query"]) for line in pages] == [True] * 4


def test_the_same_seed_splits_alike_and_another_does_not(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=200)
    seeds = {"a": 1, "b": 1, "c": 2}
    for name, seed in seeds.items():
        export_bigquery(config_of(bigquery, tmp_path / f"{name}.parquet", seed=seed))
    split = {name: ids(tmp_path / f"{name}-val.parquet") for name in seeds}
    assert split["a"] == split["b"] != split["c"]


@pytest.mark.parametrize(("ratio", "num_val"), [(0.0, 0), (0.004, 0), (0.999, 199)])
def test_a_part_may_be_empty_and_is_a_table_still(bigquery, tmp_path, ratio, num_val):
    bigquery.add_table("words", num_rows=200)
    report = export_bigquery(config_of(bigquery, tmp_path / "x.parquet", val_ratio=ratio))
    assert report.num_val_rows == num_val
    table = pq.read_table(tmp_path / "x-val.parquet")
    assert (table.num_rows, table.column_names) == (num_val, ["id", "text"])


def test_what_is_there_is_left_alone_and_asks_nothing(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=100)
    config = config_of(bigquery, tmp_path / "x.parquet")
    export_bigquery(config)
    before = [path.read_bytes() for path in sorted(tmp_path.glob("*.parquet"))]
    bigquery.forget()
    report = export_bigquery(config)
    assert (report.skipped, report.num_rows, report.num_val_rows) == (True, 90, 10)
    assert not bigquery.requests()
    assert [path.read_bytes() for path in sorted(tmp_path.glob("*.parquet"))] == before


def test_recompute_replaces_both(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=100)
    export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    bigquery.add_table("words", num_rows=300)
    report = export_bigquery(config_of(bigquery, tmp_path / "x.parquet", recompute=True))
    assert (report.num_rows, report.num_val_rows) == (270, 30)
    assert sorted(ids(tmp_path / "x.parquet") + ids(tmp_path / "x-val.parquet")) == list(range(300))


def test_one_file_of_two_or_two_of_different_exports_are_no_pair(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=100)
    path, val = tmp_path / "x.parquet", tmp_path / "x-val.parquet"
    export_bigquery(config_of(bigquery, path))
    other = val.read_bytes()
    export_bigquery(config_of(bigquery, path, recompute=True))
    val.write_bytes(other)
    with pytest.raises(StoreError, match=r"are of two exports.*recompute: true"):
        export_bigquery(config_of(bigquery, path))
    val.unlink()
    with pytest.raises(StoreError, match=r"x\.parquet is there, .*x-val\.parquet is not: set recompute: true"):
        export_bigquery(config_of(bigquery, path))
    val.write_bytes(b"no parquet")
    with pytest.raises(FormatError, match="is there and is no parquet"):
        export_bigquery(config_of(bigquery, path))


def test_to_a_bucket_and_only_to_one_in_the_region_that_was_said(bigquery, s3):
    bigquery.add_table("words", num_rows=1000)
    s3.create_bucket("exports")
    config = config_of(bigquery, "s3://exports/a/x.parquet", s3_bucket_region="us-east-1")
    report = export_bigquery(config, storage_options=s3.options)
    assert sorted(ids(report.path, **s3.options) + ids(report.val_path, **s3.options)) == list(range(1000))
    assert export_bigquery(config, storage_options=s3.options).skipped
    bigquery.forget()
    wrong = config_of(bigquery, "s3://exports/a/x.parquet", s3_bucket_region="eu-west-1", recompute=True)
    with pytest.raises(
        ConfigError, match=r"s3_bucket_region is eu-west-1, but the bucket of .* is in us-east-1: write"
    ):
        export_bigquery(wrong, storage_options=s3.options)
    with pytest.raises(ObjectMissing, match="there is no bucket"):
        export_bigquery(config_of(bigquery, "s3://exports-not-there/x.parquet"), storage_options=s3.options)
    assert not bigquery.requests(), "no query is paid for before the destination is known to work"


def test_what_was_exported_is_a_dataset(bigquery, web, tmp_path):
    web.add_files({f"{n}.txt": b"photo %d" % n for n in range(20)})
    fields = [{"name": "id", "type": "INTEGER"}, {"name": "url", "type": "STRING"}, {"name": "tags", "type": "JSON"}]
    bigquery.add_table("words", fields, [[str(n), f"{web.url}/{n}.txt", "{}"] for n in range(20)])
    report = export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    options = {"index_col_name": "id", "columns_to_download": ["url"]}
    found = {}
    for path in (report.path, report.val_path):
        with StreamingDataset(path, tmp_path / "cache", **options) as dataset:
            found |= {sample["id"]: Path(sample["url"]).read_bytes() for sample in dataset}
    assert found == {str(n): b"photo %d" % n for n in range(20)}


def test_where_only_one_file_could_be_named_the_error_says_so(bigquery, web):
    bigquery.add_table("words", num_rows=100)
    web.fault(method="GET", path=".", status=200, body="<ListBucketResult></ListBucketResult>")
    web.fault(method="PUT", path="x-val", status=200, headers={"ETag": '"1"'})
    web.fault(method="PUT", path=r"x\.parquet", status=403, times=9)
    options = {"endpoint": web.url, "region": "us-east-1", "access_key_id": "k", "secret_access_key": "s"}
    config = config_of(bigquery, "s3://bucket/x.parquet", recompute=True)
    with pytest.raises(AccessDenied) as caught:
        export_bigquery(config, storage_options=options)
    assert caught.value.__notes__ == [
        "s3://bucket/x-val.parquet is new, s3://bucket/x.parquet is not: run it again with recompute: true"
    ]


def test_a_place_that_is_only_read_is_refused(bigquery):
    with pytest.raises(ConfigError, match="cannot be written"):
        export_bigquery(config_of(bigquery, "https://host/x.parquet"))


def test_types_survive_the_whole_way(bigquery, tmp_path):
    fields = [
        {"name": "price", "type": "NUMERIC"},
        {"name": "at", "type": "TIMESTAMP"},
        {"name": "tags", "type": "STRING", "mode": "REPEATED"},
        {"name": "box", "type": "RECORD", "fields": [{"name": "n", "type": "INTEGER"}]},
    ]
    cells = ["1.5", "1577836800000000", [{"v": "a"}], {"f": [{"v": "7"}]}]
    bigquery.add_table("words", fields, [cells, [None, None, [], None]])
    export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    table = pq.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("price").type) == "decimal128(38, 9)"
    assert str(table.schema.field("at").type) == "timestamp[us, tz=UTC]"
    row, empty = table.to_pylist()
    assert (str(row["price"]), row["at"].year, row["tags"], row["box"]) == ("1.500000000", 2020, ["a"], {"n": 7})
    assert empty == {"price": None, "at": None, "tags": [], "box": None}


@pytest.mark.parametrize(
    ("sql", "kind", "words"),
    [
        (
            "SELECT *\nFORM words",
            ConfigError,
            r'refuses sql_query: Syntax error.*"FORM" at \[2:1\]\n    FORM words\n    \^',
        ),
        (
            "SELECT * FROM absent",
            ObjectMissing,
            "asks for what is not there: .*absent was not found in location US.*one location",
        ),
        ("SELECT * FROM failing", ConfigError, "refuses sql_query: Division by zero"),
        ("SELECT * FROM full", StoreUnavailable, r"limits are reached \(quotaExceeded\)"),
        ("SELECT * FROM empty", ConfigError, "gives no rows: nothing was written"),
        ("SELECT * FROM tableless", ConfigError, "gives no table: write a SELECT"),
        ("SELECT * FROM lying", StoreError, "announced 13 rows and gave 10: nothing was written"),
    ],
)
def test_a_query_that_cannot_work_says_why_and_writes_nothing(bigquery, tmp_path, sql, kind, words):
    text = [{"name": "word", "type": "STRING"}]
    bigquery.add_table("empty", text)
    bigquery.add_table("tableless", statement="CREATE_VIEW")
    bigquery.add_table("lying", num_rows=10, num_less=3)
    bigquery.add_table("failing", num_rows=10, error={"reason": "invalidQuery", "message": "Division by zero: 1 / 0"})
    bigquery.add_table("full", num_rows=10, error={"reason": "quotaExceeded", "message": "Quota exceeded: bytes"})
    (tmp_path / "out").mkdir()
    with pytest.raises(kind, match=f"(?s){words}"):
        export_bigquery(config_of(bigquery, tmp_path / "out" / "x.parquet", sql_query=sql))
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("status", "reason", "kind", "words"),
    [
        (
            403,
            "accessDenied",
            AccessDenied,
            "may not be read, the query failed: no.*gcloud auth application-default login",
        ),
        (401, "authError", AccessDenied, "may not be read"),
        (403, "quotaExceeded", StoreUnavailable, r"limits are reached \(quotaExceeded\).*raise the limit"),
        (400, "invalid", ConfigError, "refuses sql_query: no"),
    ],
)
def test_refusals_are_told_apart(bigquery, tmp_path, status, reason, kind, words):
    bigquery.refuse(status, reason, "no", times=9, path="/jobs")
    with pytest.raises(kind, match=words):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert len(bigquery.requests()) == 1, "what will not pass is not tried again"


def test_a_server_that_is_busy_now_and_then_is_asked_again(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=1000)
    for path in ("/jobs", "/queries/.*maxResults", "/queries/.*pageToken"):
        bigquery.refuse(503, "backendError", "busy", path=path)
    report = export_bigquery(config_of(bigquery, tmp_path / "x.parquet", row_group_size=300))
    assert report.num_rows + report.num_val_rows == 1000
    assert sorted(ids(report.path) + ids(report.val_path)) == list(range(1000))
    assert sum(line["status"] == 503 for line in bigquery.requests()) == 3


def test_a_server_that_stays_busy_or_is_not_there_is_given_up(bigquery):
    bigquery.add_table("words", num_rows=10)
    bigquery.refuse(503, "backendError", "busy", times=99)
    brief = Patience(deadline_s=0.5, first_wait_s=0.05)
    with pytest.raises(StoreUnavailable, match="kept failing, the query failed: busy"):
        ask(bigquery, brief)
    bigquery.kill()
    with pytest.raises(StoreUnavailable, match="could not be reached, the query failed"):
        ask(bigquery, brief)


def ask(bigquery, patience) -> None:
    with open_query("p", "SELECT * FROM words", endpoint=bigquery.url, page_rows=5, patience=patience):
        raise AssertionError("it should have failed")


def test_a_page_that_has_expired_ends_the_export_and_leaves_what_was_there(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=100)
    config = config_of(bigquery, tmp_path / "x.parquet", row_group_size=40)
    export_bigquery(config)
    before = (tmp_path / "x.parquet").read_bytes(), (tmp_path / "x-val.parquet").read_bytes()
    bigquery.refuse(400, "invalid", "Invalid value: the page token has expired", path="pageToken")
    again = config_of(bigquery, tmp_path / "x.parquet", row_group_size=40, recompute=True)
    with pytest.raises(StoreError, match=r"stopped giving rows after 40 of 100 rows: .*expired. Run the export again"):
        export_bigquery(again)
    assert ((tmp_path / "x.parquet").read_bytes(), (tmp_path / "x-val.parquet").read_bytes()) == before
    assert len(list(tmp_path.glob(".*.tmp"))) == 0


@pytest.mark.slow
def test_killed_in_the_middle_nothing_has_the_destinations_name(bigquery, s3):
    s3.create_bucket("killed")
    bigquery.add_table("big", num_rows=100_000, text_bytes=2000)
    bigquery.fault(path="/queries/", every=6, delay_s=60)
    options = ", ".join(f"{name}={value!r}" for name, value in s3.options.items())
    run = RUN.replace("row_group_size=5000)", f"row_group_size=5000), storage_options=dict({options})")
    process = subprocess.Popen([sys.executable, "-c", run, "s3://killed/x.parquet", bigquery.url])
    deadline = time.monotonic() + 100
    begun = b""
    while time.monotonic() < deadline and b"<Upload>" not in begun:
        time.sleep(0.05)
        with urllib.request.urlopen(f"{s3.url}/killed?uploads", timeout=30) as answer:
            begun = answer.read()
    assert b"<Key>x.parquet</Key>" in begun, "parts of it are on their way"
    process.kill()
    process.wait(30)
    assert not list(open_store("s3://killed", **s3.options).list())


@pytest.mark.slow
def test_memory_does_not_grow_with_the_table(bigquery, tmp_path):
    bigquery.add_table("small", num_rows=60_000, text_bytes=400)
    bigquery.add_table("large", num_rows=300_000, text_bytes=400)
    command = [sys.executable, "-c", MEMORY, str(tmp_path), bigquery.url]
    grown_kib = int(subprocess.run(command, check=True, capture_output=True, timeout=250).stdout)
    # Five times the rows, 96 MB of text more in JSON.
    assert grown_kib < 40 << 10, f"{grown_kib >> 10} MiB more for 240,000 rows more"


def test_the_documented_file_is_read(tmp_path):
    path = tmp_path / "export.yaml"
    path.write_text(
        'bq_project: "research"\n'
        'sql_query: "\n  SELECT *\n  FROM `a.b.c`\n  ORDER BY RAND()\n  "\n'
        "s3_destination_path: s3://bucket/index/x.parquet\n"
        "s3_bucket_region: us-west-2 # where it is\n"
        "recompute: true\nval_ratio: 0.1\nmax_num_val_rows: 10000\n"
    )
    assert read_export_config(path) == ExportConfig(
        bq_project="research",
        sql_query="SELECT * FROM `a.b.c` ORDER BY RAND()",
        s3_destination_path="s3://bucket/index/x.parquet",
        s3_bucket_region="us-west-2",
        recompute=True,
        row_group_size=20_000,
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("val_ration: 0.1", r"line 4: there is no key 'val_ration'; did you mean val_ratio\?"),
        ("val_ratio: 1", "line 4: val_ratio must be a number from 0 to below 1, got 1"),
        ("val_ratio: yes", "val_ratio must be a number"),
        ("max_num_val_rows: -1", "max_num_val_rows must be an integer >= 0"),
        ("row_group_size: 0", "row_group_size must be an integer >= 1"),
        ("recompute: 3", "recompute must be one of True, False"),
        ("s3_bucket_region: 7", "s3_bucket_region must be a text"),
        ("bq_endpoint: host:80", "bq_endpoint must be the address of an API"),
    ],
)
def test_a_setting_that_cannot_be_is_told_with_its_line(tmp_path, line, words):
    path = tmp_path / "export.yaml"
    path.write_text(f"bq_project: p\nsql_query: SELECT 1\ns3_destination_path: x.parquet\n{line}\n")
    with pytest.raises(ConfigError, match=words):
        read_export_config(path)


def test_what_every_export_needs_is_asked_for(tmp_path):
    path = tmp_path / "export.yaml"
    path.write_text("bq_project: p\n")
    with pytest.raises(ConfigError, match="lacks sql_query, s3_destination_path: add a line `sql_query: …`"):
        read_export_config(path)
    for destination in ("s3://bucket/x.csv", "s3://bucket/.parquet", "folder"):
        with pytest.raises(ConfigError, match=r"a file that ends in \.parquet"):
            ExportConfig(bq_project="p", sql_query="SELECT 1", s3_destination_path=destination)


@pytest.mark.parametrize(
    ("first", "words"),
    [("", "gcloud auth application-default login"), (NO_CLIENT, "pip install 'penstock[bigquery]'")],
    ids=["credentials", "client"],
)
def test_without_what_it_needs_it_says_how_to_get_that(tmp_path, first, words):
    environment = {"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "absent.json"), "HOME": str(tmp_path)}
    command = [sys.executable, "-c", first + WITHOUT]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert words in done.stdout, done.stderr
    assert not list(tmp_path.glob("*.parquet"))
