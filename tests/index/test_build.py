"""An index is built once per node, says what its source says now, and refuses what can't be an index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index.conftest import ROWS
from penstock.errors import BadBlock, ConfigError, FormatError, ObjectChanged, ObjectMissing, StoreError
from penstock.formats.files import lock_folder
from penstock.formats.sources import RECORD_KINDS, source_file
from penstock.index.build import build_index
from penstock.index.scan import open_table

NAMES = ["rows.csv", "rows.tsv", "rows.json", "rows.jsonl", "rows.parquet", "rows.arrow"]


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", NAMES)
def test_rows_come_back_in_any_order_whatever_they_lay_in(name, table_of, tmp_path):
    index = build_index(table_of(name), folder=tmp_path / "node")
    ids = np.array([59, 0, 25, 24, 0, 41])
    assert index.rows(ids) == [ROWS[number] for number in ids]
    assert (len(index), index.columns, index.key) == (60, ["index", "url", "score", "width"], "index")
    assert index.base == str(tmp_path)
    assert index.keys.to_pylist() == [row["index"] for row in ROWS]
    assert index.rows([]) == []


def test_the_fingerprint_says_what_the_samples_are_and_not_where_they_lay(table_of, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    found = {build_index(table_of(name), folder=tmp_path / "node").fingerprint for name in [*NAMES, "elsewhere/b.csv"]}
    assert len(found) == 1
    swapped = [ROWS[1], ROWS[0], *ROWS[2:]]
    renamed = [{"index": row["index"], "link": row["url"]} for row in ROWS]
    for number, rows in enumerate((swapped, renamed, ROWS[:-1])):
        found.add(build_index(table_of(f"{number}.csv", rows), folder=tmp_path / "node").fingerprint)
    assert len(found) == 4


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet", "rows.arrow"])
def test_a_second_start_reads_nothing_of_the_source(name, table_of, tmp_path):
    path = table_of(name)
    index = build_index(path, folder=tmp_path / "node")
    written = {name: os.stat(tmp_path / "node" / name).st_mtime_ns for name in files_below(tmp_path / "node")}
    again = build_index(path, folder=tmp_path / "node")
    assert again.fingerprint == index.fingerprint
    assert {name: os.stat(tmp_path / "node" / name).st_mtime_ns for name in written} == written


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_source_that_changed_is_indexed_again_and_the_old_index_goes(name, table_of, tmp_path):
    path = table_of(name)
    old = build_index(path, folder=tmp_path / "node")
    first = old.rows([3])
    before = files_below(tmp_path / "node")
    table_of(name, ROWS[:40])
    new = build_index(path, folder=tmp_path / "node")
    assert len(new) == 40
    assert new.fingerprint != old.fingerprint
    # Who has the old one open goes on with it.
    assert old.rows([3]) == first
    gone = [name for name in before if "rows" in name]
    assert not set(gone) & set(files_below(tmp_path / "node"))


def test_a_local_parquet_is_used_where_it_lies_row_group_by_row_group(table_of, tmp_path):
    path = table_of("rows.parquet")
    content = path.read_bytes()
    index = build_index(path, folder=tmp_path / "node")
    assert [name for name in files_below(tmp_path / "node") if name.endswith(".arrow")] == []
    assert index.rows([26, 49]) == [ROWS[26], ROWS[49]]
    assert [name.split("/")[-2] for name in files_below(tmp_path / "node") if name.endswith(".arrow")] == ["00001"]
    assert path.read_bytes() == content


def test_row_groups_decoded_before_the_system_was_booted_again_are_not_trusted(table_of, tmp_path):
    path = table_of("rows.parquet")
    assert build_index(path, folder=tmp_path / "node").rows([59]) == [ROWS[59]]
    (decoded,) = (tmp_path / "node").rglob("00002/rows.arrow")
    # What a power cut may leave of a file that was not forced to the disk.
    decoded.write_bytes(b"\0" * 100)
    boot = decoded.parent.parent
    boot.rename(boot.with_name("another-boot"))
    assert build_index(path, folder=tmp_path / "node").rows([59, 0]) == [ROWS[59], ROWS[0]]
    assert [each.name for each in boot.parent.iterdir()] == [boot.name]


def test_threads_that_need_the_same_row_groups_get_their_rows(table_of, tmp_path):
    index = build_index(table_of("rows.parquet"), folder=tmp_path / "node")
    orders = [np.random.default_rng(number).permutation(60) for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(index.rows, orders)) == [[ROWS[number] for number in order] for order in orders]


def test_row_groups_longer_than_a_batch_and_of_many_types_come_back(tmp_path):
    count = 40_000
    table = pa.table(
        {
            "index": pa.array(np.arange(count)).cast(pa.string()),
            "word": pa.array([("a", "b", None)[i % 3] for i in range(count)]).dictionary_encode(),
            "boxes": pa.array([[i, i + 1] if i % 7 else None for i in range(count)]),
            "when": pa.array(np.arange(count), pa.timestamp("s")),
            "flag": pa.array([i % 2 == 0 for i in range(count)]),
            "small": pa.array(np.arange(count) % 100, pa.int8()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=25_000)
    index = build_index(tmp_path / "a.parquet", folder=tmp_path / "node")
    ids = np.random.default_rng(0).permutation(count)[:500]
    assert index.rows(ids) == table.take(pa.array(ids)).to_pylist()
    assert index.column("word").to_pylist() == table["word"].to_pylist()


def test_a_parquet_that_changed_under_its_index_is_refused(table_of, tmp_path):
    path = table_of("rows.parquet")
    index = build_index(path, folder=tmp_path / "node")
    assert index.rows([0]) == [ROWS[0]]
    table_of("rows.parquet", [{**row, "url": "other"} for row in ROWS])
    os.utime(path, ns=(0, 0))
    with pytest.raises(ObjectChanged, match="changed since its index was made"):
        index.rows([59])


def test_columns_are_chosen_and_the_first_rows(table_of, tmp_path):
    for name in ("rows.csv", "rows.parquet"):
        index = build_index(
            table_of(name), folder=tmp_path / "node", columns=["url"], index_cols_to_keep=["score"], max_size=31
        )
        assert (index.columns, len(index)) == (["index", "url", "score"], 31)
        assert index.rows([30]) == [{name: ROWS[30][name] for name in index.columns}]
        with pytest.raises(IndexError, match="row 31 was asked for; the index has 31 rows"):
            index.rows([31])


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_columns_that_are_missing_are_refused_or_none(name, table_of, tmp_path):
    path = table_of(name)
    with pytest.raises(ConfigError, match=r"no column 'urls'; did you mean 'url'\? .*allow_missing_columns"):
        build_index(path, folder=tmp_path / "node", columns=["urls"])
    index = build_index(path, folder=tmp_path / "node", columns=["urls"], allow_missing_columns=True)
    assert index.rows([4]) == [{**ROWS[4], "urls": None}]
    with pytest.raises(ConfigError, match=r"no column 'Index', which index_col_name says .* did you mean 'index'\?"):
        build_index(path, folder=tmp_path / "node", index_col_name="Index")


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_keys_are_text_even_if_they_look_like_numbers(name, table_of, tmp_path):
    rows = [{"id": number, "n": number} for number in (7, 11, 2)]
    index = build_index(table_of(name, rows), folder=tmp_path / "node", index_col_name="id")
    assert index.rows([0, 1, 2]) == [{"id": str(row["n"]), "n": row["n"]} for row in rows]
    zeros = tmp_path / "zeros.csv"
    zeros.write_text("id,n\n007,1\n07,2\n")
    assert build_index(zeros, folder=tmp_path / "node", index_col_name="id").keys.to_pylist() == ["007", "07"]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet"])
def test_keys_that_are_there_twice_are_named_with_their_rows(name, table_of, tmp_path):
    rows = [*ROWS, {**ROWS[3], "url": "again.jpg"}]
    with pytest.raises(FormatError, match=r"keys that are there twice: 'k003' \(rows 3 and 60\)"):
        build_index(table_of(name, rows), folder=tmp_path / "node")
    assert [name for name in files_below(tmp_path / "node") if "rows" in name or "json" in name] == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
@pytest.mark.parametrize("key", [None, ""])
def test_rows_without_a_key_are_named(name, key, table_of, tmp_path):
    rows = [*ROWS[:30], {**ROWS[30], "index": key}, *ROWS[31:]]
    with pytest.raises(FormatError, match="row 30 has no key in column 'index'"):
        build_index(table_of(name, rows), folder=tmp_path / "node")


def test_a_source_without_rows_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("index,url\n")
    with pytest.raises(ConfigError, match="has no rows"):
        build_index(tmp_path / "a.csv", folder=tmp_path / "node")
    with pytest.raises(ObjectMissing, match="does not exist"):
        build_index(tmp_path / "b.csv", folder=tmp_path / "node")
    for name in ("c.csv", "c.jsonl"):
        (tmp_path / name).touch()
        with pytest.raises(ConfigError, match=rf"{name} is empty"):
            build_index(tmp_path / name, folder=tmp_path / "node")


def test_keys_that_would_be_paths_stay_keys(tmp_path, table_of):
    rows = [{"index": key, "n": 1} for key in ("../../etc/passwd", "/a", "b\0c")]
    index = build_index(table_of("rows.jsonl", rows), folder=tmp_path / "node")
    assert index.keys.to_pylist() == [row["index"] for row in rows]
    assert set(files_below(tmp_path)) == {"rows.jsonl", *(f"node/{name}" for name in files_below(tmp_path / "node"))}


def test_a_source_that_changes_while_it_is_read_is_refused(table_of, tmp_path):
    source = open_table(source_file(table_of("rows.csv"), kinds=RECORD_KINDS), ["index"])

    class Changing:
        place, base, schema = source.place, source.base, source.schema
        asked = 0

        def signature(self):
            self.asked += 1
            return [self.asked > 2]

        def batches(self):
            self.asked += 1
            return source.batches()

    with pytest.raises(ObjectChanged, match="changed while it was read"):
        build_index(Changing(), folder=tmp_path / "node")


BUILDER = """
import sys
from penstock.index.build import build_index
index = build_index(sys.argv[1], folder=sys.argv[2])
print(len(index), index.fingerprint, index.rows([1234])[0]["url"])
"""


def test_processes_that_start_together_build_one_index(tmp_path):
    with open(tmp_path / "a.csv", "w") as file:
        file.write("index,url\n")
        file.writelines(f"{number:07},u{number}\n" for number in range(300_000))
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "a.csv"), str(tmp_path / "node")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    told = {process.communicate(timeout=120)[0] for process in started}
    assert len(told) == 1
    assert told.pop().startswith("300000 ")
    rows = [name for name in files_below(tmp_path / "node") if name.endswith(".arrow")]
    assert len(rows) == 1
    assert not [name for name in files_below(tmp_path / "node") if "tmp" in name or "lock" in name]


def test_a_builder_that_is_killed_leaves_the_work_to_the_next(tmp_path, table_of):
    with open(tmp_path / "a.csv", "w") as file:
        file.write("index,url\n")
        file.writelines(f"{number:07},u{number}\n" for number in range(1_500_000))
    command = [sys.executable, "-c", BUILDER, str(tmp_path / "a.csv"), str(tmp_path / "node")]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 60
    while not any(name.endswith(".tmp") for name in files_below(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not [name for name in files_below(tmp_path / "node") if name.endswith((".arrow", "index.json"))]
    index = build_index(tmp_path / "a.csv", folder=tmp_path / "node")
    assert len(index) == 1_500_000
    assert not [name for name in files_below(tmp_path / "node") if "tmp" in name]


def test_waiting_for_another_builder_has_an_end(table_of, tmp_path):
    path = table_of("rows.csv")
    build_index(path, folder=tmp_path / "node")
    os.utime(path, ns=(1, 1))
    (built,) = (tmp_path / "node").iterdir()
    with lock_folder(built), pytest.raises(StoreError, match=r"building the index .* for more than 0.1 s"):
        build_index(path, folder=tmp_path / "node", timeout_s=0.1)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ({"sql_query": 5}, "sql_query must be a text, got 5"),
        ({"index_col_name": 5}, "index_col_name must be a text, got 5"),
        ({"index_cols_to_keep": "f"}, r"index_cols_to_keep must be a list of names of columns, got 'f': write \['f'\]"),
        ({"index_cols_to_keep": [5]}, r"index_cols_to_keep must be names of columns, got \[5\]"),
        ({"columns": "f"}, r"columns must be a list of names of columns, got 'f': write \['f'\]"),
    ],
)
def test_an_argument_of_another_kind_is_named(tmp_path, option, said):
    (tmp_path / "a.csv").write_text("index,f\na,1\n")
    with pytest.raises(ConfigError, match=said):
        build_index(tmp_path / "a.csv", folder=tmp_path / "node", **option)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("value", [["a"], {"x": "a"}])
def test_keys_that_are_lists_or_structures_are_refused(tmp_path, kind, value):
    table = pa.table({"index": [value, value], "f": [1, 2]})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    with pytest.raises(ConfigError, match=r"the keys in column 'index' are .* must be texts or numbers"):
        build_index(path, folder=tmp_path / "node")


def test_a_csv_whose_lines_end_in_returns_alone_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"index,f\ra,1\rb,2\r")
    with pytest.raises(BadBlock, match=r"its lines end in \\r alone"):
        build_index(tmp_path / "a.csv", folder=tmp_path / "node")


@pytest.mark.parametrize("options", [{}, {"lazy_index_chunk_size": 2}, {"columns": ["a"]}, {"sql_query": "twice"}])
@pytest.mark.parametrize("kind", ["parquet", "arrow", "csv", "provider", "several"])
def test_two_columns_of_one_name_are_refused_by_their_name(kind, options, tmp_path):
    table = pa.table([["k", "l"], [1, 2], [3, 4]], ["index", "a", "a"])
    source = tmp_path / f"rows.{kind}"
    if kind == "arrow":
        with pa.ipc.new_file(source, table.schema) as writer:
            writer.write_table(table)
    elif kind == "csv":
        source.write_text("index,a,a\nk,1,3\nl,2,4\n")
    elif kind == "provider":
        source = lambda: iter([table])  # noqa: E731
    else:
        source = tmp_path / "rows.parquet"
        pq.write_table(table, source)
        pq.write_table(table.select([0, 1]), tmp_path / "other.parquet")
        source = [tmp_path / "other.parquet", source] if kind == "several" else source
    if options.get("sql_query"):
        options = {"sql_query": "select *, 1 as b, 2 as b from dataframe"}
    if "lazy_index_chunk_size" in options and kind not in ("parquet", "several"):
        options = {}
    with pytest.raises((ConfigError, FormatError), match=r"'[ab]'"):
        build_index(source, folder=tmp_path / "node", **options)
