"""Documents packed into sequences of one length: as little padding as there can be, and none cut that fits.

sequence      a a a a b b c c c ·        seq_len 10
input_ids     a a a a b b c c c 0        0: pad_id
labels        a a a ✗ b ✗ c c ✗ ✗        ✗: -100, nothing is predicted across documents
position_ids  0 1 2 3 0 1 0 1 2 0        where a new run begins: what `cu_seqlens` finds
document_ids  0 0 0 0 1 1 2 2 2 3        for a mask: attend where they are equal
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.datasets.answers import as_tensors
from penstock.datasets.documents import documents_digest, ends_of_documents
from penstock.datasets.ids import check_id, check_ids
from penstock.errors import BadBlock, ConfigError, PlanError
from penstock.formats.tokens import docs_path, open_bin
from penstock.plan.packing import PACKING_NAME, WINDOW, pack
from penstock.transforms.pad import IGNORED
from penstock.transforms.reused_buffers import ReusedBuffers
from penstock.types import check_int

if TYPE_CHECKING:
    import torch


class PackedDataset:
    """Sequences of `seq_len` tokens, each made of whole documents of a token bin.

    Every token is in exactly one sequence, and every token after the first of its document is a target exactly once.
    Only documents longer than seq_len are cut; their pieces have positions of their own, and the last token of a
    piece still predicts the next one. What goes together is decided by `penstock.plan.packing`, inside
    fixed windows of documents: it depends on nothing but their lengths.

    Args:
        path: a .bin with its .docs beside it, as `penstock tokenize` writes them.
        seq_len: tokens per sample.
        window: documents that are packed together; more fill better, and fewer stay nearer to each other.
        pad_id: id that fills what is left of a sequence; labels there are -100.
        dtype: "uint16" or "uint32", for a bare file of the latter.

    Raises:
        ConfigError: the bin has no .docs, or no token.
        ObjectMissing, BadBlock, BadManifest: as `penstock.formats.tokens.open_bin`.

    A sample is a dict of int64 [seq_len] each: `input_ids`, `labels`, `position_ids` and `document_ids` (numbered
    from 0 in their sequence; padding has the next number). Opening reads the .docs, not the tokens: about
    0.5 µs a document; 13 bytes a piece and 12 a sequence are kept. `fetch` costs 4 to 7 ns a token.
    """

    inline = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        seq_len: int,
        *,
        window: int = WINDOW,
        pad_id: int = 0,
        dtype: str | np.dtype | type | None = None,
    ) -> None:
        self.seq_len = check_int("seq_len", seq_len, minimum=1, maximum=2**31 - 1)
        self.window = check_int("window", window, minimum=1)
        self.pad_id = check_int("pad_id", pad_id, minimum=0)
        self.bin = open_bin(path, dtype=dtype)
        # A memmap's own indexing runs Python code for every slice; its plain view does not.
        self._tokens = self.bin.tokens.view(np.ndarray)
        try:
            self._packing = pack(ends_of_documents(self.bin), self.seq_len, window=self.window)
        except PlanError as error:
            place = docs_path(self.bin.path)
            raise BadBlock(f"{place}: {error}; rebuild the bin, or restore the file") from error
        if not len(self._packing):
            raise ConfigError(f"{self.bin.path} has no token, so there is nothing to pack")
        begins = np.concatenate([np.zeros(1, np.int64), self._packing.ends[:-1]])
        self._spaces = self.seq_len - np.add.reduceat(self._packing.lengths, begins)  # int32 [S], padding of each
        self._buffers = {name: ReusedBuffers() for name in _COLUMNS}

    def __len__(self) -> int:
        """Count the sequences."""
        return len(self._packing)

    def __repr__(self) -> str:
        what = f"seq_len={self.seq_len}: {len(self):,} samples, {self.fill:.2%} full"
        return f"PackedDataset({str(self.bin.path)!r}, {what})"

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one sample as tensors of its own.

        Raises:
            IndexError: there is no such sequence.
        """
        return self.__getitems__([check_id(index, len(self), self.bin.path)])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """Give several samples, as torch's DataLoader asks for them."""
        return as_tensors(self.fetch(np.asarray(indices, np.int64)))

    @property
    def fill(self) -> float:
        """Share of all places that hold a token, the rest being padding."""
        return self._packing.fill

    @property
    def block_ends(self) -> np.ndarray:
        """Sequences up to and with each window, int64 [windows]: for shuffles that stay near."""
        return self._packing.window_ends

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the tokens, their documents, and how they are packed."""
        how = f"{PACKING_NAME}:{self.seq_len}:{self.window}:{self.pad_id}"
        return f"{self.bin.fingerprint}:documents{documents_digest(self.bin)}:{how}"

    def fetch(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Make the samples of ids, int64 [n]: int64 [n, seq_len] each.

        Raises:
            IndexError: there is no such sequence.
        """
        check_ids(ids, len(self), self.bin.path)
        packing = self._packing
        firsts = np.where(ids > 0, packing.ends[ids - 1], 0)
        spaces = self._spaces[ids]
        # What is left of a row is laid out as one more piece, of padding.
        counts = packing.ends[ids] - firsts + (spaces > 0)
        numbers = _ranges(counts)
        rows = np.flatnonzero(spaces)
        paddings = np.cumsum(counts)[rows] - 1
        pieces = np.repeat(firsts, counts) + numbers
        pieces[paddings] = 0
        starts, lengths, goes_on = packing.starts[pieces], packing.lengths[pieces], packing.goes_on[pieces]
        starts[paddings], lengths[paddings], goes_on[paddings] = 0, spaces[rows], False
        columns = self._laid_out((len(ids), self.seq_len), numbers, starts, lengths, goes_on)
        for row, space in zip(rows.tolist(), spaces[rows].tolist(), strict=True):
            columns["input_ids"][row, self.seq_len - space :] = self.pad_id
            columns["labels"][row, self.seq_len - space :] = IGNORED
        return columns

    def _laid_out(
        self, shape: tuple[int, int], numbers: np.ndarray, starts: np.ndarray, lengths: np.ndarray, goes_on: np.ndarray
    ) -> dict[str, np.ndarray]:
        """Lay pieces, [K] each, side by side into rows."""
        tokens, stops = self._tokens, np.cumsum(lengths, dtype=np.int64)
        columns = {name: buffers.take(shape) for name, buffers in self._buffers.items()}
        ids, labels, places, documents = (column.reshape(-1) for column in columns.values())
        at = np.arange(len(ids))
        np.subtract(at, np.repeat(stops - lengths, lengths), out=places)
        documents[:] = np.repeat(numbers, lengths)
        at += np.repeat(starts - (stops - lengths), lengths)
        # Padding reads on from token 0, which may be past the end.
        ids[:] = tokens.take(at, mode="clip")
        labels[:-1] = ids[1:]
        labels[stops - 1] = IGNORED
        labels[stops[goes_on] - 1] = tokens[starts[goes_on] + lengths[goes_on]]
        return columns

    def __getstate__(self) -> dict[str, Any]:
        names = ("seq_len", "window", "pad_id")
        return {"path": self.bin.path, "dtype": self.bin.dtype.name, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The receiving process maps the files itself, so a dataset travels as a path.
        self.__init__(**state)  # type: ignore[misc]


_COLUMNS = ("input_ids", "labels", "position_ids", "document_ids")


def cu_seqlens(position_ids: torch.Tensor) -> torch.Tensor:
    """Give where documents begin in a flattened batch, as attention kernels for many lengths want it.

    Args:
        position_ids: int64 [B, L] of a batch.

    Returns:
        int32 [K + 1] on the same device, from 0 to B · L: run k is [k, k + 1). Padding at a row's end is one run.

    >>> import torch
    >>> cu_seqlens(torch.tensor([[0, 1, 0, 1, 2], [0, 1, 2, 3, 0]])).tolist()
    [0, 2, 5, 9, 10]
    """
    import torch

    flat = position_ids.flatten()
    starts = (flat == 0).nonzero().flatten()
    return torch.cat([starts, starts.new_tensor([len(flat)])]).to(torch.int32)


def _ranges(counts: np.ndarray) -> np.ndarray:
    """Concatenate 0, 1, … of each count.

    >>> _ranges(np.array([2, 3])).tolist()
    [0, 1, 0, 1, 2]
    """
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
