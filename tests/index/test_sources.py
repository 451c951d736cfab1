"""A source is what its name and its files say it is; what can't be told is refused with what to do."""

from __future__ import annotations

import gzip
import os
import sqlite3
import tarfile
import threading
from urllib.request import Request, urlopen

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penstock.errors import AccessDenied, BadBlock, ConfigError, FormatError, ObjectMissing
from penstock.index.build import build_index
from penstock.store.store import open_store


def make(folder, names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return folder


def built(src, tmp_path, **options):
    return build_index(src, folder=tmp_path / "node", **options)


def rows(index):
    return index.rows(range(len(index)))


def table(path, keys, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"index": keys, **columns}), path)
    return path


# ─── folders


def test_files_are_samples_by_the_path_up_to_the_first_dot(tmp_path):
    data = make(tmp_path / "data", ["b.mp4", "b.summary_text.json", "a/b.mp4", "a b/ü.mp4", "a.d/x.txt"])
    index = built(data, tmp_path)
    assert index.base == str(data)
    assert [{k: v for k, v in row.items() if "__" not in k} for row in rows(index)] == [
        {"index": "a b/ü", "mp4": "a b/ü.mp4", "summary_text.json": None, "txt": None},
        {"index": "a.d/x", "mp4": None, "summary_text.json": None, "txt": "a.d/x.txt"},
        {"index": "a/b", "mp4": "a/b.mp4", "summary_text.json": None, "txt": None},
        {"index": "b", "mp4": "b.mp4", "summary_text.json": "b.summary_text.json", "txt": None},
    ]
    assert [row["mp4__length"] for row in rows(index)] == [len("a b/ü.mp4".encode()), None, 7, 5]


def test_hidden_files_and_those_without_an_extension_are_no_samples(tmp_path):
    data = make(
        tmp_path / "data", [".git/config.txt", ".x.txt", "a/.thumbs/1.jpg", "README", "..2.txt", "end.", "1.txt"]
    )
    assert built(data, tmp_path).keys.to_pylist() == ["1"]
    for name in ("1.txt",):
        (data / name).unlink()
    with pytest.raises(ObjectMissing, match=r"no files that make samples, among 2 in all.*KEY\.EXTENSION"):
        built(data, tmp_path)
    with pytest.raises(ObjectMissing, match="holds no files"):
        built(make(tmp_path / "none", [".hidden"]), tmp_path)


def test_one_key_and_extension_twice_is_an_error_and_case_makes_no_other_column(tmp_path):
    data = make(tmp_path / "data", ["1.JPG", "2.jpg", "3.metaData.json"])
    index = built(data, tmp_path)
    assert [column for column in index.columns if "__" not in column] == ["index", "jpg", "metaData.json"]
    assert index.column("jpg").to_pylist() == ["1.JPG", "2.jpg", None]
    make(data, ["1.jpg"])
    with pytest.raises(FormatError, match=r"sample '1' of .*data has 2 files of extension 'jpg': 1\.JPG, 1\.jpg"):
        built(data, tmp_path)


def test_names_with_dots_are_not_taken_for_thousands_of_columns(tmp_path):
    data = make(tmp_path / "data", [f"2024.{number}.jpg" for number in range(300)])
    with pytest.raises(FormatError, match=r"more than 256 extensions.*name files without other dots"):
        built(data, tmp_path)


@pytest.mark.parametrize("name", ["1.index", "1.jpg__length"])
def test_an_extension_that_is_another_column_is_refused(tmp_path, name):
    data = make(tmp_path / "data", ["1.jpg", name])
    with pytest.raises(FormatError, match="a column of that name is there for something else"):
        built(data, tmp_path)


def test_names_that_are_not_text_are_refused(tmp_path):
    data = make(tmp_path / "data", ["1.txt"])
    with open(os.fsencode(data) + b"/\xff.txt", "wb"):
        pass
    with pytest.raises(FormatError, match=r"not UTF-8: rename the file"):
        built(data, tmp_path)


