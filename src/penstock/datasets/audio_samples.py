"""Quantized sound → what an autoregressive model is trained on, and batches of it.

    codes [L] ──▶ x [pad_len + L] = zero levels · codes shifted right by one      y [L - context_len, 1] = codes

One row of memory holds both: zero levels, then the codes; x is all but its last, y its end.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.errors import ConfigError
from penstock.transforms.pad import IGNORED
from penstock.transforms.quantize import ENCODERS, check_quantization, zero_level
from penstock.types import check_choice, check_int

RETURN_TYPES = ("autoregressive", None)


class Segments(list[Any]):
    """Samples of equal lengths that are rows of one memory, and in `columns` all of them at once."""

    __slots__ = ("columns",)
    columns: tuple[np.ndarray, ...]

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleForm:
    """How sound is cut, and what is made of a segment: its codes, a model's input and output, a batch of them.

    What each means, `QuantizedAudioDataset` says, whose arguments they are.

    Raises:
        ConfigError: one of them cannot work.
    """

    bits: int
    sample_len: int | None
    quantization: str | None
    return_type: str | None
    drop_tail: bool
    target_sr: int | None
    context_len: int | None
    pad_len: int | None

    def __post_init__(self) -> None:
        zero_level(self.bits)
        for name, value in (("sample_len", self.sample_len), ("target_sr", self.target_sr)):
            if value is not None:
                check_int(name, value, minimum=1)
        check_quantization(self.quantization)
        check_choice("return_type", self.return_type, RETURN_TYPES)
        for name, value in (("context_len", self.context_len), ("pad_len", self.pad_len)):
            if value is not None:
                check_int(name, value, minimum=0)
                if self.return_type is None:
                    raise ConfigError(f'{name}={value} is for return_type="autoregressive"; return_type is None')
        if None not in (self.context_len, self.sample_len) and self.context_len >= self.sample_len:  # type: ignore[operator]
            raise ConfigError(
                f"context_len={self.context_len} leaves nothing of segments of sample_len={self.sample_len} frames"
            )

    @property
    def d_output(self) -> int:
        """How many codes there are; 1 where nothing is quantized."""
        return 1 if self.quantization is None else 1 << self.bits

    @property
    def zero(self) -> int | float:
        """What stands before the first value and in the padding: the zero level; 0.0 where nothing is quantized."""
        return 0.0 if self.quantization is None else zero_level(self.bits)

    @property
    def dtype(self) -> type:
        """Of the values: int64, or float32 where nothing is quantized."""
        return np.float32 if self.quantization is None else np.int64

    @property
    def lead(self) -> int:
        """How many zero levels come before a segment."""
        return 0 if self.return_type is None else 1 + (self.pad_len or 0)

    def encode(self, values: np.ndarray, out: np.ndarray) -> None:
        """Fill rows [n, lead + L] with segments float32 [n, L]."""
        out[:, : self.lead] = self.zero
        codes = out[:, self.lead :]
        if self.quantization is None:
            codes[:] = values
        else:
            ENCODERS[self.quantization](values, self.bits, out=codes)

    def columns(self, rows: np.ndarray) -> tuple[np.ndarray, ...]:
        """Give x [n, …] and y [n, …, 1] of filled rows; y alone if they are returned plain."""
        if self.return_type is None:
            return (rows[:, :, None],)
        return rows[:, :-1], rows[:, self.lead + (self.context_len or 0) :, None]

    def samples(self, rows: np.ndarray) -> Segments:
        """Give filled rows [n, lead + L] as n samples."""
        columns = self.columns(rows)
        samples = Segments(columns[0] if len(columns) == 1 else zip(*columns, strict=True))
        samples.columns = columns
        return samples

    def collate(self, samples: Sequence[Any]) -> tuple[Any, ...]:
        """Make a batch: (x, y, {"lengths"}), or (values, {"lengths"}) of plain ones.

        Args:
            samples: as the dataset gives them, arrays or tensors; transforms may have changed them.

        Returns:
            x [n, longest], filled up on the right with the zero level; y [n, longest, 1] with -100; int64 [n] lengths
            of the rows of x. (Plain values [n, longest, 1] with the zero level.) Tensors where the samples are tensors.
        """
        columns: Sequence[Any] = samples.columns if type(samples) is Segments else ()
        if not columns:
            plain = self.return_type is None
            parts = (list(samples),) if plain else tuple(zip(*samples, strict=True))
            fills = (self.zero,) if plain else (self.zero, IGNORED)
            columns = [_padded(part, fill) for part, fill in zip(parts, fills, strict=True)]
            lengths = np.array([len(values) for values in parts[0]], np.int64)
        else:
            lengths = np.full(len(samples), columns[0].shape[1], np.int64)
        torch = sys.modules.get("torch")
        is_tensor = torch is not None and isinstance(columns[0], torch.Tensor)
        return (*columns, {"lengths": torch.from_numpy(lengths) if torch is not None and is_tensor else lengths})


def drops_tail(drop_tail: object, drop_last: object) -> bool:
    """Read an option that has two names.

    Raises:
        ConfigError: they contradict each other, or are no booleans.
    """
    check_choice("drop_tail", drop_tail, (True, False))
    check_choice("drop_last", drop_last, (True, False, None))
    if drop_last is False and drop_tail is True:
        raise ConfigError("drop_last is another name of drop_tail: they are False and True, give one of them")
    return bool(drop_tail or drop_last)


def _padded(values: Sequence[Any], fill: float) -> Any:
    """Lay arrays or tensors [k, …] of unequal k side by side."""
    arrays = [np.asarray(value) for value in values]
    shape = (len(arrays), max(len(array) for array in arrays), *arrays[0].shape[1:])
    out = np.full(shape, fill, arrays[0].dtype)
    for row, array in zip(out, arrays, strict=True):
        row[: len(array)] = array
    torch = sys.modules.get("torch")
    return torch.from_numpy(out) if torch is not None and isinstance(values[0], torch.Tensor) else out
