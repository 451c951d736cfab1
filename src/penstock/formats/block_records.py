"""Records into blocks: from where the complete blocks end in the source, no record twice and none left out."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from penstock.formats.block_writer import NULLED, StreamingBlockWriter
from penstock.formats.records import LineBatch


class Readable(Protocol):
    """Records of a source, from a position on."""

    def read(self, start: Mapping[str, Any] | None = None) -> Iterator[LineBatch]:
        """Give the batches after a position that an earlier one named."""


def write_records(
    records: Readable, writer: StreamingBlockWriter, *, max_samples: int | None = None
) -> Iterator[tuple[LineBatch, int]]:
    """Give a writer the records that it lacks, from the source's position that it knows.

    Args:
        records: the source.
        writer: new, or resumed in a folder that was begun from the same source.
        max_samples: stop when the writer has so many. None: at the source's end.

    Yields:
        Every batch once it is written, and how many samples of it were: those that were not there before.

    Raises:
        PenstockError: as reading and writing do.
    """
    counts, skip = dict(writer.counts), writer.skip
    limit = sys.maxsize if max_samples is None else max_samples
    for batch in records.read(writer.position) if writer.total_samples < limit else ():
        # What lies between the position and the end of the last complete block is there already.
        known = min(skip, len(batch.ends))
        last = min(len(batch.ends), known + limit - writer.total_samples)
        start, stop = (int(batch.ends[place - 1]) if place else 0 for place in (known, last))
        writer.add_lines(batch.data[start:stop], batch.ends[known:last] - start)
        skip -= known
        for reason, count in (*batch.skipped.items(), (NULLED, batch.nulled)):
            if count:
                counts[reason] = counts.get(reason, 0) + count
        if not skip:
            writer.commit_source(batch.after, counts)
        yield batch, last - known
        if writer.total_samples >= limit:
            break
