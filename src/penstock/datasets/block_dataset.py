"""Samples by id over a folder of blocks, local or remote: for shuffled, resumable training from JSON lines."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from penstock.datasets.ids import check_id, check_ids
from penstock.errors import BadRecord, ConfigError, ObjectChanged
from penstock.formats.block_reader import MAPPED_BYTES, BlockReader
from penstock.formats.files import digest
from penstock.store.urls import lasting
from penstock.transforms.collate import stack
from penstock.transforms.pad import pad
from penstock.types import check_int

FIRST_ROWS = 100
NEAR = 0.75
"""How alike a field that the first samples lack is to one they have, for it to be taken for a slip of the pen."""


class BlockDataset:
    """The samples of a folder of blocks, by id, read where they lie.

    Opening reads the manifest, so it takes the same time for any number of samples. A call of `fetch` reads one
    byte range a sample and parses all of them at once; samples that follow each other are one read.

    Args:
        path: the folder of the blocks, of this or an older layout, or the URL of one that has a manifest.
        fields: names of the fields to keep; those that a sample lacks are None. None: samples as they are. One that
            the first hundred samples lack is refused if it is nearly the name of one that they have.
        ascii_only: leave out samples whose text is not ASCII. Their ids stay: such a sample is None, and the
            loader counts it as filtered.
        text_column: field that holds the text. None: the one the manifest names.
        pad_id: id that fills the shorter rows of a batch whose samples a transform has tokenized.
        mapped_bytes: a local dataset of up to so many bytes is mapped into memory, which reads up to twice as
            fast; of a larger one, or with 0, nothing stays in this process's memory.
        storage_options: for the store of a remote folder, see `penstock.open_store`.

    Raises:
        ObjectMissing: there is no such folder.
        ConfigError: an argument cannot work, or the folder holds no blocks or no samples.
        BadManifest, BadBlock: what is there contradicts itself.

    A sample is the JSON object of its line, a dict. One that can't be read raises BadRecord with its file and line, or
    BadBlock with its file, when it is asked for.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fields: Sequence[str] | None = None,
        ascii_only: bool = False,
        text_column: str | None = None,
        pad_id: int = 0,
        mapped_bytes: int = MAPPED_BYTES,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if not isinstance(path, str | os.PathLike):
            raise ConfigError(f"path must be a folder of blocks or its URL, got {path!r}")
        if isinstance(fields, str) or (fields is not None and not all(isinstance(name, str) for name in fields)):
            raise ConfigError(f"fields must be a list of names, or None for all fields, got {fields!r}")
        self.path = lasting(path)
        self.fields = None if fields is None else tuple(fields)
        self.ascii_only = self.filters = bool(ascii_only)
        self.pad_id = check_int("pad_id", pad_id, minimum=0)
        self._text_column = text_column
        self._mapped_bytes = check_int("mapped_bytes", mapped_bytes, minimum=0)
        self._storage_options = dict(storage_options or {})
        self._open()
        if not len(self):
            raise ConfigError(f"{self.path} holds no samples: look at it with `penstock inspect`")
        if self.fields:
            self._check_fields(self.fields)
        if self._reader.info is not None and not self._reader.info.finished:
            warnings.warn(
                f"{self.path} is not finished: these are the {len(self):,} samples that are there so far. Run again "
                "what writes it, and it goes on",
                RuntimeWarning,
                stacklevel=2,
            )

    def __len__(self) -> int:
        """Count the samples."""
        return self._size

    def __repr__(self) -> str:
        return f"BlockDataset({self.path!r}: {len(self):,} samples in {len(self.blocks):,} blocks)"

    def __getitem__(self, index: int) -> dict[str, Any] | None:
        """Give one sample.

        Raises:
            IndexError: there is no such sample.
            BadRecord, BadBlock: it can't be read.
        """
        return self.fetch(np.array([check_id(index, len(self), self.path)]))[0]

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any] | None]:
        """Give several samples, as torch's DataLoader asks for them."""
        return self.fetch(np.asarray(indices, np.int64))

    @property
    def blocks(self) -> tuple[int, ...]:
        """Count the samples of every block."""
        return tuple(self._reader.counts.tolist())

    @property
    def block_ends(self) -> np.ndarray:
        """Where each block's samples end, int64 [blocks]: for `shuffle="window"`."""
        return self._reader.ends

    @cached_property
    def lengths(self) -> np.ndarray:
        """Bytes of every sample's line, int64 [len(self)]; read when first asked for."""
        return self._reader.lengths()

    @cached_property
    def fingerprint(self) -> str:
        """What the samples are: the blocks' checksums, and what is kept of them."""
        kept = [self._reader.fingerprint(), self.fields, self.ascii_only and self.text_column]
        return digest(repr(kept).encode())

    @property
    def inline(self) -> bool:
        """Whether reading is so quick that working ahead would not pay: local blocks."""
        return self._reader.is_local

    @cached_property
    def text_column(self) -> str | None:
        """The field that holds the text."""
        return self._text_column or self._reader.text_column()

    def fetch(self, ids: np.ndarray) -> list[dict[str, Any] | None]:
        """Read the samples of ids, int64 [n]; None in the place of one that is filtered.

        Raises:
            IndexError: there is no such sample.
            BadRecord, BadBlock: one can't be read.
        """
        check_ids(ids, len(self), self.path)
        rows: list[Any] = self._reader.gather(ids)
        if self.ascii_only:
            rows = [row if is_ascii(row.get(self.text_column)) else None for row in rows]
        if self.fields is not None:
            rows = self._projected(rows, self.fields)
        return rows

    def collate(self, samples: list[dict[str, Any]]) -> dict[str, Any]:
        """Stack samples; those that a transform has tokenized are padded to the longest of the batch."""
        tokenized = isinstance(samples[0], Mapping) and isinstance(samples[0].get("input_ids"), np.ndarray)
        batch: dict[str, Any] = pad(samples, pad_id=self.pad_id) if tokenized else stack(samples)
        return batch

    def close(self) -> None:
        """Let go of the blocks' files; they are opened again when they are needed."""
        self._reader.close()

    def _open(self) -> None:
        self._reader = BlockReader(self.path, mapped_bytes=self._mapped_bytes, storage_options=self._storage_options)
        self._size = len(self._reader)

    def _check_fields(self, fields: tuple[str, ...]) -> None:
        """Refuse fields that the first samples show to be mistaken: nearly a name that they have, or all unknown."""
        try:
            known = list({name: None for row in self._reader.read(0, 0, FIRST_ROWS) for name in row})
        except BadRecord:
            # Whoever asks for that sample is told.
            return
        missing = [name for name in fields if name not in known]
        for name in missing if known else ():
            near = difflib.get_close_matches(name, known, n=1, cutoff=NEAR)
            if near or len(missing) == len(fields):
                hint = f"did you mean {near[0]!r}?" if near else f"they have {', '.join(map(repr, known[:20]))}"
                raise ConfigError(f"fields has {name!r}, which none of the first samples of {self.path} has; {hint}")

    @staticmethod
    def _projected(rows: Iterable[dict[str, Any] | None], fields: tuple[str, ...]) -> list[dict[str, Any] | None]:
        if len(fields) == 1:
            (name,) = fields
            return [None if row is None else {name: row.get(name)} for row in rows]
        return [None if row is None else {name: row.get(name) for name in fields} for row in rows]

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in self.__dict__.items() if name not in ("_reader", "lengths")}
        return {**kept, "fingerprint": self.fingerprint}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # The receiving process opens the blocks itself, and must find the same.
        expected = state.pop("fingerprint")
        self.__dict__.update(state)
        self._open()
        if self.fingerprint != expected:
            raise ObjectChanged(f"{self.path} holds other blocks than when this dataset was opened: open it again")


def is_ascii(text: Any) -> bool:
    """Whether a sample's text is ASCII; one that is no text is not judged."""
    return not isinstance(text, str) or text.isascii()
