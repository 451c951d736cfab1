"""A hundred samples are the same samples, whatever their index is made of and wherever it lies."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import tarfile
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

from penstock.index.build import build_index
from penstock.store.store import open_store

COUNT = 100
KEYS = [f"part {number % 3}/ü{number:03}" for number in range(COUNT)]
FILES = {f"{key}.{ending}": f"{ending} of {key}".encode() for key in KEYS for ending in ("jpg", "txt")}
# One sample has no text.
del FILES[f"{KEYS[7]}.txt"]
ROWS = [
    {"index": key, **{ending: name if (name := f"{key}.{ending}") in FILES else None for ending in ("jpg", "txt")}}
    for key in sorted(KEYS)
]
TABLES = ["csv", "tsv", "json", "jsonl", "csv.gz", "jsonl.zst", "parquet", "arrow", "sqlite", "duckdb"]
SEVERAL = ["glob", "braces", "list", "paths"]
ARCHIVES = ["tar", "tars"]


def csv_of(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, list(ROWS[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet_of(rows):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=30)
    return sink.getvalue().to_pybytes()


def arrow_of(rows):
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist(rows)
    with ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=30)
    return sink.getvalue().to_pybytes()


def jsonl_of(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def compressed(data, kind):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, kind) as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def sqlite_of(rows, path):
    connection = sqlite3.connect(path)
    connection.execute('CREATE TABLE samples ("index" TEXT, jpg TEXT, txt TEXT)')
    connection.executemany("INSERT INTO samples VALUES (:index, :jpg, :txt)", rows)
    connection.commit()
    connection.close()
    return path.read_bytes()


def duckdb_of(rows, path):
    duckdb = pytest.importorskip("duckdb")
    with duckdb.connect(str(path)) as database:
        database.register("given", pa.Table.from_pylist(rows))
        database.execute("CREATE TABLE samples AS SELECT * FROM given")
    return path.read_bytes()


def tar_of(rows):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for row in rows:
            for name in (row["jpg"], row["txt"]):
                if name is not None:
                    member = tarfile.TarInfo(name)
                    member.size = len(FILES[name])
                    archive.addfile(member, io.BytesIO(FILES[name]))
    return data.getvalue()


def objects_of(kind, scratch):
    """The objects that a source of some kind is made of, and what names it."""
    half = COUNT // 2
    one = {
        "csv": lambda: csv_of(ROWS),
        "tsv": lambda: csv_of(ROWS, "\t"),
        "json": lambda: json.dumps(ROWS).encode(),
        "jsonl": lambda: jsonl_of(ROWS),
        "csv.gz": lambda: compressed(csv_of(ROWS), "gzip"),
        "jsonl.zst": lambda: compressed(jsonl_of(ROWS), "zstd"),
        "parquet": lambda: parquet_of(ROWS),
        "arrow": lambda: arrow_of(ROWS),
        "sqlite": lambda: sqlite_of(ROWS, scratch / "made.sqlite"),
        "duckdb": lambda: duckdb_of(ROWS, scratch / "made.duckdb"),
    }
    if kind in one:
        return {f"index.{kind}": one[kind]()}, f"index.{kind}"
    parts = {"p-0.csv": csv_of(ROWS[:half]), "p-1.parquet": parquet_of(ROWS[half:])}
    several = {
        "glob": (parts, "p-*"),
        "braces": ({"p-08.csv": csv_of(ROWS[:half]), "p-09.csv": csv_of(ROWS[half:])}, "p-{08..09}.csv"),
        "list": ({**parts, "split_file_paths.txt": b"\xef\xbb\xbfp-0.csv\r\n\np-1.parquet\n"}, "split_file_paths.txt"),
        "paths": (parts, ["p-0.csv", "p-1.parquet"]),
        "tar": ({"all.tar": tar_of(ROWS)}, "all.tar"),
        "tars": ({"s/0.tar": tar_of(ROWS[:half]), "s/1.tar": tar_of(ROWS[half:])}, "s"),
    }
    return several[kind]


class Place:
    """Where objects are put, once each."""

    def __init__(self, kind, base, options, write):
        self.kind, self.base, self.options, self._write = kind, base, options, write
        self._there = set()

    def put(self, objects):
        self._write({name: data for name, data in objects.items() if name not in self._there})
        self._there |= objects.keys()


@pytest.fixture(scope="module", params=["local", "s3", "http", "nginx", "hub"])
def place(request, tmp_path_factory):
    kind = request.param
    if kind == "s3":
        s3 = request.getfixturevalue("s3")
        s3.create_bucket("same-samples")
        store = open_store("s3://same-samples/in", **s3.options)
        yield Place(kind, store.url, s3.options, lambda objects: [store.put(*item) for item in objects.items()])
        return
    if kind == "hub":
        from servers.hub_process import Hub, hub_environment

        folder = tmp_path_factory.mktemp("hub")
        hub, everything = Hub(folder), {}

        def commit(objects):
            everything.update(below_in(objects))
            hub.add_dataset("org/name", everything)

        with pytest.MonkeyPatch.context() as patch:
            for name, value in hub_environment(hub.url, folder / "home").items():
                patch.setenv(name, value)
            yield Place(kind, "hf://org/name/in", {}, commit)
        hub.kill()
        return
    folder = tmp_path_factory.mktemp("files")

    def write(objects):
        for name, data in objects.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)

    if kind == "local":
        yield Place(kind, str(folder), {}, write)
        return
    if kind == "nginx":
        from servers.nginx import Nginx, program

        if program() is None:
            pytest.skip("needs nginx: apt-get install nginx-light")
        nginx = Nginx(tmp_path_factory.mktemp("nginx"))
        yield Place(kind, f"{nginx.url}/in", {}, lambda objects: nginx.add_files(below_in(objects)))
        nginx.stop()
        return
    from servers.http_process import Web

    web = Web(tmp_path_factory.mktemp("web"))
    yield Place(kind, web.url, {}, web.add_files)
    web.kill()


def below_in(objects):
    return {f"in/{name}": data for name, data in objects.items()}


def contents(index, column, options):
    """Read what each row of a column names."""
    store, rows = open_store(index.base, **options), index.rows(range(len(index)))

    def read(row):
        location, start, length = (row.get(column + ending) for ending in ("", "__offset", "__length"))
        if location is None:
            return None
        location = unquote(location) if index.base.startswith("http") else location
        data = store.get(location) if start is None else store.get_range(location, start, start + length)
        assert length in (None, len(data))
        return data

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(read, rows))


def indexed(place, objects, named, folder):
    place.put(objects)
    src = [f"{place.base}/{name}" for name in named] if isinstance(named, list) else f"{place.base}/{named}"
    return build_index(src, folder=folder, columns=("jpg", "txt"), storage_options=place.options)


@pytest.mark.parametrize("kind", [*TABLES, *SEVERAL])
def test_the_same_hundred_samples_by_every_table(kind, place, tmp_path):
    if place.kind == "http" and kind == "glob":
        pytest.skip("this web server has no listing")
    objects, named = objects_of(kind, tmp_path)
    index = indexed(place, {f"{kind}/{name}": data for name, data in objects.items()}, below(kind, named), tmp_path)
    assert index.rows(range(COUNT)) == ROWS
    assert len(index) == COUNT
    assert unquote(index.base) == f"{place.base}/{kind}"


@pytest.mark.parametrize("kind", ["csv", "folder", *ARCHIVES])
def test_the_same_hundred_files_by_table_folder_and_archive(kind, place, tmp_path):
    if place.kind == "http" and kind in ("folder", "tars"):
        pytest.skip("this web server has no listing")
    objects, named = {"folder": ({f"f/{name}": data for name, data in FILES.items()}, "f")}.get(kind) or objects_of(
        kind, tmp_path
    )
    if kind == "csv":
        objects |= FILES
    index = indexed(place, objects, named, tmp_path)
    assert index.keys.to_pylist() == sorted(KEYS)
    for column in ("jpg", "txt"):
        assert contents(index, column, place.options) == [FILES.get(f"{key}.{column}") for key in sorted(KEYS)]


def below(folder, names):
    return [f"{folder}/{name}" for name in names] if isinstance(names, list) else f"{folder}/{names}"
