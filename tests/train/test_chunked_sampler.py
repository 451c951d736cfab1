"""Chunks of samples for torch's own DataLoader."""

import itertools
import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Sampler

import subjects
from penstock.errors import ConfigError, StateMismatch
from penstock.train.chunked_sampler import ChunkedSampler
from penstock.types import World

ALONE = World()


def chunks_of(count, *arguments, **options):
    sampler = ChunkedSampler(*arguments, world=ALONE, **options)
    found = []
    for _ in range(count):
        found.append(list(sampler))
        sampler.advance_chunk()
    return found


def test_a_chunk_larger_than_the_dataset_is_two_and_a_half_cycles():
    (found,) = chunks_of(1, 4, 10)
    assert len(found) == 10
    assert [sorted(found[:4]), sorted(found[4:8])] == [[0, 1, 2, 3]] * 2
    assert len(set(found[8:])) == 2
    assert set(found) == {0, 1, 2, 3}


def test_torchs_dataloader_takes_it_and_goes_through_the_dataset():
    sampler = ChunkedSampler(10, 4, world=ALONE)
    loader = DataLoader(subjects.Plain(10), batch_size=2, sampler=sampler)
    assert isinstance(sampler, Sampler)
    assert len(loader) == 2
    found = []
    for number in range(5):
        # What a trainer calls an epoch is one pass over its loader.
        sampler.set_epoch(number)
        found += [id_ for batch in loader for id_ in batch["id"].tolist()]
    assert sorted(found[:10]) == sorted(found[10:]) == list(range(10))


def test_iterating_changes_nothing():
    sampler = ChunkedSampler(10, 4, world=ALONE)
    assert list(sampler) == list(sampler)
    assert sampler.current_chunk == 0


@given(
    size=st.integers(1, 40),
    rows=st.integers(1, 12),
    ranks=st.integers(1, 4),
    chunk=st.integers(0, 9),
    boundary=st.sampled_from(["carry", "short", "pad", "wrap", "drop"]),
    shuffle=st.sampled_from(["global", "within", False]),
)
@settings(deadline=None)
def test_ranks_are_disjoint_equal_in_number_and_make_up_the_chunk(size, rows, ranks, chunk, boundary, shuffle):
    if boundary == "drop" and size < rows * ranks:
        return
    samplers = [
        ChunkedSampler(
            size,
            rows * ranks,
            boundary=boundary,
            shuffle=shuffle,
            world=World(dp_rank=rank, dp_size=ranks),
        )
        for rank in range(ranks)
    ]
    for sampler in samplers:
        sampler.set_chunk(chunk)
    shares = [list(sampler) for sampler in samplers]
    whole = samplers[0].get_chunk_indices(chunk)
    assert whole.dtype == np.int64
    assert {len(share) for share in shares} == {len(samplers[0])}
    dealt = [id_ for row in zip(*shares, strict=True) for id_ in row]
    # Only a "short" chunk can be uneven; then the ranks that would get one less repeat one of it.
    assert dealt[: len(whole)] == whole.tolist()
    assert len(dealt) - len(whole) < ranks
    assert boundary == "short" or len(dealt) == len(whole)
    assert set(dealt) == set(whole.tolist())


@given(
    size=st.integers(1, 40),
    chunk_size=st.integers(1, 50),
    boundary=st.sampled_from(["carry", "short"]),
    shuffle=st.sampled_from(["global", "within", False]),
)
@settings(deadline=None)
def test_every_cycle_is_a_permutation(size, chunk_size, boundary, shuffle):
    sampler = ChunkedSampler(size, chunk_size, boundary=boundary, shuffle=shuffle, world=ALONE)
    chunks = [sampler.get_chunk_indices(number).tolist() for number in range(2 * sampler.total_chunks)]
    stream = list(itertools.chain(*chunks))
    if shuffle != "within" or boundary == "short":
        assert sorted(stream[:size]) == list(range(size))
    else:
        for number, chunk in enumerate(chunks):
            places = range(number * chunk_size, (number + 1) * chunk_size)
            assert sorted(chunk) == sorted(place % size for place in places)


def test_chunks_are_numbered_through_all_cycles():
    sampler = ChunkedSampler(10, 4, shuffle=False, boundary="short", world=ALONE)
    assert sampler.total_chunks == 3
    sampler.set_chunk(5)
    assert (sampler.current_chunk, list(sampler), len(sampler)) == (5, [8, 9], 2)
    sampler.reset()
    assert list(sampler) == [0, 1, 2, 3]


def test_a_state_goes_on_at_its_chunk_on_any_number_of_ranks():
    sampler = ChunkedSampler(10, 4, world=World(dp_rank=1, dp_size=2))
    sampler.set_chunk(3)
    state = json.loads(json.dumps(sampler.state_dict()))
    for ranks in (1, 2, 4):
        others = [ChunkedSampler(10, 4, world=World(dp_rank=rank, dp_size=ranks)) for rank in range(ranks)]
        for other in others:
            other.load_state_dict(state)
        dealt = [id_ for row in zip(*others, strict=True) for id_ in row]
        assert dealt == sampler.get_chunk_indices(3).tolist()
    twin = pickle.loads(pickle.dumps(sampler))
    assert (list(twin), twin.state_dict()) == (list(sampler), sampler.state_dict())


def test_a_state_of_another_dataset_or_chunk_size_is_refused():
    state = ChunkedSampler(10, 4, world=ALONE).state_dict()
    for changed in ((11, 4), (10, 5), (10, 4, 7)):
        with pytest.raises(StateMismatch, match="other chunks"):
            ChunkedSampler(*changed, world=ALONE).load_state_dict(state)
    for broken in (None, {}, {**state, "chunk": -1}, {**state, "chunk": "2"}):
        with pytest.raises(StateMismatch, match=r"no state|edited"):
            ChunkedSampler(10, 4, world=ALONE).load_state_dict(broken)


def test_bad_arguments_are_refused():
    for value in (0, -1, 2.0, True, "4", 2**63):
        with pytest.raises(ConfigError, match="chunk_size"):
            ChunkedSampler(10, value)
        with pytest.raises(ConfigError, match="dataset_size"):
            ChunkedSampler(value, 4)
    with pytest.raises(ConfigError, match="shuffle"):
        ChunkedSampler(10, 4, shuffle="window")
    with pytest.raises(ConfigError, match="boundary"):
        ChunkedSampler(10, 4, boundary="cut")
    with pytest.raises(ConfigError, match="there would be none"):
        ChunkedSampler(10, 11, boundary="drop")
    for ask in (len, lambda sampler: next(iter(sampler))):
        with pytest.raises(ConfigError, match="a multiple of 3"):
            ask(ChunkedSampler(10, 4, world=World(dp_size=3)))
    for ask in ("set_chunk", "get_chunk_indices"):
        with pytest.raises(ConfigError, match="chunk must be"):
            getattr(ChunkedSampler(10, 4), ask)(-1)
        with pytest.raises(ConfigError, match="counted up to"):
            getattr(ChunkedSampler(10, 4), ask)(10**30)


def test_a_huge_dataset_costs_no_more_than_what_is_read():
    sampler = ChunkedSampler(10**12, 2**40, world=World(dp_rank=3, dp_size=4))
    sampler.set_chunk(10**15)
    assert len(list(itertools.islice(sampler, 100))) == 100
    assert len(sampler) == 2**38
