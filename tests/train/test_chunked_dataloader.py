"""One argument makes rounds of a torch DataLoader, and without it nothing is ours."""

import copy
import itertools
import json
import pickle

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, TensorDataset

import subjects
from penstock.errors import ConfigError, StateMismatch
from penstock.loader.loader import StreamingDataLoader
from penstock.train.chunked_dataloader import ChunkedDataLoader
from penstock.types import World


def ids_of(batches):
    return [batch["id"].tolist() for batch in batches]


class TestWithoutChunks:
    def test_it_is_torchs_own_dataloader_with_everything_passed_on(self):
        dataset = TensorDataset(torch.arange(10))
        sampler = RandomSampler(dataset)
        loader = ChunkedDataLoader(dataset, 4, sampler=sampler, drop_last=True, collate_fn=len, pin_memory=False)
        assert type(loader) is DataLoader
        assert (loader.batch_size, loader.sampler, loader.drop_last, loader.collate_fn) == (4, sampler, True, len)
        assert list(loader) == [4, 4]

    def test_a_run_is_batch_for_batch_what_it_was(self):
        for options in ({"shuffle": True}, {"shuffle": False, "drop_last": True}, {"num_workers": 1}):
            torch.manual_seed(7)
            before = ids_of(DataLoader(subjects.Plain(10), 3, **options))
            torch.manual_seed(7)
            assert ids_of(ChunkedDataLoader(subjects.Plain(10), 3, **options)) == before

    def test_an_iterable_dataset_and_no_batches_are_torchs_affair(self):
        class Endless(IterableDataset):
            def __iter__(self):
                return iter(range(5))

        assert [int(sample) for sample in ChunkedDataLoader(Endless(), batch_size=None)] == list(range(5))

    def test_what_belongs_to_rounds_says_so(self):
        assert type(ChunkedDataLoader(subjects.Plain(10), 2, boundary="short", restart=True)) is DataLoader
        with pytest.raises(ConfigError, match="boundary must be one of"):
            ChunkedDataLoader(subjects.Plain(10), 2, boundary="cut")
        with pytest.raises(ConfigError, match=r"'within'.*chunk_size="):
            ChunkedDataLoader(subjects.Plain(10), 2, shuffle="within")
        with pytest.raises(ConfigError, match=r"seed.*give chunk_size="):
            ChunkedDataLoader(subjects.Plain(10), 2, seed=3)


