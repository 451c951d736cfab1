"""Sound as whole numbers: a model that predicts one of 2^bits values a frame, and back from its numbers to sound.

    values ──scale: [0, 1]──▶ shares ──(mu-law: compand)──▶ floor(share · (2^bits - 0.01) + 0.005) ──▶ codes, int64
    codes ──q / 2^(bits-1) - 1──▶ (mu-law: expand) ──▶ [-1, 1), float32

Each example is scaled by its own smallest and largest value, s = (x - min) / (max - min + 1e-6), in this order: scale,
compand, shift, floor. So a code says nothing of how loud a sound was, the middle of a sound need not be the zero level,
and an example without any movement is all zeros.

Codes are those of the formulas in float64, whatever the type of the values: at 16 bits float32 would round some of
them over a border. Sound that comes back is float32.

How far it is from the scaled sound, z = 2 s - 1: linear, less than 2.01 / 2^bits below and at most 0.01 / 2^bits above;
mu-law with µ = 2^bits - 1, at most (|z| + 1 / µ) · ((1 + µ)^(2.01 / 2^bits) - 1).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from penstock.types import check_choice, check_int

QUANTIZATIONS = ("linear", "mu-law", None)
"""None: floats, as they are."""

MAX_BITS = 24
_BLOCK = 1 << 13
"""Values that are worked on at once: 64 KiB in float64, which stay in a core's own cache, and whose memory the system
does not take back in between, as it does with larger pieces: touching it anew would cost more than the work."""


def linear_encode(values: Any, bits: int = 8, *, out: np.ndarray | None = None) -> np.ndarray:
    """Quantize sound in equal steps.

    Args:
        values: [..., n], n >= 1: sound of any range, finite; every row is an example and scaled by itself.
        bits: 2^bits codes, 1 to 24.
        out: int64 [..., n], where the codes go.

    Returns:
        int64 [..., n], in [0, 2^bits).

    >>> linear_encode([-1, -0.5, 0, 0.5, 1], bits=4).tolist()
    [0, 4, 7, 11, 15]
    """
    return _encode(values, bits, out, _in_place)


def mu_law_encode(values: Any, bits: int = 8, *, out: np.ndarray | None = None) -> np.ndarray:
    """Quantize sound in steps that grow with its distance from the middle: finer where most of a sound is.

    Args:
        values: as `linear_encode` takes them.
        bits: 2^bits codes, 1 to 24; µ is 2^bits - 1.
        out: int64 [..., n], where the codes go.

    Returns:
        int64 [..., n], in [0, 2^bits).

    >>> mu_law_encode([-1, -0.5, 0, 0.5, 1], bits=4).tolist()
    [0, 1, 7, 14, 15]
    """
    return _encode(values, bits, out, _compand)


def linear_decode(codes: Any, bits: int = 8) -> Any:
    """Make sound of the codes of `linear_encode`: q / 2^(bits-1) - 1.

    Args:
        codes: [...], whole numbers; a tensor gives a tensor, on its device.
        bits: as they were made.

    Returns:
        float32 [...], in [-1, 1).

    >>> linear_decode([0, 8, 15], bits=4).tolist()
    [-1.0, 0.0, 0.875]
    """
    return _decode(codes, bits, _as_they_are)


def mu_law_decode(codes: Any, bits: int = 8) -> Any:
    """Make sound of the codes of `mu_law_encode`: sign(z) ((1 + µ)^|z| - 1) / µ of z = q / 2^(bits-1) - 1.

    Args:
        codes: [...], whole numbers; a tensor gives a tensor, on its device.
        bits: as they were made.

    Returns:
        float32 [...], in [-1, 1).

    >>> mu_law_decode([0, 8, 12], bits=4).tolist()
    [-1.0, 0.0, 0.20000000298023224]
    """
    return _decode(codes, bits, _expanded)


def zero_level(bits: int = 8) -> int:
    """Give the code that both decoders make 0 of: 2^(bits-1). What is padded, and what comes before a sound, is this.

    >>> zero_level(8)
    128
    """
    return 1 << (check_int("bits", bits, minimum=1, maximum=MAX_BITS) - 1)


ENCODERS: dict[str | None, Callable[..., np.ndarray]] = {"linear": linear_encode, "mu-law": mu_law_encode}
DECODERS: dict[str | None, Callable[..., Any]] = {"linear": linear_decode, "mu-law": mu_law_decode}


def check_quantization(quantization: object) -> None:
    """Raise ConfigError unless there is such a quantization."""
    check_choice("quantization", quantization, QUANTIZATIONS)


def _encode(
    values: Any, bits: int, out: np.ndarray | None, compand: Callable[[np.ndarray, int, np.ndarray], None]
) -> np.ndarray:
    check_int("bits", bits, minimum=1, maximum=MAX_BITS)
    values = np.asarray(values)
    if out is None:
        out = np.empty(values.shape, np.int64)
    if not values.size:
        return out
    lowest = values.min(axis=-1, keepdims=True).astype(np.float64)
    spread = values.max(axis=-1, keepdims=True).astype(np.float64) - lowest + 1e-6
    width = values.shape[-1]
    step = min(width, max(1, _BLOCK * width // values.size))
    room = np.empty((2, *values.shape[:-1], step))
    for start in range(0, width, step):
        part = slice(start, min(width, start + step))
        shares, spare = room[..., : part.stop - start]
        np.subtract(values[..., part], lowest, out=shares, dtype=np.float64)
        shares /= spread
        compand(shares, bits, spare)
        shares *= (1 << bits) - 0.01
        shares += 0.005
        # Nothing is below 0, so cutting off is the floor.
        np.copyto(out[..., part], shares, casting="unsafe")
    return out


def _in_place(shares: np.ndarray, bits: int, spare: np.ndarray) -> None:
    """Leave shares as they are."""


def _compand(shares: np.ndarray, bits: int, spare: np.ndarray) -> None:
    """Compand shares of [0, 1] as values of [-1, 1], and shift them back."""
    mu = (1 << bits) - 1
    shares *= 2
    shares -= 1
    sizes = np.abs(shares, out=spare)
    sizes *= mu
    np.log1p(sizes, out=sizes)
    sizes /= np.log1p(mu)
    np.copysign(sizes, shares, out=shares)
    shares += 1
    shares /= 2


def _decode(codes: Any, bits: int, expand: Callable[[np.ndarray, int], np.ndarray]) -> Any:
    check_int("bits", bits, minimum=1, maximum=MAX_BITS)
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(codes, torch.Tensor):
        return torch.from_numpy(_decode(codes.detach().cpu().numpy(), bits, expand)).to(codes.device)
    values = np.asarray(codes, np.float64) / (1 << (bits - 1)) - 1
    return expand(values, bits).astype(np.float32)


def _as_they_are(values: np.ndarray, bits: int) -> np.ndarray:
    return values


def _expanded(values: np.ndarray, bits: int) -> np.ndarray:
    mu = (1 << bits) - 1
    return np.sign(values) * ((1 + mu) ** np.abs(values) - 1) / mu
