"""Token bins: a text corpus as one flat file of token ids.

    train.bin    little-endian ids, no header, documents one after the other: uint16 when the
                 vocabulary has at most 65,536 entries, else uint32
    train.docs   uint64 per document: where it ends in the .bin, counted in tokens
    train.json   the side-car: dtype, counts, tokenizer, checksums of both

The .bin alone is complete, and is what any reader of the bare format expects; the other two add
types, document boundaries and proof. Opening costs the same for a megabyte and a terabyte: sizes are
compared, contents are not; `verify_bin` compares contents.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import BadBlock, BadManifest, ConfigError, ObjectMissing
from penstock.formats.files import digest, read_json

FORMAT_NAME = "penstock-tokens"
FORMAT_VERSION = 1
SEGMENT_BYTES = 16 << 20
"""Length of the pieces of a .bin that have a checksum each."""

DTYPES: dict[str, np.dtype] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
DOC_DTYPE = np.dtype("<u8")
_NO_TOKENS = {
    **dict.fromkeys((".txt", ".md", ".jsonl", ".ndjson", ".json", ".csv"), "text, tokenize it"),
    ".parquet": "a table, tokenize it",
    **dict.fromkeys((".gz", ".zst"), "compressed, tokenize or unpack it"),
}
"""What lies in files that are surely no ids, by suffix: any bytes would pass for some."""
_LISTED = 4
_NUM_SAMPLES = 64
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TokenBin:
    """An open token file: memory-mapped, so it costs page cache and no memory of the process.

    Pickling one stores its path and type; the receiving process maps the file itself.
    """

    path: Path
    tokens: np.ndarray
    """uint16 or uint32 [N], read-only."""
    doc_ends: np.ndarray | None
    """uint64 [D], read-only: document d is tokens[doc_ends[d-1]:doc_ends[d]]. None without a .docs file."""
    meta: dict[str, Any] | None
    """The side-car; None without one."""

    @property
    def dtype(self) -> np.dtype:
        """Type of the ids: uint16 or uint32."""
        return self.tokens.dtype

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def fingerprint(self) -> str:
        """What the tokens are, in 32 hex digits: the same on every host and in every folder.

        From the side-car's checksums where there is one, else from the size and 64 samples of 4 kB.
        """
        seen = blake2b(f"{FORMAT_NAME} {self.dtype.name} {len(self)}".encode(), digest_size=16)
        if self.meta is not None:
            checksums = self.meta["checksums"]
            seen.update("".join([*checksums["bin"], checksums["docs"]]).encode())
        else:
            data = self.tokens.view(np.uint8)
            for start in np.linspace(0, max(0, len(data) - _SAMPLE_BYTES), _NUM_SAMPLES, dtype=np.int64):
                seen.update(data[start : start + _SAMPLE_BYTES].tobytes())
        return seen.hexdigest()

    def __reduce__(self) -> tuple[object, ...]:
        return partial(open_bin, dtype=self.dtype.name), (self.path,)


def dtype_for(vocab_size: int) -> np.dtype:
    """Choose the type that holds every id of a vocabulary: uint16 up to 65,536 entries, else uint32.

    >>> dtype_for(65_536).name, dtype_for(65_537).name
    ('uint16', 'uint32')
    """
    return DTYPES["uint16"] if vocab_size <= 1 << 16 else DTYPES["uint32"]


def meta_path(path: Path) -> Path:
    """Give the side-car's path for a .bin's."""
    return path.with_suffix(".json")


def docs_path(path: Path) -> Path:
    """Give the document table's path for a .bin's."""
    return path.with_suffix(".docs")


def open_bin(path: str | os.PathLike[str], *, dtype: str | np.dtype | type | None = None) -> TokenBin:
    """Map a token file into memory.

    Args:
        path: the .bin; its side-car and document table are found beside it.
        dtype: "uint16" or "uint32" for a bare file. None: what the side-car says, else uint16.

    Raises:
        ObjectMissing: there is no such file.
        ConfigError: dtype is neither of the two, or contradicts the side-car; a folder; a file of text or
            a table, by its suffix, and no dtype is given.
        BadManifest: there is a side-car, and it can't be read.
        BadBlock: a file's size is not what the side-car says, or no whole number of ids.

    Cost: O(1) in the tokens. Contents are not compared with their checksums: see `verify_bin`.
    """
    path = Path(path)
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; {_instead_of(path)}")
    if not path.is_file():
        raise ObjectMissing(f"{path} does not exist; `penstock tokenize SOURCE {path.parent}` would make it")
    asked = None if dtype is None else _checked_dtype(dtype)
    if asked is None and path.suffix.lower() in _NO_TOKENS:
        raise ConfigError(
            f"{path} is {_NO_TOKENS[path.suffix.lower()]} first: `penstock tokenize SOURCE FOLDER` makes token files "
            "(dtype= reads any file as ids)"
        )
    meta = read_meta(path)
    kind = DTYPES[meta["dtype"]] if meta is not None else asked or DTYPES["uint16"]
    if asked is not None and asked != kind:
        raise ConfigError(f"{path} holds {kind.name} ids, its side-car says; dtype={asked.name!r} was asked for")
    tokens = _mapped(path, kind, None if meta is None else meta["num_tokens"])
    return TokenBin(path=path, tokens=tokens, doc_ends=_open_docs(path, meta, len(tokens)), meta=meta)


def _instead_of(folder: Path) -> str:
    """Say what to give instead of a folder."""
    bins = [str(folder / name) for name in sorted(os.listdir(folder)) if name.endswith(".bin")]
    if not bins:
        return f"give a .bin; it holds none, `penstock tokenize SOURCE {folder}` would make some"
    return f"give {' or '.join(bins[:_LISTED])}{' …' if len(bins) > _LISTED else ''}"


def read_meta(path: Path) -> dict[str, Any] | None:
    """Read and check the side-car of a .bin; None where there is none, or where the .json is someone else's.

    Raises:
        BadManifest: it is truncated, of a later format, or contradicts itself.
    """
    place = meta_path(path)
    if not place.is_file():
        return None
    meta = read_json(place)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT_NAME:
        return None
    _check_meta(place, meta)
    return meta


def _check_meta(place: Path, meta: dict[str, Any]) -> None:
    version = meta.get("format_version")
    if version != FORMAT_VERSION:
        raise BadManifest(f"{place} has format version {version!r}, this penstock reads {FORMAT_VERSION}: upgrade it")
    try:
        item = DTYPES[meta["dtype"]].itemsize
        num_tokens, num_documents, counts = int(meta["num_tokens"]), int(meta["num_documents"]), meta["counts"]
        num_segments = len(meta["checksums"]["bin"])
        skipped = sum(counts["skipped"].values())
        wrong = [
            not isinstance(meta["checksums"]["docs"], str) and "checksums.docs",
            num_segments != -(-num_tokens * item // SEGMENT_BYTES) and "number of checksums",
            counts["documents_out"] != num_documents and "num_documents",
            counts["rows_in"] != counts["documents_out"] + skipped and "counts",
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadManifest(
            f"{place} is not a whole side-car: {error!r}; rebuild the bin, or restore the file"
        ) from error
    if any(wrong):
        found = ", ".join(name for name in wrong if name)
        raise BadManifest(f"{place} contradicts itself ({found}); rebuild the bin, or restore the file")


def _checked_dtype(dtype: str | np.dtype | type) -> np.dtype:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = repr(dtype)
    if name not in DTYPES:
        raise ConfigError(f"dtype must be 'uint16' or 'uint32', got {dtype!r}")
    return DTYPES[name]


def _mapped(path: Path, dtype: np.dtype, num_items: int | None) -> np.ndarray:
    """Map a file of numbers, its size checked against the side-car's count where there is one."""
    size = path.stat().st_size
    if num_items is not None and size != num_items * dtype.itemsize:
        state = "truncated" if size < num_items * dtype.itemsize else "too long"
        raise BadBlock(
            f"{path} is {state}: {size} bytes, its side-car says {num_items * dtype.itemsize} "
            f"({num_items} × {dtype.name}); rebuild it, or restore the file"
        )
    if size % dtype.itemsize:
        raise BadBlock(f"{path} has {size} bytes, no multiple of the {dtype.itemsize} of {dtype.name}: truncated?")
    if size == 0:
        empty = np.empty(0, dtype)
        empty.flags.writeable = False
        return empty
    return np.memmap(path, dtype=dtype, mode="r")