def test_links_and_loops_of_links_are_followed_once(tmp_path):
    data = make(tmp_path / "data", ["a/1.txt"])
    make(tmp_path / "other", ["2.txt"])
    (data / "b").symlink_to(tmp_path / "other")
    (data / "a" / "loop").symlink_to(data)
    (data / "gone.txt").symlink_to(tmp_path / "nothing")
    assert built(data, tmp_path).keys.to_pylist() == ["a/1", "b/2"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list every folder")
def test_a_folder_that_may_not_be_listed_is_said(tmp_path):
    data = make(tmp_path / "data", ["a/1.txt"])
    (data / "a").chmod(0)
    with pytest.raises(AccessDenied, match="may not be listed"):
        built(data, tmp_path)
    (data / "a").chmod(0o700)


def test_thousands_of_files_are_sorted_by_key_and_an_index_follows_its_folder(tmp_path):
    data = make(tmp_path / "data", [f"{number % 7}/{number}.txt" for number in range(5000)])
    index = built(data, tmp_path)
    assert index.keys.to_pylist() == sorted(f"{number % 7}/{number}" for number in range(5000))
    assert built(data, tmp_path).fingerprint == index.fingerprint
    make(data, ["8/new.txt"])
    assert len(built(data, tmp_path)) == 5001
    (data / "8" / "new.txt").write_text("longer than it was")
    assert rows(built(data, tmp_path))[-1]["txt__length"] == 18


def mark(s3, *keys):
    """Make empty objects whose keys end in a slash, as consoles do for a new folder."""
    for key in keys:
        with urlopen(Request(f"{s3.url}/{key}", b"", method="PUT")) as response:
            assert response.status == 200


def test_what_stands_for_a_folder_in_a_bucket_is_no_sample_and_no_archive(tmp_path, s3):
    s3.create_bucket("marks")
    store = open_store("s3://marks", **s3.options)
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.add(make(tmp_path / "data", ["b.bin"]) / "b.bin", "b.bin")
    files = {"set/v1.0/a.bin": b"a", "set/empty.bin": b"", "shards/0.tar": (tmp_path / "0.tar").read_bytes()}
    for name, data in files.items():
        store.put(name, data)
    mark(s3, "marks/set/", "marks/set/v1.0/", "marks/shards/", "marks/nothing/")
    options = {"storage_options": s3.options}
    index = built("s3://marks/set", tmp_path, **options)
    assert index.columns == ["index", "bin", "bin__length"]
    assert [row["index"] for row in rows(index)] == ["empty", "v1.0/a"]
    assert [row["index"] for row in rows(built("s3://marks/shards", tmp_path, **options))] == ["b"]
    with pytest.raises(ObjectMissing, match="holds no files"):
        built("s3://marks/nothing", tmp_path, **options)


def test_objects_with_odd_names_are_what_they_are(s3, tmp_path):
    s3.create_bucket("odd-names")
    store = open_store("s3://odd-names/in", **s3.options)
    names = ["a b/ü.txt", "#1?x=2%20.txt", "deep/er/1.txt", ".hidden/2.txt"]
    for name in names:
        store.put(name, name.encode())
    index = built("s3://odd-names/in/", tmp_path, storage_options=s3.options)
    assert index.keys.to_pylist() == ["#1?x=2%20", "a b/ü", "deep/er/1"]
    found = [store.get(location) for location in index.column("txt").to_pylist()]
    assert found == [b"#1?x=2%20.txt", "a b/ü.txt".encode(), b"deep/er/1.txt"]


# ─── several files


def test_files_of_a_glob_are_read_in_order_and_need_not_have_the_same_columns(tmp_path):
    table(tmp_path / "in" / "b" / "1.parquet", ["k1"], size=[1.5], only=["here"])
    (tmp_path / "in" / "a").mkdir()
    (tmp_path / "in" / "a" / "2.csv").write_text("size,index\n2,k2\n3,k3\n")
    make(tmp_path / "in", ["a/.3.csv", "note.md"])
    index = built(f"{tmp_path}/in/**/*.[cp]*", tmp_path)
    assert index.base == str(tmp_path / "in")
    assert index.columns == ["size", "index", "only"]
    assert rows(index) == [
        {"size": 2.0, "index": "k2", "only": None},
        {"size": 3.0, "index": "k3", "only": None},
        {"size": 1.5, "index": "k1", "only": "here"},
    ]


def test_many_files_are_joined_whatever_guess_of_types_the_first_rows_allow(tmp_path):
    (tmp_path / "in").mkdir()
    for number in range(20):
        value = "word" if number == 13 else number
        (tmp_path / "in" / f"{number:02}.csv").write_text(f"index,x\nk{number:02},{value}\n")
    assert [row["x"] for row in rows(built(f"{tmp_path}/in/*.csv", tmp_path))] == [
        "word" if number == 13 else str(number) for number in range(20)
    ]


def test_what_is_not_needed_of_several_files_is_not_read_on(tmp_path):
    for number in range(8):
        rows_of = [f"k{number}-{row}" for row in range(300_000)]
        table(tmp_path / "in" / f"{number}.parquet", rows_of, other=rows_of)
    assert len(built(f"{tmp_path}/in/*.parquet", tmp_path, max_size=10)) == 10
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("penstock-index")]


