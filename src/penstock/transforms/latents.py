"""Latents and embeddings: arrays made ahead of training, loaded, and sampled where they are distributions.

path | bytes ──▶ array, checked for NaN ──▶ mean + std · noise(rng) ──▶ float32
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.image_augment import needed
from penstock.transforms.latent_files import MAX_BYTES, read_arrays
from penstock.transforms.media import check_finite, describe, take_field
from penstock.types import check_choice, check_int


@dataclass(frozen=True, slots=True)
class LoadLatent:
    """Load an array: the path or bytes in a field (.npy, .npz, .safetensors, .pt) → float32, of any shape.

    Args:
        field: the field that holds a path on this machine, or bytes.
        out: the field to write; None: the same.
        key: which array of a file that holds several. A mapping {name in the file: field} loads several; `field`
            then stays a path, unless it is one of those written. None: there is but one.
        dtype: of the result; None: as stored.
        check: refuse NaN and infinities.
        max_bytes: refuse more, in the file or once unpacked. None: no limit.
        required: None is an error, instead of None.

    Raises:
        ConfigError: an argument cannot work, or a package is missing.
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: see `read_arrays`; "no-such-array"; "not-finite".
    """

    field: str = "latent"
    out: str | None = None
    _: KW_ONLY
    key: str | Mapping[str, str] | None = None
    dtype: str | None = "float32"
    check: bool = True
    max_bytes: int | None = MAX_BYTES
    required: bool = False

    def __post_init__(self) -> None:
        if self.out is not None and isinstance(self.key, Mapping):
            raise ConfigError("key names the fields to write, so out= says nothing: give one of them")
        if self.max_bytes is not None:
            check_int("max_bytes", self.max_bytes, minimum=1)
        if self.dtype is not None:
            check_dtype(self.dtype)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with the array, or arrays."""
        value = take_field(sample, self.field, required=self.required)
        wanted = self.key if isinstance(self.key, Mapping) else {self.key: self.out or self.field}
        if value is None:
            return {**sample, **dict.fromkeys(wanted.values())}
        path = describe(value)
        arrays = read_arrays(value, max_bytes=self.max_bytes)
        return {**sample, **{out: self._checked(_pick(arrays, key, path), path) for key, out in wanted.items()}}

    def _checked(self, array: np.ndarray, path: str) -> np.ndarray:
        if self.check:
            check_finite(array, path)
        array = array.astype(self.dtype or array.dtype.newbyteorder("="), order="C", copy=False)
        return array if array.flags.writeable else array.copy()


