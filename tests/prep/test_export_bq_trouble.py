"""What goes wrong around an export is told in its own words, as early as it can be known."""

from __future__ import annotations

import pytest

from penstock import ExportConfig, StoreUnavailable, export_bigquery


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
