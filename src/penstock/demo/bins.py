"""The demo's first half: from text to a tokenizer and token bins with a validation split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.demo.corpus import write_python_corpus
from penstock.demo.settings import BINS
from penstock.formats.sources import SourceFile, by_split, find_files
from penstock.formats.text import Documents, iter_strings
from penstock.formats.tokens import open_bin
from penstock.prep.tokenize import SplitReport, tokenize
from penstock.prep.train_tokenizer import train_tokenizer
from penstock.transforms.tokenizer import Tokenizer

CORPUS, TOKENIZER = "corpus.jsonl", "tokenizer.json"
VOCAB_SIZE = 2048
VAL_FRACTION = 0.06
MAX_LEARNED_CHARACTERS = 32_000_000
"""Text that a tokenizer is learned from; more of it hardly changes the merges."""
_MEASURED_TOKENS = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Bins:
    """What has been made, from what."""

    source: str
    is_python: bool
    """Whether the corpus is Python's own documentation."""
    tokenizer: Tokenizer
    splits: dict[str, SplitReport]
    bytes_per_token: float
    """Of the validation text."""
    first_ids: list[int]
    """The first token of the validation text."""

    def describe(self) -> dict[str, Any]:
        """Give what a report says of it, as JSON values."""
        return {
            "source": self.source,
            "documents": sum(split.num_documents for split in self.splits.values()),
            "train_tokens": self.splits["train"].num_tokens,
            "validation_tokens": self.splits["validation"].num_tokens,
            "tokenizer": self.tokenizer.name,
            "vocab_size": self.tokenizer.vocab_size,
            "bytes_per_token": self.bytes_per_token,
        }


def make_bins(
    out: Path,
    corpus: Path | Mapping[str, Path] | None,
    tokenizer: Tokenizer | None,
    text_field: str,
    *,
    name: str,
    say: Callable[[str, str, str], None],
) -> Bins:
    """Write `out/bins/{train,validation}.bin`, and the corpus and tokenizer where none is given.

    Args:
        out: the demo's folder.
        corpus: a source of text, or one for each split; None is Python's own documentation.
        tokenizer: what the bins are made with; None learns one from the corpus.
        text_field: key of the text in JSON records, column of it in tables.
        name: what the corpus is called.
        say: is told number, name and words of each stage.
    """
    say("1", "text", name)
    if corpus is None:
        write_python_corpus(out / CORPUS)
    source = corpus or out / CORPUS
    groups = _groups(source)
    files = [file for group in groups.values() for file in group]
    documents: Documents | None = "paragraph" if any(file.kind == "text" for file in files) else None
    say("2", "tokenizer", f"learning a byte-level BPE of {VOCAB_SIZE:,}" if tokenizer is None else tokenizer.name)
    if tokenizer is None:
        texts = iter_strings(files, text_field=text_field, documents=documents or "file")
        tokenizer = train_tokenizer(_first(texts, MAX_LEARNED_CHARACTERS), VOCAB_SIZE, out / TOKENIZER)
    say("3", "bins", str(out / BINS))
    splits = tokenize(
        source,
        out / BINS,
        tokenizer=tokenizer,
        splits=("train", "validation"),
        val_fraction=0.0 if "validation" in groups else VAL_FRACTION,
        text_field=text_field,
        documents=documents,
        eot=tokenizer.eot_id is not None,
    )
    ids = open_bin(splits["validation"].path).tokens[:_MEASURED_TOKENS].tolist()
    return Bins(
        source="Python's own documentation" if corpus is None else name,
        is_python=corpus is None,
        tokenizer=tokenizer,
        splits=splits,
        bytes_per_token=len(tokenizer.decode([i for i in ids if i != tokenizer.eot_id]).encode()) / max(1, len(ids)),
        first_ids=ids[:1],
    )


def _groups(source: Path | Mapping[str, Path]) -> dict[str, list[SourceFile]]:
    """Find the files of each split."""
    if isinstance(source, Mapping):
        return {split: find_files(place) for split, place in source.items()}
    return by_split(find_files(source))


def _first(texts: Iterator[str], num_characters: int) -> Iterator[str]:
    for text in texts:
        yield text
        num_characters -= len(text)
        if num_characters <= 0:
            return
