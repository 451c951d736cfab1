"""What goes wrong around an export is told in its own words, as early as it can be known."""

from __future__ import annotations

import json

import pytest

from penstock import (
    AccessDenied,
    ConfigError,
    ExportConfig,
    FormatError,
    ObjectMissing,
    StoreError,
    StoreUnavailable,
    export_bigquery,
)


def config_of(bigquery, destination, **more) -> ExportConfig:
    given = {"bq_project": "p", "sql_query": "SELECT * FROM words", "bq_endpoint": bigquery.url}
    return ExportConfig(s3_destination_path=str(destination), **(given | more))


def test_where_the_second_file_may_have_its_name_the_error_says_so(bigquery, web):
    bigquery.add_table("words", num_rows=100)
    web.fault(method="GET", path=".", status=200, body="<ListBucketResult></ListBucketResult>")
    web.fault(method="PUT", path="x-val", status=500, times=9)
    web.fault(method="DELETE", path=".", status=204, times=9)
    options = {"endpoint": web.url, "region": "r", "access_key_id": "k", "secret_access_key": "s", "retries": 0}
    config = config_of(bigquery, "s3://bucket/x.parquet", recompute=True)
    with pytest.raises(StoreUnavailable) as caught:
        export_bigquery(config, storage_options=options)
    assert caught.value.__notes__ == [
        "s3://bucket/x-val.parquet may be new, s3://bucket/x.parquet is not: run it again with recompute: true"
    ]


def test_pages_without_rows_come_to_an_end(bigquery, tmp_path):
    bigquery.add_table("words", num_rows=100)
    page = {
        "jobComplete": True,
        "schema": {"fields": [{"name": "id", "type": "INTEGER"}]},
        "totalRows": "4",
        "rows": [],
        "pageToken": "again",
    }
    headers = {"Content-Type": "application/json"}
    bigquery.fault(path="/queries/", times=1000, status=200, body=json.dumps(page), headers=headers)
    with pytest.raises(StoreError, match="pages without rows and no end after 0 of 4 rows: run the export again"):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert len(bigquery.requests("/queries/")) < 30
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/jobs", "[]", "no answer of BigQuery's API"),
        ("/jobs", "null", "no answer of BigQuery's API"),
        ("/queries/", {"totalRows": "abc"}, "no answer of BigQuery's API"),
        ("/queries/", {"totalRows": str(2**65)}, "as the number of rows"),
        ("/queries/", {"totalRows": "-1"}, "as the number of rows"),
        ("/queries/", {"rows": None}, "no answer of BigQuery's API"),
        ("/queries/", {"rows": "ab"}, "no rows of its 1 columns"),
        ("/queries/", {"rows": [None]}, "no rows of its 1 columns"),
    ],
)
def test_an_answer_that_is_none_is_told_in_our_terms(bigquery, tmp_path, path, body, words):
    bigquery.add_table("words", num_rows=100)
    if isinstance(body, dict):
        whole = {"jobComplete": True, "schema": {"fields": [{"name": "id", "type": "INTEGER"}]}, "totalRows": "4"}
        body = json.dumps(whole | body)
    bigquery.fault(path=path, times=99, status=200, body=body, headers={"Content-Type": "application/json"})
    with pytest.raises((StoreError, FormatError), match=words):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize(
    ("lacking", "words"), [("totalRows", r"number of its rows \(totalRows\)"), ("schema", r"columns \(schema\)")]
)
def test_what_an_answer_lacks_is_named(bigquery, tmp_path, lacking, words):
    bigquery.add_table("words", num_rows=100)
    whole = {
        "jobComplete": True,
        "schema": {"fields": [{"name": "id", "type": "INTEGER"}]},
        "totalRows": "4",
        "rows": [{"f": [{"v": "1"}]}] * 4,
    }
    body = json.dumps({name: value for name, value in whole.items() if name != lacking})
    headers = {"Content-Type": "application/json"}
    bigquery.fault(path="/queries/", times=9, status=200, body=body, headers=headers)
    with pytest.raises(StoreError, match=f"BigQuery's answer lacks .*{words}.*check sql_query and bq_endpoint"):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert not list(tmp_path.glob("*.parquet"))


def test_two_columns_of_one_name_are_refused(bigquery, tmp_path):
    fields = [{"name": "a", "type": "INTEGER"}, {"name": "a", "type": "STRING"}]
    bigquery.add_table("words", fields, [["1", "x"]])
    with pytest.raises(ConfigError, match="sql_query gives two columns called 'a': give one another name, by AS"):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert not list(tmp_path.glob("*.parquet"))


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["x.parquet", "x-val.parquet"])
def test_a_folder_in_the_files_place_is_told_before_the_query_has_its_price(bigquery, tmp_path, name, recompute):
    bigquery.add_table("words", num_rows=100)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match=rf"{name} is a folder: give the path of a file"):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet", recompute=recompute))
    assert not bigquery.requests()
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".parquet"] == [name]


def test_a_place_that_cannot_be_written_is_told_before_the_query_has_its_price(bigquery, s3, web, tmp_path):
    bigquery.add_table("words", num_rows=100)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write"):
        export_bigquery(config_of(bigquery, tmp_path / "file" / "x.parquet", recompute=True))
    config = config_of(bigquery, "s3://exports-not-there/x.parquet", recompute=True)
    with pytest.raises(ObjectMissing, match="there is no bucket"):
        export_bigquery(config, storage_options=s3.options)
    web.fault(path=".", times=99, status=403)
    options = {"endpoint": web.url, "region": "r", "access_key_id": "k", "secret_access_key": "s"}
    with pytest.raises(AccessDenied, match="may not be written: the server says 403"):
        export_bigquery(config_of(bigquery, "s3://bucket/x.parquet", recompute=True), storage_options=options)
    assert not bigquery.requests()


def test_who_may_write_and_neither_read_nor_list_gets_as_far_as_the_query(bigquery, web):
    begun = "<InitiateMultipartUploadResult><UploadId>1</UploadId></InitiateMultipartUploadResult>"
    web.fault(method="GET", path=".", times=99, status=403)
    web.fault(method="POST", path=".", status=200, body=begun)
    web.fault(method="PUT", path=".", times=99, status=200, headers={"ETag": '"1"'})
    web.fault(method="DELETE", path=".", times=99, status=204)
    options = {"endpoint": web.url, "region": "r", "access_key_id": "k", "secret_access_key": "s"}
    bigquery.add_table("words", num_rows=100)
    config = config_of(bigquery, "s3://bucket/x.parquet", recompute=True)
    assert export_bigquery(config, storage_options=options).num_rows == 90
    assert "DELETE" in {line["method"] for line in web.requests()}, "what was sent to see is thrown away"


def test_a_home_folder_is_meant_by_its_sign(bigquery, tmp_path, monkeypatch):
    bigquery.add_table("words", num_rows=100)
    monkeypatch.setenv("HOME", str(tmp_path))
    export_bigquery(config_of(bigquery, "~/new/x.parquet"))
    assert (tmp_path / "new" / "x.parquet").is_file()
