"""Text files and a tokenizer as training samples: tokenized once, then windows by id."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.datasets.documents import DocumentDataset
from penstock.datasets.token_cache import cached_bin, text_files
from penstock.datasets.tokens import TokenDataset
from penstock.errors import ConfigError
from penstock.formats.sources import Source
from penstock.formats.tokens import open_bin
from penstock.types import check_choice, check_int

if TYPE_CHECKING:
    import torch


class TransformerDataset:
    """Windows for causal language modelling over the text of JSON lines or plain text.

    All texts are tokenized in order into one stream of T tokens; sample i is `seq_length` tokens of it
    and the same shifted by one as labels. At stride 1 there are T - seq_length samples. At another
    stride s they start every s tokens, (T - seq_length - 1) // s + 1 in all; at stride seq_length the
    rest of the stream is one sample more, moved back to the end, its labels -100 where the sample
    before has them already.

    The default stride is 1: every position is a sample of its own, and consecutive ones share all but one of their
    tokens, so an epoch reads each token seq_length times. For one pass over the text, in which each token after the
    first is a target once, give stride=seq_length: of T = 1,000,000 tokens and seq_length 128 that is
    7,813 samples in place of 999,872.

    The stream is made by the first process that asks for it and kept as a token bin, found again by
    the content of the files and of the tokenizer. Processes map the same bin, so memory does not grow
    with the corpus; text streams through in blocks while the bin is made. If the builder is killed,
    the next one goes on where it stopped.

    It is a map-style dataset by behaviour, not by inheritance: penstock's and torch's loaders take it,
    and importing it does not import torch.

    Args:
        data_path: JSON lines, or text whose samples are separated by blank lines; .gz and .zst too, .json
            and .parquet. Also a folder or glob of such files, or a list.
        tokenizer: a path or name for `Tokenizer.from_pretrained`, or anything with `encode(text)` that returns a
            list, an array, a tensor, or a dict or object with `input_ids` or `ids`: penstock's own, by far the
            fastest, or one of tokenizers, transformers, tiktoken, SentencePiece, or your own. It must give the same
            ids for the same text. How its content is told: `penstock.transforms.any_tokenizer.fingerprint_of`.
        seq_length: tokens per sample.
        is_jsonl: True or False says what is in the files. None: what their suffix says, text where it says nothing.
        stride: tokens from one sample's start to the next one's; seq_length for one pass over the text.
        text_field: key of the text in JSON records.
        by_document: windows never cross from one text into another, and differ in length: see
            `DocumentDataset`, whose `lengths`, `overlap`, `pad_id` and `collate` this dataset then has.
        overlap: with by_document, tokens that windows of one text share.
        pad_id: with by_document, the id that fills a batch's shorter rows.
        cache_dir: where to keep the bin. None: `.penstock` beside the data, or the user's cache folder if that can't be
            written.
        timeout: seconds to wait for another process that makes the same bin, from its last sign of life on.

    Raises:
        ConfigError: an argument cannot work; the text has no more than seq_length tokens.
        BadRecord: a line is no record with a text; names its file and line.
        ObjectMissing: there is no such file.
        StoreError: the cache can't be written, or its builder does not get on.

    A sample is {"input_ids": int64 [seq_length], "labels": int64 [seq_length]}: arrays from `fetch`,
    tensors from indexing.
    """

    inline = True
    collate: Callable[[list[dict[str, Any]]], dict[str, Any]]
    """Only with by_document: pads a batch to its longest sample."""

    def __init__(
        self,
        data_path: Source,
        tokenizer: Any,
        seq_length: int = 128,
        is_jsonl: bool | None = None,
        *,
        stride: int = 1,
        text_field: str = "text",
        by_document: bool = False,
        overlap: int = 0,
        pad_id: int = 0,
        cache_dir: str | os.PathLike[str] | None = None,
        timeout: float = 600.0,
    ) -> None:
        self.seq_length = check_int("seq_length", seq_length, minimum=1)
        self.stride = check_int("stride", stride, minimum=1)
        self.overlap = check_int("overlap", overlap, minimum=0, maximum=self.seq_length - 1)
        check_choice("by_document", by_document, (True, False))
        if by_document and stride != 1:
            raise ConfigError(f"stride={stride} is for windows over the stream; with by_document=True give overlap")
        if overlap and not by_document:
            raise ConfigError(f"overlap={overlap} is for windows inside documents: give by_document=True, or stride")
        files = text_files(data_path, is_jsonl)
        path = cached_bin(files, tokenizer, text_field=text_field, cache_dir=cache_dir, timeout=timeout)
        least = 2 if by_document else self.seq_length + 1
        if (count := len(open_bin(path))) < least:
            raise ConfigError(
                f"{files[0].path}{' and others' if len(files) > 1 else ''}: {count} tokens in all, but one sample and "
                f"its labels need {least}: use seq_length <= {max(0, count - 1)}, or more text"
            )
        if by_document:
            self._use(DocumentDataset(path, self.seq_length, overlap=self.overlap, pad_id=pad_id))
        else:
            self._use(TokenDataset(path, self.seq_length, stride=self.stride))

    def __len__(self) -> int:
        """Count the samples."""
        return len(self._windows)

    def __repr__(self) -> str:
        by_document = isinstance(self._windows, DocumentDataset)
        cuts = f"by_document=True, overlap={self.overlap}" if by_document else f"stride={self.stride}"
        counts = f"{len(self):,} samples of {self.num_tokens:,} tokens"
        return f"TransformerDataset(seq_length={self.seq_length}, {cuts}: {counts})"

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one sample, as tensors; a negative index counts from the end.

        Raises:
            IndexError: there is no such sample.
        """
        return self._windows[index]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """Give several samples, as torch's DataLoader asks for them."""
        return self._windows.__getitems__(indices)

    @property
    def fingerprint(self) -> str:
        """What the samples are: the tokens and how they are cut."""
        return self._windows.fingerprint

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole stream."""
        return len(self._windows.bin)

    @property
    def lengths(self) -> np.ndarray | None:
        """With by_document, tokens of every sample, int64 [len(self)]; else None: all have seq_length."""
        return self._windows.lengths if isinstance(self._windows, DocumentDataset) else None

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray] | list[dict[str, np.ndarray]]:
        """Gather the samples of ids, int64 [n]: int64 [n, seq_length] each; with by_document, a list of samples."""
        return self._windows.fetch(ids)

    def _use(self, windows: TokenDataset | DocumentDataset) -> None:
        self._windows = windows
        if isinstance(windows, DocumentDataset):
            # Only then: a loader takes a dataset that has a `collate` for one whose samples do not stack.
            self.collate = windows.collate

    def __getstate__(self) -> dict[str, Any]:
        names = ("seq_length", "stride", "overlap", "_windows")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The windows travel as a path, and without the tokenizer: it has done its work.
        windows = state.pop("_windows")
        self.__dict__.update(state)
        self._use(windows)
