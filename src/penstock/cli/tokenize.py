"""`penstock tokenize` and `penstock tokenizer train`: text to token bins, and the tokenizer for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.errors import ConfigError

if TYPE_CHECKING:
    from penstock.prep.tokenize import SplitReport


class Documents(StrEnum):
    """What a document of a .txt file is."""

    file = "file"
    line = "line"
    paragraph = "paragraph"


class OnError(StrEnum):
    """What a row does that can't be used."""

    raise_ = "raise"
    skip = "skip"


TextField = Annotated[str, typer.Option(help="Key of the text in JSON records, column of it in tables.")]
DocumentsOption = Annotated[
    Documents | None,
    typer.Option(
        help="What a document of a .txt file is; default: file. Lines and paragraphs come without the line ends "
        "and empty lines between them: --eot puts a boundary token there."
    ),
]
OnErrorOption = Annotated[
    OnError, typer.Option(help="A row that can't be used ends the run, or is counted and passed over.")
]
SOURCE_HELP = (
    "One or more: a file, folder, glob or URL of .txt, .jsonl, .json or .parquet, plain or .gz or .zst; a folder of "
    "blocks; hf://ORG/NAME[:CONFIG][:SPLIT]."
)


_SPLIT = re.compile(r"[A-Za-z0-9_-]+=")
TOKENIZERS = "a tokenizer.json, .tiktoken or .model, a folder with one, a Hub name, gpt2 or bytes"


def tokenize(
    source: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE", help=f"{SOURCE_HELP} Or SPLIT=SOURCE for each split.")
    ] = None,
    out: Annotated[Path | None, typer.Argument(metavar="OUT", help="Folder for the bins.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help=f"Needed: {TOKENIZERS}.")] = None,
    splits: Annotated[str | None, typer.Option(help="Make these only, as train,validation; default: all.")] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the train rows that become the validation split.")
    ] = 0.0,
    text_field: TextField = "text",
    documents: DocumentsOption = None,
    eot: Annotated[
        bool, typer.Option("--eot", metavar="", help="End each document with the end-of-text token.")
    ] = False,
    on_error: OnErrorOption = OnError.raise_,
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that encode; default: as many as are worth it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the hash that picks the validation rows.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", metavar="", help="Rebuild bins that are there.")] = False,
) -> None:
    """Turn text into token bins; run it again to go on after an interruption."""
    from penstock.prep.tokenize import tokenize as run

    places, out = _places(source, out, "tokenize")
    if tokenizer is None:
        raise ConfigError(f"--tokenizer is missing: give {TOKENIZERS}")
    reports = run(
        _source(places),
        out,
        tokenizer=tokenizer,
        splits=None if splits is None else [name.strip() for name in splits.split(",")],
        val_fraction=val_fraction,
        text_field=text_field,
        documents=None if documents is None else documents.value,
        eot=eot,
        on_error=on_error.value,
        num_workers=num_workers,
        seed=seed,
        overwrite=overwrite,
    )
    for split, report in reports.items():
        typer.echo(_line(split, report))
        for row in report.listed[:10]:
            typer.echo(f"  skipped {row['file']}:{row['line']}: {row['reason']}")


def train(
    vocab_size: Annotated[int, typer.Option(help="Ids wanted: 256 bytes, special tokens, and merges.")],
    source: Annotated[list[str] | None, typer.Argument(metavar="SOURCE", help=SOURCE_HELP)] = None,
    out: Annotated[
        Path | None, typer.Argument(metavar="OUT", help="The tokenizer.json to write, or a folder for it.")
    ] = None,
    text_field: TextField = "text",
    documents: DocumentsOption = None,
    on_error: OnErrorOption = OnError.raise_,
    min_frequency: Annotated[int, typer.Option(help="A pair seen less often is not merged.")] = 2,
) -> None:
    """Learn a byte-level BPE tokenizer from text."""
    from penstock.formats.sources import find_files
    from penstock.formats.text import iter_strings
    from penstock.prep.train_tokenizer import train_tokenizer

    places, out = _places(source, out, "tokenizer train")
    texts = iter_strings(
        find_files(places),
        text_field=text_field,
        documents="file" if documents is None else documents.value,
        on_error=on_error.value,
    )
    learned = train_tokenizer(texts, vocab_size, out, min_frequency=min_frequency)
    typer.echo(f"{learned.name}: {learned.vocab_size:,} ids")


def _places(source: list[str] | None, out: Path | None, command: str) -> tuple[list[str], Path]:
    """Check that there are both; the command line gives the last place to OUT, and is silent about it."""
    if source and out is not None:
        return source, out
    # OUT was read as a path, in which hf:// has lost a slash.
    given = source or ([] if out is None else [re.sub(r"^(\w{2,}):/(?!/)", r"\1://", str(out))])
    missing = f"OUT is missing: penstock {command} {' '.join(given)} OUT" if given else "SOURCE and OUT are missing"
    raise ConfigError(f"{missing}; penstock {command} --help lists all options")


def _source(places: list[str]) -> str | list[str] | Mapping[str, list[str]]:
    """Read SPLIT=SOURCE arguments as a mapping; others are one source."""
    named = [place.partition("=") for place in places if _SPLIT.match(place) and not Path(place).exists()]
    if not named:
        return places[0] if len(places) == 1 else places
    if len(named) != len(places):
        raise ConfigError("either each source is given as SPLIT=SOURCE, or none")
    groups: dict[str, list[str]] = {}
    for split, _, place in named:
        groups.setdefault(split, []).append(place)
    return groups


def _line(split: str, report: SplitReport) -> str:
    lost = f", skipped {', '.join(f'{count:,} {reason}' for reason, count in report.skipped.items())}"
    return (
        f"{split}: {report.num_tokens:,} tokens of {report.num_documents:,} documents in {report.path} "
        f"({report.status}{lost if report.skipped else ''})"
    )
