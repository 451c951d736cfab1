"""StreamingDataset: samples described by a table, their files fetched when they are asked for."""

from __future__ import annotations

import gc
import io
import os
import pickle
import shutil
import sqlite3
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

import streaming_subjects as subjects
from penstock import LoaderClosed, SampleError, StreamingDataLoader, StreamingDataset, build_index, open_store
from penstock.datasets.streaming_fetch import CacheDoor, CacheSettings
from penstock.testing import Footprint
from streaming_subjects import COUNT, content, key, numbers, rows

IMAGE = {"columns_to_download": ["image"]}
ADDED = {"__sample_key__", "__data_type__"}
KINDS = {"bin": content, "txt": lambda number: b"a text" if number % 2 else b"", "none": lambda number: b"unused" * 900}


@pytest.fixture
def site(web):
    web.add_files(subjects.served())
    return web


@pytest.fixture
def dataset(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path / "dst", **IMAGE) as opened:
        yield opened


def test_a_sample_is_its_row_with_a_local_path_in_the_place_of_its_location(dataset, tmp_path):
    assert len(dataset) == COUNT
    sample = dataset[7]
    assert sample == {**rows()[7], "image": sample["image"], "__sample_key__": key(7), "__data_type__": None}
    assert Path(sample["image"]).read_bytes() == content(7)
    assert Path(sample["image"]).is_relative_to(tmp_path / "dst")
    assert dataset[-1]["__sample_key__"] == key(COUNT - 1)
    assert repr(dataset).endswith(f"samples.csv': {COUNT} samples)")


@pytest.mark.parametrize("index", [COUNT, -COUNT - 1, 10**12])
def test_there_is_no_sample_out_of_range(dataset, index):
    with pytest.raises(IndexError, match=f"from 0 to {COUNT - 1}"):
        dataset[index]


def test_its_kind_of_data_goes_into_each_sample(site, tmp_path):
    for kind in ("image", "video_latent"):
        with StreamingDataset(f"{site.url}/samples.csv", tmp_path, data_type=kind) as dataset:
            assert dataset[0]["__data_type__"] == kind


@pytest.mark.parametrize("nothing", [None, []])
def test_metadata_alone_downloads_nothing_but_the_index(site, tmp_path, nothing):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path / "dst", columns_to_download=nothing) as dataset:
        assert [sample["image"] for sample in dataset] == [row["image"] for row in rows()]
    assert site.requests("images/") == []


def test_an_object_is_downloaded_once_whoever_asks(dataset, site):
    paths = {sample["image"]: Path(sample["image"]).read_bytes() for sample in dataset}
    assert sorted(paths.values()) == sorted(map(content, range(COUNT)))
    for sample in dataset.iter_batches(8):
        assert set(sample["image"]) <= set(paths)
    assert Path(dataset[5]["image"]).read_bytes() == content(5)
    counts = Counter(line["path"] for line in site.requests("images/"))
    assert counts == dict.fromkeys(counts, 1)
    assert len(counts) == COUNT


def test_what_is_evicted_between_two_epochs_is_fetched_again(dataset, site):
    for batch in (*dataset.iter_batches(8), *dataset.iter_batches(8)):
        assert [key(number) for number in numbers({"image": path} for path in batch["image"])] == batch[
            "__sample_key__"
        ]
    del batch
    assert len(site.requests("images/")) == COUNT
    dataset.cache.clear()
    assert len([sample for sample in dataset if os.path.isfile(sample["image"])]) == COUNT
    assert len(site.requests("images/")) == 2 * COUNT


