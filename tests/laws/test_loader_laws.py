"""The loader keeps every law of penstock.testing, in every lane."""

from __future__ import annotations

import pytest

import subjects
from penstock import ChunkedDataLoader, StreamingDataLoader, World
from penstock.testing import (
    CountingDataset,
    check_close,
    check_elastic,
    check_epoch_is_permutation,
    check_fetch,
    check_lanes,
    check_order_law,
    check_resume,
    check_rounds,
    check_state_size,
)

LANES = [
    {"num_workers": 0},
    {"num_workers": 2, "worker_type": "thread"},
    {"num_workers": 2, "worker_type": "process"},
]
NAMES = ["inline", "thread", "process"]
ORDERS = [
    {"shuffle": False},
    {"shuffle": True},
    {"shuffle": "window", "window": 2},
    {"shuffle": True, "length_bucket": 3},
]
REMAINDERS = ["short", "drop", "pad", "carry"]


def ids_in(batch):
    return batch["id"].tolist()


@pytest.mark.parametrize(
    "dataset",
    [CountingDataset(50), CountingDataset(50, arrays=False), subjects.Fetching(3), subjects.Blocks([1, 0, 4])],
    ids=["arrays", "samples", "three", "blocks"],
)
def test_fetch_is_row_pure(dataset):
    check_fetch(dataset)


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        (CountingDataset(50), {"shuffle": True}),
        (CountingDataset(30, width=4096), {"shuffle": True, "remainder": "carry"}),
        (subjects.Plain(40), {"shuffle": True, "transform": [subjects.jitter, subjects.as_many_as_id_mod_three]}),
        (subjects.Broken(40, bad=(3, 20, 21)), {"shuffle": True, "on_error": "substitute"}),
        (subjects.Broken(40, bad=(3, 20, 21), arrays=False), {"shuffle": True, "on_error": "skip"}),
    ],
    ids=["arrays", "large arrays", "keyed randomness and fan-out", "substitutes", "holes"],
)
def test_no_lane_changes_a_batch(dataset, options):
    check_lanes(dataset, batch_size=7, prefetch=(1,), epochs=2, **options)


def test_no_prefetch_and_no_number_of_workers_changes_a_batch():
    check_lanes(CountingDataset(40, arrays=False), batch_size=3, shuffle=True, workers=(0, 1, 3), prefetch=(1, 2, 9))


@pytest.mark.parametrize("remainder", REMAINDERS)
@pytest.mark.parametrize("order", ORDERS, ids=["off", "global", "window", "buckets"])
@pytest.mark.parametrize("lane", LANES[:2], ids=NAMES[:2])
def test_resuming_at_any_step_gives_the_rest(lane, order, remainder):
    dataset = subjects.Blocks([5, 0, 9, 1, 4, 4])
    check_resume(lambda: StreamingDataLoader(dataset, 4, seed=3, remainder=remainder, **order, **lane))


def test_resuming_worker_processes_gives_the_rest():
    dataset = subjects.Plain(22)
    options = {"shuffle": True, "transform": subjects.jitter, "num_workers": 1, "worker_type": "process"}
    check_resume(lambda: StreamingDataLoader(dataset, 5, **options), at=(0, 2, 4, 5))


@pytest.mark.parametrize("lane", LANES, ids=NAMES)
def test_an_epoch_is_a_permutation(lane):
    dataset = CountingDataset(23)
    sizes = (1, 2, 3) if lane.get("worker_type") == "process" else (1, 2, 3, 4, 8)
    check_epoch_is_permutation(
        lambda world: StreamingDataLoader(dataset, 2, shuffle=True, world=world, **lane),
        23,
        world_sizes=sizes,
        ids_of=ids_in,
    )


@pytest.mark.parametrize("order", ORDERS, ids=["off", "global", "window", "buckets"])
@pytest.mark.parametrize("remainder", ["short", "pad"])
def test_an_epoch_is_a_permutation_whatever_the_order(order, remainder):
    dataset = subjects.Blocks([5, 0, 9, 1, 4, 4])
    check_epoch_is_permutation(
        lambda world: StreamingDataLoader(dataset, 3, world=world, remainder=remainder, **order), 23, ids_of=ids_in
    )


@pytest.mark.parametrize("remainder", ["short", "pad", "carry"])
@pytest.mark.parametrize("order", ORDERS, ids=["off", "global", "window", "buckets"])
def test_a_state_resumes_on_any_world_with_any_batch_size(order, remainder):
    dataset = subjects.Blocks([5, 0, 9, 11, 4, 4, 20])

    def make(world, batch_size):
        return StreamingDataLoader(dataset, batch_size, seed=5, remainder=remainder, world=world, **order)

    check_elastic(make, 53, ids_of=ids_in)


