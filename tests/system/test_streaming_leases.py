"""A path in a batch is good until the next batch is asked for, whatever a transform made of it."""

from __future__ import annotations

import gc
import pickle
from pathlib import Path

import pytest

import streaming_subjects as subjects
from penstock import StreamingDataLoader, StreamingDataset

LANES = {
    "inline": {"num_workers": 0},
    "thread": {"num_workers": 3, "worker_type": "thread"},
    "process": {"num_workers": 2, "worker_type": "process"},
}
SIZE = 100_000


@pytest.fixture
def dataset(web, tmp_path):
    web.add_files(subjects.folder_of_files(size=SIZE))
    options = {"columns_to_download": ["file"], "cache_limit": "500kb", "shuffle_seed": 1}
    with StreamingDataset(f"{web.url}/i.csv", tmp_path / "dst", **options) as opened:
        yield opened


def sizes(batch):
    return [path.stat().st_size if path.exists() else 0 for path in batch["name"]]


@pytest.mark.parametrize("lane", LANES.values(), ids=LANES)
def test_a_path_that_a_transform_wrapped_is_there_until_the_next_batch_is_asked_for(dataset, lane):
    with StreamingDataLoader(dataset, 8, transform=subjects.hide_path, **lane) as loader:
        found = [size for batch in loader for size in sizes(batch)]
        assert found == [SIZE] * 120
        # And no longer: what was handed out in an earlier epoch makes room.
        last = [batch["name"] for batch in loader]
        assert not all(path.exists() for names in last[:5] for path in names)


def test_in_an_iteration_sample_by_sample_too(web, tmp_path, dataset):
    options = {"columns_to_download": ["file"], "cache_limit": "500kb", "transforms": subjects.hide_path}
    with StreamingDataset(f"{web.url}/i.csv", tmp_path / "dst", **options) as hiding:
        assert [sample["name"].stat().st_size for sample in hiding] == [SIZE] * 120


def test_a_sample_asked_for_alone_keeps_its_file_for_as_long_as_it_exists(web, tmp_path):
    web.add_files(subjects.folder_of_files(size=SIZE))
    options = {"columns_to_download": ["file"], "cache_limit": "300kb", "transforms": subjects.hide_path}
    with StreamingDataset(f"{web.url}/i.csv", tmp_path / "dst", **options) as dataset:
        kept = [dataset[number] for number in range(20)]
        sent = [pickle.loads(pickle.dumps(sample)) for sample in kept[:10]]
        assert all(sample["name"].stat().st_size == SIZE for sample in kept)
        names = [sample["name"] for sample in kept]
        del kept
        gc.collect()
        for number in range(60, 80):
            dataset[number]
        assert all(Path(sample["name"]).exists() for sample in sent)
        assert not any(name.exists() for name in names[10:])


def test_the_cache_is_back_below_its_limit_once_nothing_is_in_use(dataset):
    with StreamingDataLoader(dataset, 8, num_workers=3) as loader:
        for batch in loader:
            assert len(batch["file"]) == 8
        del batch
    counted = dataset.cache.stats()
    assert counted.pinned == 0
    assert counted.bytes <= counted.limit