def test_a_second_epoch_gives_the_same_samples_as_the_first(web, tmp_path):
    web.add_files({f"{number}.{kind}": f"{kind} {number}".encode() for number in range(6) for kind in ("a", "b")})
    table = "index,a,b,x\n" + "".join(f"{n},{n}.a,{n % 4}.b,{n}\n" for n in range(6))
    web.add_files({"rows.csv": table.encode()})
    options = {"columns_to_download": ["a", "b"], "index_cols_to_keep": ["x", "b"]}
    with StreamingDataset(f"{web.url}/rows.csv", tmp_path, **options) as dataset:
        first, second, third = ([list(sample.items()) for sample in dataset] for _ in range(3))
        assert first == second == third
        assert [Path(dict(sample)["b"]).read_text() for sample in second] == [f"b {n % 4}" for n in range(6)]


@pytest.mark.parametrize("name", ["__data_type__", "__sample_key__"])
def test_a_column_that_is_left_out_takes_no_field_of_its_name_along(web, tmp_path, name):
    web.add_files({f"{number}.bin": b"x" for number in range(4)})
    web.add_files({"rows.csv": (f"index,bin,{name}\n" + "".join(f"k{n},{n}.bin,old\n" for n in range(4))).encode()})
    index = build_index(f"{web.url}/rows.csv", folder=tmp_path / "index")
    options = {"columns_to_download": ["bin"], "index_cols_to_keep": ["index", "bin"], "data_type": "image"}
    with StreamingDataset(index, tmp_path / "dst", **options) as dataset:
        for _ in range(4):
            samples = list(dataset)
            assert [sample["__sample_key__"] for sample in samples] == [f"k{n}" for n in range(4)]
            assert [sample["__data_type__"] for sample in samples] == ["image"] * 4
            assert list(samples[0]) == ["index", "bin", "__sample_key__", "__data_type__"]


@pytest.mark.parametrize("downloaded", [["index"], ["index", "x"]])
def test_a_column_that_is_the_key_and_a_location_too_is_both_in_every_epoch(web, tmp_path, downloaded):
    web.add_files({f"{number}.bin": f"file {number}".encode() for number in range(8)})
    web.add_files({"rows.csv": ("index,x\n" + "".join(f"{n}.bin,{n}.bin\n" for n in range(8))).encode()})
    with StreamingDataset(f"{web.url}/rows.csv", tmp_path, columns_to_download=downloaded) as dataset:
        for _ in range(3):
            samples = list(dataset)
            assert [sample["__sample_key__"] for sample in samples] == [f"{n}.bin" for n in range(8)]
            assert [Path(sample["index"]).read_text() for sample in samples] == [f"file {n}" for n in range(8)]


def test_what_another_process_removes_between_epochs_is_fetched_again_by_a_loader(site, tmp_path):
    """From the second epoch on neither hints nor samples are looked up: until something goes, whoever removes it."""
    remove = "import sys; from penstock.store.cache import open_cache; open_cache(sys.argv[1], None).clear()"
    with (
        StreamingDataset(f"{site.url}/samples.csv", tmp_path, transforms=subjects.read_image, **IMAGE) as dataset,
        StreamingDataLoader(dataset, 8, collate_fn=list, drop_last=False) as loader,
    ):
        for epoch in range(6):
            samples = [sample for batch in loader for sample in batch]
            assert sorted(sample["image"] for sample in samples) == sorted(map(content, range(COUNT)))
            del samples
            if epoch == 3:
                loader.close()
                # What was let go of is shown to others about once a second, or when this is asked.
                dataset.cache.stats()
                subprocess.run([sys.executable, "-c", remove, dataset.cache.folder], check=True)
        requests = Counter(line["path"] for line in site.requests("images/"))
    assert set(requests.values()) == {2}


