"""One order and the same contents, however samples are fetched: any workers, any lane, any latency, cold or cached."""

from __future__ import annotations

import time
from collections import Counter

import pytest

import streaming_subjects as subjects
from penstock import StreamingDataLoader, StreamingDataset

LANES = [
    {"num_workers": 0},
    {"num_workers": 1, "worker_type": "thread"},
    {"num_workers": 4, "worker_type": "thread"},
    {"num_workers": 1, "worker_type": "process"},
    {"num_workers": 4, "worker_type": "process"},
]


@pytest.fixture
def open_dataset(web, tmp_path):
    web.add_files(subjects.served())
    opened = []

    def open_(dst="dst", **options):
        options = {
            "columns_to_download": ["image"],
            "shuffle_seed": 7,
            "transforms": [subjects.decode, subjects.jitter],
        }
        opened.append(StreamingDataset(f"{web.url}/samples.csv", tmp_path / dst, **options))
        return opened[-1]

    yield open_
    for dataset in opened:
        dataset.close()


def epoch(dataset, batch=6, **lane):
    """The samples of an epoch with the numbers that were drawn for them."""
    with StreamingDataLoader(dataset, batch, **lane) as loader:
        return [
            (number, draw)
            for made in loader
            for number, draw in zip(made["number"].tolist(), made["draw"].tolist(), strict=True)
        ]


@pytest.mark.slow
def test_the_order_does_not_depend_on_workers_lanes_or_latency(open_dataset, web):
    expected = None
    for place, lane in enumerate(LANES):
        web.latency(0.002 * place, 0.05 if place % 2 else 0.0)
        with open_dataset(f"cold{place}") as dataset:
            found = epoch(dataset, **lane)
        expected = expected or found
        assert found == expected
    assert sorted(number for number, _ in expected) == list(range(subjects.COUNT)) != [n for n, _ in expected]
    # Five caches, each of which was filled by one request an object.
    assert set(Counter(line["path"] for line in web.requests("/images/")).values()) == {len(LANES)}


def test_an_epoch_from_the_cache_asks_the_server_for_nothing(open_dataset, web):
    with open_dataset() as dataset:
        first = epoch(dataset, num_workers=4)
    web.forget()
    with open_dataset() as dataset:
        assert epoch(dataset, num_workers=2) == first
        assert dataset.cache.stats().hits >= subjects.COUNT
    assert not web.requests("/images/")


def test_a_loader_asks_ahead_for_what_comes_and_for_nothing_else(open_dataset, web):
    """All that the first batches need is asked for before the first has been read: latency is paid once."""
    web.latency(0.3)
    with open_dataset() as dataset, StreamingDataLoader(dataset, 4, num_workers=0) as loader:
        batches = iter(loader)
        next(batches)
        deadline = time.monotonic() + 30
        while len(web.requests("/images/", settle=False)) < subjects.COUNT and time.monotonic() < deadline:
            time.sleep(0.05)
        begun = [line["start"] for line in web.requests("/images/")]
    assert len(begun) == subjects.COUNT
    # A batch at a time, the last request would begin 26 latencies after the first.
    assert max(begun) - min(begun) < 26 * 0.3 / 2
