"""Texts that come with samples: one of several chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.image_augment import needed
from penstock.transforms.media import describe, read_bytes, take_field


@dataclass(frozen=True, slots=True)
class ReadText:
    """Read a text: the path or bytes in a field → str, UTF-8, without the white space around it.

    Args:
        field: the field that holds a path on this machine, or bytes.
        out: the field to write; None: the same.
        max_bytes: refuse larger files before reading. None: no limit.
        required: None is an error, instead of None.

    Raises:
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: "empty", "too-large", "not-text", "missing".
    """

    field: str = "txt"
    out: str | None = None
    _: KW_ONLY
    max_bytes: int | None = 1 << 26
    required: bool = False

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with the text."""
        value = take_field(sample, self.field, required=self.required)
        if value is not None:
            path = describe(value)
            try:
                value = str(read_bytes(value, max_bytes=self.max_bytes), "utf-8-sig").strip()
            except UnicodeDecodeError as error:
                raise BadMedia(f"{path} is no UTF-8 text: {error}", path=path, reason="not-text") from None
        return {**sample, self.out or self.field: value}


@dataclass(frozen=True, slots=True)
class SampleText:
    """Choose one of several texts by `rng`, and leave it out now and then.

    Args:
        field: a text, or a list of texts; bytes are UTF-8.
        out: the field to write; None: the same.
        random: False takes the first.
        drop: probability of "" in its place, as training for guidance without a classifier wants it.

    Raises:
        BadMedia: a list without a text ("empty"), or bytes that are no UTF-8 ("not-text").

    >>> SampleText("caption")({"caption": ["a cat", "a pet"]}, np.random.default_rng(0))
    {'caption': 'a pet'}
    """

    field: str = "text"
    out: str | None = None
    _: KW_ONLY
    random: bool = True
    drop: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.drop <= 1:
            raise ConfigError(f"drop must be a probability, got {self.drop}")

    def __call__(self, sample: Mapping[str, Any], rng: np.random.Generator | None = None) -> dict[str, Any]:
        """Give the sample with one text."""
        value = take_field(sample, self.field)
        if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes | bytearray | memoryview):
            if not len(value):
                raise BadMedia(f"the field {self.field!r} is a list without a text", path="", reason="empty")
            value = value[int(needed(rng).integers(len(value))) if self.random else 0]
        if isinstance(value, bytes | bytearray | memoryview):
            value = self._decoded(value)
        if value is not None and self.drop and needed(rng).random() < self.drop:
            value = ""
        return {**sample, self.out or self.field: value}

    def _decoded(self, data: bytes | bytearray | memoryview) -> str:
        try:
            return str(data, "utf-8-sig")
        except UnicodeDecodeError as error:
            said = f"the field {self.field!r} holds bytes that are no UTF-8 text: {error}"
            raise BadMedia(said, path="", reason="not-text") from None
