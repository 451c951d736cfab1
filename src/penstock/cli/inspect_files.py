"""What a file holds, found out without reading more of it than needed: one function for each kind."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from penstock.errors import PenstockError
from penstock.formats.sources import SourceFile, source_file
from penstock.formats.streams import BLOCK_BYTES, end_of_last_line, iter_blocks, lines_of
from penstock.formats.tables import table_errors
from penstock.formats.token_writer import read_journal
from penstock.formats.tokens import TokenBin, open_bin

if TYPE_CHECKING:
    from penstock.transforms.tokenizer import Tokenizer

JsonDict = dict[str, Any]
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt")
TOKENIZER_SUFFIXES = (".tiktoken", ".model")
TEXT_CHARACTERS = 200
_FIELD_ROWS = 100
_LOADER_KEYS = {"version", "epoch", "samples", "order", "fingerprint"}
_DECODED_TOKENS = 200
_LOCAL_NAMES = {"gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base", "bytes"}


def describe_bin(path: Path, *, tokenizer: str | None = None, dtype: str | None = None, rows: int = 3) -> JsonDict:
    """Describe a token file, with the texts of its first documents if its tokenizer can be found.

    Args:
        path: the .bin.
        tokenizer: what decodes it. None: the one it was made with, if that lies beside it or needs no file.
        dtype: type of a bare file.
        rows: first documents to show.

    Raises:
        PenstockError: as `open_bin`; or `tokenizer` is given and can't be opened.
    """
    source = open_bin(path, dtype=dtype)
    meta = source.meta or {}
    num_documents = None if source.doc_ends is None else len(source.doc_ends)
    facts: JsonDict = {
        "kind": "token bin" if source.meta else "bare token file: dtype and content are as the reader believes",
        "path": os.fspath(path),
        "tokens": len(source),
        "bytes": source.tokens.nbytes,
        "dtype": source.dtype.name,
        "documents": num_documents,
        "tokens_per_document": round(len(source) / num_documents, 1) if num_documents else None,
        "tokenizer": meta.get("tokenizer"),
        "special_tokens": meta.get("special_tokens"),
        "counts": meta.get("counts"),
        "fingerprint": source.fingerprint,
    }
    opened = _tokenizer_of(source, tokenizer) if rows else None
    facts["first_documents"] = [_document(source, opened, start, stop) for start, stop in _first_spans(source, rows)]
    if rows and opened is None:
        facts["note"] = "the tokenizer is not at hand, so ids stay ids: --tokenizer PATH decodes them"
    return facts


def describe_unfinished(path: Path) -> str:
    """Say how far the parts of a .bin have come."""
    journal = read_journal(path)
    if journal is None:
        return "nothing committed yet; run the same command again"
    return (
        f"{journal.num_tokens:,} tokens of {journal.num_documents:,} documents so far; "
        "run the same command again to go on"
    )


def _first_spans(source: TokenBin, rows: int) -> list[tuple[int, int]]:
    if source.doc_ends is None:
        return [(0, min(len(source), _DECODED_TOKENS))] if rows and len(source) else []
    ends = [0, *source.doc_ends[:rows].tolist()]
    return list(itertools.pairwise(ends))


def _document(source: TokenBin, tokenizer: Tokenizer | None, start: int, stop: int) -> JsonDict:
    ids = source.tokens[start : min(stop, start + _DECODED_TOKENS)].tolist()
    document: JsonDict = {"tokens": stop - start, "ids": ids[:8]}
    if tokenizer is not None:
        document["text"] = _cut(tokenizer.decode(ids))
    return document


def _tokenizer_of(source: TokenBin, name: str | None) -> Tokenizer | None:
    """Open the tokenizer that is asked for, or else the very one that made the bin, from nearby."""
    from penstock.transforms.tokenizer import Tokenizer

    if name is not None:
        return Tokenizer.from_pretrained(name)
    if source.meta is None:
        return None
    made_by = source.meta["tokenizer"]
    folder = source.path.absolute().parent
    places = [place for place in (folder / "tokenizer.json", folder.parent / "tokenizer.json") if place.is_file()]
    names = [made_by["name"]] if made_by["name"] in _LOCAL_NAMES else []
    for candidate in (*places, *names):
        try:
            opened = Tokenizer.from_pretrained(candidate)
        except PenstockError:
            continue  # a file that is no tokenizer, or ranks that are not on this machine
        if opened.fingerprint == made_by["fingerprint"]:
            return opened
    return None


def describe_sources(files: Sequence[SourceFile], *, rows: int = 3) -> JsonDict:
    """Describe text files of one kind: how many rows, which fields, and the first rows."""
    first = files[0]
    count, fields, shown = (_table if first.kind == "parquet" else _lines)(files, rows)
    return {
        "kind": {"text": "text", "jsonl": "JSON lines", "json": "JSON", "parquet": "Parquet"}[first.kind],
        "path": os.fspath(first.path) if len(files) == 1 else os.fspath(os.path.commonpath([f.path for f in files])),
        "files": len(files),
        "bytes": sum(file.size_bytes for file in files),
        "lines" if first.kind == "text" else "rows": count,
        "fields": fields,
        "first_rows": shown,
    }


def _table(files: Sequence[SourceFile], rows: int) -> tuple[int, JsonDict, list[Any]]:
    import pyarrow.parquet as pq

    count, fields, shown = 0, {}, list[Any]()
    for file in files:
        with table_errors(file.place), pq.ParquetFile(file.path) as table:
            count += table.metadata.num_rows
            if file is files[0]:
                fields = {column.name: str(column.type) for column in table.schema_arrow}
                for batch in table.iter_batches(batch_size=max(1, rows)):
                    shown = batch.to_pylist()[:rows]
                    break
    return count, fields, [short(row) for row in shown]


def _lines(files: Sequence[SourceFile], rows: int) -> tuple[int, JsonDict | None, list[Any]]:
    """Count the lines that are not empty; look into the first ones."""
    wanted = max(rows, _FIELD_ROWS) if files[0].kind != "text" else rows
    first = list(itertools.islice(_raw_lines(files[0]), wanted))
    count = sum(_count_lines(file) for file in files)
    if files[0].kind == "text":
        return count, None, [_cut(line.decode(errors="replace")) for line in first]
    if files[0].kind == "json" and len(first) == 1:
        return _json_value(first[0], rows)
    records = [_record(line) for line in first]
    return count, _fields(records), [short(record) for record in records[:rows]]


def _count_lines(file: SourceFile) -> int:
    count = 0
    for block, _ in iter_blocks(file, 0, BLOCK_BYTES, end_of_last_line):
        starts, ends = lines_of(block)
        count += int((ends > starts).sum())
    return count


def _raw_lines(file: SourceFile) -> Iterator[bytes]:
    for block, _ in iter_blocks(file, 0, 1 << 20, end_of_last_line):
        for start, end in zip(*lines_of(block), strict=True):
            if end > start:
                yield block[start:end].tobytes()


def _json_value(line: bytes, rows: int) -> tuple[int, JsonDict, list[Any]]:
    """Describe a .json file that is one line: a list of records, or one."""
    value = _record(line)
    records = value if isinstance(value, list) else [value]
    return len(records), _fields(records[:_FIELD_ROWS]), [short(record) for record in records[:rows]]


def _record(line: bytes) -> Any:
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return f"no JSON ({error}): {_cut(line.decode(errors='replace'))}"


def _fields(records: Sequence[Any]) -> JsonDict:
    """Give the types that each key has in these records."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, value in record.items() if isinstance(record, dict) else ():
            found.setdefault(name, {})[type(value).__name__] = None
    return {name: " | ".join(types) for name, types in found.items()}


