"""A ledger as one JSON file, `chunk_tracker_state.json`: to look at, to keep, and to begin a new ledger from.

format_version, brain_id, dataset_name, ledger_id, sequence, chunk_size (null if nobody said)
total_optimizer_steps … total_blocks_in_dataset    as get_progress_stats counts them, for people
epochs             [{epoch, sequence}]: after which number each began
blocks             [{epoch, block_id, chunks}]: those asked for so far
partial_chunks     [{epoch, block_id, chunk_id, sample_offset, sequence}]: begun, and not complete
completed_chunks   [{epoch, block_id, chunk_id, gpu_id, optimizer_step, steps, sequence}], in their order
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from penstock.errors import BadManifest, LedgerError
from penstock.formats.files import read_json, write_json
from penstock.ledger.ledger import Completion, Progress, Snapshot

FORMAT_VERSION = 1

_EPOCH = ("epoch", "sequence")
_BLOCK = ("epoch", "block_id", "chunks")
_PARTIAL = ("epoch", "block_id", "chunk_id", "sample_offset", "sequence")
_COMPLETED = ("epoch", "block_id", "chunk_id", "gpu_id", "optimizer_step", "steps", "sequence")


def write(path: Path, snapshot: Snapshot, progress: Progress, brain_id: str, dataset_name: str) -> None:
    """Write an export, whole or not at all.

    Raises:
        StoreError: the folder is missing, may not be written, or its disk is full.
    """
    write_json(
        path,
        {
            "format_version": FORMAT_VERSION,
            "brain_id": brain_id,
            "dataset_name": dataset_name,
            "ledger_id": snapshot.ledger_id,
            "sequence": snapshot.sequence,
            "chunk_size": snapshot.chunk_size,
            "current_epoch": snapshot.epoch,
            "total_optimizer_steps": progress.optimizer_step,
            "total_steps": progress.steps,
            "total_chunks_trained": progress.chunks_done,
            "blocks_started": progress.blocks_started,
            "blocks_completed": progress.blocks_completed,
            "blocks_this_epoch": progress.blocks_completed_this_epoch,
            "total_blocks_in_dataset": snapshot.num_blocks,
            "epochs": [dict(zip(_EPOCH, row, strict=True)) for row in snapshot.epochs],
            "blocks": [dict(zip(_BLOCK, row, strict=True)) for row in snapshot.blocks],
            "partial_chunks": [dict(zip(_PARTIAL, row, strict=True)) for row in snapshot.partial],
            "completed_chunks": [{name: getattr(one, name) for name in _COMPLETED} for one in snapshot.completions],
        },
    )


def read(path: Path, brain_id: str, dataset_name: str) -> Snapshot:
    """Read an export.

    Raises:
        ObjectMissing: there is no such file.
        BadManifest: it is no export, a newer one, or contradicts itself.
        LedgerError: it belongs to another brain or dataset.
    """
    found = read_json(path)
    if not isinstance(found, dict) or "completed_chunks" not in found:
        raise BadManifest(f"{path} is JSON, but no export of a ledger: there is no list completed_chunks in it")
    if found.get("format_version") != FORMAT_VERSION:
        raise BadManifest(
            f"{path} has export format {found.get('format_version')!r}, this penstock reads {FORMAT_VERSION}: it was "
            "written by a newer one"
        )
    if (found.get("brain_id"), found.get("dataset_name")) != (brain_id, dataset_name):
        raise LedgerError(
            f"{path} is the export of brain {found.get('brain_id')!r} and dataset {found.get('dataset_name')!r}, this "
            f"tracker is of {brain_id!r} and {dataset_name!r}"
        )
    try:
        snapshot = _snapshot(found)
        _check(snapshot)
    except (KeyError, TypeError, ValueError) as error:
        raise BadManifest(
            f"{path} is no whole export ({type(error).__name__}: {error}): it was edited or damaged; use an older one"
        ) from error
    return snapshot


def _snapshot(found: dict[str, Any]) -> Snapshot:
    return Snapshot(
        ledger_id=found["ledger_id"],
        epoch=found["current_epoch"],
        sequence=found["sequence"],
        num_blocks=found["total_blocks_in_dataset"],
        chunk_size=found["chunk_size"],
        epochs=[(row["epoch"], row["sequence"]) for row in found["epochs"]],
        blocks=[(row["epoch"], row["block_id"], row["chunks"]) for row in found["blocks"]],
        partial=[
            (row["epoch"], row["block_id"], row["chunk_id"], row["sample_offset"], row["sequence"])
            for row in found["partial_chunks"]
        ],
        completions=[Completion(**{name: row[name] for name in _COMPLETED}) for row in found["completed_chunks"]],
    )


def _check(snapshot: Snapshot) -> None:
    """Hold an export to what every ledger keeps: each chunk at most once, inside its block, numbers in order."""
    chunks = {(epoch, block): count for epoch, block, count in snapshot.blocks}
    units = [(one.epoch, one.block_id, one.chunk_id) for one in snapshot.completions]
    begun = [row[:3] for row in snapshot.partial]
    if len({*units, *begun}) != len(units) + len(begun):
        raise ValueError("a chunk is listed twice")
    for epoch, block, chunk in (*units, *begun):
        if not 0 <= chunk < chunks[epoch, block]:
            raise ValueError(f"block {block} of epoch {epoch} has no chunk {chunk}")
    numbers = [one.sequence for one in snapshot.completions]
    if sorted(set(numbers)) != numbers or (numbers and numbers[-1] > snapshot.sequence):
        raise ValueError("the sequence numbers are not in order")
    if snapshot.epoch not in (epoch for epoch, _ in snapshot.epochs):
        raise ValueError(f"epoch {snapshot.epoch} is not among the epochs")
