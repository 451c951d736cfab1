"""Find datasets on the Hub, and say what can be done with them here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from penstock.errors import ConfigError
from penstock.store.hub import hub_endpoint, hub_search
from penstock.types import check_int

MODALITIES: Mapping[str, str | None] = {
    "All": None,
    "Text": "modality:text",
    "Audio": "modality:audio",
    "Image": "modality:image",
    "Video": "modality:video",
    "Tabular": "modality:tabular",
    "Document": "modality:document",
    "Geospatial": "modality:geospatial",
    "Time-series": "modality:timeseries",
    "3D": "modality:3d",
}
"""What a search can be narrowed to, and the Hub's tag for it."""

_SUPPORT: Mapping[str, tuple[bool, str]] = {
    "Text": (True, "yes"),
    "Audio": (True, "yes: a transform decodes each sample's file"),
    "Image": (True, "yes: a transform decodes each sample's file"),
    "Video": (True, "yes: a transform decodes each sample's file"),
    "Document": (False, "after its text has been extracted"),
}
_PAGE = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundDataset:
    """A public dataset of the Hub."""

    name: str
    """ORG/NAME: `hf://` before it is what `download_dataset` takes."""
    downloads: int
    """In the last 30 days."""
    likes: int
    modalities: tuple[str, ...]
    """Names as in MODALITIES."""
    description: str
    """The first lines of its card, on one line."""
    last_modified: str | None
    """ISO 8601, in UTC."""
    url: str


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingSupport:
    """Whether penstock can feed a kind of data to training."""

    modality: str
    ready: bool
    note: str
    """In words: "yes", "not yet", or what has to happen first."""


def modality_tag(modality: str | None) -> str | None:
    """Give the Hub's tag of a modality; None for None and "All".

    Raises:
        ConfigError: no such modality; says which there are.

    >>> modality_tag("Time-series"), modality_tag("text"), modality_tag("All")
    ('modality:timeseries', 'modality:text', None)
    """
    return MODALITIES[_known(modality)]


def training_support(modality: str) -> TrainingSupport:
    """Say whether penstock can train on a modality today.

    Raises:
        ConfigError: no such modality; says which there are.

    >>> training_support("Document").note
    'after its text has been extracted'
    """
    name = _known(modality)
    if MODALITIES[name] is None:
        able = ", ".join(other for other, (can, _) in _SUPPORT.items() if can)
        return TrainingSupport(modality=name, ready=True, note=f"{able}: yes; others not yet")
    ready, note = _SUPPORT.get(name, (False, "not yet"))
    return TrainingSupport(modality=name, ready=ready, note=note)


def search_datasets(
    query: str, limit: int = 50, modality: str | None = None, *, endpoint: str | None = None
) -> list[FoundDataset]:
    """Search the Hub for datasets that anyone may download, those most downloaded first.

    Private datasets and those behind a gate are left out, however many that leaves to look through.

    Args:
        query: words that the dataset's name has; "" for all.
        limit: most datasets to give.
        modality: a name from MODALITIES, in any case; None: all.
        endpoint: the Hub; None: HF_ENDPOINT, else the public one.

    Raises:
        ConfigError: an unknown modality, a limit below 1.
        StoreUnavailable: the Hub can't be reached.
    """
    check_int("limit", limit, minimum=1)
    if not isinstance(query, str):
        raise ConfigError(f"query must be a string, got {query!r:.80}")
    tag = modality_tag(modality)
    asked: dict[str, Any] = {"sort": "downloads", "limit": min(_PAGE, max(limit, 10))}
    if query.strip():
        asked["search"] = query.strip()
    if tag:
        asked["filter"] = tag
    found: list[FoundDataset] = []
    for entry in hub_search(asked, endpoint=endpoint):
        if entry.get("private") or entry.get("gated") or entry.get("disabled"):
            continue
        found.append(_found(entry, hub_endpoint(endpoint)))
        if len(found) == limit:
            break
    return found


def _known(modality: str | None) -> str:
    if modality is None:
        return "All"
    for name in MODALITIES:
        if isinstance(modality, str) and _plain(name) == _plain(modality):
            return name
    raise ConfigError(f"modality must be one of {', '.join(MODALITIES)}; got {modality!r}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).lower()


def _found(entry: Mapping[str, Any], endpoint: str) -> FoundDataset:
    tags = set(entry.get("tags") or ())
    name = str(entry["id"])
    return FoundDataset(
        name=name,
        downloads=int(entry.get("downloads") or 0),
        likes=int(entry.get("likes") or 0),
        modalities=tuple(modality for modality, tag in MODALITIES.items() if tag in tags),
        description=" ".join(str(entry.get("description") or "").split()),
        last_modified=entry.get("lastModified"),
        url=f"{endpoint}/datasets/{name}",
    )
