"""Token bins as training samples: windows over the stream, by id or drawn at random."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.datasets.answers import as_tensors
from penstock.datasets.ids import check_id, check_ids
from penstock.datasets.windows import WindowReader
from penstock.errors import ConfigError
from penstock.formats.tokens import TokenBin, open_bin
from penstock.seeds import uniform
from penstock.types import World, check_choice, check_device, check_int

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""The label that torch's losses leave out."""

SPLITS = {"train": "train", "val": "validation", "validation": "validation"}


class TokenDataset:
    """Windows of `seq_len` tokens over a token bin: inputs, and the same shifted by one as labels.

    With the default stride every token after the first is a target exactly once an epoch: windows
    stand side by side, and the last one is moved back to the end of the stream, the labels that the
    window before it already has being -100. With any other stride there are only whole windows.

    Opening is O(1), samples are read through the page cache, memory does not grow with the file.

    Args:
        path: a .bin, as `penstock tokenize` writes it or bare.
        seq_len: tokens per sample.
        stride: tokens from one window's start to the next one's. None: seq_len.
        dtype: "uint16" or "uint32", for a bare file of the latter; never guessed.

    Raises:
        ConfigError: the stream is too short for one window.
        ObjectMissing, BadBlock, BadManifest: as `penstock.formats.tokens.open_bin`.

    A sample is {"input_ids": int64 [seq_len], "labels": int64 [seq_len]}: arrays from `fetch`, tensors
    from indexing. In a batch both are views of one memory, shifted by one: clone one before you change the
    other in place. (Transforms and indexing are given arrays of their own.) `fetch` costs about 0.4 ns a token.
    """

    inline = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        seq_len: int,
        *,
        stride: int | None = None,
        dtype: str | np.dtype | type | None = None,
    ) -> None:
        self.seq_len = check_int("seq_len", seq_len, minimum=1)
        self.stride = self.seq_len if stride is None else check_int("stride", stride, minimum=1)
        self.bin = open_bin(path, dtype=dtype)
        check_length(self.bin, self.seq_len)
        self._last_start = len(self.bin) - self.seq_len - 1
        self._len, self._tail = divmod(self._last_start, self.stride)
        self._len += 1
        if self.stride == self.seq_len and self._tail:
            self._len += 1
        else:
            self._tail = 0
        self._windows = WindowReader(self.bin.tokens, self.seq_len + 1)

    def __len__(self) -> int:
        """Count the windows."""
        return self._len

    def __repr__(self) -> str:
        what = f"seq_len={self.seq_len}, stride={self.stride}"
        return f"TokenDataset({str(self.bin.path)!r}, {what}: {self._len:,} samples of {len(self.bin):,} tokens)"

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one sample as tensors of its own.

        Raises:
            IndexError: there is no such window.
        """
        return self.__getitems__([check_id(index, self._len, self.bin.path)])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """Give several samples, as torch's DataLoader asks for them."""
        return as_tensors(self.fetch(np.asarray(indices, np.int64)))

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the tokens and how they are cut."""
        return f"{self.bin.fingerprint}:{self.seq_len}:{self.stride}"

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Gather the samples of ids, int64 [n], as int64 [n, seq_len] each; labels share the inputs' memory.

        Raises:
            IndexError: there is no such window.
        """
        last = self._len - 1
        highest = check_ids(ids, self._len, self.bin.path)
        starts = ids * self.stride
        if not self._tail or highest < last:
            tokens = self._windows.read(starts)  # [n, seq_len + 1]
            return {"input_ids": tokens[:, :-1], "labels": tokens[:, 1:]}
        tokens = self._windows.read(np.minimum(starts, self._last_start))
        labels = tokens[:, 1:].copy()
        labels[ids == last, : self.seq_len - self._tail] = IGNORED
        return {"input_ids": tokens[:, :-1], "labels": labels}

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.bin.path, "seq_len": self.seq_len, "stride": self.stride, "dtype": self.bin.dtype.name}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The receiving process maps the file itself, so a dataset travels as a path.
        self.__init__(**state)  # type: ignore[misc]