@pytest.mark.parametrize("forked", [False, True])
def test_a_dataset_made_anew_after_its_folder_was_deleted_begins_anew(site, tmp_path, forked):
    """As in a notebook, where the dataset of a cell that ran before is still there, and has had workers maybe."""
    source, folder = f"{site.url}/samples.csv", tmp_path / "dst"
    with StreamingDataset(source, folder, **IMAGE) as before:
        assert numbers(before[number] for number in range(40)) == list(range(40))
        shutil.rmtree(folder)
        if forked:
            child = os.fork()
            if not child:
                os._exit(0)
            os.waitpid(child, 0)
        with StreamingDataset(source, folder, **IMAGE) as after:
            assert numbers(after) == list(range(COUNT))
            with pytest.raises(SampleError, match=r"was deleted or replaced while it was in use.*close the datasets"):
                before[COUNT - 1]
            before.close()
            assert numbers(before) == numbers(after) == list(range(COUNT))
    assert len(site.requests("images/")) == 40 + COUNT


def test_local_files_are_used_where_they_lie(tmp_path):
    folder = subjects.write(tmp_path / "data", subjects.served())
    with StreamingDataset(folder / "samples.csv", tmp_path / "dst", cache_limit=0, **IMAGE) as dataset:
        samples = list(dataset)
        assert {str(sample["image"]) for sample in samples} == {str(folder / row["image"]) for row in rows()}
        for number in range(COUNT):
            assert dataset.discard(number) is False
        dataset.cache.clear()
    del samples
    gc.collect()
    assert all((folder / row["image"]).read_bytes() == content(number) for number, row in enumerate(rows()))


def test_what_is_missing_is_none(site, tmp_path):
    table = [{**row, "image": None if n % 2 else row["image"], "caption": ""} for n, row in enumerate(rows(10))]
    site.add_files({"some.csv": subjects.as_csv(table)})
    with StreamingDataset(
        f"{site.url}/some.csv", tmp_path, columns_to_download=["image", "depth"], allow_missing_columns=True
    ) as dataset:
        assert dataset[1]["image"] is None
        assert dataset[1]["depth"] is None
        assert Path(dataset[2]["image"]).read_bytes() == content(2)
        (batch,) = dataset.iter_batches(10)
        assert batch["image"][1] is batch["depth"][0] is None
        assert batch["width"].tolist() == [row["width"] for row in rows(10)]


def test_several_columns_and_parts_of_objects_are_downloaded(web, tmp_path):
    names = [f"{number:03}" for number in range(20)]
    # Longer than what is read along between two parts to save a request.
    parts = [content(number) * 10 for number in range(20)]
    shard = b"".join(parts)
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    table = [
        {"index": name, "shard": "all.bin", "start": starts[n], "size": len(parts[n]), "text": f"{name}.txt"}
        for n, name in enumerate(names)
    ]
    files = {f"{name}.txt": name.encode() for name in names}
    web.add_files({"all.bin": shard, "samples.csv": subjects.as_csv(table), **files})
    part = {"column": "shard", "offset": "start", "length": "size", "name": "image"}
    with StreamingDataset(
        f"{web.url}/samples.csv", tmp_path, columns_to_download=[part, "text"], shuffle_seed=1
    ) as dataset:
        for sample in dataset:
            number = int(sample["index"])
            assert Path(sample["image"]).read_bytes() == parts[number]
            assert Path(sample["text"]).read_text() == names[number]
            assert sample.keys() == {"index", "shard", "text", "image", "__sample_key__", "__data_type__"}
    assert web.bytes_sent("all.bin") <= 1.02 * len(shard)


def test_only_the_columns_to_keep_are_in_a_sample(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, index_cols_to_keep=["caption"], **IMAGE) as dataset:
        assert dataset[3].keys() == {"index", "caption", "image", "__sample_key__", "__data_type__"}


def test_an_index_is_selected_by_sql_and_cut_by_size(site, tmp_path):
    query = "SELECT * FROM dataframe WHERE width % 2 = 0 ORDER BY width DESC"
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, sql_query=query, max_size=10, **IMAGE) as dataset:
        assert numbers(dataset) == list(range(102, 82, -2))


