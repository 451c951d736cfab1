"""Rank and world: given, or found at first use in torch.distributed or torchrun's variables."""

from __future__ import annotations

import pytest

import subjects
from penstock import ConfigError, StreamingDataLoader, World, detect_world


@pytest.fixture
def torchrun(monkeypatch):
    """Set RANK and WORLD_SIZE; None unsets."""

    def put(rank, world_size):
        for name, value in (("RANK", rank), ("WORLD_SIZE", world_size)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    put(None, None)
    return put


def test_alone(torchrun):
    assert detect_world() == World()


def test_torchruns_variables_are_read(torchrun):
    torchrun("5", "8")
    assert World.current() == World(dp_rank=5, dp_size=8)
    assert detect_world(tp_size=2, pp_size=2) == World(dp_rank=1, dp_size=2, tp_rank=1, tp_size=2, pp_rank=0, pp_size=2)


@pytest.mark.parametrize(
    ("rank", "world_size", "said"),
    [
        ("0", None, "RANK is set but WORLD_SIZE is not"),
        (None, "2", "WORLD_SIZE is set but RANK is not"),
        ("a", "2", "must be integers, got 'a' and '2'"),
        ("", "2", "must be integers, got '' and '2'"),
        ("2", "2", "rank is 2 but world_size is 2: ranks run from 0 to 1"),
        ("-1", "2", "rank must be an integer >= 0, got -1"),
        ("0", "0", "world_size must be an integer >= 1, got 0"),
    ],
)
def test_variables_that_make_no_sense_are_refused(torchrun, rank, world_size, said):
    torchrun(rank, world_size)
    with pytest.raises(ConfigError, match=said):
        detect_world()


def test_one_variable_alone_is_enough_where_the_group_is_there(torchrun):
    """Lightning's launcher sets WORLD_SIZE and no RANK, then initialises the group."""
    import torch.distributed as dist

    torchrun(None, "1")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert detect_world() == World()
    finally:
        dist.destroy_process_group()


def test_a_world_that_replicas_do_not_divide_is_refused(torchrun):
    torchrun("0", "6")
    with pytest.raises(ConfigError, match="world_size 6 is not a multiple of tp_size 2 × pp_size 2"):
        detect_world(tp_size=2, pp_size=2)


def test_nothing_is_asked_before_first_use(torchrun):
    torchrun("0", None)
    loader = StreamingDataLoader(subjects.Plain(20), 4)
    torchrun("1", "2")
    assert loader.world == World(dp_rank=1, dp_size=2)
    assert next(iter(loader))["id"].tolist() == [1, 3, 5, 7]


def test_a_world_that_changed_after_first_use_is_refused(torchrun):
    loader = StreamingDataLoader(subjects.Plain(20), 4)
    assert len(loader) == 5
    torchrun("1", "2")
    with pytest.raises(ConfigError, match=r"first used as data-parallel rank 0 of 1, but\s+now this is rank 1 of 2"):
        next(iter(loader))


def test_a_world_that_is_given_is_believed(torchrun):
    torchrun("1", "2")
    loader = StreamingDataLoader(subjects.Plain(20), 4, world=World())
    assert next(iter(loader))["id"].tolist() == [0, 1, 2, 3]