def get_batch(
    split: str,
    block_size: int,
    batch_size: int,
    device: str | torch.device = "cpu",
    *,
    data_dir: str | os.PathLike[str] = "data/processed_datasets",
    dtype: str | np.dtype | type | None = None,
    seed: int = 0,
    generator: torch.Generator | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a batch of random windows, with replacement; y is x shifted by one.

    Data-parallel ranks draw different windows: who this process is, is asked with each call, as `World.current()`
    does. Of tensor and pipeline parallelism it can't know: peers that must read the same windows, and replicas that
    must not, are told apart by the `generator` you give them.

    Args:
        split: "train", "validation" or "val".
        block_size: tokens per window.
        batch_size: windows.
        device: where to put them; on CUDA through pinned memory, without waiting.
        data_dir: folder of train.bin and validation.bin.
        dtype: type of a bare uint32 file.
        seed: key of this split's private generator, which goes on from call to call; another seed starts another. On
            rank 0 it is `torch.Generator().manual_seed(seed)`; rank r > 0 seeds its own with
            `penstock.seeds.uniform(seed, "get_batch", r)`.
        generator: draw from this one instead. The starts are those of
            `torch.randint(len(tokens) - block_size, (batch_size,), generator=generator)`.

    Returns:
        x and y, int64 [batch_size, block_size] each.

    Raises:
        ConfigError: no such split or device, the split has no window of block_size tokens and a next one, or it is
            unclear which rank this is.
        ObjectMissing: the split has not been written.

    Cost: the file is mapped once per process; a batch costs its gather. For exact epochs that can be
    resumed, use `TokenDataset` with `StreamingDataLoader`.
    """
    import torch

    check_choice("split", split, tuple(SPLITS))
    check_int("block_size", block_size, minimum=1)
    check_int("batch_size", batch_size, minimum=1)
    target = check_device(device)
    place = Path(data_dir, f"{SPLITS[split]}.bin").absolute()
    source, windows = _opened(place, block_size, dtype)
    if generator is None:
        generator = _generator(place, seed, World.current().dp_rank)
    starts = torch.randint(len(source) - block_size, (batch_size,), generator=generator)
    batch = torch.from_numpy(windows.read(starts.numpy()))
    x, y = batch[:, :-1], batch[:, 1:]
    if target is not None and target.type == "cuda":
        return x.pin_memory().to(target, non_blocking=True), y.pin_memory().to(target, non_blocking=True)
    return x.to(target), y.to(target)


def check_length(source: TokenBin, seq_len: int) -> None:
    """Refuse a stream that has no window of seq_len tokens with a next one for each."""
    if len(source) <= seq_len:
        raise ConfigError(
            f"{source.path} has {len(source)} tokens: a window of {seq_len} and its labels need {seq_len + 1}. "
            f"Use a window of at most {max(0, len(source) - 1)}, or more text"
        )


_open_windows: dict[tuple[Path, int, str | None], tuple[tuple[int, int], TokenBin, WindowReader]] = {}
_generators: dict[tuple[Path, int, int], Any] = {}


def _opened(place: Path, block_size: int, dtype: Any) -> tuple[TokenBin, WindowReader]:
    """Open a split's windows, or give those that are open if the file is still the same."""
    key = (place, block_size, None if dtype is None else np.dtype(dtype).name)
    try:
        stat = place.stat()
        signature = (stat.st_mtime_ns, stat.st_size)
    except FileNotFoundError:
        signature = (0, 0)
    known = _open_windows.get(key)
    if known is None or known[0] != signature:
        source = open_bin(place, dtype=dtype)
        check_length(source, block_size)
        known = _open_windows[key] = (signature, source, WindowReader(source.tokens, block_size + 1))
    return known[1], known[2]


def _generator(place: Path, seed: int, rank: int) -> Any:
    """Give the private generator of a split, a seed and a data-parallel rank."""
    import torch

    if (generator := _generators.get((place, seed, rank))) is None:
        key = uniform(seed, "get_batch", rank) if rank else seed
        generator = _generators[place, seed, rank] = torch.Generator().manual_seed(key)
    return generator
