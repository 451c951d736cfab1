"""The order of a StreamingDataset, its state, and what becomes of samples that fail."""

from __future__ import annotations

import json
from contextlib import closing
from itertools import islice

import pytest

import streaming_subjects as subjects
from penstock import ConfigError, LoaderClosed, SampleError, StateMismatch, StreamingDataLoader, StreamingDataset, World
from penstock.testing import (
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_resume,
    check_state_size,
)
from streaming_subjects import COUNT, content, key, numbers

BROKEN = (3, 17, 40, 41, 77, 99, 102)


@pytest.fixture
def open_dataset(web, tmp_path):
    """Open the dataset of 103 samples behind a server."""
    web.add_files(subjects.served())
    opened = []

    def open_one(**options):
        options = {"columns_to_download": ["image"], "cache_limit": None, **options}
        opened.append(StreamingDataset(f"{web.url}/samples.csv", tmp_path / "dst", **options))
        return opened[-1]

    yield open_one
    for dataset in opened:
        dataset.close()


@pytest.fixture
def break_some(web):
    for number in BROKEN:
        (web.folder / f"images/{number:03}.bin").unlink()


@pytest.fixture
def loaders(open_dataset):
    """Make loaders of a dataset shuffled by the seed 5, each of its own dataset."""
    return lambda batch_size=8, **options: StreamingDataLoader(open_dataset(shuffle_seed=5), batch_size, **options)


def keys(samples):
    return [sample["index"] for sample in samples]


def test_fetch_is_row_pure(open_dataset):
    check_fetch(open_dataset())


@pytest.mark.slow
def test_the_order_is_that_of_the_plan_in_every_lane(open_dataset):
    check_lanes(open_dataset(), batch_size=8, shuffle=True, seed=5)


def test_every_rank_reads_its_part_once(loaders):
    check_epoch_is_permutation(lambda world: loaders(world=world), COUNT)


def test_a_loader_resumes_exactly(loaders):
    check_resume(loaders, at=(0, 1, 5, 13))


def test_a_loader_resumes_on_other_worlds(loaders):
    check_elastic(lambda world, size: loaders(size, world=world), COUNT, resumed_on=(1, 3))


def test_a_loader_leaves_nothing_behind(open_dataset):
    dataset = open_dataset(shuffle_seed=5)
    check_close(lambda: StreamingDataLoader(dataset, 8))


def test_no_seed_is_the_order_of_the_index_and_a_seed_another_every_epoch(open_dataset):
    plain, shuffled = open_dataset(), open_dataset(shuffle_seed=5)
    assert keys(plain) == keys(plain) == [key(n) for n in range(COUNT)]
    first, second = keys(shuffled), keys(shuffled)
    assert sorted(first) == sorted(second) == keys(plain)
    assert first != second
    assert keys(open_dataset(shuffle_seed=5)) == first
    assert keys(open_dataset(shuffle_seed=6)) != first


def test_one_by_one_and_in_batches_are_one_order_with_one_cursor(open_dataset):
    expected = keys(open_dataset(shuffle_seed=5))
    dataset = open_dataset(shuffle_seed=5)
    found = keys(islice(dataset, 40))
    found += next(dataset.iter_batches(10))["index"]
    found += next(dataset.iter_batches(7, drop_last=True))["index"]
    found += keys(islice(dataset, 3))
    found += [one for batch in dataset.iter_batches(10) for one in batch["index"]]
    assert found == expected


@pytest.mark.parametrize("at", [0, 1, 31, 32, 40, 102, 103])
def test_a_state_continues_after_the_last_sample_handed_out(open_dataset, at):
    whole = open_dataset(shuffle_seed=5)
    expected = keys(whole) + keys(whole)
    dataset = open_dataset(shuffle_seed=5)
    stream = iter(dataset)
    assert keys(islice(stream, at)) == expected[:at]
    state = json.loads(json.dumps(dataset.state_dict()))
    assert (state["epoch"], state["sample_in_epoch"]) == (0, at)
    for resumed in (open_dataset(shuffle_seed=5, num_downloading_workers=1), dataset):
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        # A state taken behind the last sample belongs to that epoch still.
        rest = keys(resumed) if at < COUNT else []
        assert rest == expected[at:COUNT]


