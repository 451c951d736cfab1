"""A dataset of the Hub, or of any URL, as the demo's corpus: its first samples, in blocks."""

from __future__ import annotations

from pathlib import Path

from penstock.errors import ConfigError
from penstock.formats.hub_dataset import parse_hub_reference
from penstock.formats.remote_sources import find_hub_splits, is_hub_dataset
from penstock.formats.sources import RECORD_KINDS
from penstock.prep.download import download_dataset

BLOCKS = "blocks"
VALIDATION_PART = 20
"""A validation split is this many times smaller."""
FREE_SPACE_MARGIN = 500_000_000


def fetch_dataset(out: Path, uri: str, max_samples: int, text_field: str) -> tuple[dict[str, Path], str]:
    """Download the first samples of a dataset, and some of its validation split if it has one.

    Args:
        out: the demo's folder.
        uri: what `download_dataset` takes.
        max_samples: how many, of the train split.
        text_field: key of the text; "text" where it is not there is the key that the blocks name.

    Returns:
        The folder of blocks of each split, and the key of the text.

    Raises:
        ConfigError: the dataset has no sample.
    """
    folders, field = {}, text_field
    for split, place in _splits(uri).items():
        folders[split] = out / BLOCKS / split
        info = download_dataset(
            place,
            folders[split],
            max_samples=max_samples if split == "train" else max(1, max_samples // VALIDATION_PART),
            free_space_margin=FREE_SPACE_MARGIN,
        )
        if not info.total_samples:
            raise ConfigError(f"{place} has no sample")
        if text_field == "text":
            field = info.text_column or text_field
    return folders, field


def _splits(uri: str) -> dict[str, str]:
    """Give where each split is: of a Hub dataset train and, if there is one, validation."""
    if not is_hub_dataset(uri):
        return {"train": uri}
    asked = parse_hub_reference(uri)
    found = find_hub_splits(uri, RECORD_KINDS)
    if asked.split in found and len(found) == 1:
        return {"train": uri}
    base = f"hf://{asked.repo}@{asked.revision}:{asked.config or ''}"
    return {split: f"{base}:{split}" for split in ("train", "validation") if split in found}
