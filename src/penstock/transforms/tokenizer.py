"""Text to ids and back, one face for every kind of tokenizer.

Two engines stand behind it. The *reference* is the library the tokenizer was made for; its ids are
right by definition, and it encodes single texts and decodes. The *fast* engine, where there is one
for the tokenizer, encodes flat batches of documents. Its law: it gives the reference's ids, for any
number of threads; `verify` checks that on documents at hand, and each tokenizing run begins with it.

    data uint8 [N], offsets int64 [n + 1] ──encode_flat──▶ ids uint32 [T], offsets int64 [n + 1]

Text is text: "<|endoftext|>" or "[CLS]" inside a document is spelled out like any other characters,
by every engine. Special tokens come from the caller, or on request.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from penstock.errors import ConfigError, FormatError
from penstock.transforms import tokenizer_json
from penstock.transforms.gigatoken import CannotBeFast, GigatokenEngine
from penstock.transforms.tokenizer_engine import Reference, check_flat, check_text, flatten
from penstock.transforms.tokenizer_source import Source, open_source
from penstock.transforms.tokenizer_unicode import newer_documents
from penstock.types import check_choice, check_int

if TYPE_CHECKING:
    import torch

EngineName = Literal["auto", "fast", "reference"]


class Tokenizer:
    """A tokenizer, opened by `Tokenizer.from_pretrained`.

    It can be pickled: its content travels, so the receiving process needs no file. Threads may
    share one.

    Args:
        source: the tokenizer's content.
        engine: see `from_pretrained`.
    """

    def __init__(self, source: Source, engine: EngineName = "auto") -> None:
        check_choice("engine", engine, ("auto", "fast", "reference"))
        self._source = source
        self._engine = engine
        self._reference = _open_reference(source)
        self._fast = None if engine == "reference" else _open_fast(source, required=engine == "fast")

    @classmethod
    def from_pretrained(cls, path_or_name: str | os.PathLike[str], *, engine: EngineName = "auto") -> Tokenizer:
        """Open a tokenizer.

        Args:
            path_or_name: a folder with tokenizer.json, or with vocab.json and merges.txt (byte-level
                BPE); a tokenizer.json, .tiktoken or .model (SentencePiece) file; "bytes"; "gpt2" or
                another tiktoken encoding, from tiktoken's own cache; else a Hub name "owner/name",
                the only case that uses the network.
            engine: "auto" encodes batches by the fast engine if it computes this tokenizer exactly,
                else by the reference; "fast" refuses to do without; "reference" never uses it.

        Raises:
            ObjectMissing: the path does not exist.
            ConfigError: no such name, a package is missing, or engine="fast" and there is none.
            FormatError: the file is damaged or not what its name says.

        >>> Tokenizer.from_pretrained("bytes").encode("hé")
        [104, 195, 169]
        """
        return cls(open_source(path_or_name), engine)

    @property
    def name(self) -> str:
        """The published name, or the name of the file or folder it was read from."""
        return self._source.name

    @property
    def fingerprint(self) -> str:
        """Digest of all that decides ids (blake2b-128, hex): the same wherever the tokenizer lies."""
        return _fingerprint(self._source)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, special tokens included."""
        return self._reference.vocab_size

    def get_vocab_size(self) -> int:
        """Same as `vocab_size`, under the name the tokenizers library uses."""
        return self.vocab_size

    @property
    def eot_id(self) -> int | None:
        """The id that ends a text (`<|endoftext|>`, `</s>`, `<eos>`), or None if the tokenizer defines none."""
        return self._reference.eot_id

    @property
    def engine(self) -> str:
        """The package that encodes batches: "gigatoken", or the reference's."""
        return (self._fast or self._reference).library

    def encode(self, text: str, add_special_tokens: bool = False) -> list[int]:
        """Encode one text.

        Args:
            text: any text; special tokens spelled out in it are text.
            add_special_tokens: put the tokenizer's own around it: [CLS] and [SEP], BOS and EOS.

        Raises:
            FormatError: the text holds a lone surrogate.
        """
        return self._reference.encode(check_text(text), add_special_tokens=bool(add_special_tokens))

    def __call__(self, text: str, add_special_tokens: bool = False) -> dict[str, list[int]]:
        """Encode one text and give what models are fed: input_ids, attention_mask, token_type_ids."""
        ids = self.encode(text, add_special_tokens)
        return {"input_ids": ids, "attention_mask": [1] * len(ids), "token_type_ids": [0] * len(ids)}

    def decode(self, ids: Iterable[int] | np.ndarray | torch.Tensor) -> str:
        """Give the text of ids, special tokens spelled out; bytes that form no character become U+FFFD.

        Args:
            ids: integers, or a numpy array or tensor [n] of them, on any device.

        Raises:
            ConfigError: an id is outside the vocabulary, or unused in it; an array has another shape.
        """
        if (ndim := getattr(ids, "ndim", 1)) != 1:
            raise ConfigError(f"ids must be those of one text, got an array of {ndim} axes: decode its rows one by one")
        # Tensors and arrays give Python's integers this way, and in one copy.
        listed: Iterable[Any] = ids.tolist() if hasattr(ids, "tolist") else ids
        try:
            return self._reference.decode([check_int("id", i, minimum=0, maximum=self.vocab_size - 1) for i in listed])
        except KeyError as error:
            raise ConfigError(f"{self.name} has no token for the id {error}") from None

    def encode_batch(self, texts: Sequence[str], *, num_threads: int | None = None) -> list[list[int]]:
        """Encode texts, one list of ids for each; see `encode_flat`."""
        if isinstance(texts, str):
            raise ConfigError("texts must be a sequence of strings, got one string")
        ids, offsets = self.encode_flat(*flatten(texts), num_threads=num_threads)
        return [row.tolist() for row in np.split(ids, offsets[1:-1])] if len(texts) else []

    def encode_flat(
        self, data: np.ndarray, offsets: np.ndarray, *, num_threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode documents from flat buffers, without a Python object for any of them.

        Args:
            data: uint8 [N], UTF-8.
            offsets: int64 [n + 1]; document i is data[offsets[i]:offsets[i + 1]], valid UTF-8 by itself.
            num_threads: 1 stays on the calling thread. None takes one for each core, or 1 inside a
                worker process, where the cores are shared already. Other numbers are a limit for
                engines that take one, and mean one for each core for the others (gigatoken,
                tokenizers). The ids are the same for all of them.

        Returns:
            ids uint32 [T] and offsets int64 [n + 1] from 0: document i is ids[offsets[i]:offsets[i + 1]].

        Raises:
            ConfigError: the arrays are not of this form.
            FormatError: a document is no UTF-8, where the engine looks (gigatoken does not).

        Cost: hundreds of MB/s with the fast engine on a few cores, ten or so with a reference.
            Memory: 4 bytes an id, and the words the fast engine remembers: some 100 MB for ordinary
            text, up to 2 GB where no word comes twice.
        """
        check_flat(data, offsets)
        threads = self._threads(num_threads)
        if self._fast is None:
            return self._reference.encode_flat(data, offsets, threads)
        ids, ends = self._fast.encode_flat(data, offsets, threads)
        if not self._fast.splits_by_unicode:
            return ids, ends
        newer = newer_documents(data, offsets)
        if not newer.size:
            return ids, ends
        picked = _picked(data, offsets, newer)
        return _spliced(ids, ends, newer, *self._reference.encode_flat(*picked, threads))

    def verify(self, data: np.ndarray, offsets: np.ndarray) -> int:
        """Compare the fast engine with the reference on documents.

        Returns:
            How many documents were compared: 0 if the tokenizer has no fast engine.

        Raises:
            FormatError: they differ; the message names the first document and token that do.
        """
        check_flat(data, offsets)
        if self._fast is None:
            return 0
        got, ends = self.encode_flat(data, offsets)
        want, want_ends = self._reference.encode_flat(data, offsets, self._threads(None))
        if np.array_equal(ends, want_ends) and np.array_equal(got, want):
            return len(offsets) - 1
        raise FormatError(self._difference(got, ends, want, want_ends))

    def _difference(self, got: np.ndarray, ends: np.ndarray, want: np.ndarray, want_ends: np.ndarray) -> str:
        for document in range(len(ends) - 1):
            fast = got[ends[document] : ends[document + 1]].tolist()
            right = want[want_ends[document] : want_ends[document + 1]].tolist()
            if fast != right:
                break
        at = next((i for i, (a, b) in enumerate(zip(fast, right, strict=False)) if a != b), min(len(fast), len(right)))
        return (
            f"tokenizer {self.name}: {self.engine} and {self._reference.library} differ in document {document} at "
            f"token {at}: {fast[at : at + 4]} against {right[at : at + 4]} (lengths {len(fast)} and {len(right)}). "
            f"Nothing that {self.engine} gave for this tokenizer can be trusted: open it with "
            'engine="reference", slower and right.'
        )

    def _threads(self, num_threads: int | None) -> int | None:
        if num_threads is not None:
            return check_int("num_threads", num_threads, minimum=1)
        return 1 if multiprocessing.parent_process() is not None else None

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[Source, EngineName]]:
        return type(self), (self._source, self._engine)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, engine={self.engine!r})"


def _open_reference(source: Source) -> Reference:
    if source.kind == "json":
        from penstock.transforms.huggingface import HuggingFaceEngine

        return HuggingFaceEngine(source.content, source.eos)
    if source.kind == "ranks":
        from penstock.transforms.tiktoken import TiktokenEngine

        return TiktokenEngine(source.encoding, source.content)
    if source.kind == "sentencepiece":
        from penstock.transforms.sentencepiece import SentencePieceEngine

        return SentencePieceEngine(source.content)
    from penstock.transforms.raw_bytes import BytesEngine

    return BytesEngine()


def _open_fast(source: Source, *, required: bool) -> GigatokenEngine | None:
    if source.kind == "bytes":
        return None  # its reference is as fast as copying
    try:
        if source.kind == "json":
            return GigatokenEngine.from_json(source.content)
        if source.kind == "ranks":
            return GigatokenEngine.from_ranks(source.encoding, source.content)
        return GigatokenEngine.from_sentencepiece(source.content)
    except CannotBeFast as error:
        if required:
            raise ConfigError(f'{source.name} has no fast engine: {error}. Use engine="auto".') from error
        return None


def _fingerprint(source: Source) -> str:
    content = source.content
    if source.kind == "json":
        content = tokenizer_json.canonical(tokenizer_json.parse(content))
    # gpt2 and r50k_base are two names of one thing.
    encoding = "gpt2" if source.encoding == "r50k_base" else source.encoding
    digest = blake2b(digest_size=16, person=b"penstock-tok-v1")
    for part in (source.kind.encode(), encoding.encode(), content):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _picked(data: np.ndarray, offsets: np.ndarray, documents: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Copy some documents into flat buffers of their own."""
    parts = [data[offsets[i] : offsets[i + 1]] for i in documents.tolist()]
    return np.concatenate(parts), np.concatenate([[0], np.cumsum([part.size for part in parts])]).astype(np.int64)


def _spliced(
    ids: np.ndarray, ends: np.ndarray, documents: np.ndarray, new_ids: np.ndarray, new_ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Replace the ids of some documents."""
    pieces, start = [], 0
    for row, document in enumerate(documents.tolist()):
        pieces += [ids[start : ends[document]], new_ids[new_ends[row] : new_ends[row + 1]]]
        start = int(ends[document + 1])
    lengths = np.diff(ends)
    lengths[documents] = np.diff(new_ends)
    return np.concatenate([*pieces, ids[start:]]), np.concatenate([[0], np.cumsum(lengths)])