def test_stopped_at_40_of_103_the_rest_is_read_by_three_ranks(open_dataset):
    dataset = open_dataset(shuffle_seed=5)
    first = keys(islice(dataset, 40))
    state = {**dataset.state_dict()}
    state["samples"] = state.pop("sample_in_epoch")
    rest = []
    for rank in range(3):
        world = World(dp_rank=rank, dp_size=3)
        with StreamingDataLoader(open_dataset(shuffle_seed=5), 4, world=world) as loader:
            loader.load_state_dict(state)
            for batch in loader:
                rest += batch["index"][: len(batch["index"]) - loader.batch_info.repeats]
    assert sorted(first + rest) == [key(n) for n in range(COUNT)]


def test_ranks_share_an_unbatched_epoch_and_any_of_them_saves_for_all(open_dataset, monkeypatch):
    def ranks(size):
        monkeypatch.setenv("WORLD_SIZE", str(size))
        for rank in range(size):
            monkeypatch.setenv("RANK", str(rank))
            yield open_dataset(shuffle_seed=5)

    expected = keys(open_dataset(shuffle_seed=5))
    first, states = [], []
    for dataset in ranks(2):
        first.append(keys(islice(dataset, 20)))
        states.append(dataset.state_dict())
    assert [one for pair in zip(*first, strict=True) for one in pair] == expected[:40]
    assert states[0] == states[1]
    rest = []
    for dataset in ranks(3):
        dataset.load_state_dict(states[0])
        rest += keys(dataset)
    assert sorted(rest) == sorted(expected[40:])


def test_a_state_is_small_and_refused_by_other_data(open_dataset):
    dataset = open_dataset(shuffle_seed=5)
    check_state_size(dataset)
    state = dataset.state_dict()
    with pytest.raises(StateMismatch, match="seed is 5 in the state, 6 here"):
        open_dataset(shuffle_seed=6).load_state_dict(state)
    with pytest.raises(StateMismatch, match="num_samples is 103 in the state, 50 here"):
        open_dataset(shuffle_seed=5, max_size=50).load_state_dict(state)
    with pytest.raises(StateMismatch, match="no loader state"):
        dataset.load_state_dict({"epoch": 0, "samples": 4})


def test_a_dataset_and_its_loader_read_each_others_states(open_dataset):
    dataset = open_dataset(shuffle_seed=5)
    expected = keys(dataset)
    given = keys(islice(iter(open_dataset(shuffle_seed=5)), 40))
    assert given == expected[:40]
    other = open_dataset(shuffle_seed=5)
    stream = iter(other)
    for _ in range(40):
        next(stream)
    with StreamingDataLoader(open_dataset(shuffle_seed=5), 8, num_workers=0) as loader:
        loader.load_state_dict(other.state_dict())
        assert loader.state_dict()["samples"] == 40
        batch = next(iter(loader))
        assert batch["__sample_key__"] == expected[40:48]
        dataset.load_state_dict(loader.state_dict())
    assert dataset.state_dict()["sample_in_epoch"] == 48
    assert keys(dataset) == expected[48:]


def test_a_second_iterator_takes_over_from_the_first(open_dataset):
    dataset = open_dataset()
    first, second = iter(dataset), iter(dataset)
    assert keys([next(first), next(second)]) == [key(0), key(1)]
    with pytest.raises(LoaderClosed, match="overtaken"):
        next(first)
    assert keys(second) == [key(n) for n in range(2, COUNT)]


def test_seven_broken_of_103_are_skipped_and_listed(open_dataset, break_some):
    dataset = open_dataset(on_error="skip", shuffle_seed=5)
    assert sorted(numbers(dataset)) == [n for n in range(COUNT) if n not in BROKEN]
    assert dataset.stats.skipped == {"ObjectMissing": 7}
    listed = dataset.quarantine.entries()
    assert sorted(entry["id"] for entry in listed) == list(BROKEN)
    assert sorted(entry["key"] for entry in listed) == [key(n) for n in BROKEN]
    assert all(entry["reason"] == "ObjectMissing" and entry["stage"] == "fetch" for entry in listed)
    assert all(f"images/{entry['id']:03}.bin" in entry["message"] for entry in listed)