def test_a_broken_file_among_several_is_named(tmp_path):
    for number in range(6):
        table(tmp_path / "in" / f"{number}.parquet", [f"k{number}"])
    (tmp_path / "in" / "4.parquet").write_bytes(b"no parquet at all")
    with pytest.raises(BadBlock, match=r"4\.parquet cannot be read as Parquet"):
        built(f"{tmp_path}/in/*.parquet", tmp_path)


def test_lists_name_files_below_themselves_anywhere_else_or_by_url(web, tmp_path):
    table(tmp_path / "in" / "a" / "1.parquet", ["k1"])
    table(tmp_path / "elsewhere" / "2.parquet", ["k2"])
    web.add_files({"3.csv": b"index\nk3\n"})
    listed = tmp_path / "in" / "split_file_texts.txt"
    listed.write_text(f"a/1.parquet\n\n  {tmp_path}/elsewhere/2.parquet  \r\n{web.url}/3.csv\n")
    assert built(listed, tmp_path).keys.to_pylist() == ["k1", "k2", "k3"]
    assert built(tmp_path / "in", tmp_path).keys.to_pylist() == ["k1", "k2", "k3"]
    listed.write_text("\n")
    with pytest.raises(ConfigError, match="is empty: it must list index files"):
        built(listed, tmp_path)
    listed.write_text("a/1.parquet\na/none.parquet\n")
    with pytest.raises(ObjectMissing, match=r"a/none\.parquet does not exist"):
        built(listed, tmp_path)
    listed.write_text("other.txt\n")
    with pytest.raises(ConfigError, match=r"lists 'other\.txt', another list"):
        built(listed, tmp_path)
    listed.write_text("http://h/other.txt?sig=SECRET\n")
    with pytest.raises(ConfigError, match=r"lists 'http://h/other\.txt', another list"):
        built(listed, tmp_path)


def test_braces_name_what_a_web_server_can_not_list(web, tmp_path):
    web.add_files({f"part {number:03}.csv": f"index\nk{number}\n".encode() for number in range(8, 12)})
    index = built(f"{web.url}/part%20{{008..011}}.csv", tmp_path)
    assert index.keys.to_pylist() == ["k8", "k9", "k10", "k11"]
    with pytest.raises(ObjectMissing, match=r"part 012\.csv does not exist"):
        built(f"{web.url}/part%20{{008..012}}.csv", tmp_path)


