"""Folders of sound in rounds: the audio datasets of `penstock.datasets`, with loaders that know the sizes of rounds.

    QuantizedAudioDataset        + chunk_size                         ──dataloader()──▶ rounds, or torch's own
    QuantizedAutoregressiveAudio + train_chunk_size, val_chunk_size   ──train_dataloader(), …──▶ as well

Samples, and batches with their lengths, are the same with rounds and without.
"""

from __future__ import annotations

import os
from typing import Any, Literal

from penstock.datasets.audio_splits import QuantizedAutoregressiveAudio
from penstock.datasets.quantized_audio import QuantizedAudioDataset
from penstock.train.chunked_dataloader import ChunkedDataLoader
from penstock.train.round_config import check_chunk_size
from penstock.train.sequence_dataset import ChunkedSequenceDataset


class ChunkedQuantizedAudioDataset(QuantizedAudioDataset):
    """One folder of sound, or a share of its files, and a loader over it in rounds.

    Args:
        *args: as `QuantizedAudioDataset` takes them.
        chunk_size: batches per process in a round. None: no rounds, and `dataloader` gives a torch DataLoader.
        **kwargs: as `QuantizedAudioDataset` takes them.

    Raises:
        ConfigError: the size is no integer from 1 to 2**62; and as `QuantizedAudioDataset`.
    """

    def __init__(self, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> None:
        self.chunk_size = check_chunk_size("chunk_size", chunk_size)
        super().__init__(*args, **kwargs)

    def dataloader(self, batch_size: int = 1, **options: Any) -> Any:
        """Give a loader of batches (x, y, {"lengths"}): rounds if there is a size, else a torch DataLoader.

        Args:
            batch_size: segments per batch of this process.
            **options: see `ChunkedDataLoader`.
        """
        if self.chunk_size is None:
            options.setdefault("collate_fn", self.collate)
        return ChunkedDataLoader(self, batch_size, self.chunk_size, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "chunk_size": self.chunk_size}


class ChunkedQuantizedAutoregressiveAudio(QuantizedAutoregressiveAudio, ChunkedSequenceDataset):
    """A folder of sound in three parts and their loaders, in rounds if a size is given.

    Args:
        path: the folder; see `QuantizedAutoregressiveAudio`, as for all that is not said here.
        bits: 2^bits codes.
        sample_len: frames of a segment.
        train_percentage: share of the files that are for training.
        quantization: "linear", "mu-law" or None.
        return_type: "autoregressive" or None.
        drop_tail: leave out segments shorter than `sample_len`.
        target_sr: frames a second.
        context_len: targets to leave out at the start.
        pad_len: zero levels to put in front.
        drop_last: another name of `drop_tail`. For batches, give it to `train_dataloader`.
        train_chunk_size: see `ChunkedSequenceDataset`.
        val_chunk_size: see `ChunkedSequenceDataset`.
        on_error: "raise" or "skip". Loaders in rounds have it too; a torch DataLoader raises what fails in it.
        **options: of the loaders, as `ChunkedSequenceDataset` takes them.

    Raises:
        ConfigError: an argument cannot work.
    """

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
        train_chunk_size: int | None = None,
        val_chunk_size: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        **options: Any,
    ) -> None:
        QuantizedAutoregressiveAudio.__init__(
            self,
            path,
            bits,
            sample_len,
            train_percentage,
            quantization,
            return_type,
            drop_tail,
            target_sr,
            context_len,
            pad_len,
            drop_last=drop_last,
            on_error=on_error,
        )
        ChunkedSequenceDataset.__init__(self, train_chunk_size, val_chunk_size, **options)

    def _loader(self, dataset: Any, chunk_size: int | None, options: dict[str, Any]) -> Any:
        """Make a loader whose batches are the same with rounds and without, where torch would not know of `collate`."""
        if not self.use_chunked_training:
            options.setdefault("collate_fn", dataset.collate)
        return super()._loader(dataset, chunk_size, options)