def describe_checkpoint(path: Path) -> JsonDict:
    """Describe a file of tensors: a training checkpoint by its parts, else what lies under each of its names."""
    from penstock.train.checkpoints import FORMAT_NAME, best_val_loss, load_checkpoint

    states = load_checkpoint(path)
    facts: JsonDict = {"path": os.fspath(path), "bytes": path.stat().st_size}
    if isinstance(states, dict) and states.get("format") == FORMAT_NAME:
        extra = {
            name: value if isinstance(value, int | float | str) else "…" for name, value in states["extra"].items()
        }
        parts = [name for name in ("model", "optimizer", "scheduler", "loader", "rng") if states[name] is not None]
        return {
            "kind": "training checkpoint",
            **facts,
            "step": states["step"],
            "parts": parts,
            **_tensors(states["model"]),
            "loader": states["loader"],
            "extra": extra,
        }
    if not isinstance(states, dict):
        return {"kind": "torch file", **facts, "holds": _part(states)}
    if not any(hasattr(value, "numel") for value in states.values()):
        return {"kind": "torch file", **facts, "holds": {str(name): _part(value) for name, value in states.items()}}
    try:
        loss = best_val_loss(path)
    except PenstockError:
        loss = None  # saved by something else, which is no fault
    return {"kind": "state_dict", **facts, "validation_loss": loss, **_tensors(states)}


