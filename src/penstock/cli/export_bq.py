"""`penstock export-bq`: what a query of BigQuery gives, as parquet files for training and validation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def export_bq(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="CONFIG",
            help="A YAML file with bq_project, sql_query and s3_destination_path; and, if wanted, s3_bucket_region, "
            "recompute, val_ratio, max_num_val_rows, row_group_size, seed, bq_endpoint.",
        ),
    ],
) -> None:
    """Write what a query of BigQuery gives to parquet, and a random part of it to NAME-val.parquet."""
    from penstock.prep.export_bq import export_bigquery, read_export_config
    from penstock.store.urls import redact

    report = export_bigquery(read_export_config(config), show_progress=True)
    path, val_path = redact(report.path), redact(report.val_path)
    if report.skipped:
        typer.echo("skipped: both files are there; set recompute: true to make them anew")
    typer.echo(f"{path}: {report.num_rows:,} rows")
    typer.echo(f"{val_path}: {report.num_val_rows:,} rows")