@pytest.mark.parametrize("lane", ["thread", "process"])
def test_ranks_stay_in_step_whatever_is_skipped(open_dataset, break_some, lane):
    read, steps = [], []
    for rank in range(2):
        dataset = open_dataset(on_error="skip", shuffle_seed=5)
        world = World(dp_rank=rank, dp_size=2)
        with StreamingDataLoader(dataset, 8, world=world, worker_type=lane, num_workers=3) as loader:
            batches = [batch["index"] for batch in loader]
        read += [one for batch in batches for one in batch]
        steps.append(len(batches))
    assert sorted(read) == [key(n) for n in range(COUNT) if n not in BROKEN]
    assert steps[0] == steps[1]
    assert sorted(entry["id"] for entry in dataset.quarantine.entries()) == list(BROKEN)


def test_broken_samples_are_substituted_the_same_way_every_time(open_dataset, break_some):
    found = numbers(open_dataset(on_error="substitute", shuffle_seed=5))
    assert len(found) == COUNT
    assert not set(found) & set(BROKEN)
    dataset = open_dataset(on_error="substitute", shuffle_seed=5)
    assert numbers(dataset) == found
    assert {entry["substitute"] for entry in dataset.quarantine.entries()} <= set(found)


def test_where_everything_is_broken_an_error_says_so(open_dataset, web):
    for number in range(COUNT):
        (web.folder / f"images/{number:03}.bin").unlink()
    with pytest.raises(SampleError, match="Too few are left"):
        list(open_dataset(on_error="skip"))


def test_what_fails_to_decode_is_fetched_once_more(open_dataset, web):
    web.fault(path="images/007", wrong=30)
    dataset = open_dataset(transforms=subjects.decode)
    assert [sample["number"] for sample in dataset] == list(range(COUNT))
    assert len(web.requests("images/007")) == 2


def test_what_fails_to_decode_is_fetched_once_more_by_hand_too(open_dataset, web):
    web.fault(path="images/007", wrong=30)
    assert open_dataset(transforms=subjects.decode)[7]["number"] == 7
    assert len(web.requests("images/007")) == 2


def test_what_fails_to_decode_twice_is_quarantined(open_dataset, web):
    web.fault(path="images/007", wrong=30, times=9)
    dataset = open_dataset(transforms=subjects.decode, on_error="skip")
    assert [sample["number"] for sample in dataset] == [n for n in range(COUNT) if n != 7]
    (entry,) = dataset.quarantine.entries()
    assert (entry["key"], entry["stage"], entry["reason"]) == (key(7), "transform", "ValueError")
    assert len(web.requests("images/007")) == 2


def test_an_object_that_is_not_there_is_asked_for_once(open_dataset, break_some, web):
    list(open_dataset(on_error="skip"))
    for number in BROKEN:
        assert [line["method"] for line in web.requests(f"images/{number:03}") if line["method"] == "GET"] == ["GET"]


def test_faults_that_pass_do_no_harm(open_dataset, web):
    web.fault(path="images/00[0-4]", status=503, times=5)
    web.fault(path="images/01[0-4]", truncate=20, times=5)
    web.fault(path="images/02[0-4]", reset=20, times=5)
    web.fault(path="images/03[0-4]", status=429, headers={"Retry-After": "0"}, times=5)
    dataset = open_dataset()
    for number, sample in enumerate(dataset):
        with open(sample["image"], "rb") as file:
            assert file.read() == content(number)


def test_a_loader_that_contradicts_its_dataset_is_refused(open_dataset):
    with pytest.raises(ConfigError, match="seed=4 contradicts"):
        StreamingDataLoader(open_dataset(shuffle_seed=5), seed=4)
    with pytest.raises(ConfigError, match="on_error='raise' contradicts"):
        StreamingDataLoader(open_dataset(on_error="skip"), on_error="raise")
    with closing(StreamingDataLoader(open_dataset(), on_error="skip", shuffle=True, seed=4)) as loader:
        assert len(loader) == COUNT
