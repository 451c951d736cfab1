"""Sound as codes: the values that the formulas give by hand, and how far sound is from what it was."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ConfigError
from penstock.seeds import rng
from penstock.transforms.quantize import (
    linear_decode,
    linear_encode,
    mu_law_decode,
    mu_law_encode,
    zero_level,
)

LOUD = (-1.0, -0.5, 0.0, 0.5, 1.0)
QUIET = (-0.25, -0.125, 0.0, 0.0625)


@pytest.mark.parametrize(
    ("values", "bits", "linear", "mu_law"),
    [
        (LOUD, 4, (0, 4, 7, 11, 15), (0, 1, 7, 14, 15)),
        (LOUD, 8, (0, 64, 127, 191, 255), (0, 15, 127, 240, 255)),
        (LOUD, 16, (0, 16383, 32767, 49151, 65535), (0, 2047, 32672, 63488, 65535)),
        (QUIET, 4, (0, 6, 12, 15), (0, 4, 14, 15)),
        (QUIET, 8, (0, 102, 204, 255), (0, 36, 244, 255)),
        (QUIET, 16, (0, 26214, 52428, 65535), (0, 4755, 64026, 65535)),
    ],
)
def test_codes_are_those_computed_by_hand(values, bits, linear, mu_law):
    for dtype in (np.float32, np.float64):
        sound = np.array(values, dtype)
        assert linear_encode(sound, bits).tolist() == list(linear)
        assert mu_law_encode(sound, bits).tolist() == list(mu_law)
        assert linear_encode(sound, bits).dtype == np.int64


@pytest.mark.parametrize(
    ("bits", "codes", "linear", "mu_law"),
    [
        (4, (0, 4, 8, 12, 15), (-1, -0.5, 0, 0.5, 0.875), (-1, -0.2, 0, 0.2, 0.687580566598984)),
        (
            8,
            (0, 64, 128, 192, 255),
            (-1, -0.5, 0, 0.5, 0.9921875),
            (-1, -0.0588235294117647, 0, 0.0588235294117647, 0.9574370190542544),
        ),
        (
            16,
            (0, 16384, 32768, 49152, 65535),
            (-1, -0.5, 0, 0.5, 0.999969482421875),
            (-1, -0.0038910505836575876, 0, 0.0038910505836575876, 0.9996616013326898),
        ),
    ],
)
def test_codes_decode_to_what_is_computed_by_hand(bits, codes, linear, mu_law):
    assert linear_decode(codes, bits).tolist() == np.float32(linear).tolist()
    assert mu_law_decode(codes, bits).tolist() == np.float32(mu_law).tolist()
    assert linear_decode(codes, bits).dtype == mu_law_decode(codes, bits).dtype == np.float32
    assert zero_level(bits) == codes[2]


def by_formula(values: list[float], bits: int, mu_law: bool) -> list[int]:
    """One value at a time, as the formulas are written."""
    lowest, highest = min(values), max(values)
    codes = []
    for value in values:
        share = (value - lowest) / (highest - lowest + 1e-6)
        if mu_law:
            mu = 2**bits - 1
            z = 2 * share - 1
            share = (math.copysign(math.log1p(mu * abs(z)) / math.log1p(mu), z) + 1) / 2
        codes.append(math.floor(share * (2**bits - 0.01) + 0.005))
    return codes


@given(
    st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=40),
    st.sampled_from([1, 4, 8, 12, 16, 24]),
)
def test_codes_are_the_formulas_of_any_sound(values, bits):
    np.testing.assert_allclose(linear_encode(np.float32(values), bits), by_formula(values, bits, False), atol=0)
    # Logarithms of two libraries may differ in their last bit, and so may codes on a border.
    np.testing.assert_allclose(mu_law_encode(np.float32(values), bits), by_formula(values, bits, True), atol=1)


def scaled(values: np.ndarray) -> np.ndarray:
    lowest = values.min(axis=-1, keepdims=True).astype(np.float64)
    return 2 * (values - lowest) / (values.max(axis=-1, keepdims=True) - lowest + 1e-6) - 1


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_sound_that_comes_back_is_as_near_as_promised(bits):
    values = rng(0, "sounds").uniform(-0.3, 0.9, (3, 50_000)).astype(np.float32)
    z, levels, mu = scaled(values), 1 << bits, (1 << bits) - 1
    error = linear_decode(linear_encode(values, bits), bits) - z
    assert error.min() > -2.01 / levels - 1e-7
    assert error.max() <= 0.01 / levels + 1e-7
    error = mu_law_decode(mu_law_encode(values, bits), bits) - z
    bound = (np.abs(z) + 1 / mu) * ((1 + mu) ** (2.01 / levels) - 1)
    assert (np.abs(error) <= bound + 1e-7).all()
    # The bounds are no wider than they need be.
    assert (np.abs(error) / bound).max() > 0.95
    quiet = np.abs(z) < 0.01
    assert np.abs(error[quiet]).max() < np.abs(linear_decode(linear_encode(values, bits), bits) - z)[quiet].max()


@pytest.mark.parametrize("encode", [linear_encode, mu_law_encode])
def test_every_row_is_an_example_scaled_by_itself(encode):
    values = rng(1, "rows").standard_normal((4, 70_000)).astype(np.float32) * np.float32([[1], [0.1], [5], [0]])
    codes = encode(values, 8)
    for row, alone in zip(values, codes, strict=True):
        assert np.array_equal(encode(row, 8), alone)
        assert np.array_equal(encode(row[None, None], 8), alone[None, None])
    assert codes[:3].min(axis=1).tolist() == [0, 0, 0]
    assert codes[:3].max(axis=1).tolist() == [255, 255, 255]
    assert not codes[3].any()


def test_codes_go_where_they_are_wanted():
    values = rng(2, "out").standard_normal((3, 1000))
    room = np.full((3, 1003), -7)
    assert linear_encode(values, 8, out=room[:, 3:]) is not None
    assert (room[:, :3] == -7).all()
    assert np.array_equal(room[:, 3:], linear_encode(values, 8))
    assert linear_encode(np.zeros((2, 0), np.float32)).shape == (2, 0)


def test_a_model_s_tensors_come_back_as_tensors():
    codes = torch.tensor([[0, 128, 255]])
    for decode in (linear_decode, mu_law_decode):
        sound = decode(codes, 8)
        assert isinstance(sound, torch.Tensor)
        assert sound.dtype == torch.float32
        assert sound.tolist() == decode(codes.numpy(), 8).tolist()


def test_what_can_not_be_quantized_is_refused_by_name():
    for bits in (0, 25, 8.0, True, "8"):
        for function in (linear_encode, mu_law_encode, linear_decode, mu_law_decode):
            with pytest.raises(ConfigError, match="bits must be an integer from 1 to 24"):
                function(np.zeros(3), bits)
        with pytest.raises(ConfigError, match="bits"):
            zero_level(bits)