def _open_docs(path: Path, meta: dict[str, Any] | None, num_tokens: int) -> np.ndarray | None:
    place = docs_path(path)
    if not place.is_file():
        return None
    ends = _mapped(place, DOC_DTYPE, None if meta is None else meta["num_documents"])
    last = int(ends[-1]) if len(ends) else 0
    if last != num_tokens:
        raise BadBlock(f"{place} ends at token {last}, {path.name} has {num_tokens}: they are not of one run")
    return ends


def verify_bin(path: str | os.PathLike[str]) -> None:
    """Compare a token file and its document table with the checksums of the side-car, reading all of it.

    Raises:
        BadManifest: no side-car, so nothing to compare with; or one that can't be read.
        BadBlock: a file is truncated, missing or changed; names the first bad piece.
        ObjectMissing: there is no such file.

    Cost: one read of the files, hashed on as many threads as there are cores; 16 MiB of memory a thread.
    """
    path = Path(path)
    opened = open_bin(path)
    if opened.meta is None:
        raise BadManifest(f"{path} has no side-car {meta_path(path).name}: there are no checksums to compare it with")
    checksums = opened.meta["checksums"]
    with open(path, "rb", buffering=0) as file, ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(partial(_segment_digest, file.fileno()), range(len(checksums["bin"])))
        for segment, (seen, said) in enumerate(zip(found, checksums["bin"], strict=True)):
            if seen != said:
                pool.shutdown(cancel_futures=True)
                raise BadBlock(_changed(path, seen, said, f"bytes {segment * SEGMENT_BYTES} and following"))
    if opened.doc_ends is None:
        raise BadBlock(f"{docs_path(path)} is missing; restore it, or rebuild the bin")
    seen = digest(np.ascontiguousarray(opened.doc_ends))
    if seen != checksums["docs"]:
        raise BadBlock(_changed(docs_path(path), seen, checksums["docs"], "the file"))
    if np.any(opened.doc_ends[1:] < opened.doc_ends[:-1]):
        raise BadBlock(f"{docs_path(path)}: document ends go down; rebuild the bin")


def _segment_digest(descriptor: int, segment: int) -> str:
    return digest(os.pread(descriptor, SEGMENT_BYTES, segment * SEGMENT_BYTES))


def _changed(path: Path, seen: str, said: str, where: str) -> str:
    return (
        f"{path} changed after it was written: {where} have digest {seen}, the side-car says {said}; "
        f"rebuild it, or restore the file"
    )
