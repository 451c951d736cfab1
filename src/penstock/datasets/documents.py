"""Windows that never cross a document.

    tokens   a a a a a a a │ b b │ c c c c        seq_len 3
    windows  ╰───╯                                inputs aaa, labels aaa
                   ╰───╯                          inputs aaa, labels aaa
                             ╰╯                   inputs b, labels b
                                   ╰───╯          inputs ccc, labels ccc

With overlap 0 every token after the first of its document is a target exactly once an epoch.
"""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from penstock.datasets.ids import check_id, check_ids
from penstock.errors import BadBlock, ConfigError
from penstock.formats.files import digest
from penstock.formats.tokens import TokenBin, docs_path, open_bin
from penstock.transforms.pad import pad
from penstock.types import check_int

if TYPE_CHECKING:
    import torch


class DocumentDataset:
    """Windows of at most `seq_len` tokens over the documents of a token bin: inputs, and labels shifted by one.

    A document of n tokens has n - 1 pairs of a token and the next one. They are cut into windows of
    seq_len pairs, each starting seq_len - overlap after the one before; the last window is as long
    as what is left. Documents of fewer than two tokens have no pair, and so no window.

    Samples differ in length, so `fetch` gives a list, and `collate` pads a batch to its longest
    sample. `lengths` lets a loader put like lengths together: `StreamingDataLoader(…, length_bucket=…)`.

    Args:
        path: a .bin with its .docs beside it, as `penstock tokenize` writes them.
        seq_len: most tokens per sample.
        overlap: tokens that a window of a long document repeats from the one before, below seq_len. The pairs
            inside it are targets twice: less than `overlap` tokens of context before a target then only
            occur at a document's start.
        pad_id: id that fills `input_ids` in a batch; labels are filled with -100.
        dtype: "uint16" or "uint32", for a bare file of the latter.

    Raises:
        ConfigError: the bin has no .docs, or no document of two tokens.
        ObjectMissing, BadBlock, BadManifest: as `penstock.formats.tokens.open_bin`.

    A sample is {"input_ids": int64 [n], "labels": int64 [n]}, 1 <= n <= seq_len: arrays from `fetch`, tensors
    from indexing. Opening costs time and 8 bytes of memory for each document; `fetch` about 1 µs a sample
    and 0.4 ns a token.
    """

    inline = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        seq_len: int,
        *,
        overlap: int = 0,
        pad_id: int = 0,
        dtype: str | np.dtype | type | None = None,
    ) -> None:
        self.seq_len = check_int("seq_len", seq_len, minimum=1)
        self.overlap = check_int("overlap", overlap, minimum=0, maximum=self.seq_len - 1)
        self.pad_id = check_int("pad_id", pad_id, minimum=0)
        self.bin = open_bin(path, dtype=dtype)
        # A memmap's own indexing runs Python code for every slice; its plain view does not.
        self._tokens = self.bin.tokens.view(np.ndarray)
        self._doc_ends = ends_of_documents(self.bin)
        self._step = self.seq_len - self.overlap
        self._window_ends = np.cumsum(self._num_windows(self._num_pairs()))  # [D], windows up to and with document d
        if not len(self._window_ends) or self._window_ends[-1] == 0:
            raise ConfigError(f"{self.bin.path} has no document of two tokens, so there is nothing to predict")

    def __len__(self) -> int:
        """Count the windows."""
        return int(self._window_ends[-1])

    def __repr__(self) -> str:
        what = f"seq_len={self.seq_len}, overlap={self.overlap}: {len(self):,} samples"
        return f"DocumentDataset({str(self.bin.path)!r}, {what} of {len(self._doc_ends):,} documents)"

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Give one sample, as tensors.

        Raises:
            IndexError: there is no such window.
        """
        return self.__getitems__([check_id(index, len(self), self.bin.path)])[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, torch.Tensor]]:
        """Give several samples, as torch's DataLoader asks for them; its `collate_fn` should be `collate`."""
        import torch

        rows = self.fetch(np.asarray(indices, np.int64))
        return [{name: torch.from_numpy(values) for name, values in row.items()} for row in rows]

    @property
    def fingerprint(self) -> str:
        """What the samples are: the tokens, their documents, and how they are cut."""
        return f"{self.bin.fingerprint}:documents{self._documents_digest}:{self.seq_len}:{self.overlap}"

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of every sample, int64 [len(self)]; made when first asked for."""
        pairs = self._num_pairs()
        counts = self._num_windows(pairs)
        lengths = np.full(len(self), self.seq_len, np.int64)
        has = counts > 0
        lengths[self._window_ends[has] - 1] = pairs[has] - (counts[has] - 1) * self._step
        return lengths

    @cached_property
    def _documents_digest(self) -> str:
        return documents_digest(self.bin)

    def fetch(self, ids: np.ndarray) -> list[dict[str, np.ndarray]]:
        """Read the samples of ids, int64 [n]; inputs and labels of one share memory.

        Raises:
            IndexError: there is no such window.
        """
        check_ids(ids, len(self), self.bin.path)
        documents = np.searchsorted(self._window_ends, ids, side="right")  # [n]
        windows = ids - self._before(self._window_ends, documents)
        starts = self._before(self._doc_ends, documents) + windows * self._step
        stops = np.minimum(starts + self.seq_len + 1, self._doc_ends[documents].astype(np.int64))
        ends = np.cumsum(stops - starts)
        flat, tokens, at = np.empty(int(ends[-1]) if len(ends) else 0, np.int64), self._tokens, 0
        samples = []
        for start, stop, end in zip(starts.tolist(), stops.tolist(), ends.tolist(), strict=True):
            row = flat[at:end]
            row[:] = tokens[start:stop]
            samples.append({"input_ids": row[:-1], "labels": row[1:]})
            at = end
        return samples

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Pad a batch to its longest sample and add `attention_mask`: see `penstock.transforms.pad`."""
        return pad(samples, pad_id=self.pad_id)

    def _num_pairs(self) -> np.ndarray:
        """Pairs of a token and the next one, per document, int64 [D]."""
        lengths = np.diff(self._doc_ends.astype(np.int64), prepend=0)
        if (lengths < 0).any():
            raise BadBlock(f"{docs_path(self.bin.path)}: document ends go down; rebuild the bin, or restore the file")
        return np.maximum(lengths - 1, 0)

    def _num_windows(self, pairs: np.ndarray) -> np.ndarray:
        """Windows per document, int64 [D]: one, and one more for each step until nothing is left."""
        return np.where(pairs > 0, 1 - np.minimum(0, self.seq_len - pairs) // self._step, 0)

    def _before(self, ends: np.ndarray, documents: np.ndarray) -> np.ndarray:
        """Give the end of the document before each: where each starts, int64 [n]."""
        return np.where(documents > 0, ends[documents - 1], 0).astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        names = ("seq_len", "overlap", "pad_id")
        return {"path": self.bin.path, "dtype": self.bin.dtype.name, **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The receiving process maps the files itself, so a dataset travels as a path.
        self.__init__(**state)  # type: ignore[misc]


def ends_of_documents(source: TokenBin) -> np.ndarray:
    """Give where the documents of a bin end, uint64 [D]; see `TokenBin.doc_ends`.

    Raises:
        ConfigError: it has no .docs.
    """
    if source.doc_ends is None:
        raise ConfigError(
            f"{source.path} has no {docs_path(source.path).name} beside it, so where documents end is unknown: "
            "tokenize the source again, or use TokenDataset, whose windows cross documents"
        )
    return source.doc_ends.view(np.ndarray)


def documents_digest(source: TokenBin) -> str:
    """Say which documents a bin has, beyond what its fingerprint does: a side-car's checksums cover them."""
    return "" if source.meta is not None else digest(np.ascontiguousarray(ends_of_documents(source)))
