"""What a query of BigQuery gives, as parquet for training and for validation.

    query ──pages──▶ rows ──position in a keyed shuffle < n_val──▶ name-val.parquet
                          └──────────────────────────────────────▶ name.parquet

Law: both files are of one export, whole, and disjoint; together they hold every row once. Memory holds a page
of rows and a row group of each file, whatever the table's size.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penstock.errors import ConfigError, StoreError
from penstock.formats.settings import Check, check_fields, check_flag, read_settings
from penstock.plan.permutation import permute
from penstock.prep.bigquery import Answer, open_query
from penstock.prep.parquet_pair import ParquetPair
from penstock.progress import Meter
from penstock.seeds import key
from penstock.store.urls import parse_url, redact
from penstock.types import check_int, check_number

SUFFIX = ".parquet"
PAGE_ROWS = 10_000
"""Most rows of a page that BigQuery is asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """What is exported, and to where. Each field is a key of the file.

    Raises:
        ConfigError: a value of the wrong type or out of range.

    >>> config = ExportConfig(bq_project="p", sql_query="SELECT 1", s3_destination_path="s3://b/x.parquet")
    >>> config.num_val_rows(1_000), config.num_val_rows(1_000_000), config.val_path
    (100, 10000, 's3://b/x-val.parquet')
    """

    bq_project: str
    """The project that the query is billed to."""
    sql_query: str
    """A query of GoogleSQL that gives rows."""
    s3_destination_path: str
    """Where the training rows go: a URL of any store that can be written, or a path, ending in .parquet."""
    s3_bucket_region: str | None = None
    """Where the bucket of an s3:// destination is; a bucket that is elsewhere is an error."""
    recompute: bool = False
    """Export again what is there already."""
    val_ratio: float = 0.1
    """Share of the rows that become the validation file: at least 0, below 1."""
    max_num_val_rows: int = 10_000
    """Most rows of the validation file."""
    row_group_size: int = 20_000
    """Rows of a row group, which is what readers read at a time."""
    seed: int = 0
    """Of the choice of validation rows."""
    bq_endpoint: str | None = None
    """Where BigQuery's API is, if not at Google's address; one of http:// is asked without credentials."""

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)

    @property
    def val_path(self) -> str:
        """Where the validation rows go."""
        return f"{self.s3_destination_path.removesuffix(SUFFIX)}-val{SUFFIX}"

    def num_val_rows(self, num_rows: int) -> int:
        """Count the validation rows of so many."""
        return min(int(num_rows * self.val_ratio), self.max_num_val_rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportReport:
    """What an export has done."""

    path: str
    """The file with the training rows."""
    val_path: str
    num_rows: int
    """Rows in `path`."""
    num_val_rows: int
    skipped: bool
    """Both files were there, and were left as they are."""


def read_export_config(path: str | os.PathLike[str]) -> ExportConfig:
    """Read what is to be exported from a YAML file.

    Raises:
        ObjectMissing: there is no such file.
        ConfigError: a key is unknown (says the nearest), missing, given twice, or its value cannot be; names the line.
    """
    given = read_settings(Path(path), _CHECKS)
    missing = [name for name in ("bq_project", "sql_query", "s3_destination_path") if name not in given]
    if missing:
        raise ConfigError(f"{os.fspath(path)} lacks {', '.join(missing)}: add a line `{missing[0]}: …`")
    return ExportConfig(**given)


def export_bigquery(
    config: ExportConfig, *, storage_options: Mapping[str, Any] | None = None, show_progress: bool = False
) -> ExportReport:
    """Write what a query gives to a parquet file, and a random part of it to another, for validation.

    Which rows are for validation is a matter of their places in the answer, the seed and the number of rows: a query
    that gives the same rows in the same order (ORDER BY) is always split alike.

    Args:
        config: what, and to where.
        storage_options: of the destination, see `open_store`.
        show_progress: draw a bar, or print a line now and then, on standard error.

    Raises:
        ConfigError: the query, the destination or the region cannot work, or there are no rows; nothing is written.
        ObjectMissing, AccessDenied, StoreUnavailable: see `open_query` and `open_store`.
        StoreError: rows are missing at the end, or the destination cannot be written; what was there before stays.
        FormatError: a value is not of its column's type.
    """
    pair = ParquetPair(config.s3_destination_path, config.val_path, _options(config, storage_options or {}))
    _check_region(config, pair)
    pair.remove_abandoned()
    if not config.recompute and pair.is_there():
        return _report(config, *pair.num_rows(), skipped=True)
    pair.check_writable()
    page_rows = min(config.row_group_size, PAGE_ROWS)
    with open_query(config.bq_project, config.sql_query, endpoint=config.bq_endpoint, page_rows=page_rows) as answer:
        if not answer.num_rows:
            raise ConfigError("sql_query gives no rows: nothing was written")
        with Meter("exporting", total=answer.num_rows, unit="rows", show=show_progress) as meter:
            num_val_rows = _write(config, answer, pair, meter)
        return _report(config, answer.num_rows - num_val_rows, num_val_rows, skipped=False)


def _write(config: ExportConfig, answer: Answer, pair: ParquetPair, meter: Meter) -> int:
    """Write the rows to the one file or the other; return how many are for validation."""
    total, num_val_rows = answer.num_rows, config.num_val_rows(answer.num_rows)
    shuffled = key(config.seed, "export-bq")
    done = 0
    with pair.writing(answer.schema, config.row_group_size) as (rows, val_rows):
        for batch in answer:
            if done + batch.num_rows > total:
                raise _miscounted(done + batch.num_rows, total)
            is_val = permute(np.arange(done, done + batch.num_rows), total, shuffled) < num_val_rows
            for part, chosen in ((rows, ~is_val), (val_rows, is_val)):
                if chosen.any():
                    part.add(batch.filter(pa.array(chosen)))
            done += batch.num_rows
            meter.add(batch.num_rows)
        if done != total:
            raise _miscounted(done, total)
    return num_val_rows


def _miscounted(found: int, total: int) -> StoreError:
    return StoreError(
        f"BigQuery announced {total:,} rows and gave {found:,}: nothing was written, run the export again"
    )


def _options(config: ExportConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the options of the destination, with the region of its bucket if it has one."""
    in_s3 = parse_url(config.s3_destination_path).scheme == "s3" and config.s3_bucket_region is not None
    return {**given, "region": config.s3_bucket_region} if in_s3 else dict(given)


def _check_region(config: ExportConfig, pair: ParquetPair) -> None:
    """Refuse a bucket that is elsewhere, before the query has its price."""
    if config.s3_bucket_region is None:
        return
    found = pair.bucket_region()
    if found is not None and found != config.s3_bucket_region:
        raise ConfigError(
            f"s3_bucket_region is {config.s3_bucket_region}, but the bucket of {redact(config.s3_destination_path)} is "
            f"in {found}: write s3_bucket_region: {found}"
        )


def _report(config: ExportConfig, num_rows: int, num_val_rows: int, *, skipped: bool) -> ExportReport:
    return ExportReport(
        path=config.s3_destination_path,
        val_path=config.val_path,
        num_rows=num_rows,
        num_val_rows=num_val_rows,
        skipped=skipped,
    )


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{name} must be a text, got {value!r}")
    return value.strip()


def _optional_text(name: str, value: Any) -> str | None:
    return None if value is None else _text(name, value)


def _destination(name: str, value: Any) -> str:
    path = _text(name, os.fspath(value) if isinstance(value, os.PathLike) else value)
    if not path.endswith(SUFFIX) or path.rpartition("/")[2] == SUFFIX:
        raise ConfigError(f"{name} must be the URL or path of a file that ends in {SUFFIX}, got {redact(path)!r}")
    return os.path.expanduser(path)


def _endpoint(name: str, value: Any) -> str | None:
    url = _optional_text(name, value)
    if url is not None and not url.startswith(("http://", "https://")):
        raise ConfigError(f"{name} must be the address of an API, http://… or https://…, got {redact(url)!r}")
    return url


def _ratio(name: str, value: Any) -> float:
    return check_number(name, value, below=1)


_CHECKS: dict[str, Check] = {
    "bq_project": _text,
    "sql_query": _text,
    "s3_destination_path": _destination,
    "s3_bucket_region": _optional_text,
    "recompute": check_flag,
    "val_ratio": _ratio,
    "max_num_val_rows": partial(check_int, minimum=0),
    "row_group_size": partial(check_int, minimum=1),
    "seed": partial(check_int, minimum=0),
    "bq_endpoint": _endpoint,
}
assert list(_CHECKS) == [field.name for field in fields(ExportConfig)]