class TestWithChunks:
    def test_it_goes_through_the_dataset_round_by_round(self):
        loader = ChunkedDataLoader(subjects.Plain(100), 4, chunk_size=5, shuffle=True, drop_last=True)
        assert isinstance(loader, StreamingDataLoader)
        assert not hasattr(loader, "sampler")
        found = []
        for number in range(5):
            assert (loader.current_chunk, loader.total_chunks, len(loader)) == (number, 5, 5)
            found += itertools.chain(*ids_of(loader))
        assert sorted(found) == list(range(100))

    def test_torchs_arguments_mean_what_they_mean_there(self):
        loader = ChunkedDataLoader(
            subjects.Plain(12),
            batch_size=3,
            chunk_size=2,
            shuffle=False,
            num_workers=2,
            prefetch_factor=3,
            persistent_workers=True,
            pin_memory=False,
            collate_fn=len,
            timeout=0,
            sampler=None,
            batch_sampler=None,
            generator=None,
            worker_init_fn=None,
            multiprocessing_context=None,
            in_order=True,
            pin_memory_device="",
        )
        with loader:
            assert "2 process workers, 6 batches ahead" in loader.explain()
            assert [list(loader) for _ in range(2)] == [[3, 3], [3, 3]]

    @pytest.mark.parametrize(
        ("name", "value", "said"),
        [
            ("sampler", [0, 1], "the order is that of the rounds"),
            ("batch_sampler", [[0, 1]], "cut from the rounds"),
            ("generator", torch.Generator(), "use seed="),
            ("worker_init_fn", print, "rng"),
            ("multiprocessing_context", "fork", "never forked"),
            ("pin_memory_device", "cuda", "use device="),
            ("in_order", False, "always come in order"),
            ("persistent_workers", 1, "True or False"),
            ("prefetch_factor", 0, "prefetch_factor"),
            ("suffle", True, "did you mean shuffle"),
            ("batch_size", None, "batch_size, with a chunk_size"),
            ("round_batches", 2, "called chunk_size="),
            ("remainder", "pad", "called boundary="),
            ("restart", "yes", "restart must be one of"),
            ("timeout", -1, "timeout"),
        ],
    )
    def test_what_has_no_meaning_is_refused_saying_what_to_do(self, name, value, said):
        with pytest.raises(ConfigError, match=said):
            ChunkedDataLoader(subjects.Plain(10), **{"batch_size": 2, "chunk_size": 3, name: value})

    @pytest.mark.parametrize("value", [0, -2, 2.5, 3.0, True, "5", 2**63])
    def test_chunk_sizes_that_are_no_positive_integer_are_refused(self, value):
        with pytest.raises(ConfigError, match="chunk_size"):
            ChunkedDataLoader(subjects.Plain(10), 2, chunk_size=value)

    def test_a_dataset_without_a_length_cannot_be_cut(self):
        class Endless(IterableDataset):
            def __iter__(self):
                return iter(range(5))

        for dataset in (Endless(), iter(range(5)), None):
            with pytest.raises(ConfigError, match="__len__"):
                ChunkedDataLoader(dataset, 2, chunk_size=3)
        with pytest.raises(ConfigError, match="empty"):
            ChunkedDataLoader([], 2, chunk_size=3)

    def test_our_own_arguments_go_through(self):
        loader = ChunkedDataLoader(
            subjects.Plain(12), 2, 3, shuffle="within", seed=5, boundary="short", world=World(dp_rank=1, dp_size=2)
        )
        assert sorted(itertools.chain(*ids_of(loader))) != []
        assert (loader.world.dp_rank, loader.total_chunks, loader.seed) == (1, 1, 5)

    def test_copies_and_pickles_stand_where_it_stands(self):
        loader = ChunkedDataLoader(subjects.Plain(10), 1, 4, shuffle=True)
        next(iter(loader))
        for twin in (copy.deepcopy(loader), copy.copy(loader), pickle.loads(pickle.dumps(loader))):
            assert type(twin) is ChunkedDataLoader
            assert twin.state_dict() == loader.state_dict()
            assert ids_of(twin) == ids_of(copy.deepcopy(loader))

    def test_a_round_that_is_left_begins_anew_on_request(self):
        loader = ChunkedDataLoader(subjects.Plain(10), 1, 4, restart=True)
        old = iter(loader)
        assert [next(old)["id"].item(), next(old)["id"].item(), loader.batch_in_round] == [0, 1, 2]
        iter(loader)
        assert next(old)["id"].item() == 2
        assert [list(itertools.chain(*ids_of(copy.copy(loader)))) for _ in range(2)] == [[0, 1, 2, 3]] * 2
        assert [list(itertools.chain(*ids_of(loader))) for _ in range(2)] == [[0, 1, 2, 3], [4, 5, 6, 7]]
        with pytest.raises(ConfigError, match="by claims"):
            ChunkedDataLoader(subjects.Plain(10), 1, 4, restart=True, assignment="claim")

    def test_a_state_goes_on_mid_round_and_of_another_dataset_is_refused(self):
        loader = ChunkedDataLoader(subjects.Plain(10), 1, 4, shuffle=True)
        ids_of(loader)
        batches = iter(loader)
        next(batches)
        state = json.loads(json.dumps(loader.state_dict()))
        twin = ChunkedDataLoader(subjects.Plain(10), 1, 4, shuffle=True)
        twin.load_state_dict(state)
        assert (twin.current_chunk, twin.batch_in_round) == (1, 1)
        assert ids_of(twin) == ids_of(loader)
        with pytest.raises(StateMismatch):
            ChunkedDataLoader(subjects.Plain(11), 1, 4, shuffle=True).load_state_dict(state)


def test_an_argument_that_is_not_there_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"^ChunkedDataLoader takes no boundry; did you mean boundary\?"):
        ChunkedDataLoader(list(range(10)), 2, 3, boundry="short")
