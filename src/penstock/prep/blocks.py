"""Files of records to a folder of blocks.

    files ──open_records──▶ batches of JSON lines ──write_records──▶ StreamingBlockWriter ──▶ blocks, manifest

Law: the manifest holds a place in the source with every block, so a run that goes on reads what no
complete block has, no line twice and none left out.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from penstock.errors import ConfigError
from penstock.formats.block_manifest import ASSETS_FOLDER, MANIFEST_NAME, DatasetBlockInfo, read_block_manifest
from penstock.formats.block_records import write_records
from penstock.formats.block_writer import StreamingBlockWriter
from penstock.formats.library_records import LibraryRecords
from penstock.formats.records import OnNan, Records, open_records
from penstock.formats.sources import Source
from penstock.formats.text import OnError
from penstock.prep.source_change import refuse_change, refuse_other_files
from penstock.progress import Meter


def process_raw_dataset_to_blocks(
    input_path: Source,
    output_dir: str | os.PathLike[str],
    dataset_name: str,
    block_size: int = 100_000,
    log_callback: Callable[[str], None] | None = None,
    *,
    compression: str | None = None,
    on_error: OnError = "raise",
    on_nan: OnNan = "raise",
    show_progress: bool = False,
) -> DatasetBlockInfo:
    """Turn files into blocks; called again after an interruption it goes on, and when all is done does nothing.

    Args:
        input_path: a file, folder or glob of .jsonl, .json, .csv, .tsv, .txt (one sample a line that is not
            empty), each also .gz or .zst; .parquet; .arrow, or a folder that `datasets` saved. Files of a folder
            in sorted order; they are only read.
        output_dir: folder for the dataset.
        dataset_name: goes into the manifest.
        block_size: samples of every block but the last.
        log_callback: called with a line of text for every complete block and for every row passed over, the
            first hundred of each batch.
        compression: None, or "zstd".
        on_error: "raise" ends the run at a row that is no record, with its file and line; "skip" counts it by
            reason in the manifest's `counts`.
        on_nan: what NaN and infinities do, which JSON has not: "raise" makes their row no record, "null" writes null
            and counts.
        show_progress: draw a bar, or print a line now and then, on standard error.

    Raises:
        ObjectMissing: there is no such source.
        ObjectChanged: the source is not the one the folder was begun from, or changed while it was read.
        ConfigError: an argument can't work, or differs from what the folder was begun with.
        BadRecord, BadBlock: a row, or a file, can't be used.
        StoreError: the disk is full, or can't be written; complete blocks stay.
    """
    folder = Path(output_dir)
    records = open_records(input_path, on_error=on_error, on_nan=on_nan, assets=folder / ASSETS_FOLDER)
    _refuse_own_output(records, folder)
    refuse_other_source(records, folder)
    # What to do with bad rows is no part of it: a run that was stopped by one may go on passing over them.
    source = {"files": records.signature}
    writer = StreamingBlockWriter(
        folder, dataset_name, block_size, log_callback, compression=compression, source=source
    )
    with writer, Meter(f"writing {dataset_name}", unit="samples", show=show_progress) as meter:
        if not writer.is_finished:
            for batch, written in write_records(records, writer):
                meter.add(written)
                if log_callback is not None:
                    for row in batch.listed:
                        log_callback(f"skipped {row.file}:{row.line}: {row.reason}")
            refuse_change(records.files)
        return writer.finalize()


def refuse_other_source(records: Records | LibraryRecords, folder: Path) -> None:
    """Refuse a folder that was begun from other files, naming the first.

    Raises:
        ObjectChanged: see above.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return
    info = read_block_manifest(folder)
    begun = (info.source or {}).get("from")
    if info.blocks and isinstance(begun, dict) and "files" in begun:
        refuse_other_files(begun["files"], records.signature, folder)


def _refuse_own_output(records: Records, folder: Path) -> None:
    """Refuse a source that lies in the folder to be written: a second run would read what the first one wrote."""
    target = folder.absolute()
    inside = next((file for file in records.files if file.url is None and _lies_in(Path(file.path), target)), None)
    if inside is not None:
        raise ConfigError(f"the source {inside.path} lies in the output folder {folder}; choose another folder")


def _lies_in(path: Path, folder: Path) -> bool:
    return folder in path.absolute().parents
