"""A clip in a field of a sample, and beside it what is to be known of it: what decoders of sound and video share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from penstock.transforms.media import take_field
from penstock.transforms.media_options import seconds_of


class Decoder(Protocol):
    """A transform that makes a clip of what a field holds."""

    @property
    def field(self) -> str:
        """Where the sample has a path, bytes, or a seekable binary file."""

    @property
    def out(self) -> str | None:
        """Where the clip goes; None: into the same field."""

    @property
    def offset(self) -> float | str:
        """Where it begins, in seconds, or the name of the field that says so."""

    @property
    def required(self) -> bool:
        """None in the field is an error."""

    def read(self, value: Any, offset: float = 0.0, rng: np.random.Generator | None = None) -> tuple[Any, ...]:
        """Decode one clip."""


def decode_clip(
    decoder: Decoder, names: tuple[str, ...], sample: Mapping[str, Any], rng: np.random.Generator | None
) -> dict[str, Any]:
    """Give a sample with the clip of one of its fields; see `with_clip`."""
    value = take_field(sample, decoder.field, required=decoder.required)
    clip = None if value is None else decoder.read(value, seconds_of(sample, decoder.offset), rng)
    return with_clip(sample, decoder.out or decoder.field, names, clip)


def with_clip(
    sample: Mapping[str, Any], out: str, names: tuple[str, ...], clip: tuple[Any, ...] | None
) -> dict[str, Any]:
    """Give a sample with a clip and what is to be known of it; None in all of these fields if there is none.

    Args:
        sample: what it had stays.
        out: the field of the clip.
        names: of a clip's parts: the first goes to `out`, each other to `{out}_{name}`.
        clip: the parts.

    >>> with_clip({"id": 7}, "x", ("data", "fps"), ([1, 2], 8.0))
    {'id': 7, 'x': [1, 2], 'x_fps': 8.0}
    """
    parts = (None,) * len(names) if clip is None else clip
    made = {**sample, out: parts[0]}
    for name, part in zip(names[1:], parts[1:], strict=True):
        made[f"{out}_{name}"] = part
    return made
