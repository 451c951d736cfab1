"""World is a value that refuses nonsense; the checks name argument, value and what is allowed."""

from __future__ import annotations

import dataclasses
import math
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import subjects
from penstock import ConfigError, Dataset, World
from penstock.testing import CountingDataset
from penstock.types import check_choice, check_device, check_int, check_number


class TestWorld:
    def test_alone_is_the_default(self):
        assert World() == World(dp_rank=0, dp_size=1, tp_rank=0, tp_size=1, pp_rank=0, pp_size=1)

    @pytest.mark.parametrize("axis", ["dp", "tp", "pp"])
    @pytest.mark.parametrize(
        ("rank", "size", "said"),
        [
            (2, 2, "{0}_rank is 2 but {0}_size is 2: ranks run from 0 to 1"),
            (-1, 2, "{0}_rank must be an integer >= 0, got -1"),
            (0, 0, "{0}_size must be an integer >= 1, got 0"),
            ("0", 1, "{0}_rank must be an integer >= 0, got '0'"),
            (0, True, "{0}_size must be an integer >= 1, got True"),
        ],
    )
    def test_a_rank_outside_its_axis_is_refused(self, axis, rank, size, said):
        with pytest.raises(ConfigError, match=said.format(axis)):
            World(**{f"{axis}_rank": rank, f"{axis}_size": size})

    @given(dp=st.integers(1, 5), tp=st.integers(1, 4), pp=st.integers(1, 4))
    def test_a_mesh_gives_each_rank_a_place_of_its_own(self, dp, tp, pp):
        size = dp * tp * pp
        worlds = [World.of(rank=rank, world_size=size, tp_size=tp, pp_size=pp) for rank in range(size)]
        assert len({(world.dp_rank, world.tp_rank, world.pp_rank) for world in worlds}) == size
        assert {(world.dp_size, world.tp_size, world.pp_size) for world in worlds} == {(dp, tp, pp)}
        # Tensor-parallel peers are neighbours, replicas are far apart.
        assert [world.tp_rank for world in worlds[:tp]] == list(range(tp))
        assert [world.dp_rank for world in worlds] == sorted(world.dp_rank for world in worlds)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            ({"rank": 4, "world_size": 4}, "rank is 4 but world_size is 4: ranks run from 0 to 3"),
            ({"rank": 0, "world_size": 6, "tp_size": 4}, "world_size 6 is not a multiple of tp_size 4 × pp_size 1"),
            ({"rank": 0, "world_size": 2, "tp_size": 0}, "tp_size must be an integer >= 1, got 0"),
            ({"rank": 0.0, "world_size": 2}, "rank must be an integer >= 0, got 0.0"),
        ],
    )
    def test_a_mesh_that_does_not_fit_is_refused(self, arguments, said):
        with pytest.raises(ConfigError, match=said):
            World.of(**arguments)

    def test_it_is_a_value(self):
        world = World(dp_rank=1, dp_size=4)
        assert pickle.loads(pickle.dumps(world)) == world
        assert len({world, World(dp_rank=1, dp_size=4)}) == 1
        with pytest.raises(dataclasses.FrozenInstanceError):
            world.dp_rank = 2


class TestChecks:
    @pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
    def test_an_integer_is_given_back_as_one(self, value):
        assert type(check_int("n", value, minimum=0)) is int

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            (0, "n must be an integer from 1 to 9, got 0"),
            (10, "n must be an integer from 1 to 9, got 10"),
            (True, r"n must be an integer from 1 to 9, got True \(bool\)"),
            (2.0, r"n must be an integer from 1 to 9, got 2.0 \(float\)"),
            ("2", r"n must be an integer from 1 to 9, got '2' \(str\)"),
            (None, r"n must be an integer from 1 to 9, got None \(NoneType\)"),
        ],
    )
    def test_what_is_none_is_refused(self, value, said):
        with pytest.raises(ConfigError, match=said):
            check_int("n", value, minimum=1, maximum=9)

    @pytest.mark.parametrize("value", [False, "a", None])
    def test_a_choice_among_those_allowed_passes(self, value):
        check_choice("mode", value, (False, "a", None))

    @pytest.mark.parametrize("value", [0, "b", True, "", np.array([1, 2])])
    def test_any_other_choice_is_refused(self, value):
        """0 is not False: who writes 0 may have meant something else."""
        with pytest.raises(ConfigError, match="mode must be one of False, 'a', None; got"):
            check_choice("mode", value, (False, "a", None))

    @pytest.mark.parametrize("value", [1, 0.5, Fraction(30_000, 1001), np.float32(0.5), np.int64(3)])
    def test_a_number_within_its_bounds_is_a_float(self, value):
        assert check_number("fps", value, above=0) == float(value)

    @pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, 10**400, True, "1", None, 1j])
    def test_a_number_is_finite_and_no_text(self, value):
        with pytest.raises(ConfigError, match="fps must be a number of frames above 0, got "):
            check_number("fps", value, above=0, unit="frames")

    @pytest.mark.parametrize(
        ("bounds", "inside", "outside", "said"),
        [
            ({"maximum": 1}, (0, 0.5, 1), (-0.1, 1.1), "from 0 to 1, got"),
            ({"below": 1}, (0, 0.5), (-0.1, 1), "from 0 to below 1, got"),
            ({"above": 0, "below": 1}, (0.1, 0.9), (0, 1), "above 0 and below 1, got"),
            ({"above": 0, "maximum": 1}, (0.1, 1), (0, 1.1), "above 0 and up to 1, got"),
            ({}, (0, 1e300), (-1, math.inf), "from 0, got"),
        ],
    )
    def test_the_bounds_of_a_number_are_said(self, bounds, inside, outside, said):
        for value in inside:
            assert check_number("share", value, **bounds) == value
        for value in outside:
            with pytest.raises(ConfigError, match=f"share must be a number {said}"):
                check_number("share", value, **bounds)

    @pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta", None])
    def test_a_device_is_a_name_or_a_device(self, device):
        assert check_device(device) == (None if device is None else torch.device(device))

    def test_a_device_that_is_not_there_is_refused_with_what_is(self):
        last = torch.cuda.device_count() - 1
        there = f"CUDA devices from cuda:0 to cuda:{last}" if last >= 0 else "no CUDA device, only the CPU"
        with pytest.raises(ConfigError, match=f"device='cuda:{last + 1}', but torch finds {there}.*device='cpu'"):
            check_device(f"cuda:{last + 1}")


def test_a_dataset_is_what_has_its_members():
    assert isinstance(CountingDataset(3), Dataset)
    assert not isinstance(subjects.Plain(), Dataset)
