"""`penstock tokenize` and `penstock tokenizer train`: text to token bins, and the tokenizer for it."""

from __future__ import annotations

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
DocumentsOption = Annotated[Documents | None, typer.Option(help="What a document of a .txt file is; default: file.")]
OnErrorOption = Annotated[
    OnError, typer.Option(help="A row that can't be used ends the run, or is counted and passed over.")
]
SOURCE_HELP = "A file, folder or glob of .txt, .jsonl, .json or .parquet, plain or .gz or .zst."


def tokenize(
    source: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help=f"{SOURCE_HELP} Or SPLIT=SOURCE for each split.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the bins.")],
    tokenizer: Annotated[str, typer.Option(help="A tokenizer.json, .tiktoken or .model, a folder, gpt2 or bytes.")],
    splits: Annotated[str | None, typer.Option(help="Make these only, as train,validation; default: all.")] = None,
    val_fraction: Annotated[
        float, typer.Option(help="Share of the train rows that become the validation split.")
    ] = 0.0,
    text_field: TextField = "text",
    documents: DocumentsOption = None,
    eot: Annotated[bool, typer.Option("--eot", help="End each document with the end-of-text token.")] = False,
    on_error: OnErrorOption = OnError.raise_,
    num_workers: Annotated[
        int | None, typer.Option(help="Threads that encode; default: as many as are worth it.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the hash that picks the validation rows.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Rebuild bins that are there.")] = False,
) -> None:
    """Turn text into token bins; run it again to go on after an interruption."""
    from penstock.prep.tokenize import tokenize as run

    reports = run(
        _source(source),
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
    source: Annotated[list[str], typer.Argument(metavar="SOURCE...", help=SOURCE_HELP)],
    out: Annotated[Path, typer.Argument(help="The tokenizer.json to write, or a folder for it.")],
    vocab_size: Annotated[int, typer.Option(help="Ids wanted: 256 bytes, special tokens, and merges.")],
    text_field: TextField = "text",
    documents: DocumentsOption = None,
    on_error: OnErrorOption = OnError.raise_,
    min_frequency: Annotated[int, typer.Option(help="A pair seen less often is not merged.")] = 2,
) -> None:
    """Learn a byte-level BPE tokenizer from text."""
    from penstock.formats.sources import find_files
    from penstock.formats.text import iter_strings
    from penstock.prep.train_tokenizer import train_tokenizer

    texts = iter_strings(
        find_files(source),
        text_field=text_field,
        documents="file" if documents is None else documents.value,
        on_error=on_error.value,
    )
    learned = train_tokenizer(texts, vocab_size, out, min_frequency=min_frequency)
    typer.echo(f"{learned.name}: {learned.vocab_size:,} ids")


def _source(places: list[str]) -> str | list[str] | Mapping[str, list[str]]:
    """Read SPLIT=SOURCE arguments as a mapping; others are one source."""
    named = [place.partition("=") for place in places if "=" in place and not Path(place).exists()]
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
