"""A query selects rows, the same everywhere; a wrong one is told with its place."""

from __future__ import annotations

import pytest

from index.conftest import ROWS
from penstock.errors import ConfigError, FormatError
from penstock.index.build import build_index


@pytest.fixture(params=["rows.csv", "rows.parquet", "rows.jsonl"])
def queried(request, table_of, tmp_path):
    path = table_of(request.param)
    return lambda sql, **options: build_index(path, folder=tmp_path / "node", sql_query=sql, **options)


def test_rows_and_columns_are_the_querys(queried):
    index = queried("SELECT index, score * 2 AS double FROM dataframe WHERE width > 200 ORDER BY score DESC")
    wanted = [row for row in reversed(ROWS) if (row["width"] or 0) > 200]
    assert index.rows(range(len(index))) == [{"index": row["index"], "double": row["score"] * 2} for row in wanted]


def test_without_an_order_rows_stay_in_theirs(queried):
    index = queried("SELECT * FROM dataframe WHERE width IS NOT NULL", max_size=10)
    assert index.rows(range(10)) == [row for row in ROWS if row["width"] is not None][:10]


def test_a_query_may_read_its_table_twice(queried):
    index = queried("SELECT a.* FROM dataframe a WHERE a.score = (SELECT max(score) FROM dataframe)")
    assert index.rows(range(len(index))) == [ROWS[-1]]


def test_what_is_drawn_at_random_is_the_same_on_every_node(table_of, tmp_path):
    path, sql = table_of("rows.csv"), "SELECT * FROM dataframe ORDER BY random() LIMIT 20"
    found = {build_index(path, folder=tmp_path / node, sql_query=sql).fingerprint for node in ("one", "two", "three")}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELEC * FROM dataframe", r"syntax error at or near .SELEC.(.|\n)*LINE 1: SELEC(.|\n)*\^"),
        ("SELECT *\nFROM dataframe\nWHERE capton = 'x'", r"capton(.|\n)*LINE 3: WHERE capton = 'x'"),
        ("SELECT * FROM data", "(.|\n)*Its table is dataframe, with the columns 'index', 'url', 'score', 'width'"),
        ("SELECT CAST(url AS INTEGER) AS index FROM dataframe", "Could not convert string '0.jpg'"),
        ("SELECT * FROM dataframe; SELECT 1", "must be one SELECT"),
        ("DROP TABLE dataframe", "must be one SELECT"),
        ("", "must be one SELECT"),
        ("SELECT * FROM dataframe WHERE score < 0", "has no rows that sql_query selects"),
        ("SELECT url FROM dataframe", "no column 'index'"),
    ],
)
def test_a_query_that_cannot_work_is_told_with_its_place(sql, told, queried):
    with pytest.raises(ConfigError, match=told):
        queried(sql)


def test_a_query_that_makes_keys_twice_is_refused(queried):
    with pytest.raises(FormatError, match="keys that are there twice: 'a'"):
        queried("SELECT 'a' AS index, url FROM dataframe")


def test_a_query_reads_no_files(queried, tmp_path):
    (tmp_path / "secret.csv").write_text("index\na\n")
    with pytest.raises(ConfigError, match="disabled by configuration"):
        queried(f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')")


def test_nothing_but_the_result_stays_on_the_disk(queried, tmp_path):
    queried("SELECT * FROM dataframe ORDER BY score DESC")
    names = sorted(path.name for path in (tmp_path / "node").rglob("*") if path.is_file())
    assert [name.split("-")[0] for name in names] == ["index.json", "rows"]
