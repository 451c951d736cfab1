"""The sound files of a folder in three parts: what is trained on, validated with, and tested with."""

from __future__ import annotations

import math
import os
from dataclasses import asdict
from itertools import pairwise

from penstock.datasets.audio_files import list_sounds
from penstock.datasets.audio_samples import SampleForm, drops_tail
from penstock.datasets.quantized_audio import QuantizedAudioDataset
from penstock.errors import ConfigError

_PARTS = 3


class QuantizedAutoregressiveAudio:
    """A folder of sound files in three parts, training, validation and test, each a `QuantizedAudioDataset`.

    Of n files in natural order the first floor(train_percentage · n) are for training; of the rest one half is for
    validation and the other for testing, which gets the odd one. No part is left empty.

    Args:
        path: the folder.
        bits: see `QuantizedAudioDataset`, as for all that is not said here.
        sample_len: frames of a segment.
        train_percentage: share of the files that are for training, above 0 and below 1.
        quantization: "linear", "mu-law" or None.
        return_type: "autoregressive" or None.
        drop_tail: leave out segments shorter than `sample_len`.
        target_sr: frames a second.
        context_len: targets to leave out at the start.
        pad_len: zero levels to put in front.
        drop_last: another name of `drop_tail`.

    Raises:
        ConfigError: an argument cannot work.

    Attributes:
        dataset_train: set by `setup`, None before.
        dataset_val: set by `setup`, None before.
        dataset_test: set by `setup`, None before.
    """

    d_input = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        bits: int = 8,
        sample_len: int | None = None,
        train_percentage: float = 0.88,
        quantization: str | None = "linear",
        return_type: str | None = "autoregressive",
        drop_tail: bool = False,
        target_sr: int | None = None,
        context_len: int | None = None,
        pad_len: int | None = None,
        *,
        drop_last: bool | None = None,
    ) -> None:
        if isinstance(train_percentage, bool) or not isinstance(train_percentage, int | float):
            raise ConfigError(f"train_percentage must be a number above 0 and below 1, got {train_percentage!r}")
        if not 0 < train_percentage < 1:
            raise ConfigError(f"train_percentage must be above 0 and below 1, got {train_percentage}: 0.88 is 88 %")
        self.path = path
        self.train_percentage = train_percentage
        self.form = SampleForm(
            bits=bits,
            sample_len=sample_len,
            quantization=quantization,
            return_type=return_type,
            drop_tail=drops_tail(drop_tail, drop_last),
            target_sr=target_sr,
            context_len=context_len,
            pad_len=pad_len,
        )
        self.dataset_train: QuantizedAudioDataset | None = None
        self.dataset_val: QuantizedAudioDataset | None = None
        self.dataset_test: QuantizedAudioDataset | None = None

    @property
    def d_output(self) -> int:
        """How many codes there are; 1 if nothing is quantized."""
        return self.form.d_output

    @property
    def l_output(self) -> int | None:
        """Frames of a segment; None if each file is one."""
        return self.form.sample_len

    def setup(self) -> None:
        """List the folder and read the headers of its files; once.

        Raises:
            ConfigError, ObjectMissing, BadMedia: as `QuantizedAudioDataset`; the folder has fewer than three files.
        """
        if self.dataset_train is not None:
            return
        count = len(list_sounds(self.path))
        train, val = split_counts(count, self.train_percentage, os.fspath(self.path))
        bounds = (0, train, train + val, count)
        parts = [self._part(start / count, stop / count) for start, stop in pairwise(bounds)]
        self.dataset_train, self.dataset_val, self.dataset_test = parts

    def _part(self, ratio_min: float, ratio_max: float) -> QuantizedAudioDataset:
        return QuantizedAudioDataset(self.path, ratio_min=ratio_min, ratio_max=ratio_max, **asdict(self.form))


def split_counts(count: int, train_percentage: float, where: str) -> tuple[int, int]:
    """Say how many of so many files are for training and how many for validation; the others are for testing.

    Raises:
        ConfigError: there are fewer files than parts.

    >>> split_counts(100, 0.88, "x"), split_counts(10, 0.88, "x"), split_counts(3, 0.88, "x")
    ((88, 6), (8, 1), (1, 1))
    """
    if count < _PARTS:
        raise ConfigError(
            f"{where} has {count} sound file{'' if count == 1 else 's'}, and training, validation and test need one "
            "each: add files, cut long ones, or use QuantizedAudioDataset, which does not split"
        )
    # A product such as 0.29 · 100 is a little less than it should be.
    train = min(max(1, math.floor(train_percentage * count + 1e-9)), count - 2)
    return train, (count - train) // 2