@dataclass(frozen=True, slots=True)
class SampleLatent:
    """Draw from the distribution that an encoder gave: mean + std · noise, float32, the noise by `rng`.

    Args:
        field: mean and spread, one after the other along `axis` ([2C, H, W] of images, [2C, T, H, W] of video), or the
            mean alone.
        out: the field to write; None: the same.
        spread_field: the field that holds the spread, where `field` is the mean alone; it is left out of the result.
        spread: what that is: "std", or "logvar" (the logarithm of the variance, kept to [-30, 20]).
        axis: of channels.
        scale: the result is (z - shift) · scale, as latent diffusion wants it.
        shift: see `scale`.
        random: False gives the mean, for validation.

    The result has half of the channels: [C, …].

    Raises:
        ConfigError: an argument cannot work, or the sample has no such field.
        BadMedia: mean and spread have no shapes that go together ("shape"), or a std is below 0 ("negative-std").

    >>> sample = {"latent": np.array([[3.0], [0.0]], np.float32)}
    >>> SampleLatent(scale=2.0)(sample, np.random.default_rng(0))["latent"].tolist()
    [[6.0]]
    """

    field: str = "latent"
    out: str | None = None
    _: KW_ONLY
    spread_field: str | None = None
    spread: Literal["std", "logvar"] = "std"
    axis: int = 0
    scale: float = 1.0
    shift: float = 0.0
    random: bool = True

    def __post_init__(self) -> None:
        check_choice("spread", self.spread, ("std", "logvar"))
        if not np.isfinite(self.scale) or not np.isfinite(self.shift):
            raise ConfigError(f"scale and shift must be finite, got {self.scale} and {self.shift}")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Give the sample with a latent in the place of its distribution."""
        out = self.out or self.field
        rest = {name: value for name, value in sample.items() if name != self.spread_field}
        values = take_field(sample, self.field)
        if values is None:
            return {**rest, out: None}
        mean, spread = self._halves(np.asarray(values, np.float32), sample)
        if not self.random:
            return {**rest, out: (mean - np.float32(self.shift)) * np.float32(self.scale)}
        if self.spread == "std" and (spread < 0).any():
            raise BadMedia(
                f"{self.spread_field or self.field!r} holds a std below 0, {spread.min():g}: is it a logvar?",
                path="",
                reason="negative-std",
            )
        std = np.exp(0.5 * np.clip(spread, -30, 20)) if self.spread == "logvar" else spread
        latent = needed(rng).standard_normal(mean.shape, np.float32)
        latent *= std
        latent += mean
        latent -= np.float32(self.shift)
        latent *= np.float32(self.scale)
        return {**rest, out: latent}

    def _halves(self, values: np.ndarray, sample: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        if self.spread_field is not None:
            spread = np.asarray(take_field(sample, self.spread_field, required=True), np.float32)
            if spread.shape != values.shape:
                raise BadMedia(
                    f"{self.field!r} has the shape {list(values.shape)}, {self.spread_field!r} {list(spread.shape)}",
                    path="",
                    reason="shape",
                )
            return values, spread
        if not -values.ndim <= self.axis < values.ndim or values.shape[self.axis] % 2:
            raise BadMedia(
                f"{self.field!r} has the shape {list(values.shape)}, whose axis {self.axis} can't be cut into a "
                "mean and a spread",
                path="",
                reason="shape",
            )
        mean, spread = np.split(values, 2, self.axis)
        return mean, spread


@dataclass(frozen=True, slots=True)
class SampleEmbedding:
    """Choose one of several embeddings [N, T, D] by `rng` → float32 [length, D], and which rows are real.

    Args:
        field: embeddings [N, T, D], of which one is chosen, or [T, D].
        out: the field to write; None: the same.
        length: rows of the result: longer ones are cut, shorter ones filled with zeros. None: as they are.
        mask: the field to write int64 [length] to: 1 at real rows, 0 at filled ones. None: `out` + "_mask".
        random: False takes the first.

    >>> sample = SampleEmbedding("text", length=3)({"text": np.ones((2, 4))}, np.random.default_rng(0))
    >>> sample["text"].shape, sample["text_mask"].tolist()
    ((3, 4), [1, 1, 0])
    """

    field: str = "embedding"
    out: str | None = None
    _: KW_ONLY
    length: int | None = None
    mask: str | None = None
    random: bool = True

    def __post_init__(self) -> None:
        if self.length is not None:
            check_int("length", self.length, minimum=1)

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Give the sample with one embedding, and its mask."""
        out = self.out or self.field
        mask = self.mask or f"{out}_mask"
        values = take_field(sample, self.field)
        if values is None:
            return {**sample, out: None, mask: None}
        values = np.asarray(values)
        if values.ndim not in (2, 3) or (values.ndim == 3 and not len(values)):
            raise BadMedia(
                f"{self.field!r} has the shape {list(values.shape)}: embeddings are [tokens, width], or [texts, "
                "tokens, width]",
                path="",
                reason="shape",
            )
        if values.ndim == 3:
            values = values[int(needed(rng).integers(len(values))) if self.random else 0]
        length = len(values) if self.length is None else self.length
        kept = min(length, len(values))
        rows = np.zeros((length, values.shape[1]), np.float32)
        rows[:kept] = values[:kept]
        return {**sample, out: rows, mask: (np.arange(length) < kept).astype(np.int64)}


def check_dtype(name: str) -> np.dtype:
    """Return the numpy type of numbers that a name means, or raise ConfigError."""
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "biufc":
        raise ConfigError(f"dtype must name numbers of numpy, such as 'float32' or 'int64', got {name!r}")
    return dtype


def _pick(arrays: Mapping[str, np.ndarray], key: str | None, path: str) -> np.ndarray:
    if key is None and len(arrays) == 1:
        return next(iter(arrays.values()))
    if key is None or key not in arrays:
        raise BadMedia(
            f"{path} holds {sorted(arrays)}" + (f", not {key!r}" if key else ": say by key= which one"),
            path=path,
            reason="no-such-array",
        )
    return arrays[key]