def test_transforms_run_in_turn_and_fan_out(site, tmp_path):
    transforms = [subjects.read_image, subjects.twice]
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, transforms=transforms, **IMAGE) as dataset:
        first = dataset[3]
        assert [(one["image"], one["half"]) for one in first] == [(content(3), 0), (content(3), 1)]
        assert len(dataset) == COUNT
        batches = list(dataset.iter_batches(8))
        assert [len(batch["half"]) for batch in batches] == [16] * 12 + [14]
        assert [one["half"] for one in dataset] == [0, 1] * COUNT


def test_a_list_of_one_is_a_list(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, transforms=lambda sample: [sample]) as dataset:
        assert [one["__sample_key__"] for one in dataset[3]] == [key(3)]


def test_a_transform_may_leave_samples_out(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, transforms=subjects.odd_only) as dataset:
        assert dataset[2] is None
        assert dataset[3]["index"] == key(3)
        assert [sample["index"] for sample in dataset] == [key(n) for n in range(1, COUNT, 2)]
        assert dataset.stats.skipped == {"filtered": 52}


def test_the_numbers_that_transforms_draw_depend_on_sample_and_epoch_only(site, tmp_path):
    def read(**options):
        with StreamingDataset(
            f"{site.url}/samples.csv", tmp_path, transforms=subjects.jitter, shuffle_seed=4, **options
        ) as dataset:
            epochs = [{sample["index"]: sample["draw"] for sample in dataset} for _ in range(2)]
            return epochs, {key(n): dataset[n]["draw"] for n in range(COUNT)}

    epochs, by_hand = read()
    assert (epochs, by_hand) == read(num_downloading_workers=1, prefetch=1)
    assert epochs[0] == by_hand
    assert not set(epochs[0].values()) & set(epochs[1].values())


def test_predownload_transforms_choose_what_is_fetched(site, tmp_path):
    def other_image(row):
        return {**row, "image": f"images/{COUNT - 1 - int(row['index'][1:]):03}.bin"}

    chosen = [subjects.odd_only, other_image]
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, predownload_transforms=chosen, **IMAGE) as dataset:
        assert numbers(dataset) == list(range(101, 0, -2))
        assert dataset[0] is None
        assert numbers([dataset[1]]) == [101]
    assert len(site.requests("images/")) == 51


def test_predownload_transforms_draw_anew_every_epoch(site, tmp_path):
    with StreamingDataset(
        f"{site.url}/samples.csv", tmp_path, predownload_transforms=subjects.pick_caption, shuffle_seed=0
    ) as dataset:
        epochs = [{sample["index"]: sample["caption"] for sample in dataset} for _ in range(2)]
        assert epochs[0] != epochs[1]
        assert epochs[0] == {key(n): dataset[n]["caption"] for n in range(COUNT)}
        dataset.set_epoch(1)
        assert epochs[1] == {sample["index"]: sample["caption"] for sample in dataset}


def test_a_path_stays_while_somebody_holds_it(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, cache_limit=0, **IMAGE) as dataset:
        held = dataset[0]
        for sample in dataset:
            assert Path(sample["image"]).exists()
        assert Path(held["image"]).read_bytes() == content(0)
        del held, sample
        gc.collect()
        deadline = time.monotonic() + 30
        while list((tmp_path / "cache").rglob("*.bin")):
            assert time.monotonic() < deadline, "what nobody holds is kept"
            time.sleep(0.01)


def test_datasets_share_one_folder_and_use_it_at_once(site, tmp_path):
    options = {**IMAGE, "cache_limit": None}
    with (
        StreamingDataset(f"{site.url}/samples.csv", tmp_path, shuffle_seed=1, **options) as one,
        StreamingDataset(f"{site.url}/samples.csv", tmp_path, shuffle_seed=2, **options) as other,
    ):
        found = [(numbers([a]), numbers([b])) for a, b in zip(one, other, strict=True)]
        assert sorted(a for a, _ in found) == sorted(b for _, b in found) == [[n] for n in range(COUNT)]
    assert len(site.requests("images/")) == COUNT


