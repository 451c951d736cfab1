"""Ordinary mistakes and mishaps with a StreamingDataset: each is told as what it is."""

from __future__ import annotations

from pathlib import Path

import pytest

import streaming_subjects as subjects
from penstock import ConfigError, SampleError, StreamingDataLoader, StreamingDataset


@pytest.fixture
def site(web):
    web.add_files(subjects.served(40))
    return f"{web.url}/samples.csv"


def fail(sample):
    raise ValueError("no good")


def read_as_it_is(sample):
    return {"data": Path(sample["image"]).read_bytes()}


@pytest.mark.parametrize("asked", [slice(0, 2), "s001", 1.5, True])
def test_a_sample_is_asked_for_by_its_number(site, tmp_path, asked):
    with StreamingDataset(site, tmp_path) as dataset, pytest.raises(TypeError, match="by its number"):
        dataset[asked]


def test_one_column_alone_is_told_how_to_be_written(site, tmp_path):
    with pytest.raises(ConfigError, match=r"write \['image'\]"):
        StreamingDataset(site, tmp_path, columns_to_download="image")


def test_a_transform_that_fails_is_told_with_key_and_location(site, tmp_path):
    options = {"columns_to_download": ["image"], "transforms": fail}
    with StreamingDataset(site, tmp_path, on_error="skip", **options) as dataset:
        with pytest.raises(SampleError, match=r"sample 3 \('s003', http://.*/images/003.bin\) .*no good"):
            dataset[3]
        loader = StreamingDataLoader(dataset, 4, on_error="skip", num_workers=0)
        with pytest.raises(SampleError, match="no good"):
            next(iter(loader))
    with (
        StreamingDataset(site, tmp_path, **options) as dataset,
        StreamingDataLoader(dataset, 4) as loader,
        pytest.raises(SampleError, match=r"sample 0 \('s000', http://.*/images/000.bin\) .*no good"),
    ):
        next(iter(loader))


def test_the_list_of_failures_says_where_each_sample_came_from(site, tmp_path):
    options = {"columns_to_download": ["image"], "transforms": subjects.odd_only, "on_error": "skip"}
    with StreamingDataset(site, tmp_path, **options) as dataset:
        with StreamingDataLoader(dataset, 4) as loader:
            assert sum(len(batch["index"]) for batch in loader) == 20
        places = [entry["locations"] for entry in dataset.quarantine.entries()]
        assert len(places) == 20
        assert all(len(one) == 1 and one[0].startswith("http://") for one in places)


def test_a_forgotten_column_is_asked_about(site, tmp_path):
    with (
        StreamingDataset(site, tmp_path, transforms=read_as_it_is) as dataset,
        pytest.raises(SampleError, match=r"did you forget columns_to_download=\['image'\]"),
    ):
        dataset[0]


def test_a_cache_amid_the_samples_or_on_a_file_is_refused(tmp_path):
    (tmp_path / "pics").mkdir()
    (tmp_path / "pics" / "a.jpg").write_bytes(b"jpg")
    with pytest.raises(ConfigError, match="lies in the folder of samples"):
        StreamingDataset(tmp_path / "pics", tmp_path / "pics" / "cache")
    for place in ("a.jpg", "a.jpg/below"):
        with pytest.raises(ConfigError, match=r"a\.jpg is a file"):
            StreamingDataset(tmp_path / "pics", tmp_path / "pics" / place)
    assert not (tmp_path / "pics" / "cache").exists()


def test_an_outage_is_not_called_bad_data(web, site, tmp_path):
    options = {"columns_to_download": ["image"], "on_error": "skip", "num_downloading_retries": 0}
    with StreamingDataset(site, tmp_path, **options) as dataset:
        web.kill()
        with StreamingDataLoader(dataset, 4) as loader, pytest.raises(SampleError, match="can't be reached"):
            next(iter(loader))


def test_a_folder_that_is_a_url_is_refused_without_its_secrets(site):
    with pytest.raises(ConfigError, match="dst must be a folder of this machine") as caught:
        StreamingDataset(site, "s3://me:hunter2@bucket/x?sig=SECRET")
    assert "SECRET" not in str(caught.value)
    assert "hunter2" not in str(caught.value)
