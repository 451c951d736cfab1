"""A query selects rows, the same everywhere; a wrong one is told with its place."""

from __future__ import annotations

import gzip

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


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz", "rows.parquet", "rows.jsonl", "two"])
def test_numbers_are_numbers_to_a_query_and_keys_are_text_afterwards(name, table_of, tmp_path):
    rows = [{"id": number, "file": 1000 - number, "weight": number / 4} for number in range(120)]
    if name == "two":
        src = [table_of("a.csv", rows[:50]), table_of("b.csv", rows[50:])]
    elif name.endswith(".gz"):
        src = tmp_path / name
        src.write_bytes(gzip.compress(table_of("rows.csv", rows).read_bytes()))
    else:
        src = table_of(name, rows)
    sql = "SELECT id, file, weight FROM dataframe WHERE id >= 8 AND file > 890 ORDER BY id"
    index = build_index(src, folder=tmp_path / "node", index_col_name="id", columns=["weight"], sql_query=sql)
    assert index.keys.to_pylist() == [str(number) for number in range(8, 110)]
    assert [float(weight) for weight in index.column("weight").to_pylist()] == [row / 4 for row in range(8, 110)]


def test_keys_that_are_more_than_their_numbers_stay_text_in_a_query(tmp_path):
    (tmp_path / "rows.csv").write_text("index,file\n007,1.jpg\n10,2.jpg\n9,3.jpg\n")
    index = build_index(
        tmp_path / "rows.csv", folder=tmp_path / "node", sql_query="SELECT * FROM dataframe ORDER BY index"
    )
    assert index.keys.to_pylist() == ["007", "10", "9"]


def test_locations_that_look_like_numbers_are_text_after_a_query(tmp_path):
    (tmp_path / "rows.csv").write_text("index,file\na,1\nb,2\nc,3\n")
    sql = "SELECT * FROM dataframe WHERE file > 1"
    index = build_index(tmp_path / "rows.csv", folder=tmp_path / "node", columns=["file"], sql_query=sql)
    assert index.column("file").to_pylist() == ["2", "3"]


def test_what_is_drawn_at_random_is_the_same_on_every_node(table_of, tmp_path):
    path, sql = table_of("rows.csv"), "SELECT * FROM dataframe ORDER BY random() LIMIT 20"
    found = {build_index(path, folder=tmp_path / node, sql_query=sql).fingerprint for node in ("one", "two", "three")}
    assert len(found) == 1


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELEC * FROM dataframe", r"syntax error at or near .SELEC.(.|\n)*LINE 1: SELEC(.|\n)*\^"),
        ("SELECT *\nFROM dataframe\nWHERE capton = 'x'", r"capton(.|\n)*LINE 3: WHERE capton = 'x'"),
        (
            "SELECT * FROM data",
            "(.|\n)*Its table is dataframe, with the columns 'index' VARCHAR, 'url' VARCHAR, 'score' DOUBLE",
        ),
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
