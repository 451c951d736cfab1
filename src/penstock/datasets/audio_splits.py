"""The sound files of a folder in three parts: what is trained on, validated with, and tested with."""

from __future__ import annotations

import math
import os
from itertools import pairwise
from typing import Literal

from penstock.datasets.audio_files import BrokenSound, list_sounds, read_headers
from penstock.datasets.audio_samples import SampleForm, drops_tail
from penstock.datasets.quantized_audio import QuantizedAudioDataset, dataset_of
from penstock.errors import ConfigError
from penstock.types import check_choice, check_number

_PARTS = 3


class QuantizedAutoregressiveAudio:
    """A folder of sound files in three parts, training, validation and test, each a `QuantizedAudioDataset`.

    Of n files in natural order the first floor(train_percentage · n) are for training; of the rest one half is for
    validation and the other for testing, which gets the odd one. No part is left empty. Which part a file is in does
    not depend on what else is broken.

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
        on_error: files that are no sounds are refused by `setup`, those of all parts at once ("raise"), or left out of
            their parts ("skip").

    Raises:
        ConfigError: an argument cannot work.

    Attributes:
        dataset_train: set by `setup`, None before.
        dataset_val: set by `setup`, None before.
        dataset_test: set by `setup`, None before.
        broken: the files of all parts that `setup` left out.
        on_error: as given.
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
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        self.path = path
        self.train_percentage = check_number("train_percentage, 0.88 for 88 %,", train_percentage, above=0, below=1)
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
        check_choice("on_error", on_error, ("raise", "skip"))
        self.on_error = on_error
        self.broken: tuple[BrokenSound, ...] = ()
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
            ConfigError, ObjectMissing, BadMedia, StoreError: as `QuantizedAudioDataset`; the folder has fewer than
                three files, or all those of a part are broken.
        """
        if self.dataset_train is not None:
            return
        names = list_sounds(self.path)
        train, val = split_counts(len(names), self.train_percentage, os.fspath(self.path))
        files = read_headers(self.path, names, self.on_error)
        parts = [
            dataset_of(files.among(names[start:stop]), self.form, self.on_error)
            for start, stop in pairwise((0, train, train + val, len(names)))
        ]
        self.broken = files.broken
        self.dataset_train, self.dataset_val, self.dataset_test = parts


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
