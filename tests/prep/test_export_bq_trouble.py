"""What goes wrong around an export is told in its own words, as early as it can be known."""

from __future__ import annotations

import json

import pytest

from penstock import ConfigError, ExportConfig, FormatError, StoreError, StoreUnavailable, export_bigquery


def config_of(bigquery, destination, **more) -> ExportConfig:
    given = {"bq_project": "p", "sql_query": "SELECT * FROM words", "bq_endpoint": bigquery.url}
    return ExportConfig(s3_destination_path=str(destination), **(given | more))


def test_where_the_second_file_may_have_its_name_the_error_says_so(bigquery, web):
    bigquery.add_table("words", num_rows=100)
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


def test_two_columns_of_one_name_are_refused(bigquery, tmp_path):
    fields = [{"name": "a", "type": "INTEGER"}, {"name": "a", "type": "STRING"}]
    bigquery.add_table("words", fields, [["1", "x"]])
    with pytest.raises(ConfigError, match="sql_query gives two columns called 'a': give one another name, by AS"):
        export_bigquery(config_of(bigquery, tmp_path / "x.parquet"))
    assert not list(tmp_path.glob("*.parquet"))