def _part(value: Any) -> str:
    """Say what lies under a name of a checkpoint."""
    if isinstance(value, dict) and value.keys() >= _LOADER_KEYS:
        return f"loader state: epoch {value['epoch']}, {value['samples']:,} samples"
    tensors = list(_tensors_in(value))
    if tensors:
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        count = f"{len(tensors):,} tensor{'s' * (len(tensors) > 1)}"
        return f"{count}, {sum(tensor.numel() for tensor in tensors):,} numbers, {num_bytes:,} bytes"
    if isinstance(value, dict | list | tuple):
        return f"{type(value).__name__} of {len(value):,}"
    return _cut(f"{type(value).__name__} {value!r}")


def _tensors_in(value: Any) -> Iterator[Any]:
    """Give the tensors in nested dicts and lists."""
    if hasattr(value, "numel"):
        yield value
    elif isinstance(value, dict | list | tuple):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _tensors_in(inner)


def _tensors(states: JsonDict) -> JsonDict:
    tensors = {name: value for name, value in states.items() if hasattr(value, "numel")}
    shown = {
        name: f"{' × '.join(map(str, value.shape))} {str(value.dtype).removeprefix('torch.')}"
        for name, value in tensors.items()
    }
    return {"parameters": sum(value.numel() for value in tensors.values()), "tensors": shown}


def describe_tokenizer(path: Path) -> JsonDict:
    """Describe a tokenizer file."""
    from penstock.transforms.tokenizer import Tokenizer

    opened = Tokenizer.from_pretrained(path)
    return {
        "kind": "tokenizer",
        "path": os.fspath(path),
        "name": opened.name,
        "vocab_size": opened.vocab_size,
        "end_of_text": "none" if opened.eot_id is None else opened.eot_id,
        "engine": opened.engine,
        "fingerprint": opened.fingerprint,
    }


def describe_json(path: Path, *, rows: int = 3) -> JsonDict:
    """Describe a .json file: a loader's state, a tokenizer, or records."""
    # What these two kinds of files are is plain from the keys of one object; anything longer is a source.
    head = _record(path.read_bytes()) if path.stat().st_size < BLOCK_BYTES else None
    if isinstance(head, dict) and head.keys() >= _LOADER_KEYS:
        return {"kind": "loader state", "path": os.fspath(path), **head}
    if isinstance(head, dict) and isinstance(head.get("model"), dict) and "vocab" in head["model"]:
        return {**describe_tokenizer(path), "model": head["model"].get("type")}
    if isinstance(head, dict):
        return {"kind": "JSON object", "path": os.fspath(path), "fields": _fields([head]), "first_rows": [short(head)]}
    return describe_sources([source_file(path)], rows=rows)


def short(value: Any) -> Any:
    """Cut long texts in a value, and make all of it JSON."""
    if isinstance(value, dict):
        return {name: short(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [short(inner) for inner in value[:8]]
    return value if value is None or isinstance(value, bool | int | float) else _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= TEXT_CHARACTERS else f"{text[: TEXT_CHARACTERS - 1]}…"
