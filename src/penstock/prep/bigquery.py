"""Queries of BigQuery, answered page by page over its REST API.

    open_query(project, sql) ──▶ Answer: schema, num_rows, iter ──▶ RecordBatch, RecordBatch, …

The one file that knows Google's client: how it is made, how long it is worth waiting, and what its errors mean.
"""

from __future__ import annotations

import concurrent.futures
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa

from penstock.errors import AccessDenied, ConfigError, ObjectMissing, PenstockError, StoreError, StoreUnavailable
from penstock.prep.bigquery_columns import batch_of, schema_of
from penstock.store.requests import Patience

REQUEST_S = 120.0
"""Longest silence of the server; BigQuery itself holds a request open for a while before it says "not yet"."""
QUERY_S = 6 * 3600.0
"""Longest wait for a query's end: BigQuery ends it by then."""
SLOWEST_LOOK_S = 5.0
CANCEL_S = 5.0
TELL_S = 10.0
"""After which a log says that the query still runs; and again after twice as long, and so on."""
EMPTY_PAGES = 20
"""So many pages without rows, one after the other, are an answer that never ends."""
MOST_ROWS = 1 << 62
# The log that the command line shows, in which requests that are waited for are told.
_log = logging.getLogger("penstock.store")
_POSITION = re.compile(r"\[(\d+):(\d+)\]")
_QUOTAS = {
    "quotaExceeded",
    "rateLimitExceeded",
    "billingNotEnabled",
    "billingTierLimitExceeded",
    "bytesBilledLimitExceeded",
}
_LOCATION = re.compile(r"location|region", re.IGNORECASE)


class Answer:
    """The rows of a query, to be gone through once.

    Args:
        rows: the client's iterator over them.

    Attributes:
        schema: of the batches.
        num_rows: how many there are in all.

    Raises:
        ConfigError: two columns are of one name.
        FormatError, StoreError: columns or a number of rows that can't be.
    """

    def __init__(self, rows: Any) -> None:
        self._rows = rows
        self._fields = [field.to_api_repr() for field in rows.schema]
        self.schema: pa.Schema = schema_of(self._fields)
        found = rows.total_rows
        if found is None or not 0 <= found < MOST_ROWS:
            raise StoreError(f"BigQuery gives {found} as the number of rows: run the export again")
        self.num_rows: int = found

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        """Give the rows, a page at a time; one page is held.

        Raises:
            StoreError, StoreUnavailable, AccessDenied: BigQuery stopped giving rows.
            FormatError: a value is not of its column's type.
        """
        pages = iter(self._rows.pages)
        given = num_empty = 0
        while True:
            so_far = f"after {given:,} of {self.num_rows:,} rows"
            with _told(so_far), _understood(so_far):
                page = next(pages, None)
            if page is None:
                return
            batch = batch_of(page.raw_page.get("rows", []), self._fields, self.schema)
            given += batch.num_rows
            num_empty = 0 if batch.num_rows else num_empty + 1
            if num_empty >= EMPTY_PAGES:
                raise StoreError(f"BigQuery gives pages without rows and no end {so_far}: run the export again")
            yield batch


@contextmanager
def open_query(
    project: str,
    sql: str,
    *,
    endpoint: str | None = None,
    page_rows: int,
    patience: Patience | None = None,
) -> Iterator[Answer]:
    """Run a query and wait for its end; its rows are read within the block.

    Args:
        project: what the query is billed to.
        sql: the query, of GoogleSQL.
        endpoint: where the API is; None: Google's. One of http:// is an emulator, and asked without credentials.
        page_rows: most rows of a page; BigQuery gives fewer where they are large.
        patience: how long a request is worth trying.

    Raises:
        ConfigError: the client is not installed, or the query cannot work, or it gives no table.
        ObjectMissing: the project, or a table, is not there.
        AccessDenied: there are no credentials, or they may not do this.
        StoreUnavailable: BigQuery can't be reached, keeps failing, or the quota is used up.
    """
    bigquery = _library()
    with _told("the query was not run"):
        client = _client(bigquery, project, endpoint)
    try:
        with _told("the query failed", sql), _understood("the query failed"):
            answer = Answer(_run(bigquery, client, sql, page_rows, patience or Patience()))
        yield answer
    finally:
        client.close()


def _library() -> Any:
    try:
        from google.cloud import bigquery
    except ImportError as error:
        raise ConfigError("BigQuery needs google-cloud-bigquery: pip install 'penstock[bigquery]'") from error
    return bigquery


def _client(bigquery: Any, project: str, endpoint: str | None) -> Any:
    if endpoint is None:
        return bigquery.Client(project=project)
    options = {"api_endpoint": endpoint}
    if not endpoint.startswith("http://"):
        return bigquery.Client(project=project, client_options=options)
    from google.auth.credentials import AnonymousCredentials

    return bigquery.Client(project=project, credentials=AnonymousCredentials(), client_options=options)