def test_what_many_writers_wrote_as_one_table_is_one(tmp_path):
    folder = tmp_path / "x.parquet"
    table(folder / "part-0.parquet", ["a"])
    table(folder / "part-1.parquet", ["b"])
    make(folder, ["_SUCCESS", ".part-0.parquet.crc"])
    assert built(folder, tmp_path).keys.to_pylist() == ["a", "b"]


def test_a_table_that_is_not_in_its_bucket_does_not_exist(tmp_path, s3):
    s3.create_bucket("typos")
    open_store("s3://typos", **s3.options).put("index.parquet", b"x")
    for name in ("indx.parquet", "shards/x.jsonl", "folder"):
        with pytest.raises(ObjectMissing, match=f"s3://typos/{name} does not exist, neither as an object nor"):
            build_index(f"s3://typos/{name}", folder=tmp_path / "dst", storage_options=s3.options)


def test_nothing_there_is_said(tmp_path, s3):
    s3.create_bucket("nothing-there")
    for src in (
        tmp_path / "none.csv",
        tmp_path / "none",
        f"{tmp_path}/*.csv",
        tmp_path / "x.tar",
        tmp_path / "x.sqlite",
    ):
        with pytest.raises(ObjectMissing):
            built(src, tmp_path)
    for name in ("x.csv", "x.tar", "folder", "*.csv", "x.db#t"):
        with pytest.raises(ObjectMissing):
            built(f"s3://nothing-there/{name}", tmp_path, storage_options=s3.options)
    make(tmp_path, ["picture.jpg"])
    with pytest.raises(ConfigError, match=r"cannot tell what is in .*picture\.jpg"):
        built(tmp_path / "picture.jpg", tmp_path)


# ─── databases


def database(path, *statements):
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    return connection


def test_values_of_sqlite_have_the_type_that_holds_all_of_a_column(tmp_path):
    database(
        tmp_path / "x.db",
        'CREATE TABLE t ("index", i, r, mixed, b, none, "we""ird")',
        "INSERT INTO t VALUES ('a', 1, 1, 1, x'00ff', NULL, 'x')",
        "INSERT INTO t VALUES ('b', NULL, 2.5, 'two', 'text', NULL, 'y')",
    ).close()
    index = built(tmp_path / "x.db", tmp_path)
    assert index.schema.types == [
        pa.string(),
        pa.int64(),
        pa.float64(),
        pa.string(),
        pa.binary(),
        pa.string(),
        pa.string(),
    ]
    assert rows(index) == [
        {"index": "a", "i": 1, "r": 1.0, "mixed": "1", "b": b"\x00\xff", "none": None, 'we"ird': "x"},
        {"index": "b", "i": None, "r": 2.5, "mixed": "two", "b": b"text", "none": None, 'we"ird': "y"},
    ]


def test_a_database_with_several_tables_is_asked_for_one_of_them(tmp_path):
    path = tmp_path / "x.sqlite"
    database(
        path,
        'CREATE TABLE one ("index" TEXT PRIMARY KEY) WITHOUT ROWID',
        'CREATE TABLE two ("index" TEXT)',
        "INSERT INTO one VALUES ('b'), ('a')",
        "INSERT INTO two VALUES ('d'), ('c')",
        "CREATE VIEW both AS SELECT * FROM one UNION ALL SELECT * FROM two",
    ).close()
    assert built(f"{path}#one", tmp_path).keys.to_pylist() == ["a", "b"]
    assert built(f"{path}#two", tmp_path).keys.to_pylist() == ["d", "c"]
    assert built(f"{path}#both", tmp_path).keys.to_pylist() == ["a", "b", "d", "c"]
    with pytest.raises(
        ConfigError, match=r"has 2 tables: say which as .*x\.sqlite#NAME; there are 'both', 'one', 'two'"
    ):
        built(path, tmp_path)
    with pytest.raises(ConfigError, match="no table 'three'; its tables are 'both', 'one', 'two'"):
        built(f"{path}#three", tmp_path)
    path.write_bytes(b"SQLite format 3\0" + b"damaged" * 100)
    with pytest.raises(BadBlock, match="cannot be read as an SQLite database"):
        built(path, tmp_path)