def test_random_access_beside_iteration_disturbs_neither(dataset):
    read = []
    for place, sample in enumerate(dataset):
        read += numbers([sample])
        assert numbers([dataset[(place * 7) % COUNT]]) == [(place * 7) % COUNT]
    assert read == list(range(COUNT))


def test_torch_loads_it_as_any_map_style_dataset(dataset):
    loader = torch.utils.data.DataLoader(dataset, batch_size=10, collate_fn=numbers)
    assert [number for batch in loader for number in batch] == list(range(COUNT))


def test_an_iteration_without_end_goes_through_the_epochs(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, shuffle_seed=1, infinite_iteration=True) as dataset:
        endless = iter(dataset)
        epochs = [[next(endless)["index"] for _ in range(COUNT)] for _ in range(3)]
        assert all(sorted(epoch) == [key(n) for n in range(COUNT)] for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_copy_for_another_process_is_whole_and_shows_no_secret(site, tmp_path):
    options = {"headers": {"Authorization": "Bearer hunter2"}}
    with (
        StreamingDataset(f"{site.url}/samples.csv?sig=hunter3", tmp_path, storage_options=options, **IMAGE) as dataset,
        pickle.loads(pickle.dumps(dataset)) as copy,
    ):
        assert copy.fingerprint == dataset.fingerprint
        assert numbers([copy[5]]) == [5]
        for shown in (repr(dataset), repr(copy), str(vars(copy))):
            assert "hunter" not in shown
    assert {line["auth"] for line in site.requests()} == {True}


def test_closing_leaves_nothing_behind_and_is_not_the_end(dataset):
    next(iter(dataset))
    dataset.close()
    before = Footprint.now()
    stream = iter(dataset)
    assert numbers([next(stream), next(stream)]) == [1, 2]
    stream.close()
    dataset.close()
    gc.collect()
    assert before.leftovers() == []


def test_closing_it_under_a_loader_at_work_loses_no_sample(site, tmp_path):
    site.fault(path="images/", delay_s=0.01, times=1000)
    options = {**IMAGE, "on_error": "skip", "num_downloading_workers": 4}
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path / "dst", **options) as dataset:
        with StreamingDataLoader(dataset, 4, collate_fn=list) as loader:
            keys: list[str] = []
            while len(keys) < COUNT:
                with suppress(LoaderClosed):
                    for number, batch in enumerate(loader):
                        keys += [sample["__sample_key__"] for sample in batch]
                        if number % 3 == 1:
                            dataset.close()
        assert keys == [key(number) for number in range(COUNT)]
        assert loader.stats.skipped == {}


def test_hints_without_an_order_are_all_followed(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path / "dst", **IMAGE, cache_limit=None) as dataset:
        dataset.prefetch(np.arange(COUNT))
        wanted = {row["image"] for row in rows() if row["image"]}
        deadline = time.monotonic() + 20
        while dataset.cache.stats().files < len(wanted) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert dataset.cache.stats().files == len(wanted)


def test_closing_takes_no_longer_with_a_server_that_is_silent(site, tmp_path):
    site.fault(path="images/", stall=5, times=1000)
    dataset = StreamingDataset(f"{site.url}/samples.csv", tmp_path, **IMAGE)
    dataset.prefetch(np.arange(64))
    begun = time.monotonic()
    dataset.close()
    assert time.monotonic() - begun < 10


def test_a_table_of_sqlite_is_an_index_too(tmp_path):
    folder = subjects.write(tmp_path / "data", subjects.images(10))
    with closing(sqlite3.connect(folder / "samples.db")) as database, database:
        database.execute('CREATE TABLE cats ("index" TEXT, image TEXT)')
        database.executemany("INSERT INTO cats VALUES (?, ?)", [(row["index"], row["image"]) for row in rows(10)])
    with StreamingDataset(f"{folder / 'samples.db'}#cats", tmp_path / "dst", **IMAGE) as dataset:
        assert numbers(dataset) == list(range(10))


