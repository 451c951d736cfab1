"""Two sizes turn three partitions into rounds; without them they are what torch makes of them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from penstock import ChunkedSequenceDataset, ChunkTracker, ConfigError, World

TRAIN, VAL, TEST = range(100), range(100, 126), range(200, 209)


def partitions(**options) -> ChunkedSequenceDataset:
    return ChunkedSequenceDataset(dataset_train=TRAIN, dataset_val=VAL, dataset_test=TEST, **options)


def rounds_of(loader, count: int) -> list[list[list[int]]]:
    """The batches of so many rounds."""
    return [[batch.tolist() for batch in loader] for _ in range(count)]


def samples(batches) -> list[int]:
    return [value for batch in batches for value in batch]


@pytest.mark.parametrize(
    ("train_size", "val_size", "train_batches", "val_batches"),
    # Of 100 and 26 samples, 4 a batch: what a round has, and how many rounds a cycle.
    [(5, 2, (5, 5), (2, 4)), (5, None, (5, 5), (7, 1)), (None, 2, (25, 1), (2, 4)), (30, 9, (30, 1), (7, 1))],
)
def test_sizes_given_and_inferred(train_size, val_size, train_batches, val_batches):
    data = partitions(train_chunk_size=train_size, val_chunk_size=val_size, batch_size=4)
    assert data.use_chunked_training
    train, val = data.train_dataloader(), data.val_dataloader()
    assert (len(train), train.total_chunks) == train_batches
    assert (len(val), val.total_chunks) == val_batches
    assert len(data.test_dataloader()) == 3
    assert (data.train_chunk_size, data.val_chunk_size) == (
        train_size or train_batches[0],
        val_size or val_batches[0],
    )
    assert (data.explicit_train_chunk_size, data.explicit_val_chunk_size) == (train_size, val_size)


def test_a_cycle_of_training_rounds_sees_each_sample_once_and_the_next_in_another_order():
    train = partitions(train_chunk_size=5, batch_size=4).train_dataloader()
    first, second = rounds_of(train, 5), rounds_of(train, 5)
    for cycle in (first, second):
        assert [len(batches) for batches in cycle] == [5] * 5
        assert sorted(samples(itertools.chain(*cycle))) == list(TRAIN)
    assert first != second
    assert samples(first[0]) != list(range(20))


def test_a_round_of_a_partition_without_a_size_is_the_whole_of_it_whatever_the_world():
    """Twenty-six and nine samples are no multiples of a batch, and none is seen twice or left out."""
    for size in (1, 2, 4):
        places = [World(dp_rank=rank, dp_size=size) for rank in range(size)]
        for make in ("val_dataloader", "test_dataloader"):
            loaders = [getattr(partitions(train_chunk_size=5, batch_size=4, world=place), make)() for place in places]
            whole = VAL if make == "val_dataloader" else TEST
            for _ in range(2):
                mine = [[batch.tolist() for batch in loader] for loader in loaders]
                # Ranks stay in step: one that would get nothing repeats a sample.
                assert len({len(batches) for batches in mine}) == 1
                assert set(samples(itertools.chain(*mine))) == set(whole)
            if size == 1:
                assert samples(mine[0]) == list(whole)
        training = [partitions(val_chunk_size=1, batch_size=4, world=place).train_dataloader() for place in places]
        for _ in range(2):
            seen = samples(itertools.chain(*([batch.tolist() for batch in loader] for loader in training)))
            assert set(seen) == set(TRAIN)
            assert len(seen) - 100 in range(size)


def test_a_whole_partition_may_drop_its_last_incomplete_batch():
    train = ChunkedSequenceDataset(None, 1, dataset_train=range(10), dataset_val=VAL, batch_size=4, drop_last=True)
    loader = train.train_dataloader()
    for _ in range(3):
        batches = [batch.tolist() for batch in loader]
        assert [len(batch) for batch in batches] == [4, 4]
        assert len(set(samples(batches))) == 8
    assert sum(len(batch) for batch in train.val_dataloader()) == 4


def test_validation_rotates_through_its_partition_in_order():
    val = partitions(val_chunk_size=2, batch_size=4).val_dataloader()
    found = rounds_of(val, 5)
    assert [samples(batches) for batches in found[:4]] == [
        list(range(100, 108)),
        list(range(108, 116)),
        list(range(116, 124)),
        [124, 125],
    ]
    assert found[4] == found[0]


def test_what_is_told_for_training_does_not_touch_evaluation_unless_it_is_told_there():
    data = partitions(train_chunk_size=2, val_chunk_size=1, batch_size=4, shuffle=False, drop_last=True)
    assert samples(rounds_of(data.train_dataloader(), 1)[0]) == list(range(8))
    val = data.val_dataloader()
    assert samples(itertools.chain(*rounds_of(val, 7))) == list(VAL)
    shuffled = data.val_dataloader(shuffle=True, seed=3)
    assert samples(itertools.chain(*rounds_of(shuffled, 7))) != list(VAL)


@pytest.mark.parametrize(
    "of_training",
    [
        {"chunk_weights": [1, 4], "weight_floor": 0.5},
        {"length_bucket": 4},
        {"dataset_chunk_size": 4, "stop_after": "epoch", "uneven": True, "assignment": "claim"},
    ],
)
def test_what_decides_which_samples_training_gets_leaves_none_out_of_evaluation(of_training, tmp_path):
    if "assignment" in of_training:
        of_training = of_training | {"tracker": ChunkTracker(tmp_path / "ledger.db", "brain", "data")}
    data = partitions(train_chunk_size=2, batch_size=4, num_workers=0, **of_training)
    for loader, whole in ((data.val_dataloader(), VAL), (data.test_dataloader(), TEST)):
        assert samples(loader) == list(whole)
    if "tracker" in of_training:
        of_training["tracker"].close()


def test_evaluation_that_was_broken_off_begins_its_round_anew_and_training_goes_on():
    data = partitions(train_chunk_size=3, val_chunk_size=2, batch_size=4, shuffle=False)
    val, test, train = data.val_dataloader(), data.test_dataloader(), data.train_dataloader()
    for loader, whole in ((val, VAL[:8]), (test, TEST)):
        before = loader.state_dict()
        next(iter(loader))
        iter(loader)
        assert loader.batch_in_round == 1
        assert samples(loader) == list(whole)
        assert loader.round == before["round"] + 1
    next(iter(val))
    assert [samples(val), samples(val)] == [list(VAL[8:16]), list(VAL[16:24])]
    next(iter(train))
    assert samples(train) == list(TRAIN[4:12])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"batch_size": 4},
        {"batch_size": 4, "drop_last": True},
        {"batch_size": 5, "collate_fn": sum},
        {"batch_size": None},
    ],
)
def test_without_sizes_every_loader_is_torchs_and_gives_what_one_built_by_hand_gives(options):
    data = partitions(**options)
    assert not data.use_chunked_training
    assert data.train_chunk_size is data.val_chunk_size is None
    by_hand = [
        DataLoader(TRAIN, shuffle=True, **options),
        DataLoader(VAL, **{**options, "drop_last": False}),
        DataLoader(TEST, **{**options, "drop_last": False}),
    ]
    ours = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    for mine, theirs in zip(ours, by_hand, strict=True):
        assert type(mine) is DataLoader
        assert len(mine) == len(theirs)
        for _ in range(2):
            torch.manual_seed(5)
            expected = [np.asarray(batch).tolist() for batch in theirs]
            torch.manual_seed(5)
            assert [np.asarray(batch).tolist() for batch in mine] == expected


def test_without_sizes_samplers_and_datasets_of_torch_are_passed_on():
    tensors = TensorDataset(torch.arange(6), torch.arange(6) * 2)
    data = ChunkedSequenceDataset(dataset_train=tensors)
    loader = data.train_dataloader(sampler=SubsetRandomSampler([1, 3]), batch_size=2)
    [(x, y)] = list(loader)
    assert sorted(x.tolist()) == [1, 3]
    assert (y == x * 2).all()
    assert data.val_dataloader() == data.test_dataloader() == []


def test_sets_are_made_when_they_are_first_asked_for_and_once():
    class Made(ChunkedSequenceDataset):
        made = 0

        def setup(self) -> None:
            self.made += 1
            self.dataset_train, self.dataset_val = list(range(12)), list(range(3))

    data = Made(None, 1, batch_size=2)
    assert (data.made, data.dataset_train) == (0, None)
    assert len(data.train_dataloader()) == 6
    assert len(data.val_dataloader(batch_size=3)) == 1
    assert data.test_dataloader() == []
    assert data.made == 1
    data = Made(2, batch_size=2)
    data.setup()
    assert len(data.train_dataloader()) == 2
    assert data.made == 1


@pytest.mark.parametrize("sizes", [{"train_chunk_size": 5}, {"val_chunk_size": 5}])
def test_nothing_to_train_on(sizes):
    for empty in ({"dataset_train": [], "dataset_val": []}, {"dataset_train": []}, {"dataset_val": []}):
        data = ChunkedSequenceDataset(**sizes, **empty, dataset_test=TEST)
        for make in (data.train_dataloader, data.val_dataloader):
            with pytest.raises(ConfigError, match="both partitions are empty: neither dataset_train nor dataset_val"):
                make()
    only_val = ChunkedSequenceDataset(**sizes, dataset_train=[], dataset_val=VAL)
    with pytest.raises(ConfigError, match="no training samples: dataset_train is empty or None"):
        only_val.train_dataloader()
    assert len(only_val.val_dataloader()) > 0
    only_train = ChunkedSequenceDataset(**sizes, dataset_train=TRAIN, dataset_val=[])
    assert only_train.val_dataloader() == []
    with pytest.raises(ConfigError, match=r"ChunkedSequenceDataset.setup\(\) made none of dataset_train"):
        ChunkedSequenceDataset(**sizes).train_dataloader()


@pytest.mark.parametrize("value", [0, -3, 1.5, True, "5", 2**62 + 1])
def test_a_size_that_is_no_count_is_refused(value):
    for name in ("train_chunk_size", "val_chunk_size"):
        with pytest.raises(ConfigError, match=f"^{name} must be an integer from 1 to 4611686018427387904, got"):
            ChunkedSequenceDataset(**{name: value})


def test_what_contradicts_rounds_is_refused():
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(range(9))

    for size in ({"train_chunk_size": 3}, {"val_chunk_size": 3}):
        with pytest.raises(ConfigError, match="__len__"):
            ChunkedSequenceDataset(**size, dataset_train=Stream()).train_dataloader()
        with pytest.raises(ConfigError, match="sampler"):
            partitions(**size).train_dataloader(sampler=SubsetRandomSampler([1]))


@pytest.mark.parametrize("sizes", [{}, {"train_chunk_size": 2}])
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("train_chunksize", r"did you mean train_chunk_size\?"),
        ("num_worker", r"did you mean num_workers\?"),
        ("boundry", r"did you mean boundary\?"),
        ("collate", r"did you mean collate_fn\?"),
        ("xyzzy", "$"),
    ],
)
def test_an_option_that_no_loader_takes_is_refused_by_the_class_that_was_given_it(sizes, option, said):
    class Voices(ChunkedSequenceDataset):
        pass

    with pytest.raises(ConfigError, match=f"^Voices takes no {option}.*{said}"):
        Voices(**sizes, **{option: 1})


def test_a_policy_is_no_size_and_is_told_where_it_goes():
    with pytest.raises(
        ConfigError, match=r"StreamingDataLoader\(…, round_batches=policy\), under Lightning with Rounds"
    ):
        ChunkedSequenceDataset(train_chunk_size=lambda history: 3)