def test_rows_that_are_written_but_not_merged_are_seen_and_make_another_index(tmp_path):
    writer = database(
        tmp_path / "x.db", "PRAGMA journal_mode=WAL", 'CREATE TABLE t ("index" TEXT)', "INSERT INTO t VALUES ('a')"
    )
    assert built(tmp_path / "x.db", tmp_path).keys.to_pylist() == ["a"]
    writer.execute("INSERT INTO t VALUES ('b')")
    writer.commit()
    assert built(tmp_path / "x.db", tmp_path).keys.to_pylist() == ["a", "b"]
    writer.close()


def test_duckdb_files_are_told_by_name_or_content(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    for name in ("x.duckdb", "x.db"):
        with duckdb.connect(str(tmp_path / name)) as made:
            made.execute("CREATE TABLE t AS SELECT 'k' || range AS index, range AS n FROM range(3)")
            made.execute('CREATE TABLE "other one" (index TEXT)')
        assert rows(built(f"{tmp_path / name}#t", tmp_path))[2] == {"index": "k2", "n": 2}
        with pytest.raises(ConfigError, match="has 2 tables: say which"):
            built(tmp_path / name, tmp_path)
        with pytest.raises(ConfigError, match="no table 'u'; its tables are 'other one', 't'"):
            built(f"{tmp_path / name}#u", tmp_path)


# ─── data providers


class Provider:
    def __init__(self, count, make=lambda number: {"index": f"k{number}", "n": number}):
        self.count, self.make, self.asked = count, make, []

    def __len__(self):
        return self.count

    def rows(self, start, stop):
        self.asked.append((start, stop))
        return [self.make(number) for number in range(start, stop)]


def test_a_provider_is_asked_for_all_of_its_rows_once(tmp_path):
    provider = Provider(40_000)
    index = built(provider, tmp_path)
    assert rows(index)[39_999] == {"index": "k39999", "n": 39_999}
    assert provider.asked == [(0, 16_384), (16_384, 32_768), (32_768, 40_000)]


@pytest.mark.parametrize(
    "given",
    [
        [{"index": "a", "n": None}, {"index": "b", "n": 1, "extra": "e"}],
        iter([{"index": "a"}, {"index": "b", "n": 1, "extra": "e"}]),
        pa.table({"index": ["a", "b"], "n": [None, 1], "extra": [None, "e"]}),
        [pa.table({"index": ["a"]}), pa.record_batch({"index": ["b"], "n": [1], "extra": ["e"]})],
    ],
)
def test_a_function_may_give_rows_in_any_form(given, tmp_path):
    index = built(lambda: given, tmp_path)
    assert rows(index) == [{"index": "a", "n": None, "extra": None}, {"index": "b", "n": 1, "extra": "e"}]


def test_an_index_of_a_provider_is_used_again_while_its_rows_or_its_fingerprint_are_the_same(tmp_path):
    built(Provider(10), tmp_path)
    made = {path.stat().st_ino for path in (tmp_path / "node").rglob("*.arrow")}
    built(Provider(10), tmp_path)
    assert {path.stat().st_ino for path in (tmp_path / "node").rglob("*.arrow")} == made
    assert rows(built(Provider(10, lambda number: {"index": f"k{number}", "n": -number}), tmp_path))[3]["n"] == -3
    said = Provider(10)
    said.fingerprint = "version 1"
    built(said, tmp_path)
    again = Provider(10)
    again.fingerprint = "version 1"
    assert len(built(again, tmp_path)) == 10
    assert again.asked == []


def test_providers_that_give_something_else_are_told_what_they_must_give(tmp_path):
    short = Provider(5)
    short.rows = lambda start, stop: [{"index": "a"}]
    with pytest.raises(FormatError, match=r"has 5 rows and gives 1 for rows\(0, 5\)"):
        built(short, tmp_path)
    with pytest.raises(FormatError, match="gives str as a row: it must be a mapping"):
        built(lambda: ["a", "b"], tmp_path)
    with pytest.raises(FormatError, match="gives no rows"):
        built(lambda: iter(()), tmp_path)
    with pytest.raises(FormatError, match="gives int: it must give rows"):
        built(lambda: 3, tmp_path)
    with pytest.raises(FormatError, match="values of column 'n' have no type in common"):
        built(lambda: [{"index": "a", "n": 1}, {"index": "b", "n": "two"}], tmp_path)
    with pytest.raises(ConfigError, match=r"src must be a path, a URL, a list of these, a function.*got int"):
        built(3, tmp_path)
    with pytest.raises(ZeroDivisionError):
        built(lambda: [{"index": 1 // 0}], tmp_path)


def test_samples_with_dots_in_their_names_are_warned_of(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(40):
        (tmp_path / "data" / f"photo.{number:03}.jpg").write_bytes(b"x")
        (tmp_path / "data" / f"other-{number}.jpg").write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=r"'photo' of .*data has 40 files that end in \.jpg, such as photo\.0\d\d\.jpg"
    ):
        index = build_index(tmp_path / "data", folder=tmp_path / "node")
    assert len(index) == 41


@pytest.mark.parametrize("ending", ["csv", "jsonl", "csv.gz"])
def test_a_small_remote_table_costs_one_request(web, tmp_path, ending):
    rows = b"index,size\na,1\nb,2.5\n" if "csv" in ending else b'{"index":"a","size":1}\n{"index":"b","size":2.5}\n'
    web.add_files({f"rows.{ending}": gzip.compress(rows) if ending.endswith("gz") else rows})
    index = build_index(f"{web.url}/rows.{ending}", folder=tmp_path)
    assert index.rows([0, 1]) == [{"index": "a", "size": 1.0}, {"index": "b", "size": 2.5}]
    assert [line["method"] for line in web.requests("rows")] == ["GET"]


def test_a_remote_parquet_costs_a_request_for_its_end_and_one_for_its_rows(web, tmp_path):
    for name, count in (("small", 50), ("large", 5_000)):
        heavy = [np.random.default_rng(row).bytes(100) for row in range(count)]
        pq.write_table(pa.table({"index": pa.array(range(count)), "x": heavy}), tmp_path / "rows.parquet")
        web.add_files({f"{name}.parquet": (tmp_path / "rows.parquet").read_bytes()})
        assert len(build_index(f"{web.url}/{name}.parquet", folder=tmp_path / "node")) == count
    assert len(web.requests("small")) == 1
    assert [line["method"] for line in web.requests("large")] == ["GET", "GET"]


def test_a_remote_table_without_a_byte_is_a_table_without_columns(web, tmp_path):
    web.add_files({"empty.csv": b""})
    with pytest.raises(ConfigError, match=r"empty\.csv is empty"):
        build_index(f"{web.url}/empty.csv", folder=tmp_path / "node")


def test_many_remote_tables_that_do_not_fit_in_memory_together_are_read_as_they_are_needed(web, tmp_path):
    part = b"index,text\n" + b"".join(b"%06d,%s\n" % (row, b"x" * 90) for row in range(7_500))
    names = [f"{number:02}.csv" for number in range(24)]
    web.add_files({name: part.replace(b"\n0", b"\n%02d" % number) for number, name in enumerate(names)})
    index = build_index([f"{web.url}/{name}" for name in names], folder=tmp_path)
    assert len(index) == 24 * 7_500
    assert len(web.requests("00.csv")) > 2