def test_a_folder_is_an_index_of_its_files(tmp_path):
    files = {
        f"{n:03}.{kind}": content(n) for n in range(10) for kind in ("bin", "txt", "more.json") if n or kind != "txt"
    }
    folder = subjects.write(tmp_path / "data", files)
    with StreamingDataset(folder, tmp_path / "dst", columns_to_download=["bin", "txt", "more.json"]) as dataset:
        assert [sample["index"] for sample in dataset] == [f"{n:03}" for n in range(10)]
        assert dataset[0]["txt"] is None
        assert Path(dataset[3]["more.json"]) == folder / "003.more.json"
        assert dataset[3].keys() == {"index", "bin", "txt", "more.json", "__sample_key__", "__data_type__"}


def write_tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.mark.parametrize("place", ["remote", "local"])
def test_each_member_of_an_archive_is_one_ranged_read(web, tmp_path, place):
    for shard in range(2):
        members = {
            f"{n:03}.{kind}": data(n) for n in range(10 * shard, 10 * shard + 10) for kind, data in KINDS.items()
        }
        write_tar(web.folder / f"shard-{shard}.tar", members)
    folder = web.url if place == "remote" else web.folder
    options = {"columns_to_download": ["bin", "txt"], "shuffle_seed": 3}
    with StreamingDataset(f"{folder}/shard-{{0..1}}.tar", tmp_path / "dst", **options) as dataset:
        web.forget()
        for sample in dataset:
            number = int(sample["index"])
            assert Path(sample["bin"]).read_bytes() == content(number)
            assert Path(sample["txt"]).read_bytes() == KINDS["txt"](number)
            assert sample.keys() == {"index", "bin", "txt", "none", "none__offset", "none__length"} | ADDED
    used = sum(len(data(n)) for kind, data in KINDS.items() for n in range(20) if kind != "none")
    assert web.bytes_sent("tar") <= (1.02 * used + 20 * 1024 if place == "remote" else 0)


def test_the_members_of_a_sample_are_one_request(web, tmp_path):
    kinds = {"jpg": 6000, "txt": 70, "json": 300}
    for shard in range(4):
        names = [f"{n:03}.{kind}" for n in range(50 * shard, 50 * shard + 50) for kind in kinds]
        write_tar(web.folder / f"{shard}.tar", {name: name.encode() * kinds[name[4:]] for name in names})
    options = {"columns_to_download": list(kinds), "shuffle_seed": 3, "cache_limit": None}
    with StreamingDataset(f"{web.url}/{{0..3}}.tar", tmp_path / "dst", **options) as dataset:
        web.forget()
        for batch in StreamingDataLoader(dataset, batch_size=8):
            for kind, size in kinds.items():
                for key_, path in zip(batch["index"], batch[kind], strict=True):
                    assert Path(path).read_bytes() == f"{key_}.{kind}".encode() * size
        assert len(web.requests("tar")) <= 200


@pytest.mark.parametrize("place", ["remote", "local"])
def test_a_member_of_an_archive_keeps_its_extension_as_a_file_does(web, tmp_path, place):
    write_tar(web.folder / "x.tar", dict.fromkeys(["0.jpg", "0.boxes.json", "0.a b"], b"content"))
    folder = web.url if place == "remote" else web.folder
    columns = ["jpg", "boxes.json", "a b"]
    with StreamingDataset(f"{folder}/x.tar", tmp_path / "dst", columns_to_download=columns) as dataset:
        sample = dataset[0]
        assert [Path(sample[name]).suffix for name in columns] == [".jpg", ".json", ""]
        assert {Path(sample[name]).read_bytes() for name in columns} == {b"content"}