def _run(bigquery: Any, client: Any, sql: str, page_rows: int, patience: Patience) -> Any:
    """Begin a query, wait for its end, and give the client's iterator over its rows."""
    retry = bigquery.DEFAULT_RETRY.with_timeout(patience.deadline_s).with_delay(
        initial=patience.first_wait_s, maximum=patience.longest_wait_s, multiplier=2.0
    )
    # A query that failed is not begun anew behind the user's back: it costs.
    job = client.query(sql, retry=retry, timeout=REQUEST_S, job_retry=None)
    began, wait_s, told_s = time.monotonic(), patience.first_wait_s, TELL_S
    try:
        while not job.done(retry=retry, timeout=REQUEST_S):
            elapsed_s = time.monotonic() - began
            if elapsed_s > QUERY_S:
                raise concurrent.futures.TimeoutError
            if elapsed_s > told_s:
                told_s *= 2
                _log.info("BigQuery runs the query: %.0f s so far", elapsed_s)
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, SLOWEST_LOOK_S)
    except KeyboardInterrupt:
        # Nobody would read what it finds; if this fails, it ends by itself.
        with suppress(PenstockError), _told("the query was not cancelled"):
            job.cancel(retry=None, timeout=CANCEL_S)
        raise
    rows = job.result(page_size=page_rows, retry=retry, timeout=REQUEST_S)
    if not rows.schema:
        raise _no_table(bigquery, job, rows)
    return rows


def _no_table(bigquery: Any, job: Any, rows: Any) -> PenstockError:
    """Say why there are no columns: it was no SELECT, or the answer to one lacks what the client needs."""
    if job.statement_type not in (None, "SELECT"):
        return ConfigError("sql_query gives no table: write a SELECT")
    # Of an answer without totalRows the client drops all the rest, and gives an iterator of another kind.
    lacks_columns = type(rows) is bigquery.table.RowIterator
    missing = "its columns (schema)" if lacks_columns else "the number of its rows (totalRows)"
    return StoreError(
        f"BigQuery's answer lacks {missing}, which every answer to a SELECT has: check sql_query and bq_endpoint, then "
        "try again"
    )


@contextmanager
def _understood(when: str) -> Iterator[None]:
    """Raise a StoreError where the client stumbles over an answer."""
    import requests

    try:
        yield
    except (PenstockError, requests.RequestException) as error:
        if not isinstance(error, requests.exceptions.InvalidJSONError):
            raise
        raise _no_answer(when, "it is no JSON") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        if type(error).__module__.startswith("google."):
            raise
        raise _no_answer(when, f"{type(error).__name__}: {error}") from error


def _no_answer(when: str, why: str) -> StoreError:
    return StoreError(
        f"what was sent is no answer of BigQuery's API, {when} ({why}): check bq_endpoint, then try again"
    )


@contextmanager
def _told(when: str, sql: str = "") -> Iterator[None]:
    """Raise errors of the client in our terms.

    Args:
        when: what had come to pass, in words.
        sql: the query, where it may be at fault.
    """
    import requests
    from google.api_core import exceptions
    from google.auth.exceptions import GoogleAuthError, TransportError

    try:
        yield
    except exceptions.RetryError as error:
        if isinstance(error.cause, exceptions.GoogleAPICallError):
            raise _meaning(error.cause, when, sql) from error
        raise _unreachable(when, error.cause or error) from error
    except (requests.RequestException, TransportError, concurrent.futures.TimeoutError) as error:
        raise _unreachable(when, error) from error
    except GoogleAuthError as error:
        raise _refused(when, _said(error)) from error
    except exceptions.GoogleAPICallError as error:
        raise _meaning(error, when, sql) from error


def _meaning(error: Any, when: str, sql: str) -> Exception:
    """Say in our terms what a refusal of BigQuery means."""
    said, code = _said(error), error.code or 0
    reason = error.errors[0].get("reason", "") if error.errors else ""
    where = _advice(said)
    if reason in _QUOTAS:
        return StoreUnavailable(f"BigQuery's limits are reached ({reason}), {when}: {said}. Wait, or raise the limit")
    if code in (401, 403):
        return _refused(when, said)
    if code >= 500 or code == 429:
        return StoreUnavailable(f"BigQuery kept failing, {when}: {said}. Try again later")
    if not sql:
        return StoreError(f"BigQuery stopped giving rows {when}: {said}. Run the export again")
    if code == 404:
        return ObjectMissing(f"sql_query asks for what is not there: {said}{where}")
    return ConfigError(f"BigQuery refuses sql_query: {said}{_place(said, sql)}{where}")


def _unreachable(when: str, error: Exception) -> StoreUnavailable:
    why = "no answer within the time-out" if isinstance(error, TimeoutError) else _said(error)
    return StoreUnavailable(f"BigQuery could not be reached, {when}: {why}. Check the network, then try again")


def _refused(when: str, said: str) -> AccessDenied:
    return AccessDenied(
        f"BigQuery may not be read, {when}: {said}. Log in by `gcloud auth application-default login`, or let "
        "GOOGLE_APPLICATION_CREDENTIALS name a key of an account that may run queries in bq_project and read its tables"
    )


def _said(error: Any) -> str:
    """Give what the server said, without the address of the request or the whole query."""
    errors = getattr(error, "errors", None) or []
    text = errors[0].get("message") if errors and isinstance(errors[0], dict) else None
    return str(text or getattr(error, "message", None) or error).strip().partition("\n\n")[0].rstrip(".")


def _advice(said: str) -> str:
    if not _LOCATION.search(said):
        return ""
    return ". All tables of a query must lie in one location, and it runs there"


def _place(said: str, sql: str) -> str:
    """Show the line of a query that a position is in."""
    found = _POSITION.search(said)
    lines = sql.splitlines()
    if found is None or not 1 <= int(found[1]) <= len(lines):
        return ""
    return f"\n    {lines[int(found[1]) - 1]}\n    {' ' * (int(found[2]) - 1)}^"