@pytest.mark.parametrize(
    ("dataset", "options"),
    [
        (CountingDataset(23), {}),
        (subjects.Plain(23), {"remainder": "pad"}),
        (subjects.Broken(23, bad=(3, 20)), {"on_error": "substitute"}),
        (subjects.Broken(23, bad=(3, 20), arrays=False), {"on_error": "skip"}),
    ],
    ids=["arrays", "samples", "substitutes", "holes"],
)
def test_what_is_delivered_is_what_the_dataset_has(dataset, options):
    """Without `ids_of` the checks compare the batches with the samples themselves."""

    def make(world, batch_size=3):
        return StreamingDataLoader(dataset, batch_size, shuffle=True, num_workers=2, world=world, **options)

    check_epoch_is_permutation(make, 23, world_sizes=(1, 2))
    check_elastic(make, 23, saved_on=(2,), resumed_on=(1, 3))


def test_a_state_resumes_worker_processes_on_any_world():
    dataset = CountingDataset(40)

    def make(world, batch_size):
        lane = {"num_workers": 1, "worker_type": "process", "prefetch": 3}
        return StreamingDataLoader(dataset, batch_size, shuffle=True, world=world, **lane)

    check_elastic(make, 40, saved_on=(2,), resumed_on=(1, 3), ids_of=ids_in)


def test_the_same_global_batch_means_the_same_batches_on_any_world():
    """What one rank reads at a step is what several read together at that step."""

    def steps(size):
        ranks = [
            StreamingDataLoader(
                CountingDataset(44), global_batch_size=8, shuffle=True, world=World(dp_rank=rank, dp_size=size)
            )
            for rank in range(size)
        ]
        return [sorted(id_ for batch in batches for id_ in ids_in(batch)) for batches in zip(*ranks, strict=True)]

    assert steps(2) == steps(1)
    assert steps(4) == steps(1)


def test_the_order_law_holds_for_what_changes_speed_only():
    check_order_law(
        lambda **how: StreamingDataLoader(CountingDataset(31), 4, shuffle=True, seed=9, **how),
        [{}, {"timeout": 5.0}, {"pin_memory": True}, {"device": "cpu"}, {"on_error": "skip"}, {"num_workers": 3}],
    )


@pytest.mark.parametrize("order", ORDERS, ids=["off", "global", "window", "buckets"])
def test_a_state_is_small(order):
    loader = StreamingDataLoader(subjects.Blocks([1] * 2000), 4, **order)
    next(iter(loader))
    check_state_size(loader)


@pytest.mark.parametrize("lane", LANES, ids=NAMES)
@pytest.mark.parametrize("width", [4, 8192], ids=["small batches", "large batches"])
def test_close_leaves_nothing(lane, width):
    check_close(lambda: StreamingDataLoader(CountingDataset(64, width=width), 8, **lane))


@pytest.mark.parametrize("remainder", ["carry", "short", "pad"])
@pytest.mark.parametrize("lane", LANES[:2], ids=NAMES[:2])
def test_rounds_keep_their_law(remainder, lane):
    check_rounds(
        lambda world: StreamingDataLoader(
            CountingDataset(23), 2, round_batches=3, shuffle=True, remainder=remainder, world=world, **lane
        ),
        23,
        rounds=9,
    )


class ByCycles:
    """A loader in rounds, iterated for the rest of a cycle."""

    def __init__(self, loader):
        self.loader = loader
        self.dataset = loader.dataset

    def __iter__(self):
        cycle = self.loader.cycle
        while self.loader.cycle == cycle:
            yield from self.loader

    def __getattr__(self, name):
        return getattr(self.loader, name)


@pytest.mark.parametrize("remainder", ["short", "pad"])
def test_rounds_are_resumed_on_any_world_with_any_batch_size(remainder):
    def make(world, batch_size=2):
        return ByCycles(
            StreamingDataLoader(
                CountingDataset(61),
                batch_size,
                round_batches=3,
                shuffle=True,
                remainder=remainder,
                world=world,
                num_workers=0,
            )
        )

    check_epoch_is_permutation(make, 61)
    check_elastic(make, 61)


def test_a_chunked_dataloader_keeps_the_laws_of_rounds():
    check_rounds(lambda world: ChunkedDataLoader(subjects.Plain(10), 1, 4, shuffle=True, world=world), 10)
