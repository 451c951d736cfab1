"""Sound files as sequences of codes: what models that predict sound frame by frame are trained on."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from penstock.datasets.audio_files import (
    BrokenSound,
    SoundFiles,
    list_sounds,
    read_headers,
    refuse_none_left,
    take_range,
)
from penstock.datasets.audio_reading import SoundReader
from penstock.datasets.audio_samples import SampleForm, Segments, drops_tail
from penstock.datasets.ids import check_id, check_ids
from penstock.errors import BadMedia, ConfigError
from penstock.formats.files import digest
from penstock.transforms.reused_buffers import ReusedBuffers
from penstock.types import check_choice

if TYPE_CHECKING:
    import torch

_VALUES_AT_ONCE = 1 << 14
"""Values that are read before they are quantized: few enough to stay in a core's own cache."""


class QuantizedAudioDataset:
    """Segments of the sound files of a folder, mono and quantized, as inputs and targets of an autoregressive model.

    Files are those with the extension of a sound, in the folder and below it, in natural order. Each is cut into
    segments of `sample_len` frames that do not overlap; what is left at its end is a shorter segment. Of the files only
    the headers are read, when the dataset is made; a sample reads its own frames.

    A sample of L frames is (x, y): y int64 [L, 1], the codes; x int64 [L], the same shifted right by one, with the zero
    level 2^(bits-1) in front, so that y[t] is what follows x[: t + 1]. Codes: see `penstock.transforms.quantize`.
    Indexing gives tensors, `fetch` arrays, which share memory: clone one before you change the other in place.

    Args:
        path: the folder.
        bits: 2^bits codes, 1 to 24.
        ratio_min: of n files, leave out the first floor(ratio_min · n).
        ratio_max: and those from floor(ratio_max · n) on.
        sample_len: frames of a segment, at `target_sr`. None: every file is one segment.
        quantization: "linear", "mu-law", or None: float32 values as they are in the files, zero level 0.
        return_type: "autoregressive": (x, y). None: y alone.
        drop_tail: leave out segments shorter than `sample_len`.
        target_sr: resample to so many frames a second, without seams: segments joined are the file resampled whole,
            within 1e-6 of full scale before they are quantized. None: each file at its own rate.
        context_len: leave out so many targets at the start of y: the model is given them as context.
        pad_len: put so many zero levels more before x.
        drop_last: another name of `drop_tail`.
        on_error: files that are no sounds, by their headers, are refused all at once ("raise"), or left out and listed
            in `broken` ("skip"). A loader takes it for its own default, for what fails when it is decoded.

    Raises:
        ConfigError: an argument cannot work; there is no folder of sounds, or no file in the range, or no segment in
            the files.
        ObjectMissing: there is no such folder.
        BadMedia: files are no sounds; says how many, and of the first ten what is wrong. With "skip": none is left.
        StoreError: files can't be read by this process.

    Attributes:
        d_input: values a frame, 1.
        d_output: how many codes there are, 2^bits; 1 if nothing is quantized.
        l_output: `sample_len`.
        files: the files, with what their headers say.
        on_error: as given.

    Cost: making one opens each file once, 0.05 to 0.5 ms if it is in memory, several at a time; 16 bytes a file are
    kept. `fetch` keeps up to 64 files open, until `close`. Threads and processes may use it.
    """

    d_input = 1

    def __init__(
        self,
        path: str | os.PathLike[str],
        bits: int = 8,
        ratio_min: float = 0,
        ratio_max: float = 1,
        sample_len: int | None = None,
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
        names = take_range(list_sounds(path), ratio_min, ratio_max, os.fspath(path))
        self._begin(read_headers(path, names, on_error), on_error)

    def _begin(self, files: SoundFiles, on_error: Literal["raise", "skip"]) -> None:
        refuse_none_left(files)
        self.files = files
        self.on_error = on_error
        self._reader = SoundReader(files, self.form.target_sr)
        self._cut()
        if not len(self):
            raise ConfigError(
                f"none of the {len(files.names)} files in {files.folder} has {self.form.sample_len:,} frames: choose a "
                "smaller sample_len, or drop_tail=False"
            )

    def _cut(self) -> None:
        """Count the segments of every file."""
        frames, length = self._reader.num_frames, self.form.sample_len
        if length is None:
            counts = np.ones(len(frames), np.int64)
        else:
            counts = frames // length if self.form.drop_tail else -(-frames // length)
        # Segments of file f are those from stops[f - 1] to stops[f].
        self._stops = np.cumsum(counts)
        self._starts = self._stops - counts
        self._buffers = ReusedBuffers()

    @property
    def d_output(self) -> int:
        """How many codes there are; 1 if nothing is quantized."""
        return self.form.d_output

    @property
    def l_output(self) -> int | None:
        """Frames of a segment; None if each file is one."""
        return self.form.sample_len

    @property
    def zero_level(self) -> int | float:
        """The code of silence, which stands before the first one; 0.0 if nothing is quantized."""
        return self.form.zero

    @property
    def broken(self) -> tuple[BrokenSound, ...]:
        """The files that were left out because they are no sounds, each with its `name`, `reason` and `message`."""
        return self.files.broken

    @cached_property
    def lengths(self) -> np.ndarray:
        """Frames of every segment, int64 [len(self)]."""
        return self._places(np.arange(len(self)))[2]

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the files' names, lengths and rates, and what is made of them; not their content."""
        files = zip(self.files.names, self.files.num_frames.tolist(), self.files.sample_rates.tolist(), strict=True)
        return digest(f"{self.form}\n{list(files)}".encode("utf-8", "surrogateescape"))

    def __len__(self) -> int:
        """Count the segments."""
        return int(self._stops[-1])

    def __repr__(self) -> str:
        what = f"{str(self.files.folder)!r}, bits={self.form.bits}, quantization={self.form.quantization!r}"
        broken = f"; {len(self.broken):,} broken left out" if self.broken else ""
        return (
            f"{type(self).__name__}({what}, sample_len={self.form.sample_len}: {len(self):,} samples of "
            f"{len(self.files.names):,} files{broken})"
        )

    def __getitem__(self, index: int) -> Any:
        """Give one sample as tensors of its own: (x, y), or y if `return_type` is None.

        Raises:
            IndexError: there is no such segment.
        """
        return self.__getitems__([check_id(index, len(self), self.files.folder)])[0]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        """Give several samples, as torch's DataLoader asks for them."""
        import torch

        def own(values: np.ndarray) -> torch.Tensor:
            return torch.from_numpy(values.copy())

        samples = self.fetch(np.asarray(indices, np.int64))
        if self.form.return_type is None:
            return [own(values) for values in samples]
        return [(own(x), own(y)) for x, y in samples]

    def fetch(self, ids: np.ndarray) -> list[Any]:
        """Read the samples of ids, int64 [n]: (x, y) each, or y.

        Raises:
            IndexError: there is no such segment.
            BadMedia: one can't be decoded ("corrupt", "truncated"), or holds values that are not finite ("not-finite").
            ObjectChanged: a file is not what it was when this was made.
            ObjectMissing, StoreError: a file can't be opened any more.
        """
        check_ids(ids, len(self), self.files.folder)
        files, starts, lengths = self._places(ids)
        if len(ids) and (lengths == lengths[0]).all():
            return self._read(files, starts, int(lengths[0]))
        alone = (slice(j, j + 1) for j in range(len(ids)))
        return [self._read(files[j], starts[j], int(lengths[j][0]))[0] for j in alone]

    def collate(self, samples: list[Any]) -> tuple[Any, ...]:
        """Make a batch of samples of unequal lengths: (x, y, {"lengths"}); of plain ones: (y, {"lengths"}).

        Args:
            samples: as this dataset gives them, arrays or tensors.

        Returns:
            x [n, longest], filled up on the right with the zero level; y [n, longest, 1] with -100; int64 [n] `lengths`
            of the rows of x. Tensors where the samples are tensors.
        """
        return self.form.collate(samples)

    def describe(self, id_: int, error: Exception) -> tuple[str, str]:
        """Say which frames of which file a sample is."""
        files, starts, lengths = self._places(np.array([id_]))
        start = int(starts[0])
        return f"(frames [{start:,}, {start + int(lengths[0]):,}) of {self.files.path(int(files[0]))})", ""

    def close(self) -> None:
        """Close the files that are open. The dataset stays usable."""
        self._reader.close()

    def _places(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Say where segments are: file, first frame and number of frames of each, int64 [n]."""
        files = np.searchsorted(self._stops, ids, side="right")
        frames = self._reader.num_frames[files]
        if self.form.sample_len is None:
            return files, np.zeros(len(ids), np.int64), frames
        starts = (ids - self._starts[files]) * self.form.sample_len
        return files, starts, np.minimum(self.form.sample_len, frames - starts)

    def _read(self, files: np.ndarray, starts: np.ndarray, length: int) -> Segments:
        """Read segments of one length into one memory, and quantize them."""
        rows = self._buffers.take((len(files), self.form.lead + length), self.form.dtype)
        group = max(1, _VALUES_AT_ONCE // length)
        values = np.empty((min(group, len(files)), length), np.float32)
        places = list(zip(files.tolist(), starts.tolist(), strict=True))
        for first in range(0, len(files), group):
            some = places[first : first + group]
            for (file, start), out in zip(some, values, strict=False):
                self._reader.read_into(file, start, out)
            part = values[: len(some)]
            if not np.isfinite(part.sum(dtype=np.float64)):
                self._refuse_not_finite(some, part)
            self.form.encode(part, rows[first : first + len(some)])
        return self.form.samples(rows)

    def _refuse_not_finite(self, places: list[tuple[int, int]], values: np.ndarray) -> None:
        for (file, start), row in zip(places, values, strict=True):
            if not np.isfinite(row).all():
                path = self.files.path(file)
                frame = start + int(np.argmin(np.isfinite(row)))
                raise BadMedia(
                    f"{path} holds values that are NaN or infinite, the first one in frame {frame:,}: write it again",
                    path=path,
                    reason="not-finite",
                )

    def __getstate__(self) -> dict[str, Any]:
        return {"form": self.form, "files": self.files, "on_error": self.on_error, "_reader": self._reader}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Headers travel, open files do not.
        self.__dict__.update(state)
        self._cut()


def dataset_of(files: SoundFiles, form: SampleForm, on_error: Literal["raise", "skip"]) -> QuantizedAudioDataset:
    """Make a dataset of files whose headers have been read.

    Args:
        files: the files.
        form: what a sample is.
        on_error: for the loader.

    Raises:
        ConfigError: there is no segment in the files.
        BadMedia: all the files are broken.
    """
    dataset = QuantizedAudioDataset.__new__(QuantizedAudioDataset)
    dataset.form = form
    dataset._begin(files, on_error)
    return dataset