def test_of_an_archive_only_the_columns_to_keep_are_in_a_sample(tmp_path):
    write_tar(tmp_path / "x.tar", {f"{n}.{kind}": data(n) for n in range(3) for kind, data in KINDS.items()})
    options = {"columns_to_download": ["bin"], "index_cols_to_keep": ["txt"]}
    with StreamingDataset(tmp_path / "x.tar", tmp_path / "dst", **options) as dataset:
        assert dataset[1].keys() == {"index", "bin", "txt"} | ADDED
        assert Path(dataset[2]["bin"]).read_bytes() == content(2)


def test_a_lazy_index_is_read_part_by_part(web, tmp_path):
    table = pa.Table.from_pylist(rows())
    pq.write_table(table, web.folder / "samples.parquet", row_group_size=10)
    web.add_files(subjects.images())
    options = {**IMAGE, "lazy_index_chunk_size": 20, "cache_limit": None}
    with StreamingDataset(f"{web.url}/samples.parquet", tmp_path, shuffle_seed=2, **options) as dataset:
        assert len(dataset) == COUNT
        assert dataset.block_ends.tolist() == [20, 40, 60, 80, 100, 103]
        first, second = numbers(dataset), numbers(dataset)
        assert sorted(first) == sorted(second) == list(range(COUNT))
        assert first != second
    with StreamingDataset(f"{web.url}/samples.parquet", tmp_path, **options) as dataset:
        assert numbers(dataset) == list(range(COUNT))
        assert numbers([dataset[-1]]) == [COUNT - 1]


def test_a_local_index_names_objects_of_a_store_with_options(s3, tmp_path):
    s3.create_bucket("beside")
    store = open_store("s3://beside", **s3.options)
    table = [{**row, "image": f"s3://beside/{row['image']}"} for row in rows(5)]
    for name, data in subjects.images(5).items():
        store.put(name, data)
    store.put("samples.csv", subjects.as_csv(table))
    (tmp_path / "samples.csv").write_bytes(subjects.as_csv(table))
    (tmp_path / "split_file_paths.txt").write_text("s3://beside/samples.csv\n")
    for name in ("samples.csv", "split_file_paths.txt"):
        with StreamingDataset(tmp_path / name, tmp_path / "dst", storage_options=s3.options, **IMAGE) as dataset:
            assert numbers(dataset) == list(range(5))


def test_a_list_of_tables_is_one_dataset(site, tmp_path):
    site.add_files({"a.csv": subjects.as_csv(rows()[:60]), "b.csv": subjects.as_csv(rows()[60:])})
    with StreamingDataset([f"{site.url}/a.csv", f"{site.url}/b.csv"], tmp_path, **IMAGE) as dataset:
        assert numbers(dataset) == list(range(COUNT))


def test_a_program_gives_the_rows(site, tmp_path):
    def provide():
        for row in rows():
            yield {**row, "image": f"{site.url}/{row['image']}"}

    with StreamingDataset(provide, tmp_path, **IMAGE) as dataset:
        assert numbers(dataset) == list(range(COUNT))


def test_an_index_may_be_split_first(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path) as whole:
        parts = whole.index.split(0.2, seed=3)
    with StreamingDataset(parts[0], tmp_path, **IMAGE) as train, StreamingDataset(parts[1], tmp_path, **IMAGE) as val:
        assert (len(train), len(val)) == (83, 20)
        assert sorted(numbers(train) + numbers(val)) == list(range(COUNT))
        assert train.fingerprint != val.fingerprint


def test_a_loader_takes_the_settings_of_its_dataset(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, shuffle_seed=3, **IMAGE) as dataset:
        with StreamingDataLoader(dataset, batch_size=8, collate_fn=numbers) as loader:
            found = [number for batch in loader for number in batch]
        assert found == numbers(dataset)
        assert found != list(range(COUNT))


def test_a_failing_sample_names_its_key_and_its_url(dataset, site):
    (site.folder / "images/007.bin").unlink()
    with pytest.raises(SampleError, match=rf"'s007'.*{site.url}/images/007.bin does not exist") as caught:
        dataset[7]
    assert (caught.value.key, caught.value.stage, caught.value.reason) == (7, "fetch", "ObjectMissing")
    with pytest.raises(SampleError, match="s007"):
        list(dataset)
    assert numbers([dataset[8]]) == [8]


