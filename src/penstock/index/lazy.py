"""An index that is not built: Parquet files whose rows are read when they are needed.

What has to be known at the start is how many rows each row group has. One process of a node reads that, from
the footers; the others take it from a file. So an index of any size is there in seconds. What is not looked at
can't be checked: that keys are there and differ is left to who wrote them.
"""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from penstock.errors import BadManifest, ConfigError, ObjectMissing
from penstock.formats.files import digest, read_json, store_errors, write_json
from penstock.formats.sources import SourceFile
from penstock.index.joined import JoinedSource
from penstock.index.lazy_rows import LazyPlan, blocks_of
from penstock.index.leading import leading
from penstock.index.parquet import ParquetSource
from penstock.index.parquet_groups import read_footers
from penstock.index.scan import Source, unified
from penstock.types import check_int

VERSION = 1
_MANIFEST = "lazy.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """How an index is read part by part."""

    chunk_size: int
    """Least rows of a part, where a file has so many; row groups are not cut."""
    num_threads: int
    """Parts that a process reads at the same time."""
    prefetch_factor: int
    """Parts that are read ahead for each of them."""

    def __post_init__(self) -> None:
        check_int("lazy_index_chunk_size", self.chunk_size, minimum=1)
        check_int("lazy_index_num_threads", self.num_threads, minimum=1)
        check_int("lazy_index_prefetch_factor", self.prefetch_factor, minimum=0)


def parts_of(chunk_size: int | None, num_threads: int, prefetch_factor: int) -> Parts | None:
    """Say how an index is read part by part; None, without a size of parts: it is not."""
    if chunk_size is None:
        return None
    return Parts(chunk_size=chunk_size, num_threads=num_threads, prefetch_factor=prefetch_factor)


def plan_lazily(
    source: Source,
    columns_of: Callable[[pa.Schema, str], pa.Schema],
    parts: Parts,
    folder: Path,
    storage_options: Mapping[str, Any] | None,
    timeout_s: float,
) -> tuple[LazyPlan, str]:
    """Find out how many rows Parquet files have, and plan how they are read.

    Args:
        source: one Parquet file, or several.
        columns_of: chooses columns, and their types.
        parts: how they are read.
        folder: where indexes of this node lie; parts that were read lie there for a while.
        storage_options: see `open_store`.
        timeout_s: how long to wait for another process that is reading the footers.

    Returns:
        The plan, and a digest of what the files hold.

    Raises:
        ConfigError: it is not Parquet; a column is missing; or there are no rows.
        BadBlock, StoreError: a file is damaged, or can't be read.
    """
    files, options = _parquet_files(source), dict(storage_options or {})
    signature = source.signature()
    place = folder / digest(orjson.dumps([VERSION, "lazy", source.place, source.base]))
    known = _known(place, signature)
    if known is None:
        with store_errors(place):
            place.mkdir(parents=True, exist_ok=True)
        with leading(place, timeout_s):
            known = _known(place, signature) or _write(place, source, files, signature, options)
    schema = columns_of(pa.ipc.read_schema(pa.py_buffer(base64.b64decode(known["schema"]))), source.place)
    blocks = blocks_of([np.array(groups, np.int64) for groups in known["sizes"]], parts.chunk_size)
    if not blocks:
        raise ConfigError(f"{source.place} has no rows; there is nothing to index")
    what = digest(orjson.dumps([parts.chunk_size, schema.to_string()]))
    plan = LazyPlan(
        files=files,
        blocks=blocks,
        schema=schema,
        folder=_blocks_folder(place, signature) / what,
        count=sum(block.rows for block in blocks),
        threads=parts.num_threads,
        ahead=parts.prefetch_factor,
        storage_options=options,
    )
    return plan, digest(orjson.dumps([known["digests"], sorted(schema.names)]))


def _parquet_files(source: Source) -> tuple[SourceFile, ...]:
    """Give the files of a source that is Parquet and nothing else."""
    sources = source.sources if isinstance(source, JoinedSource) else [source]
    other = next((one for one in sources if not isinstance(one, ParquetSource)), None)
    if other is not None:
        raise ConfigError(
            f"{other.place} is not Parquet, and only that can be read part by part: write the index as Parquet, or "
            "leave lazy_index_chunk_size out"
        )
    return tuple(one.file for one in sources if isinstance(one, ParquetSource))


def _blocks_folder(place: Path, signature: list[Any]) -> Path:
    return place / f"blocks-{digest(orjson.dumps(signature))}"


def _known(place: Path, signature: list[Any]) -> dict[str, Any] | None:
    """Read what is known of the files, if it is still true."""
    try:
        known = read_json(place / _MANIFEST)
    except (ObjectMissing, BadManifest):
        return None
    return known if isinstance(known, dict) and known.get("signature") == signature else None


def _write(
    place: Path, source: Source, files: tuple[SourceFile, ...], signature: list[Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """Read the footers, and write down what they say."""
    footers = read_footers(files, options)
    schema = unified([footer.schema for footer in footers], source.place)
    known = {
        "signature": signature,
        "schema": base64.b64encode(schema.serialize().to_pybytes()).decode(),
        "sizes": [footer.sizes.tolist() for footer in footers],
        "digests": [footer.digest for footer in footers],
    }
    write_json(place / _MANIFEST, known)
    for old in place.glob("blocks-*"):
        if old != _blocks_folder(place, signature):
            shutil.rmtree(old, ignore_errors=True)
    return known
