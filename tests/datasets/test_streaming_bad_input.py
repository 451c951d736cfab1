"""What a StreamingDataset is given and cannot use: each is refused by name, and nothing is written elsewhere."""

from __future__ import annotations

import os
import re
import socket
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import streaming_subjects as subjects
from penstock import (
    AccessDenied,
    ConfigError,
    FormatError,
    ObjectMissing,
    SampleError,
    StoreUnavailable,
    StreamingDataset,
    build_index,
    open_store,
)
from streaming_subjects import content, rows

IMAGE = {"columns_to_download": ["image"]}


@pytest.fixture
def table(tmp_path):
    """Write a table of rows beside their files, local."""
    folder = subjects.write(tmp_path / "data", subjects.images(10))

    def write(table):
        (folder / "samples.csv").write_bytes(subjects.as_csv(table))
        return folder / "samples.csv"

    return write


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"data_type": "smell"}, "data_type must be"),
        ({"data_type": 3}, "data_type must be"),
        ({"columns_to_download": "image"}, "columns_to_download must be a list"),
        ({"shuffle_seed": -1}, "shuffle_seed must be"),
        ({"shuffle_seed": True}, "shuffle_seed must be"),
        ({"transforms": "resize"}, "transforms must be"),
        ({"transforms": [3]}, "transforms must be"),
        ({"predownload_transforms": {}}, "predownload_transforms must be"),
        ({"num_downloading_workers": 0}, "num_downloading_workers must be"),
        ({"prefetch": 0}, "prefetch must be"),
        ({"num_downloading_retries": -1}, "num_downloading_retries must be"),
        ({"cache_limit": "100 apples"}, "100 apples"),
        ({"cache_limit": "mb"}, "'mb'"),
        ({"cache_limit": ""}, "''"),
        ({"cache_limit": "-1mb"}, "-1mb"),
        ({"cache_limit": -1}, "-1"),
        ({"cache_limit": 1.5}, "1.5"),
        ({"max_size": 0}, "max_size must be"),
        ({"allow_missing_columns": "image"}, "allow_missing_columns must be"),
        ({"lazy_index_chunk_size": 0}, "lazy_index_chunk_size must be"),
        ({"lazy_index_chunk_size": 4, "lazy_index_num_threads": 0}, "lazy_index_num_threads must be"),
        ({"lazy_index_chunk_size": 4, "lazy_index_prefetch_factor": -1}, "lazy_index_prefetch_factor must be"),
        ({"infinite_iteration": "yes"}, "infinite_iteration must be"),
        ({"on_error": "ignore"}, "on_error must be"),
        ({"storage_options": "secret"}, "storage_options must be"),
        ({"dst": "s3://bucket/x"}, "dst must be a folder"),
    ],
)
def test_a_wrong_option_is_refused_by_name(table, tmp_path, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        StreamingDataset(table(rows(10)), **{"dst": tmp_path / "dst", **options})


@pytest.mark.parametrize("src", [None, 7, b"samples.csv", [], [None], {"a.csv"}])
def test_what_describes_no_samples_is_refused(src, tmp_path):
    with pytest.raises(ConfigError, match="src must be"):
        StreamingDataset(src, tmp_path)


def test_an_index_that_is_not_there_says_where_it_was_looked_for(tmp_path, web):
    with pytest.raises(ObjectMissing, match=r"none\.csv"):
        StreamingDataset(tmp_path / "none.csv", tmp_path / "dst")
    with pytest.raises(ObjectMissing, match=f"{web.url}/none.csv"):
        StreamingDataset(f"{web.url}/none.csv", tmp_path / "dst")


def test_an_index_without_the_column_of_keys_says_which_it_has(table, tmp_path):
    with pytest.raises(ConfigError, match=r"no column 'key'.*index_col_name.*'index', 'image'"):
        StreamingDataset(table(rows(10)), tmp_path / "dst", index_col_name="key")


def test_a_key_that_is_there_twice_is_named_with_its_rows(table, tmp_path):
    doubled = rows(10)
    doubled[7]["index"] = doubled[2]["index"]
    with pytest.raises(FormatError, match=r"'s002' \(rows 2 and 7\)"):
        StreamingDataset(table(doubled), tmp_path / "dst")


@pytest.mark.parametrize("key", ["../../escaped", "/escaped", "a/../../../escaped", "..", "~/escaped"])
def test_a_key_is_a_name_and_never_a_path(web, tmp_path, key):
    web.add_files({**subjects.images(3), "samples.csv": subjects.as_csv([{**rows(3)[0], "index": key}, *rows(3)[1:]])})
    before = {path for path in tmp_path.rglob("*") if "web" not in path.parts}
    with StreamingDataset(f"{web.url}/samples.csv", tmp_path / "dst", **IMAGE) as dataset:
        sample = dataset[0]
        assert sample["__sample_key__"] == key
        assert Path(sample["image"]).read_bytes() == content(0)
        written = {path for path in tmp_path.rglob("*") if "web" not in path.parts} - before
        assert all(path.is_relative_to(tmp_path / "dst") for path in written)


@pytest.mark.parametrize("location", ["images/../../../secret", "images/%2e%2e/x", "../" * 20 + "etc/passwd"])
def test_a_location_leads_to_no_other_file_of_this_machine(web, tmp_path, location):
    web.add_files({**subjects.images(3), "samples.csv": subjects.as_csv([{**rows(1)[0], "image": location}])})
    dataset = StreamingDataset(f"{web.url}/samples.csv", tmp_path / "dst", **IMAGE)
    with dataset, pytest.raises(SampleError, match="'s000'"):
        dataset[0]


@pytest.mark.parametrize("location", ["{folder}/000.bin", "file://{folder}/000.bin", "FILE://{folder}/000.bin"])
def test_rows_from_afar_name_files_of_this_machine_only_where_that_is_allowed(web, tmp_path, location):
    folder = subjects.write(tmp_path / "here", {"000.bin": content(0)})
    table = subjects.as_csv([{**rows(1)[0], "image": location.format(folder=folder)}])
    web.add_files({"samples.csv": table})
    url, dst = f"{web.url}/samples.csv", tmp_path / "dst"
    for src in (url, [url]):
        with StreamingDataset(src, dst, **IMAGE) as dataset:
            with pytest.raises(SampleError, match=r"'s000'.*give allow_local_paths=True"):
                dataset[0]
            parts = StreamingDataset(dataset.index, dst, **IMAGE)
        with parts, pytest.raises(SampleError, match="allow_local_paths=True"):
            parts[0]
    with StreamingDataset(url, dst, allow_local_paths=True, **IMAGE) as dataset:
        assert Path(dataset[0]["image"]).read_bytes() == content(0)
    (folder / "samples.csv").write_bytes(table)
    with StreamingDataset(folder / "samples.csv", dst, **IMAGE) as dataset:
        assert Path(dataset[0]["image"]).read_bytes() == content(0)


def test_an_index_from_afar_that_was_saved_here_does_not_lead_back_here(web, tmp_path):
    folder = subjects.write(tmp_path / "here", {"000.bin": content(0)})
    (folder / "samples.csv").write_bytes(subjects.as_csv([{**rows(1)[0], "image": "000.bin"}]))
    with StreamingDataset(folder / "samples.csv", tmp_path / "dst", **IMAGE) as dataset:
        dataset.index.save(tmp_path / "saved.arrow")
    web.add_files({"saved.arrow": (tmp_path / "saved.arrow").read_bytes()})
    dataset = StreamingDataset(f"{web.url}/saved.arrow", tmp_path / "dst", **IMAGE)
    with dataset, pytest.raises(SampleError, match="allow_local_paths=True"):
        dataset[0]


def test_a_blank_around_a_url_is_told_with_key_and_column(web, tmp_path):
    places = [
        f" {web.url}/images/000.bin",
        f"{web.url}/images/001.bin\t",
        f"{web.url}/images/002.bin",
        "images/000.bin ",
    ]
    table = [{**row, "image": place} for row, place in zip(rows(4), places, strict=True)]
    web.add_files({**subjects.images(3), "samples.csv": subjects.as_csv(table)})
    with StreamingDataset(f"{web.url}/samples.csv", tmp_path, on_error="skip", **IMAGE) as dataset:
        for number, said in enumerate(("line break before the URL", "line break behind the URL")):
            with pytest.raises(SampleError, match=f"sample 's00{number}': column 'image' holds .*{said}"):
                dataset[number]
        with pytest.raises(SampleError, match=r"does not exist; there is a blank around '000.bin '") as caught:
            dataset[3]
        assert caught.value.reason == "ObjectMissing"
        assert subjects.numbers(dataset) == [2]


def test_a_folder_marker_is_not_taken_for_the_object_of_its_name(s3, tmp_path):
    s3.create_bucket("marked")
    store = open_store("s3://marked", **s3.options)
    table = [{"index": "marker", "image": "s3://marked/cats/"}, {"index": "object", "image": "s3://marked/cats"}]
    store.put("cats", content(0))
    store.put("samples.csv", subjects.as_csv(table))
    options = {"storage_options": s3.options, "on_error": "skip", **IMAGE}
    with StreamingDataset("s3://marked/samples.csv", tmp_path, **options) as dataset:
        assert subjects.numbers(dataset) == [0]
        with pytest.raises(SampleError, match=r"sample 'marker': column 'image' .* names a folder"):
            dataset[0]


def test_a_location_with_a_nul_fails_its_sample_alone(tmp_path):
    folder = subjects.write(tmp_path / "data", subjects.images(3))
    columns = {"index": ["a", "b\0c", "d"], "image": ["images/000.bin", "images/001.bin", "images/\0.bin"]}
    pq.write_table(pa.table(columns), folder / "samples.parquet")
    with StreamingDataset(folder / "samples.parquet", tmp_path / "dst", on_error="skip", **IMAGE) as dataset:
        assert subjects.numbers(dataset) == [0, 1]
        with pytest.raises(SampleError, match=r"sample 'd': column 'image' holds 'images/\\x00.bin'"):
            dataset[2]


@pytest.mark.parametrize("taken", [["__sample_key__"], ["__data_type__"], ["__data_type__", "__sample_key__"]])
def test_columns_that_would_be_overwritten_are_refused_with_a_query_that_renames_them(table, tmp_path, taken):
    path = table([{**row, **dict.fromkeys(taken, f"mine {row['index']}")} for row in rows(3)])
    parquet = tmp_path / "samples.parquet"
    pq.write_table(pa.table({"index": ["s000"], **{name: ["mine"] for name in taken}}), parquet)
    for src, options in ((parquet, {"lazy_index_chunk_size": 1}), (path, {"index_cols_to_keep": taken}), (path, {})):
        with pytest.raises(ConfigError, match=f"the index has the column {' and '.join(map(repr, taken))}") as caught:
            StreamingDataset(src, tmp_path / "dst", **options)
    query = re.search("sql_query='(.*)'", str(caught.value))[1]
    with StreamingDataset(path, tmp_path / "dst", sql_query=query, data_type="image") as dataset:
        sample = dataset[1]
        assert (sample["__sample_key__"], sample["__data_type__"]) == ("s001", "image")
        assert all(sample[name.strip("_")] == "mine s001" for name in taken)


def test_columns_that_would_be_overwritten_may_be_left_out_or_be_the_keys(table, tmp_path):
    path = table([{**row, "__sample_key__": f"k{row['width']}"} for row in rows(3)])
    index = build_index(path, folder=tmp_path / "dst" / "index")
    with pytest.raises(ConfigError, match="the index has the column '__sample_key__'"):
        StreamingDataset(index, tmp_path / "dst")
    for src in (path, index):
        with StreamingDataset(src, tmp_path / "dst", index_cols_to_keep=["caption"]) as dataset:
            assert dataset[1]["__sample_key__"] == "s001"
    with StreamingDataset(path, tmp_path / "dst", index_col_name="__sample_key__") as dataset:
        assert dataset[1]["__sample_key__"] == "k3"
    with pytest.raises(ConfigError, match="fills '__data_type__', which each sample gets besides"):
        StreamingDataset(
            table(rows(3)), tmp_path / "dst", columns_to_download=[{"column": "image", "name": "__data_type__"}]
        )


def test_missing_columns_are_named_with_those_that_may_be_meant(table, tmp_path):
    with pytest.raises(ConfigError, match=r"no column 'imag'; did you mean 'image'.*allow_missing_columns"):
        StreamingDataset(table(rows(10)), tmp_path / "dst", columns_to_download=["imag"])
    part = {"column": "image", "offset": "start", "length": "width"}
    with pytest.raises(ConfigError, match="no column 'start'"):
        StreamingDataset(table(rows(10)), tmp_path / "dst", columns_to_download=[part])
    with pytest.raises(ConfigError, match="no column 'wide'"):
        StreamingDataset(table(rows(10)), tmp_path / "dst", index_cols_to_keep=["wide"])


def test_columns_to_keep_of_an_index_that_is_there_are_checked_as_those_of_one_that_is_built(table, tmp_path):
    index = build_index(table(rows(10)), folder=tmp_path / "node")
    for src in (index, table(rows(10))):
        with pytest.raises(ConfigError, match=r"no column 'wide'; did you mean 'width'"):
            StreamingDataset(src, tmp_path / "dst", index_cols_to_keep=["wide"])
        with pytest.raises(ConfigError, match=r"index_cols_to_keep must be a list .*write \['width'\]"):
            StreamingDataset(src, tmp_path / "dst", index_cols_to_keep="width")
        with pytest.raises(ConfigError, match="index_cols_to_keep must be names of columns"):
            StreamingDataset(src, tmp_path / "dst", index_cols_to_keep=[7])


@pytest.mark.parametrize(
    ("query", "complaint"),
    [
        ("SELECT * FROM dataframe WHERE widht > 3", r'(?s)"widht" not found.*"width"'),
        ("SELEC * FROM dataframe", "SELEC"),
        ("SELECT * FROM other", "other"),
        ("SELECT caption FROM dataframe", "no column 'index'"),
        ("DROP TABLE dataframe", "DROP"),
    ],
)
def test_wrong_sql_is_shown_with_what_is_wrong_in_it(table, tmp_path, query, complaint):
    with pytest.raises(ConfigError, match=complaint):
        StreamingDataset(table(rows(10)), tmp_path / "dst", sql_query=query)


def test_a_selection_of_nothing_is_refused(table, tmp_path):
    with pytest.raises(ConfigError, match="no rows"):
        StreamingDataset(table(rows(10)), tmp_path / "dst", sql_query="SELECT * FROM dataframe WHERE width > 1000")


def test_sql_reaches_no_file_of_this_machine(table, tmp_path):
    (tmp_path / "secret.csv").write_text("index\nsecret\n")
    with pytest.raises(ConfigError):
        StreamingDataset(
            table(rows(10)), tmp_path / "dst", sql_query=f"SELECT * FROM read_csv('{tmp_path / 'secret.csv'}')"
        )


def test_a_server_that_is_not_there_is_named_after_the_retries(table, tmp_path):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/0.bin"
        options = {"num_downloading_retries": 1, "storage_options": {"timeout_s": 1}}
        with (
            StreamingDataset(
                table([{**row, "image": url} for row in rows(3)]), tmp_path / "dst", **IMAGE, **options
            ) as dataset,
            pytest.raises(SampleError, match=url) as caught,
        ):
            dataset[0]
    assert caught.value.reason == "StoreUnavailable"
    with pytest.raises(StoreUnavailable, match=r"samples\.csv"):
        StreamingDataset(f"{url[:-6]}/samples.csv", tmp_path / "dst", **options)


def test_a_refused_object_is_asked_for_once_and_says_so(web, tmp_path):
    web.add_files(subjects.served(3))
    web.fault(path="images/001", status=403, times=9)
    dataset = StreamingDataset(f"{web.url}/samples.csv", tmp_path / "dst", **IMAGE)
    with dataset, pytest.raises(SampleError, match=f"'s001'.*{web.url}/images/001.bin may not be read") as caught:
        dataset[1]
    assert caught.value.reason == "AccessDenied"
    assert isinstance(caught.value.__cause__.__cause__, AccessDenied)
    assert len([line for line in web.requests("images/001") if line["method"] == "GET"]) == 1


def test_a_wrong_region_says_which_is_right_or_what_to_give(s3, tmp_path):
    s3.create_bucket("regional")
    options = {**s3.options, "region": "moon-1"}
    with pytest.raises((AccessDenied, ObjectMissing, StoreUnavailable, ConfigError), match=r"regional|region"):
        StreamingDataset("s3://regional/samples.csv", tmp_path / "dst", storage_options=options)


def test_expired_credentials_are_asked_for_again_in_the_middle_of_a_run(s3, tmp_path):
    s3.create_bucket("expiring")
    store = open_store("s3://expiring", **s3.options)
    for name, data in subjects.served(20).items():
        store.put(name, data)
    asked = []

    def credentials():
        asked.append(len(asked))
        expires_at = datetime.now(UTC) + timedelta(seconds=1)
        return {"access_key_id": "test", "secret_access_key": "test", "expires_at": expires_at}

    options = {name: value for name, value in s3.options.items() if "key" not in name}
    options["credential_provider"] = credentials
    with StreamingDataset("s3://expiring/samples.csv", tmp_path / "dst", storage_options=options, **IMAGE) as dataset:
        assert subjects.numbers(dataset[n] for n in range(10)) == list(range(10))
        time.sleep(1.1)
        before = len(asked)
        assert subjects.numbers(dataset[n] for n in range(10, 20)) == list(range(10, 20))
        assert len(asked) > before
        assert "credentials" not in repr(dataset)


def test_an_object_that_changed_is_never_mixed_with_what_it_was(web, tmp_path):
    web.add_files(subjects.served(10))
    with StreamingDataset(f"{web.url}/samples.csv", tmp_path / "dst", **IMAGE) as dataset:
        first = [Path(sample["image"]).read_bytes() for sample in dataset]
        web.add_files({f"images/{n:03}.bin": b"changed " * 999 for n in range(10)})
        # What is cached stays what it was; what is not is what it is now.
        dataset.discard(4)
        second = [Path(sample["image"]).read_bytes() for sample in dataset]
    assert first == [content(n) for n in range(10)]
    assert second == [b"changed " * 999 if n == 4 else content(n) for n in range(10)]


def test_a_part_of_an_object_that_changed_its_size_is_refused_by_an_index_that_knows_it(tmp_path, web):
    web.add_files(subjects.served(10))
    table = [{**row, "image__length": len(content(n))} for n, row in enumerate(rows(10))]
    web.add_files({"sized.csv": subjects.as_csv(table), "images/003.bin": b"another"})
    with StreamingDataset(f"{web.url}/sized.csv", tmp_path / "dst", **IMAGE) as dataset:
        assert subjects.numbers([dataset[2]]) == [2]
        with pytest.raises(SampleError, match="'s003'") as caught:
            dataset[3]
    assert caught.value.reason == "ObjectChanged"


def test_an_index_is_made_again_when_its_source_changed(table, tmp_path):
    path = table(rows(10))
    with StreamingDataset(path, tmp_path / "dst") as dataset:
        before = dataset.fingerprint
    table(rows(9))
    os.utime(path, ns=(1, 1))
    with StreamingDataset(path, tmp_path / "dst") as dataset:
        assert len(dataset) == 9
        assert dataset.fingerprint != before