@pytest.mark.parametrize("store", ["web", "memory", "s3"])
def test_an_empty_object_is_an_empty_file(request, tmp_path, store):
    files = {"samples.csv": subjects.as_csv([{**rows(1)[0], "image": "empty.bin"}]), "empty.bin": b""}
    options = {}
    if store == "web":
        web = request.getfixturevalue("web")
        web.add_files(files)
        place = web.url
    else:
        place = f"{store}://empty"
        if store == "s3":
            s3 = request.getfixturevalue("s3")
            s3.create_bucket("empty")
            options = s3.options
        for name, data in files.items():
            open_store(place, **options).put(name, data)
    with StreamingDataset(f"{place}/samples.csv", tmp_path / "dst", storage_options=options, **IMAGE) as dataset:
        assert Path(dataset[0]["image"]).read_bytes() == b""


def test_what_is_fetched_ahead_stays_below_the_limit(web, tmp_path):
    count, size, limit = 200, 10_000, 400_000
    web.add_files({f"images/{n:03}.bin": b"%10d" % n * (size // 10) for n in range(count)})
    web.add_files({"samples.csv": subjects.as_csv(rows(count))})
    options = {**IMAGE, "cache_limit": limit, "num_downloading_workers": 1, "prefetch": 1}
    with StreamingDataset(f"{web.url}/samples.csv", tmp_path, **options) as dataset:
        on_disk = []
        for batch in dataset.iter_batches(5):
            assert all(Path(path).stat().st_size == size for path in batch["image"])
            on_disk.append(sum(map(size_of, (tmp_path / "cache").rglob("*.bin"))))
    # In use: the batch in hand, those ready and in the making, and what was removed a moment ago.
    assert max(on_disk) <= limit + 6 * 5 * size
    assert len(web.requests("images/")) == count


@pytest.mark.slow
def test_processes_take_the_credentials_along(site, tmp_path):
    secret = {"headers": {"Authorization": "Bearer hunter2"}}
    options = {**IMAGE, "storage_options": secret, "transforms": subjects.decode}
    with (
        StreamingDataset(f"{site.url}/samples.csv", tmp_path, **options) as dataset,
        StreamingDataLoader(dataset, 8, worker_type="process", num_workers=2) as loader,
    ):
        assert torch.cat([batch["number"] for batch in loader]).tolist() == list(range(COUNT))
    asked = site.requests("images/")
    assert {line["auth"] for line in asked} == {True}
    assert len(asked) == COUNT


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_of_torch_that_are_fresh_processes_can_read_and_forked_ones_are_told(site, tmp_path):
    with StreamingDataset(f"{site.url}/samples.csv", tmp_path, **IMAGE) as dataset:
        options = {"batch_size": 10, "collate_fn": numbers, "num_workers": 2}
        fresh = torch.utils.data.DataLoader(dataset, multiprocessing_context="spawn", **options)
        assert sorted(number for batch in fresh for number in batch) == list(range(COUNT))
        dataset.cache.clear()
        forked = torch.utils.data.DataLoader(dataset, multiprocessing_context="fork", **options)
        with pytest.raises(RuntimeError, match="was forked from one that had read from a store"):
            list(forked)


def size_of(path):
    """The bytes of a file; none of one that was evicted since it was listed."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def test_a_child_forked_while_a_thread_opens_the_cache_opens_its_own(tmp_path):
    door = CacheDoor(CacheSettings(folder=tmp_path / "dst", limit=None, options={}))
    with door._lock:
        child = os.fork()
        if not child:
            right = False
            try:
                right = door._lock.acquire(timeout=5)
                door._lock.release()
                right = right and door.cache.stats().files == 0
            finally:
                os._exit(0 if right else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
